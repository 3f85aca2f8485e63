/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_map.c -- the GPUs that copy for a connection: their queues, and the memory that these see
 *
 * A region of a GPU is described to peers by its IPC handle. Host memory at the other end is pinned
 * for the GPU at its first use: the peer's pool for the connection, a local region until it is
 * deregistered.
 */
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "shm.h"

/* What the provider keeps of a local region. */
struct shm_region {
	struct shm_ctx *ctx;
	uint8_t *addr;
	size_t len;
	bool shared;
	struct gpu_share share; /* of a GPU's memory that other processes may map */
	/* Host, under ctx->pin_lock: pinned for a GPU; */
	bool pinned, known; /* by us; `at` is valid */
	int pinned_for;
	uint64_t at;
};

/* ---------------------------------------------------------------- local regions */

/* What no other process can map goes through the rings. */
static int register_gpu(struct shm_region *region, struct tr_mem *mem, struct kv_error *err)
{
	struct kv_error why;
	int ret = mem->kind == TR_MEM_CUDA
			  ? gpu_share(region->ctx->gpu, mem->addr, mem->len, &region->share, &why)
			  : kv_fail(&why, KV_ERR_UNSUPPORTED, "register",
				    "memory of %s is mapped by no other process",
				    tr_kinds[mem->kind]->name);

	region->shared = !ret;
	if (ret && (ret != KV_ERR_UNSUPPORTED || gpu_is_apart(region->ctx->gpu)))
		return kv_error_copy(err, &why);
	ret = stage_register(mem, err);
	if (!ret && !region->shared)
		kv_log_info(mem->tr->log, "%s: peers of this host get it through the ring",
			    why.message);
	return ret;
}

int shm_mem_reg(void *priv, struct tr_mem *mem, void **handle_p, struct kv_error *err)
{
	struct shm_region *region = kv_fault(SHM_REGION) ? NULL : calloc(1, sizeof(*region));
	int ret = 0;

	if (!region)
		return kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate a region's record");
	region->ctx = priv;
	region->addr = mem->addr;
	region->len = mem->len;
	if (mem->kind != TR_MEM_HOST)
		ret = register_gpu(region, mem, err);
	if (ret)
		free(region);
	else
		*handle_p = region;
	return ret;
}

void shm_mem_dereg(void *priv, void *handle)
{
	struct shm_region *region = handle;
	struct shm_ctx *ctx = priv;

	if (region->pinned)
		gpu_unpin(ctx->gpu, region->pinned_for, region->addr);
	if (region->shared)
		gpu_unshare(&region->share);
	free(region);
}

static struct shm_region *region_of(const struct tr_mem *mem)
{
	return tr_mem_handle(mem, &tr_shm_provider);
}

const struct gpu_share *cuda_share(const struct tr_mem *mem)
{
	return region_of(mem)->shared ? &region_of(mem)->share : NULL;
}

/* Where kernels of that GPU find a host region. */
static int pin_region(struct shm_ctx *ctx, struct shm_region *region, int device, uint64_t *at_p,
		      struct kv_error *err)
{
	int ret = 0;

	pthread_mutex_lock(&ctx->pin_lock);
	if (!region->known)
		ret = gpu_pin(ctx->gpu, device, region->addr, region->len, &region->pinned,
			      &region->at, err);
	if (!ret && !region->known) {
		region->known = true;
		region->pinned_for = device;
	}
	*at_p = region->at;
	pthread_mutex_unlock(&ctx->pin_lock);
	return ret;
}

/* ---------------------------------------------------------------- the peer's */

/* Its place in shm_cuda.queue. */
static int queue_for(struct shm_conn *sc, int device, struct kv_error *err)
{
	int ret, i;

	if (!sc->cuda)
		sc->cuda = kv_fault(GPU_ALLOC) ? NULL : calloc(1, sizeof(*sc->cuda));
	if (!sc->cuda)
		return kv_fail(err, KV_ERR_NOMEM, "gpu", "cannot allocate the table of queues");
	for (i = 0; i < SHM_GPUS && sc->cuda->queue[i]; i++)
		if (gpu_queue_device(sc->cuda->queue[i]) == device)
			return i;
	if (i == SHM_GPUS)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "gpu",
			       "a connection uses at most %d GPUs of one process", SHM_GPUS);
	ret = gpu_queue_open(sc->ctx->gpu, device, sc->ctx->sms, &sc->cuda->queue[i], err);
	if (!ret)
		kv_log_info(tr_conn_tr(sc->conn)->log,
			    "GPU %d copies for %s, with at most %d multiprocessors", device,
			    tr_conn_address(sc->conn), sc->ctx->sms);
	return ret ? ret : i;
}

static int map_remote(struct shm_conn *sc, struct tr_rmem *rmem, int queue, struct kv_error *err)
{
	struct shm_rmem *rm = rmem->priv;
	uint64_t at;
	int ret;

	if (rm->gpu_at[queue])
		return 0;
	ret = gpu_find(rm->share.uuid, gpu_queue_device(sc->cuda->queue[queue]), NULL, err);
	if (ret)
		return ret;
	if (rm->share.span) {
		ret = range_map(sc, rmem, gpu_queue_device(sc->cuda->queue[queue]), err);
		rm->gpu_at[queue] = ret ? 0 : rm->range.at + rm->share.offset;
		return ret;
	}
	if (sc->pid == getpid()) { /* a process cannot open its own handle */
		rm->gpu_at[queue] = (uintptr_t)rm->addr;
		return 0;
	}
	ret = gpu_map(sc->cuda->queue[queue], &rm->share.handle, &at, err);
	if (ret)
		return ret;
	rm->gpu_at[queue] = at + rm->share.offset;
	rm->gpu_mapped[queue] = true;
	return 0;
}

