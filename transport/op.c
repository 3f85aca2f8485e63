/* SPDX-License-Identifier: Apache-2.0 */
/* op.c -- operations: slots, checks of every span, regions in use; the bytes are the provider's */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fault.h"
#include "conn.h"

_Static_assert(CONN_CHUNK * sizeof(struct tr_op) % 16 == 0, "the provider's part is aligned");

/* Further slots, and what the provider keeps with each. */
static bool make_slots(struct tr_conn *conn)
{
	struct conn_data *data = conn->data;
	size_t own = (conn->provider->op_bytes + 15) / 16 * 16;
	struct tr_op *chunk =
		kv_fault(TR_OP_CHUNK) ? NULL : calloc(CONN_CHUNK, sizeof(*chunk) + own);

	if (!chunk)
		return false;
	data->chunk[data->ops / CONN_CHUNK] = chunk;
	for (unsigned int i = CONN_CHUNK; i-- > 0;) {
		chunk[i].conn = conn;
		chunk[i].index = (uint16_t)(data->ops + i);
		chunk[i].priv = (uint8_t *)(chunk + CONN_CHUNK) + i * own;
		chunk[i].next = data->free_first;
		data->free_first = &chunk[i];
	}
	data->ops += CONN_CHUNK;
	return true;
}

int op_make_data(struct tr_conn *conn, struct kv_error *err)
{
	struct conn_data *data = kv_fault(TR_CONN_DATA) ? NULL : malloc(sizeof(*data));

	conn->data = data;
	if (data) {
		memset(data, 0, offsetof(struct conn_data, event));
		data->ended_last = &data->ended_first;
	}
	if (!data || !make_slots(conn))
		return kv_fail(err, KV_ERR_NOMEM, "handshake",
			       "cannot allocate the operation table");
	return 0;
}

unsigned int tr_conn_ops(const struct tr_conn *conn)
{
	return conn->data ? conn->data->ops : 0;
}

struct tr_op *tr_conn_op(const struct tr_conn *conn, unsigned int index)
{
	return conn_op(conn->data, index);
}

void op_release(struct tr_op *op)
{
	struct conn_data *data = op->conn->data;

	op_let_go(op);
	op->state = TR_OP_FREE;
	op->next = data->free_first;
	data->free_first = op;
	data->used--;
}

void op_free_data(struct tr_conn *conn)
{
	for (unsigned int i = 0; i < tr_conn_ops(conn); i++)
		if (tr_conn_op(conn, i)->state != TR_OP_FREE)
			op_let_go(tr_conn_op(conn, i));
	if (!conn->data)
		return;
	op_free_wide(conn->data);
	for (unsigned int i = 0; i < TR_OPS_MAX / CONN_CHUNK; i++)
		free(conn->data->chunk[i]);
	free(conn->data);
}

static int not_ready(const struct tr_conn *conn, const char *what, struct kv_error *err)
{
	if (conn->error.code)
		return kv_error_copy(err, &conn->error);
	return kv_fail(err, KV_ERR_CLOSED, what, "the connection to %s is not ready",
		       conn->address);
}

int tr_op_begin(struct tr_conn *conn, int kind, uint64_t user, struct tr_op **op_p,
		struct kv_error *err)
{
	struct conn_data *data = conn->data;
	struct tr_op *op;

	if (conn->stage != CONN_READY)
		return not_ready(conn, "begin", err);
	/* Without memory for more there are those that are in use: one of them ends. */
	if (!data->free_first && (data->ops == TR_OPS_MAX || !make_slots(conn)))
		return TR_AGAIN;
	op = data->free_first;
	data->free_first = op->next;
	data->used++;
	op->kind = (uint8_t)(kind & ~TR_ANY_ORDER);
	op->any_order = kind & TR_ANY_ORDER;
	op->state = TR_OP_OPEN;
	op->generation++;
	op->user = user;
	op->bytes = 0;
	op->grant = 0;
	op->to_device = false;
	conn->provider->op_begin(op);
	*op_p = op;
	return 0;
}

