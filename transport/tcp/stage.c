/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stage.c -- how the bytes of a GPU's memory go to and from a socket: STAGE_BYTES at a time through
 * pinned memory (../stage.h)
 *
 * A stream has some for what goes out and for what comes in, from its first use on. Until one
 * kernel has been seen to end, nothing else of that direction moves, so the order of the stream is
 * that of the bytes.
 */
#include <sys/mman.h>

#include "base/error.h"
#include "base/fault.h"
#include "gpu/gpu.h"
#include "tcp.h"

enum { STAGE_BYTES = 512 << 10 };
_Static_assert((int)STREAM_SPANS_MAX < (int)GPU_ROOM, "one kernel takes what one frame has");

int tcp_stage_open(struct tcp_stream *st, struct tcp_stage *ts, const struct tr_mem *mem,
		   struct kv_error *err)
{
	if (!ts->bytes) {
		void *bytes = kv_fault(TCP_STAGE) ? MAP_FAILED
						  : mmap(NULL, STAGE_BYTES, PROT_READ | PROT_WRITE,
							 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (bytes == MAP_FAILED)
			return kv_fail(err, KV_ERR_NOMEM, "gpu",
				       "cannot allocate %d bytes of a stage", STAGE_BYTES);
		ts->bytes = bytes;
	}
	return stage_open(&ts->stage, tr_conn_tr(st->tc->conn), ts->bytes, STAGE_BYTES, mem, err);
}

/* Begins to copy the first pieces, at most `bytes` of them and as many as one kernel takes. */
static int copy(const struct tcp_stream *st, struct tcp_stage *ts, bool out,
		const struct iovec *piece, struct tr_mem *const *mem, size_t bytes,
		struct kv_error *err)
{
	int ret = 0;

	ts->filled = ts->sent = 0;
	while (ts->filled < bytes && !ret) {
		size_t left = bytes - ts->filled;
		size_t n = piece->iov_len < left ? piece->iov_len : left;

		ret = stage_put(ts->stage, *mem, out, ts->bytes + ts->filled, piece->iov_base, n,
				err);
		if (!ret)
			ts->filled += n;
		piece++;
		mem++;
	}
	return ret < 0 ? ret : stage_end(ts->stage, st->tc->conn, err);
}

size_t tcp_stage_reach(const struct iovec *piece, struct tr_mem *const *mem, unsigned int n)
{
	const struct tr_mem *last = NULL;
	unsigned int regions = 0;
	size_t bytes = 0;

	for (unsigned int i = 0; i < n && bytes < STAGE_BYTES; i++) {
		regions += mem[i] != last;
		last = mem[i];
		if (!last || last->gpu != mem[0]->gpu || last->kind != mem[0]->kind ||
		    regions > STAGE_REGIONS)
			break;
		bytes += piece[i].iov_len;
	}
	return bytes < STAGE_BYTES ? bytes : STAGE_BYTES;
}

int tcp_stage_gather(struct tcp_stream *st, const struct iovec *piece, struct tr_mem *const *mem,
		     unsigned int n, struct iovec *ready, struct kv_error *err)
{
	struct tcp_stage *ts = &st->out_stage;
	int ret;

	if (stage_runs(ts->stage) || ts->sent < ts->filled)
		ret = stage_end(ts->stage, st->tc->conn, err);
	else
		ret = copy(st, ts, true, piece, mem, tcp_stage_reach(piece, mem, n), err);
	*ready = (struct iovec){ ts->bytes + ts->sent, ts->filled - ts->sent };
	return ret;
}

int tcp_stage_scatter(struct tcp_stream *st, const struct iovec *piece, struct tr_mem *const *mem,
		      size_t bytes, struct kv_error *err)
{
	return copy(st, &st->in_stage, false, piece, mem, bytes, err);
}

size_t tcp_stage_scattered(struct tcp_stage *ts)
{
	size_t bytes = ts->filled;

	ts->filled = 0;
	return bytes;
}

void tcp_stage_close(struct tcp_stage *ts)
{
	if (stage_close(ts->stage) && ts->bytes)
		munmap(ts->bytes, STAGE_BYTES);
	*ts = (struct tcp_stage){ 0 };
}
