/* SPDX-License-Identifier: Apache-2.0 */
/*
 * send.c -- operations and messages going out
 *
 * Pool spans are done when op_add returns, and process_vm spans mostly (call.c). Ring spans are
 * done when they are in the ring: the source may be reused, the peer copies them before it sees the
 * notify that follows.
 */
#include <stddef.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "shm.h"

void shm_op_begin(struct tr_op *op)
{
	memset(shm_op_of(op), 0, offsetof(struct shm_op, wait));
}

/* ---------------------------------------------------------------- pool */

static store_fn *store_for(const struct shm_conn *sc, uint64_t len)
{
	if (sc->line_order)
		return store_ordered;
	return len >= sc->ctx->nt_from ? sc->ctx->nt : store_plain;
}

/*
 * Which span is prefetched while one is copied: far enough ahead for a miss, near enough to be
 * still there.
 */
static size_t ahead_of(size_t i, size_t n, uint64_t len)
{
	size_t next = i + (len <= 2048 ? 4 : 1);

	return next < n ? next : i;
}

static size_t move_by_pool(struct shm_conn *sc, int kind, uint8_t *local, uint8_t *remote,
			   const struct tr_span *spans, size_t n)
{
	uint64_t len = 0;
	store_fn *store = NULL;

	for (size_t i = 0; i < n; i++) {
		const struct tr_span *s = &spans[i], *a = &spans[ahead_of(i, n, s->len)];

		if (s->len != len) {
			len = s->len;
			store = store_for(sc, len);
		}
		if (kind == TR_WRITE)
			store(remote + s->remote, local + s->local, len,
			      (struct store_ahead){ local + a->local, remote + a->remote });
		else
			store(local + s->local, remote + s->remote, len,
			      (struct store_ahead){ remote + a->remote, local + a->local });
	}
	/* Before the notify, or anything else that says that the bytes are there. */
	store_drain();
	return n;
}

/* ---------------------------------------------------------------- ring */

uint64_t send_piece(struct shm_conn *sc, const struct ring_record *first, const uint8_t *src,
		    struct tr_mem *of, uint64_t len, uint64_t addr)
{
	struct ring_record record = *first;
	uint64_t done = 0;

	if (len > SHM_ADD_BYTES) {
		len = SHM_ADD_BYTES;
		sc->cut = true;
	}
	while (done < len && (!of || sc->gathering < sc->out.size / 2 || gather_ends(sc))) {
		uint64_t left = len - done;
		uint64_t want = left < SHM_PUBLISH_BYTES ? left : SHM_PUBLISH_BYTES;
		uint64_t least = want < SHM_CHUNK_LEAST ? want : SHM_CHUNK_LEAST;
		int64_t fit = ring_fit(&sc->out, want, least, SHM_RING_RESERVE);

		if (fit < 0)
			break;
		/*
		 * A line is never cut: the receiver copies each record for itself. SHM_CHUNK_LEAST
		 * leaves at least one.
		 */
		if (sc->line_order && (uint64_t)fit < left)
			fit -= (int64_t)((addr + done + (uint64_t)fit) & 127);
		if (of && !gather_put(sc, of, src + done, (uint64_t)fit))
			break;
		record.len = (uint32_t)fit;
		record.a = first->a + done;
		ring_put(&sc->out, &record, of ? NULL : src + done);
		done += (uint64_t)fit;
		if (!of && sc->out.tail - sc->out.published >= SHM_PUBLISH_BYTES)
			publish_tail(sc); /* the receiver copies while we go on */
	}
	return done;
}

/* Puts the rest of a span into the ring; true if none is left. */
static bool send_rest(struct shm_conn *sc)
{
	struct ring_record record = { .type = RING_DATA,
				      .a = sc->rest.offset,
				      .mem = sc->rest.mem };
	uint64_t n;

	if (!sc->rest.op)
		return true;
	record.b = sc->rest.op->grant;
	n = send_piece(sc, &record, sc->rest.src, sc->rest.of, sc->rest.left, sc->rest.addr);
	sc->rest.src += n;
	sc->rest.offset += n;
	sc->rest.addr += n;
	sc->rest.left -= n;
	if (!sc->rest.left)
		sc->rest.op = NULL;
	return !sc->rest.left;
}

