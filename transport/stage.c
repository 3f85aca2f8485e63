/* SPDX-License-Identifier: Apache-2.0 */
/* stage.c -- pieces of a GPU's memory, copied to and from pinned memory by one kernel at a time */
#include "stage.h"

#include <sched.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/option.h"
#include "gpu/gpu.h"

struct stage {
	int kind; /* of memory, one for all that goes through it */
	const struct gpu_kind *of;
	struct gpu *gpu;
	int sms;
	uint8_t *bytes; /* pinned for this GPU, -1: not yet; kernels see it at `at` */
	uint64_t at;
	int pinned_for;
	bool unpin;
	struct gpu_queue *queue[STAGE_GPUS]; /* in the order of first use */
	/* What copies, NULL: nothing does; */
	struct gpu_queue *busy;
	uint64_t batch;
	int64_t late_ns;
	struct tr_mem *held[STAGE_REGIONS];
	unsigned int regions;
};

int stage_register(struct tr_mem *mem, struct kv_error *err)
{
	const struct gpu_kind *of = tr_kinds[mem->kind];
	int ret = of->of(mem->addr, mem->len, &mem->gpu, err);

	return ret ? ret : of->prepare(mem->tr->gpu[mem->kind], mem->gpu, err);
}

/* The place of its queue, or of the first that is free. */
static int find_queue(const struct stage *stage, int device)
{
	int i = 0;

	while (i < STAGE_GPUS && stage->queue[i] &&
	       stage->of->queue_device(stage->queue[i]) != device)
		i++;
	return i;
}

int stage_open(struct stage **stage_p, struct tr *tr, uint8_t *bytes, size_t len,
	       const struct tr_mem *mem, struct kv_error *err)
{
	struct stage *stage = *stage_p;
	int i, ret = 0;

	if (!stage)
		stage = *stage_p = kv_fault(GPU_STAGE) ? NULL : calloc(1, sizeof(*stage));
	if (!stage)
		return kv_fail(err, KV_ERR_NOMEM, "gpu", "cannot allocate a stage");
	if (!stage->bytes) {
		stage->kind = mem->kind;
		stage->of = tr_kinds[mem->kind];
		stage->gpu = tr->gpu[mem->kind];
		stage->sms = (int)kv_option_int(tr->options, KV_OPT_GPU_SMS);
		stage->bytes = bytes;
		stage->pinned_for = -1;
	}
	if (stage->kind != mem->kind)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "gpu",
			       "a connection stages memory of %s or of %s, not of both",
			       stage->of->name, tr_kinds[mem->kind]->name);
	i = find_queue(stage, mem->gpu);
	if (i == STAGE_GPUS)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "gpu",
			       "a connection uses at most %d GPUs of one process", STAGE_GPUS);
	if (!stage->queue[i])
		ret = stage->of->queue_open(stage->gpu, mem->gpu, stage->sms, &stage->queue[i],
					    err);
	if (ret || stage->pinned_for >= 0)
		return ret;
	ret = stage->of->pin(stage->gpu, mem->gpu, bytes, len, &stage->unpin, &stage->at, err);
	if (!ret)
		stage->pinned_for = mem->gpu;
	return ret;
}

/* ---------------------------------------------------------------- one kernel */

/* false: there is no room for one more region. */
static bool hold_region(struct stage *stage, struct tr_mem *mem)
{
	for (unsigned int i = stage->regions; i--;)
		if (stage->held[i] == mem)
			return true;
	if (stage->regions == STAGE_REGIONS)
		return false;
	atomic_fetch_add_explicit(&mem->in_flight, 1, memory_order_relaxed);
	stage->held[stage->regions++] = mem;
	return true;
}

/* They have been copied, or never will be. */
static void let_regions_go(struct stage *stage)
{
	/* release: the copy comes before whatever becomes of the memory. */
	while (stage->regions)
		atomic_fetch_sub_explicit(&stage->held[--stage->regions]->in_flight, 1,
					  memory_order_release);
	stage->busy = NULL;
}

int stage_put(struct stage *stage, struct tr_mem *mem, bool out, uint8_t *here, uint8_t *there,
	      size_t len, struct kv_error *err)
{
	struct gpu_queue *queue = stage->queue[find_queue(stage, mem->gpu)];
	uint64_t staged = stage->at + (uint64_t)(here - stage->bytes), at = (uintptr_t)there;
	struct gpu_piece *piece;
	int room, ret;

	if (stage->busy && stage->busy != queue)
		return TR_AGAIN;
	room = stage->of->queue_room(queue, false, &piece, err);
	if (room <= 0)
		return room ? room : TR_AGAIN;
	if (!hold_region(stage, mem))
		return TR_AGAIN;
	if (!stage->busy)
		stage->late_ns = kv_deadline_ns(STAGE_LATE_MS);
	stage->busy = queue;
	*piece = (struct gpu_piece){ out ? staged : at, out ? at : staged, len };
	ret = stage->of->queue_put(queue, 1, gpu_chunks(len), err);
	stage->batch = stage->of->queue_last(queue);
	return ret;
}

int stage_end(struct stage *stage, const struct tr_conn *conn, struct kv_error *err)
{
	int ret = stage_runs(stage) ? stage->of->queue_end(stage->busy, stage->batch, err) : 0;

	if (ret > 0 && kv_now_ns() < stage->late_ns)
		return TR_AGAIN;
	if (ret > 0) {
		ret = kv_fail(err, KV_ERR_TIMEOUT, "gpu",
			      "a copy on GPU %d for %s has not ended within %d ms",
			      stage->of->queue_device(stage->busy), tr_conn_address(conn),
			      STAGE_LATE_MS);
		kv_error_hint(err, "other kernels hold the GPU, or it hangs (nvidia-smi)");
	}
	if (!ret && stage_runs(stage))
		let_regions_go(stage);
	return ret;
}

int stage_wait(struct stage *stage, const struct tr_conn *conn, int64_t deadline_ns,
	       struct kv_error *err)
{
	int64_t end_ns = kv_deadline_ns(STAGE_GRACE_MS);
	int ret;

	if (deadline_ns < end_ns)
		end_ns = deadline_ns;
	while ((ret = stage_end(stage, conn, err)) == TR_AGAIN && kv_now_ns() < end_ns)
		sched_yield();
	return ret;
}

bool stage_runs(const struct stage *stage)
{
	return stage && stage->busy;
}

/* ---------------------------------------------------------------- the end */

bool stage_quit(struct stage *stage)
{
	if (!stage_runs(stage))
		return true;
	if (!stage->of->queue_quit(stage->busy, kv_deadline_ns(STAGE_GRACE_MS)))
		return false;
	let_regions_go(stage);
	return true;
}

bool stage_close(struct stage *stage)
{
	bool closed = true;

	for (int i = 0; stage && i < STAGE_GPUS && stage->queue[i]; i++)
		closed &= stage->of->queue_close(stage->queue[i]);
	if (stage && closed && stage->unpin)
		stage->of->unpin(stage->gpu, stage->pinned_for, stage->bytes);
	free(stage);
	return closed;
}