/* Its place in shm_conn.pool. */
static unsigned int pool_of(const struct shm_conn *sc, const uint8_t *addr)
{
	unsigned int i = 0;

	while (!sc->pool[i].addr || addr < sc->pool[i].addr ||
	       addr >= sc->pool[i].addr + sc->pool[i].len)
		i++;
	return i;
}

static int pin_pool(struct shm_conn *sc, struct shm_rmem *rm, int queue, struct kv_error *err)
{
	int device = gpu_queue_device(sc->cuda->queue[queue]), ret;
	unsigned int i;

	if (rm->gpu_at[queue])
		return 0;
	i = pool_of(sc, rm->addr);
	if (!sc->cuda->pool[i].at) {
		ret = gpu_pin(sc->ctx->gpu, device, sc->pool[i].addr, sc->pool[i].len,
			      &sc->cuda->pool[i].pinned, &sc->cuda->pool[i].at, err);
		if (ret)
			return ret;
		sc->cuda->pool[i].device = device;
	}
	rm->gpu_at[queue] = sc->cuda->pool[i].at + (uint64_t)(rm->addr - sc->pool[i].addr);
	return 0;
}

int cuda_find_ends(struct shm_conn *sc, struct tr_mem *lmem, struct tr_rmem *rmem, int *queue_p,
		   uint64_t *local_p, uint64_t *remote_p, struct kv_error *err)
{
	struct shm_region *region = region_of(lmem);
	struct shm_rmem *rm = rmem->priv;
	bool local = lmem->kind != TR_MEM_HOST;
	bool apart = gpu_is_apart(sc->ctx->gpu);
	int device = local ? lmem->gpu : -1, queue, ret = 0;

	if (local && lmem->kind != TR_MEM_CUDA)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "gpu",
			       "kernels of CUDA do not copy memory of %s",
			       tr_kinds[lmem->kind]->name);
	if (!local && apart)
		device = gpu_used(sc->ctx->gpu);
	if (!local && device < 0)
		ret = gpu_find(rm->share.uuid, -1, &device, err);
	queue = ret ? ret : queue_for(sc, device, err);
	if (queue < 0)
		return queue;
	ret = rmem->device ? map_remote(sc, rmem, queue, err) : pin_pool(sc, rm, queue, err);
	if (ret)
		return ret;
	*remote_p = rm->gpu_at[queue];
	*local_p = (uintptr_t)lmem->addr;
	if (!local && !apart)
		ret = pin_region(sc->ctx, region, device, local_p, err);
	*queue_p = queue;
	return ret;
}

/* ---------------------------------------------------------------- the end */

bool cuda_quit(struct shm_conn *sc)
{
	int64_t deadline_ns = kv_deadline_ns(SHM_FENCE_GRACE_MS);
	bool quiet = stage_quit(sc->gather);

	quiet &= stage_quit(sc->scatter);
	if (!sc->cuda)
		return quiet;
	memset(sc->cuda->op, 0, sizeof(sc->cuda->op));
	sc->cuda->stopping = 0;
	for (int i = 0; i < SHM_GPUS && sc->cuda->queue[i]; i++)
		quiet &= gpu_queue_quit(sc->cuda->queue[i], deadline_ns);
	return quiet;
}

/* What an operation still has to copy there is copied first. */
static bool ends_soon(struct gpu_queue *queue)
{
	int64_t deadline_ns = kv_deadline_ns(SHM_FENCE_GRACE_MS);
	int ret;

	while ((ret = gpu_queue_end(queue, gpu_queue_last(queue), NULL)) > 0 &&
	       kv_now_ns() < deadline_ns)
		sched_yield();
	return ret <= 0;
}

void cuda_forget(struct shm_conn *sc, struct shm_rmem *rm)
{
	bool quiet = true;

	range_forget(sc, rm);
	if (!sc->cuda || !sc->cuda->queue[0])
		return;
	for (int i = 0; i < SHM_GPUS; i++) {
		bool used = rm->gpu_mapped[i] || (rm->range.len && rm->gpu_at[i]);
		bool ended = !used || ends_soon(sc->cuda->queue[i]);

		quiet &= ended; /* else it stays mapped */
		if (rm->gpu_mapped[i] && ended)
			gpu_unmap(sc->cuda->queue[i], rm->gpu_at[i] - rm->share.offset);
	}
	if (quiet)
		range_unmap(sc, rm, gpu_queue_device(sc->cuda->queue[0]));
}

bool cuda_close(struct shm_conn *sc)
{
	bool closed = stage_close(sc->gather);

	closed &= stage_close(sc->scatter);
	sc->seg.kept = !closed;
	for (int i = 0; sc->cuda && i < SHM_GPUS && sc->cuda->queue[i]; i++)
		closed &= gpu_queue_close(sc->cuda->queue[i]);

	for (unsigned int i = 0; sc->cuda && closed && i < sc->pools; i++)
		if (sc->cuda->pool[i].pinned)
			gpu_unpin(sc->ctx->gpu, sc->cuda->pool[i].device, sc->pool[i].addr);
	free(sc->cuda);
	sc->cuda = NULL;
	if (!closed)
		kv_log_warn(tr_conn_tr(sc->conn)->log,
			    "a copy for %s has not ended: what it uses stays mapped",
			    tr_conn_address(sc->conn));
	return closed;
}