void tr_op_grant(struct tr_op *op, uint64_t grant)
{
	op->grant = grant;
}

/* The first span that leaves a region; n if none does. *bytes_p: of those before it. */
static size_t find_bad(const struct tr_mem *lmem, const struct tr_rmem *rmem,
		       const struct tr_span *spans, size_t n, uint64_t *bytes_p)
{
	uint64_t local = lmem->len, remote = rmem->len, most = local < remote ? local : remote;
	uint64_t bytes = 0;
	size_t i;

	for (i = 0; i < n; i++) {
		uint64_t len = spans[i].len;

		if (len - 1 >= most || spans[i].local > local - len ||
		    spans[i].remote > remote - len)
			break;
		bytes += len;
	}
	*bytes_p = bytes;
	return i;
}

static int refuse_span(const struct tr_mem *lmem, const struct tr_rmem *rmem,
		       const struct tr_span *span, size_t index, struct kv_error *err)
{
	kv_fail(err, KV_ERR_ARG, "add",
		"span %zu (%llu bytes, local offset %llu of %zu, remote offset %llu of %llu) leaves a region",
		index, (unsigned long long)span->len, (unsigned long long)span->local, lmem->len,
		(unsigned long long)span->remote, (unsigned long long)rmem->len);
	if (err)
		err->block_index = (int64_t)index;
	return KV_ERR_ARG;
}

/* 0: the operation takes bytes between the two; it holds the local one. */
static long op_may_add(struct tr_op *op, struct tr_mem *lmem, const struct tr_rmem *rmem,
		       struct kv_error *err)
{
	struct tr_conn *conn = op->conn;
	unsigned int need = op->kind == TR_WRITE ? TR_REMOTE_WRITE : TR_REMOTE_READ;
	long ret;

	if (conn->stage != CONN_READY)
		return not_ready(conn, "add", err);
	ret = tr_mem_usable(conn, lmem, err);
	if (ret)
		return ret;
	if (op->state != TR_OP_OPEN)
		return kv_fail(err, KV_ERR_ARG, "add", "the operation is committed or cancelled");
	if (!(rmem->access & need))
		return kv_fail(err, KV_ERR_REMOTE_ACCESS, "add",
			       "the peer did not register the region for remote %s",
			       op->kind == TR_WRITE ? "writes" : "reads");
	return 0;
}

static long op_added(struct tr_op *op, const struct tr_rmem *rmem, long done, uint64_t bytes)
{
	op->to_device |= rmem->device;
	op->bytes += bytes;
	op->conn->count.spans += (uint64_t)done;
	return done;
}

long tr_op_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
	       const struct tr_span *spans, size_t n, struct kv_error *err)
{
	uint64_t bytes;
	long done = op_may_add(op, lmem, rmem, err);
	size_t bad;

	if (done)
		return done;
	bad = find_bad(lmem, rmem, spans, n, &bytes);
	if (bad < n)
		return refuse_span(lmem, rmem, &spans[bad], bad, err);
	done = op_hold(op, lmem, err);
	if (!done)
		done = op->conn->provider->op_add(op, lmem, rmem, spans, n, err);
	if (done < 0)
		return done;
	for (size_t i = (size_t)done; i < n; i++)
		bytes -= spans[i].len;
	return op_added(op, rmem, done, bytes);
}

/* The last block that is in a region; UINT64_MAX: not even the first one is. */
static uint64_t last_block(uint64_t region, uint64_t base, uint64_t stride, uint64_t len)
{
	if (!len || len > region || base > region - len)
		return UINT64_MAX;
	return stride ? (region - len - base) / stride : INT64_MAX;
}

bool tr_takes_blocks(const struct tr_mem *lmem, const struct tr_rmem *rmem)
{
	const struct tr_provider *provider = rmem->conn->provider;

	return provider && provider->op_add_blocks &&
	       (!provider->takes_blocks || provider->takes_blocks(lmem, rmem));
}