static size_t write_by_ring(struct shm_conn *sc, struct tr_op *op, struct tr_mem *lmem,
			    const struct tr_rmem *rmem, const struct tr_span *spans, size_t n)
{
	const struct shm_rmem *rm = rmem->priv;
	const uint8_t *local = lmem->addr;
	size_t i;

	if (!send_rest(sc))
		return 0;
	for (i = 0; i < n; i++) {
		struct ring_record record = {
			.type = RING_DATA, .a = spans[i].remote, .b = op->grant, .mem = rmem->id
		};
		uint64_t addr = (uintptr_t)rm->addr + spans[i].remote;
		uint64_t done = send_piece(sc, &record, local + spans[i].local, stage_region(lmem),
					   spans[i].len, addr);

		if (!done)
			break;
		shm_op_of(op)->in_ring = true;
		if (done == spans[i].len)
			continue;
		/* Accepted, although its end has to wait. */
		sc->rest.op = op;
		sc->rest.of = stage_region(lmem);
		sc->rest.src = local + spans[i].local + done;
		sc->rest.offset = spans[i].remote + done;
		sc->rest.left = spans[i].len - done;
		sc->rest.addr = addr + done;
		sc->rest.mem = rmem->id;
		i++;
		break;
	}
	return i;
}

/* A record without block data: may use the reserve. */
static bool put_small(struct shm_conn *sc, const struct ring_record *record, const void *payload)
{
	if (ring_fit(&sc->out, record->len, record->len, 0) < 0)
		return false;
	ring_put(&sc->out, record, payload);
	return true;
}

static size_t read_by_ring(struct shm_conn *sc, struct tr_op *op, struct tr_mem *lmem,
			   const struct tr_rmem *rmem, const struct tr_span *spans, size_t n)
{
	uint8_t *local = lmem->addr;
	size_t i;

	for (i = 0; i < n && sc->read_tail - sc->read_head < SHM_READS_MAX; i++) {
		struct ring_record record = {
			.type = RING_READ,
			.a = spans[i].remote,
			.b = spans[i].len,
			.mem = rmem->id,
			.line = (uint32_t)(uintptr_t)(local + spans[i].local) & 127
		};

		if (!put_small(sc, &record, NULL))
			break;
		sc->read[sc->read_tail++ % SHM_READS_MAX] = (struct shm_read){
			.dst = local + spans[i].local,
			.of = stage_region(lmem),
			.left = spans[i].len,
			.op = op,
		};
		shm_op_of(op)->reads++;
	}
	return i;
}

/* ---------------------------------------------------------------- the provider's calls */

/* The caller tries again after arm has reported that the peer made room. */
static void refused(struct shm_conn *sc)
{
	sc->blocked = true;
	sc->blocked_at = sc->out.head;
}

/* How many spans are at most SHM_ADD_BYTES; at least one. */
static size_t bounded(const struct tr_span *spans, size_t n)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++) {
		sum += spans[i].len;
		if (sum > SHM_ADD_BYTES)
			return i ? i : 1;
	}
	return n;
}

/* false: not for this region, which the ring reaches. */
static bool add_by_cma(struct shm_conn *sc, struct tr_op *op, struct tr_mem *lmem,
		       struct tr_rmem *rmem, const struct tr_span *spans, size_t n, long *done_p,
		       struct kv_error *err)
{
	struct shm_rmem *rm = rmem->priv;
	long done;

	done = call_move(sc, op, lmem, rm->addr, spans, n);
	if (path_falls_back(rm, (int)-done))
		return false;
	*done_p = done < 0 ? call_failed(sc, op->kind, (int)-done, err) : done;
	return true;
}

static long add_now(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		    const struct tr_span *spans, size_t n, enum shm_path path, struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(op->conn);
	const struct shm_rmem *rm = rmem->priv;
	long done;

	if (path == SHM_CMA && add_by_cma(sc, op, lmem, rmem, spans, n, &done, err))
		return done;
	if (path == SHM_POOL)
		return (long)move_by_pool(sc, op->kind, lmem->addr, rm->addr, spans, n);
	ring_refresh(&sc->out); /* an impossible position: the next progress fails on it */
	done = (long)(op->kind == TR_WRITE ? write_by_ring(sc, op, lmem, rmem, spans, n)
					   : read_by_ring(sc, op, lmem, rmem, spans, n));
	if ((size_t)done == n && !sc->rest.op)
		return done; /* the commit publishes it, or the next progress */
	publish_tail(sc);
	if ((size_t)done < n)
		refused(sc);
	return done;
}

