/* SPDX-License-Identifier: Apache-2.0 */
/* slots.c -- the slots of a connection (slot.h): made, and known to the peer by messages */
#include "slot.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"

static int fill_staged(struct ib_conn *c, struct ib_staged *s, struct kv_error *err)
{
	struct ib_rail *rail = c->lane[0].path->rail;
	void *bytes = kv_fault(GPU_SLOTS) ? (errno = ENOMEM, MAP_FAILED)
					  : mmap(NULL, 2 * STAGED_HALF, PROT_READ | PROT_WRITE,
						 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int ret;

	if (bytes == MAP_FAILED)
		return kv_fail_errno(err, KV_ERR_NOMEM, errno, "gpu",
				     "cannot map %d bytes of staging memory", 2 * STAGED_HALF);
	s->bytes = bytes;
	/* A child of fork must not take the pages that the device writes. */
	if (madvise(bytes, 2 * STAGED_HALF, MADV_DONTFORK))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "gpu",
				     "cannot keep staging memory from children");
	ret = ib_mr_make(c->ctx, rail, s->bytes, STAGED_HALF, 0, &s->mr_out, err);
	if (!ret)
		ret = ib_mr_make(c->ctx, rail, s->bytes + STAGED_HALF, STAGED_HALF,
				 IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE, &s->mr_in, err);
	return ret;
}

static int refuse_lines(struct kv_error *err)
{
	return kv_fail(err, KV_ERR_UNSUPPORTED, "gpu",
		       "memory that the NIC does not reach cannot go over a connection that keeps "
		       "the order of lines");
}

int ib_mem_usable(const struct tr_conn *conn, const struct tr_mem *mem, struct kv_error *err)
{
	const struct ib_mr *mr = tr_mem_handle(mem, &tr_ib_provider);

	return mr->slices || !ib_conn_of(conn)->line_order ? 0 : refuse_lines(err);
}

int ib_staged_make(struct ib_conn *c, struct kv_error *err)
{
	struct ib_staged *s;
	int ret;

	if (c->staged)
		return 0;
	if (c->line_order)
		return refuse_lines(err);
	s = kv_fault(GPU_SLOTS) ? NULL : calloc(1, sizeof(*s));
	if (!s)
		return kv_fail(err, KV_ERR_NOMEM, "gpu", "cannot allocate the slots of a stage");
	c->staged = s;
	ret = fill_staged(c, s, err);
	if (ret) {
		ib_staged_free(c);
		return ret;
	}
	ib_set_path(c);
	return 0;
}

int ib_staged_open(struct ib_conn *c, struct tr_mem *mem, bool out, struct kv_error *err)
{
	const struct ib_mr *mr = tr_mem_handle(mem, &tr_ib_provider);
	struct ib_staged *s = c->staged;
	struct stage **stage_p = out ? &s->gather : &s->scatter;
	bool first = !*stage_p;
	int ret = stage_region(mem) && !mr->stages ? stage_register(mem, err) : 0;

	if (ret || !stage_region(mem))
		return ret;
	ret = stage_open(stage_p, c->ctx->tr, out ? s->bytes : s->bytes + STAGED_HALF, STAGED_HALF,
			 mem, err);
	if (!ret && first)
		kv_log_info(c->ctx->tr->log, "memory of GPU %d %s %s through pinned memory",
			    mem->gpu, out ? "goes to" : "comes from", tr_conn_address(c->conn));
	return ret;
}

void ib_staged_break(struct ib_conn *c, const struct kv_error *why)
{
	struct kv_error cause = *why;

	ib_name_peer(c, c->lane[0].path->rail, &cause);
	ib_break(c, &cause);
}

int ib_staged_say(struct ib_conn *c, const struct staged_message *message)
{
	uint8_t text[STAGED_TEXT];
	struct wire_writer w = wire_writer_of(text, sizeof(text));

	wire_put_u8(&w, message->kind);
	wire_put_u8(&w, 0);
	wire_put_u16(&w, message->spans);
	wire_put_u32(&w, message->bytes);
	wire_put_u64(&w, message->word);
	wire_put_u32(&w, message->number);
	return ib_msg_staged(c, text, sizeof(text));
}