long tr_op_add_blocks(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		      const struct tr_blocks *b, size_t n, struct kv_error *err)
{
	uint64_t local = last_block(lmem->len, b->local_base, b->local_stride, b->len);
	uint64_t remote = last_block(rmem->len, b->remote_base, b->remote_stride, b->len);
	long done = op_may_add(op, lmem, rmem, err);
	size_t bad = 0;

	if (done)
		return done;
	if (!tr_ids_inside(b->local, n, local) || !tr_ids_inside(b->remote, n, remote)) {
		struct tr_span span;

		while (tr_ids_inside(&b->local[bad], 1, local) &&
		       tr_ids_inside(&b->remote[bad], 1, remote))
			bad++;
		span = tr_block_span(b, bad);
		return refuse_span(lmem, rmem, &span, bad, err);
	}
	done = op_hold(op, lmem, err);
	if (!done)
		done = op->conn->provider->op_add_blocks(op, lmem, rmem, b, n, err);
	return done < 0 ? done : op_added(op, rmem, done, (uint64_t)done * b->len);
}

int tr_op_commit(struct tr_op *op, unsigned int flags, uint64_t value, struct kv_error *err)
{
	struct tr_conn *conn = op->conn;
	int ret;

	if (conn->stage != CONN_READY)
		return not_ready(conn, "commit", err);
	if (op->state != TR_OP_OPEN)
		return kv_fail(err, KV_ERR_ARG, "commit",
			       "the operation is committed or cancelled already");
	if (op->kind == TR_READ_OP && flags)
		return kv_fail(err, KV_ERR_ARG, "commit",
			       "a read takes no notify and needs no proof");
	op->state = TR_OP_COMMITTED; /* before the provider, which may end it at once */
	ret = conn->provider->op_commit(op, flags, value, err);
	if (ret) {
		if (op->state == TR_OP_COMMITTED)
			op->state = TR_OP_OPEN;
		return ret;
	}
	if (op->kind == TR_WRITE)
		conn->count.bytes_out += op->bytes;
	else
		conn->count.bytes_in += op->bytes;
	conn->count.notifies_out += flags & TR_NOTIFY ? 1 : 0;
	return 0;
}

int tr_op_cancel(struct tr_op *op, int64_t deadline_ns, struct kv_error *err)
{
	if (op->conn->stage != CONN_READY)
		return not_ready(op->conn, "cancel", err);
	if (op->state != TR_OP_OPEN && op->state != TR_OP_COMMITTED)
		return 0;
	op->state = TR_OP_STOPPING;
	op->conn->provider->op_cancel(op, deadline_ns);
	return 0;
}

static int send_message(struct tr_conn *conn, const void *buf, size_t len, bool wake,
			struct kv_error *err)
{
	int ret;

	if (conn->stage != CONN_READY)
		return not_ready(conn, "message", err);
	if (len > TR_MSG_MAX)
		return kv_fail(err, KV_ERR_ARG, "message", "%zu bytes are more than %d", len,
			       TR_MSG_MAX);
	ret = conn->provider->msg(conn, buf, len, wake, err);
	if (!ret)
		conn->count.msgs_out++;
	return ret;
}

int tr_msg(struct tr_conn *conn, const void *buf, size_t len, struct kv_error *err)
{
	return send_message(conn, buf, len, true, err);
}

int tr_msg_lazy(struct tr_conn *conn, const void *buf, size_t len, struct kv_error *err)
{
	return send_message(conn, buf, len, false, err);
}

int tr_flush(struct tr_conn *conn, struct tr_mem *mem, struct kv_error *err)
{
	if (conn->stage != CONN_READY)
		return not_ready(conn, "flush", err);
	if (mem->kind != TR_MEM_HOST && !conn->provider->flushed)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "flush",
			       "the NIC's writes into a GPU's memory cannot be flushed yet");
	/* The completion that tr_poll read ordered the bytes of host memory. */
	atomic_thread_fence(memory_order_acquire);
	return 0;
}
