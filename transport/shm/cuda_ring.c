/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_ring.c -- a GPU's memory through the rings, where no kernel reaches both ends: a memory pool
 * of CUDA, a GPU that the other process does not see, host memory that is not in a memfd pool
 *
 * The shared segment is pinned, so the rings are the staging memory (../stage.h). One kernel
 * gathers what the CPU would have copied into our ring: nothing behind it is published before it
 * has ended. One scatters what lies in the peer's: of that nothing is given back, and no record
 * that tells of it is taken, before it has ended. Each takes at most half a ring, and the other
 * end works on the other half meanwhile.
 */
#include "base/error.h"
#include "base/log.h"
#include "shm.h"

int staged_open(struct shm_conn *sc, struct stage **stage_p, const struct tr_mem *mem,
		struct kv_error *err)
{
	bool first = !*stage_p;
	int ret = stage_open(stage_p, tr_conn_tr(sc->conn), (uint8_t *)sc->seg.shared, sc->seg.len,
			     mem, err);

	if (!ret && first)
		kv_log_info(tr_conn_tr(sc->conn)->log,
			    "memory of GPU %d goes %s %s through the ring, which is pinned",
			    mem->gpu, stage_p == &sc->gather ? "to" : "and comes from",
			    tr_conn_address(sc->conn));
	return ret;
}

/* ---------------------------------------------------------------- into our ring */

bool gather_put(struct shm_conn *sc, struct tr_mem *mem, const uint8_t *src, uint64_t len)
{
	uint8_t *at = sc->out.data + (sc->out.tail & (sc->out.size - 1)) + RING_ALIGN;
	struct kv_error err;
	int ret = stage_put(sc->gather, mem, true, at, (uint8_t *)(uintptr_t)src, len, &err);

	if (ret < 0 && !sc->failure.code)
		sc->failure = err;
	if (ret)
		return false;
	sc->gathering += len;
	return true;
}

bool gather_ends(struct shm_conn *sc)
{
	struct kv_error err;
	int ret = sc->failure.code ? sc->failure.code : stage_end(sc->gather, sc->conn, &err);

	if (ret < 0 && !sc->failure.code)
		sc->failure = err;
	if (!ret)
		sc->gathering = 0;
	sc->cut |= ret == TR_AGAIN; /* nothing but a look shows that it has ended */
	return !ret;
}

void publish_tail(struct shm_conn *sc)
{
	if ((!sc->gathering || gather_ends(sc)) && ring_publish(&sc->out))
		link_wake(sc, WAKE_DATA);
}

/* ---------------------------------------------------------------- out of the peer's */

int scatter_put(struct shm_conn *sc, struct tr_mem *mem, const uint8_t *payload, uint8_t *dst,
		uint64_t len, struct kv_error *err)
{
	int ret;

	if (!len)
		return 0;
	if (sc->scattering >= sc->in.size / 2)
		return TR_AGAIN;
	ret = staged_open(sc, &sc->scatter, mem, err);
	if (ret)
		return ret;
	ret = stage_put(sc->scatter, mem, false, (uint8_t *)(uintptr_t)payload, dst, len, err);
	if (!ret)
		sc->scattering += len;
	return ret;
}

void reads_end(struct shm_conn *sc)
{
	while (!sc->scattering && sc->read_head != sc->read_next) {
		struct shm_read *read = &sc->read[sc->read_head++ % SHM_READS_MAX];
		struct shm_op *so = shm_op_of(read->op);

		/* A cancelled operation has ended, and its slot may serve another one. */
		if (read->dst && !--so->reads && so->committed)
			tr_op_end(read->op, TR_READ);
	}
}

int scatter_await(struct shm_conn *sc, int64_t deadline_ns, struct kv_error *err)
{
	int ret = deadline_ns ? stage_wait(sc->scatter, sc->conn, deadline_ns, err)
			      : stage_end(sc->scatter, sc->conn, err);

	if (ret)
		return ret;
	sc->scattering = 0;
	reads_end(sc);
	return 0;
}

bool scatter_cancel(struct shm_conn *sc, struct tr_op *op, int64_t deadline_ns)
{
	int ret = scatter_end(sc, deadline_ns > 0 ? deadline_ns : 1, &sc->failure);

	if (!ret)
		return op->state != TR_OP_ENDED;
	op->state = TR_OP_COMMITTED; /* it ends in doubt */
	if (ret == TR_AGAIN) {
		kv_fail(&sc->failure, KV_ERR_TIMEOUT, "cancel",
			"a GPU's copy of what was read from %s has not ended before the deadline "
			"of a cancelled operation",
			tr_conn_address(sc->conn));
		kv_error_hint(&sc->failure, "other kernels hold the GPU, or it hangs (nvidia-smi)");
	}
	return false;
}