/* The next piece of a large span, which is accepted with its last one: the caller comes again. */
static long add_part(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		     const struct tr_span *span, enum shm_path path, struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(op->conn);
	struct shm_op *so = shm_op_of(op);
	const uint8_t *local = lmem->addr + span->local;
	const uint8_t *remote = ((const struct shm_rmem *)rmem->priv)->addr + span->remote;
	struct tr_span piece = *span;
	long done;

	if (so->part.local != local || so->part.remote != remote || so->part.len != span->len) {
		so->part.local = local;
		so->part.remote = remote;
		so->part.len = span->len;
		so->part.done = 0;
	}
	piece.local += so->part.done;
	piece.remote += so->part.done;
	piece.len -= so->part.done;
	if (piece.len > SHM_ADD_BYTES)
		piece.len = SHM_ADD_BYTES;
	done = add_now(op, lmem, rmem, &piece, 1, path, err);
	if (done <= 0)
		return done;
	so->part.done += piece.len;
	sc->cut = true;
	if (so->part.done < span->len)
		return 0;
	so->part.len = 0;
	return 1;
}

/* A GPU's memory at either end. *path_p is how, or done is returned. */
static long add_of_gpu(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		       const struct tr_span *spans, size_t n, enum shm_path *path_p,
		       struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(op->conn);
	const struct shm_rmem *rm = rmem->priv;
	long done;

	if (rm->path == SHM_CUDA || rm->path == SHM_POOL) {
		done = cuda_add(op, lmem, rmem, spans, n, err);
		if (done != KV_ERR_UNSUPPORTED)
			return done;
	}
	*path_p = SHM_RING;
	return lmem->kind != TR_MEM_HOST
		       ? staged_open(sc, op->kind == TR_WRITE ? &sc->gather : &sc->scatter, lmem,
				     err)
		       : 0;
}

long shm_op_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		const struct tr_span *spans, size_t n, struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(op->conn);
	const struct shm_rmem *rm = rmem->priv;
	enum shm_path path = path_of(rm, op->any_order, n ? spans[0].len : 0);
	bool gpu = lmem->kind != TR_MEM_HOST || rm->path == SHM_CUDA;
	size_t now;
	long done = 0;

	if (gpu) {
		path = SHM_CUDA;
		done = add_of_gpu(op, lmem, rmem, spans, n, &path, err);
	}
	if (path == SHM_CUDA || done < 0)
		return done;
	now = bounded(spans, n);
	if (!gpu && path != rm->path && call_split(sc, op, lmem, rmem, spans, n))
		return (long)n;
	if (n && spans[0].len > SHM_ADD_BYTES && path != SHM_RING)
		done = add_part(op, lmem, rmem, spans, path, err);
	else
		done = add_now(op, lmem, rmem, spans, now, path, err);
	if (done > 0 && (size_t)done < n &&
	    ((path != SHM_RING && rm->path != SHM_RING) || (size_t)done == now))
		sc->cut = true;
	return done;
}

static void wait_for_peer(struct shm_conn *sc, struct tr_op *op, int end_kind, int64_t deadline_ns)
{
	struct shm_op *so = shm_op_of(op);

	so->waiting = true;
	so->wait.at = sc->out.tail;
	so->wait.deadline_ns = deadline_ns;
	so->wait.end_kind = end_kind;
	so->wait.next = NULL;
	*sc->wait_last = op;
	sc->wait_last = &so->wait.next;
	sc->waits++;
}

int shm_op_commit(struct tr_op *op, unsigned int flags, uint64_t value, struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(op->conn);
	struct shm_op *so = shm_op_of(op);
	struct ring_record notify = { .type = RING_NOTIFY, .a = value };

	if (so->copying || cuda_has(sc, op)) {
		int ret = so->copying ? call_end_split(sc, op, err) : cuda_end(sc, op, err);

		if (ret)
			return ret;
	}
	ring_refresh(&sc->out);
	if (so->late)
		return TR_AGAIN;
	if (sc->rest.op == op && !send_rest(sc))
		goto again;
	if (sc->gathering && !gather_ends(sc)) /* its source may be in use */
		return TR_AGAIN;
	/*
	 * The notify comes after the operation's bytes: they are stored, or in the ring before it.
	 */
	if ((flags & TR_NOTIFY) && !put_small(sc, &notify, NULL))
		goto again;
	so->committed = true;
	if (op->kind == TR_READ_OP) {
		if (!so->reads)
			tr_op_end(op, TR_READ);
	} else if ((flags & (TR_PROVEN | TR_LANDED)) && so->in_ring) {
		wait_for_peer(sc, op, TR_WRITTEN, INT64_MAX);
	} else {
		tr_op_end(op, TR_WRITTEN);
	}
	publish_tail(sc);
	return 0;

again:
	publish_tail(sc);
	refused(sc);
	return TR_AGAIN;
}

