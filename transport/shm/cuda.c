/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda.c -- operations with a GPU's memory at either end, copied by kernels
 *
 * The GPU of the local region does it, else that of the remote one. An operation's spans go into
 * batches; its commit starts the last of them and is refused until its kernel has ended, so notify,
 * order and end are those of a pool.
 */
#include "base/clock.h"
#include "base/error.h"
#include "shm.h"

/* The connection's failure: a kernel, or the GPU. */
static int gpu_failed(struct shm_conn *sc, const struct kv_error *cause, struct kv_error *err)
{
	shm_lose(sc, cause);
	return kv_error_copy(err, cause);
}

long cuda_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
	      const struct tr_span *spans, size_t n, struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(op->conn);
	struct shm_op *so = &sc->op[op->index];
	uint64_t local, remote;
	struct kv_error cause;
	int place = cuda_find_ends(sc, lmem, rmem, &local, &remote, err), took = 1;
	size_t i;

	if (place < 0)
		return place;
	/* Of two queues the first has to end before the second begins. */
	if (so->queue && so->queue != sc->queue[place]) {
		int ret = cuda_end(sc, op, err);

		if (ret)
			return ret == TR_AGAIN ? 0 : ret;
	}
	for (i = 0; i < n && took > 0; i++) {
		uint64_t here = local + spans[i].local, there = remote + spans[i].remote;
		bool write = op->kind == TR_WRITE;

		took = gpu_queue_add(sc->queue[place], write ? there : here, write ? here : there,
				     spans[i].len, &cause);
	}
	if (took < 0)
		return gpu_failed(sc, &cause, err);
	if (!took) {
		i--;
		sc->cut = true;
	}
	if (i) {
		so->queue = sc->queue[place];
		so->batch = gpu_queue_last(so->queue);
	}
	return (long)i;
}

int cuda_end(struct shm_conn *sc, struct tr_op *op, struct kv_error *err)
{
	struct shm_op *so = &sc->op[op->index];
	struct kv_error cause;
	int ret = gpu_queue_end(so->queue, so->batch, &cause);

	if (ret < 0)
		return gpu_failed(sc, &cause, err);
	if (!ret) {
		so->queue = NULL;
		return 0;
	}
	sc->cut = true; /* nothing but a look shows that it has ended: the caller comes again */
	return TR_AGAIN;
}

bool cuda_cancel(struct shm_conn *sc, struct tr_op *op, int64_t deadline_ns)
{
	struct shm_op *so = &sc->op[op->index];
	int ret = cuda_end(sc, op, NULL);

	if (ret == TR_AGAIN && !so->stopping) {
		so->stopping = true;
		so->stop_ns = deadline_ns;
		sc->stopping++;
	}
	return ret;
}

static void give_up_kernel(struct shm_conn *sc, struct tr_op *op)
{
	struct kv_error cause;

	kv_fail(&cause, KV_ERR_TIMEOUT, "cancel",
		"a copy on GPU %d for %s has not ended before a cancelled operation's deadline",
		gpu_queue_device(sc->op[op->index].queue), tr_conn_address(sc->conn));
	kv_error_hint(&cause, "other kernels hold the GPU, or it hangs (nvidia-smi)");
	op->state = TR_OP_COMMITTED; /* it ends in doubt */
	shm_lose(sc, &cause);
}

struct tr_op *cuda_ended(struct shm_conn *sc)
{
	for (unsigned int i = 0; sc->stopping && i < TR_OPS_MAX; i++) {
		struct tr_op *op = tr_conn_op(sc->conn, i);
		struct shm_op *so = &sc->op[i];
		int ret = so->stopping ? cuda_end(sc, op, NULL) : TR_AGAIN;

		if (!ret) {
			so->stopping = false;
			sc->stopping--;
			return op;
		}
		if (so->stopping && ret == TR_AGAIN && kv_now_ns() >= so->stop_ns)
			give_up_kernel(sc, op);
	}
	return NULL;
}
