/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stage.c -- pinned memory through which the bytes of a GPU's memory go to and from a socket
 *
 * A stream has one for what goes out and one for what comes in, from its first use on. One kernel
 * copies as much as fits; until it has been seen to end, nothing else of that direction moves, so
 * the order of the stream is that of the bytes. The regions are held meanwhile: a kernel that never
 * ends keeps them for good.
 */
#include <stdlib.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "gpu/gpu.h"
#include "tcp.h"

enum {
	STAGE_BYTES = 512 << 10,
	STAGE_GPUS = 16,      /* of one process that a stream meets */
	STAGE_REGIONS = 64,   /* that one kernel copies from, or to */
	STAGE_LATE_MS = 5000, /* that a kernel may take: a GPU may be busy with others */
};

struct tcp_stage {
	struct gpu *gpu;
	uint8_t *bytes; /* STAGE_BYTES, */
	uint64_t at;	/* as kernels see them */
	int pinned_for; /* this GPU; -1: not yet */
	bool unpin;
	struct gpu_queue *queue[STAGE_GPUS]; /* in the order of first use */
	/* What copies, NULL: nothing does; */
	struct gpu_queue *busy;
	uint64_t batch;
	int64_t late_ns;
	struct tr_mem *held[STAGE_REGIONS];
	unsigned int regions;
	size_t filled, sent; /* its bytes; of those that were gathered, what has left */
};

static int gpu_of_region(const struct tr_mem *mem)
{
	return (int)(intptr_t)tr_mem_handle(mem, &tr_tcp_provider) - 1;
}

int stage_register(struct tr_mem *mem, void **handle_p, struct kv_error *err)
{
	int device, ret = gpu_of(mem->addr, mem->len, &device, err);

	if (!ret)
		ret = gpu_prepare(mem->tr->gpu, device, err);
	if (!ret)
		*handle_p = (void *)(intptr_t)(device + 1);
	return ret;
}

/* ---------------------------------------------------------------- made at first use */

static int make_stage(struct tcp_stream *st, struct tcp_stage **stage_p, struct kv_error *err)
{
	struct tcp_stage *stage = kv_fault(TCP_STAGE) ? NULL : calloc(1, sizeof(*stage));
	void *bytes;

	if (!stage)
		return kv_fail(err, KV_ERR_NOMEM, "gpu", "cannot allocate a stage");
	bytes = mmap(NULL, STAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (bytes == MAP_FAILED) {
		free(stage);
		return kv_fail(err, KV_ERR_NOMEM, "gpu", "cannot allocate %d bytes of a stage",
			       STAGE_BYTES);
	}
	stage->gpu = tr_conn_tr(st->tc->conn)->gpu;
	stage->bytes = bytes;
	stage->pinned_for = -1;
	*stage_p = stage;
	return 0;
}

/* The place of its queue, or of the first that is free. */
static int find_queue(const struct tcp_stage *stage, int device)
{
	int i = 0;

	while (i < STAGE_GPUS && stage->queue[i] && gpu_queue_device(stage->queue[i]) != device)
		i++;
	return i;
}

int stage_open(struct tcp_stream *st, struct tcp_stage **stage_p, const struct tr_mem *mem,
	       struct kv_error *err)
{
	int ret = *stage_p ? 0 : make_stage(st, stage_p, err);
	struct tcp_stage *stage = *stage_p;
	int device = gpu_of_region(mem), i;

	if (ret)
		return ret;
	i = find_queue(stage, device);
	if (i == STAGE_GPUS)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "gpu",
			       "a connection uses at most %d GPUs of one process", STAGE_GPUS);
	if (!stage->queue[i])
		ret = gpu_queue_open(stage->gpu, device, st->tc->ctx->sms, &stage->queue[i], err);
	if (ret || stage->pinned_for >= 0)
		return ret;
	ret = gpu_pin(stage->gpu, device, stage->bytes, STAGE_BYTES, &stage->unpin, &stage->at,
		      err);
	if (!ret)
		stage->pinned_for = device;
	return ret;
}

/* ---------------------------------------------------------------- one kernel */

static bool has_held(const struct tr_mem *const *held, unsigned int n, const struct tr_mem *mem)
{
	while (n--)
		if (held[n] == mem)
			return true;
	return false;
}

size_t stage_reach(const struct iovec *piece, struct tr_mem *const *mem, unsigned int n)
{
	const struct tr_mem *some[STAGE_REGIONS];
	unsigned int regions = 0;
	size_t bytes = 0;

	for (unsigned int i = 0; i < n && bytes < STAGE_BYTES; i++) {
		if (!mem[i] || gpu_of_region(mem[i]) != gpu_of_region(mem[0]))
			break;
		if (!has_held(some, regions, mem[i])) {
			if (regions == STAGE_REGIONS)
				break;
			some[regions++] = mem[i];
		}
		bytes += piece[i].iov_len;
	}
	return bytes < STAGE_BYTES ? bytes : STAGE_BYTES;
}

static void hold_region(struct tcp_stage *stage, struct tr_mem *mem)
{
	if (has_held((const struct tr_mem *const *)stage->held, stage->regions, mem))
		return;
	atomic_fetch_add_explicit(&mem->in_flight, 1, memory_order_relaxed);
	stage->held[stage->regions++] = mem;
}