int shm_msg(struct tr_conn *conn, const void *buf, size_t len, bool wake, struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(conn);
	struct ring_record record = { .type = RING_MSG, .len = (uint32_t)len };

	ring_refresh(&sc->out);
	if (!put_small(sc, &record, buf)) {
		refused(sc);
		return TR_AGAIN;
	}
	if (wake || sc->gathering)
		publish_tail(sc);
	else
		ring_publish(&sc->out); /* the next thing that is published wakes the peer */
	return 0;
}

/*
 * Bytes of a write that are in the ring will be copied by the peer: the operation ends once it has
 * consumed them. Answers to reads are thrown away from now on.
 */
void shm_op_cancel(struct tr_op *op, int64_t deadline_ns)
{
	struct shm_conn *sc = tr_conn_priv(op->conn);
	struct shm_op *so = shm_op_of(op);

	if (sc->rest.op == op)
		sc->rest.op = NULL;
	if (so->late) {
		call_cancel_late(sc, deadline_ns);
		return;
	}
	if (so->copying && !call_cancel_split(sc, op))
		return;
	if (cuda_has(sc, op) && cuda_cancel(sc, op, deadline_ns))
		return;
	if (so->reads && sc->scattering && !scatter_cancel(sc, op, deadline_ns))
		return;
	for (unsigned int i = sc->read_head; so->reads && i != sc->read_tail; i++)
		if (sc->read[i % SHM_READS_MAX].op == op)
			sc->read[i % SHM_READS_MAX].dst = NULL;
	if (so->waiting)
		so->wait.deadline_ns = deadline_ns;
	else if (so->in_ring)
		wait_for_peer(sc, op, TR_CANCELLED, deadline_ns);
	else
		tr_op_end(op, TR_CANCELLED);
}

/*
 * A cancelled operation whose bytes the peer does not consume in time: nothing but the connection's
 * end stops them.
 */
static bool break_late(struct shm_conn *sc)
{
	struct kv_error cause;
	int64_t now = 0;

	for (const struct tr_op *op = sc->wait; op; op = shm_op_of(op)->wait.next) {
		int64_t deadline_ns = shm_op_of(op)->wait.deadline_ns;

		if (deadline_ns == INT64_MAX)
			continue;
		if (!now)
			now = kv_now_ns();
		if (now < deadline_ns)
			continue;
		kv_fail(&cause, KV_ERR_TIMEOUT, "cancel",
			"%s did not take what was written before a cancelled operation's deadline",
			tr_conn_address(sc->conn));
		shm_lose(sc, &cause);
		return true;
	}
	return false;
}

int send_progress(struct shm_conn *sc)
{
	struct tr_op *late = sc->late, *op;
	int done = 0;

	if (late && call_end_late(sc)) {
		if (late->state == TR_OP_STOPPING)
			shm_op_cancel(late, sc->late_deadline_ns);
		return 1;
	}
	if (sc->cuda)
		cuda_go(sc);
	while (sc->cuda && sc->cuda->stopping && (op = cuda_ended(sc))) {
		shm_op_cancel(op, kv_now_ns()); /* it ends now: nothing of it runs */
		done++;
	}
	if (sc->rest.op) {
		uint64_t left = sc->rest.left;

		send_rest(sc);
		done += sc->rest.left != left;
	}
	publish_tail(sc);
	while (sc->wait && shm_op_of(sc->wait)->wait.at <= sc->out.head) {
		struct shm_op *so = shm_op_of(op = sc->wait);

		sc->wait = so->wait.next;
		if (!sc->wait)
			sc->wait_last = &sc->wait;
		sc->waits--;
		so->waiting = false;
		tr_op_end(op, so->wait.end_kind);
		done++;
	}
	if (sc->wait && break_late(sc))
		return 1;
	return done;
}