/* They have been copied, or never will be. */
static void let_regions_go(struct tcp_stage *stage)
{
	/* release: the copy comes before whatever becomes of the memory. */
	while (stage->regions)
		atomic_fetch_sub_explicit(&stage->held[--stage->regions]->in_flight, 1,
					  memory_order_release);
	stage->busy = NULL;
}

static int put_pieces(struct gpu_queue *queue, uint64_t at, bool out, const struct iovec *piece,
		      size_t bytes, struct kv_error *err)
{
	while (bytes) {
		struct gpu_piece *to;
		int i, room = gpu_queue_room(queue, &to, err), ret;
		uint64_t chunks = 0;

		if (room < 0)
			return room;
		for (i = 0; i < room && bytes; i++, piece++) {
			uint64_t there = (uintptr_t)piece->iov_base;
			size_t len = piece->iov_len < bytes ? piece->iov_len : bytes;

			to[i] = (struct gpu_piece){ out ? at : there, out ? there : at, len };
			chunks += gpu_chunks(len);
			bytes -= len;
			at += len;
		}
		ret = gpu_queue_put(queue, (unsigned int)i, chunks, err);
		if (ret)
			return ret;
	}
	return 0;
}

/* Begins it, and looks once. */
static int copy(const struct tcp_stream *st, struct tcp_stage *stage, bool out,
		const struct iovec *piece, struct tr_mem *const *mem, size_t bytes,
		struct kv_error *err)
{
	struct gpu_queue *queue = stage->queue[find_queue(stage, gpu_of_region(mem[0]))];
	int ret;

	for (size_t i = 0, seen = 0; seen < bytes; seen += piece[i++].iov_len)
		hold_region(stage, mem[i]);
	stage->busy = queue;
	stage->filled = bytes;
	stage->sent = 0;
	ret = put_pieces(queue, stage->at, out, piece, bytes, err);
	stage->batch = gpu_queue_last(queue);
	stage->late_ns = kv_deadline_ns(STAGE_LATE_MS);
	return ret ? ret : stage_end(st, stage, err);
}

int stage_end(const struct tcp_stream *st, struct tcp_stage *stage, struct kv_error *err)
{
	int ret = stage_runs(stage) ? gpu_queue_end(stage->busy, stage->batch, err) : 0;

	if (ret > 0 && kv_now_ns() < stage->late_ns)
		return TR_AGAIN;
	if (ret > 0) {
		ret = kv_fail(err, KV_ERR_TIMEOUT, "gpu",
			      "a copy on GPU %d for %s has not ended within %d ms",
			      gpu_queue_device(stage->busy), tr_conn_address(st->tc->conn),
			      STAGE_LATE_MS);
		kv_error_hint(err, "other kernels hold the GPU, or it hangs (nvidia-smi)");
	}
	if (!ret && stage_runs(stage))
		let_regions_go(stage);
	return ret;
}

bool stage_runs(const struct tcp_stage *stage)
{
	return stage && stage->busy;
}

/* ---------------------------------------------------------------- out and in */

int stage_gather(struct tcp_stream *st, const struct iovec *piece, struct tr_mem *const *mem,
		 unsigned int n, struct iovec *ready, struct kv_error *err)
{
	struct tcp_stage *stage = st->out_stage;
	int ret;

	if (stage_runs(stage) || stage->sent < stage->filled)
		ret = stage_end(st, stage, err);
	else
		ret = copy(st, stage, true, piece, mem, stage_reach(piece, mem, n), err);
	*ready = (struct iovec){ stage->bytes + stage->sent, stage->filled - stage->sent };
	return ret;
}

void stage_sent(struct tcp_stage *stage, size_t bytes)
{
	stage->sent += bytes;
}

uint8_t *stage_bytes(const struct tcp_stage *stage)
{
	return stage->bytes;
}

int stage_scatter(struct tcp_stream *st, const struct iovec *piece, struct tr_mem *const *mem,
		  size_t bytes, struct kv_error *err)
{
	return copy(st, st->in_stage, false, piece, mem, bytes, err);
}

size_t stage_scattered(struct tcp_stage *stage)
{
	size_t bytes = stage ? stage->filled : 0;

	if (stage)
		stage->filled = 0;
	return bytes;
}

/* ---------------------------------------------------------------- the end */

bool stage_quit(struct tcp_stage *stage)
{
	if (!stage_runs(stage))
		return true;
	if (!gpu_queue_quit(stage->busy, kv_deadline_ns(TCP_KERNEL_GRACE_MS)))
		return false;
	let_regions_go(stage);
	return true;
}

void stage_close(struct tcp_stage *stage)
{
	bool closed = true;

	if (!stage)
		return;
	for (int i = 0; i < STAGE_GPUS && stage->queue[i]; i++)
		closed &= gpu_queue_close(stage->queue[i]);
	if (closed) { /* else a kernel may still use the bytes and the regions */
		if (stage->unpin)
			gpu_unpin(stage->gpu, stage->pinned_for, stage->bytes);
		munmap(stage->bytes, STAGE_BYTES);
	}
	free(stage);
}
