/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stop.c -- the end of a connection: announced to the peer, waited for where the peer can store
 * into our memory
 */
#include "base/clock.h"
#include "base/error.h"
#include "shm.h"

/* No new one is begun. */
static void stop_calls(struct shm_conn *sc)
{
	if (sc->late) {
		copy_stop(&sc->call);
		shm_op_of(sc->late)->late = false;
		sc->late = NULL;
	}
	for (unsigned int i = 0; sc->copies && i < tr_conn_ops(sc->conn); i++) {
		struct shm_op *so = shm_op_of(tr_conn_op(sc->conn, i));

		if (!so->copying)
			continue;
		copy_stop(&so->job);
		so->copying = false;
		sc->copies--;
	}
}

/*
 * This side stores nothing any more. What it wrote into the ring before stays and is taken. A call
 * that does not return (copy.c) may still store: then its thread promises, if it ever comes back. A
 * kernel that has not ended: shm_fence does, once it has.
 */
void stop_leave(struct shm_conn *sc)
{
	stop_calls(sc);
	store_drain();
	sc->kernels_run = !cuda_quit(sc);
	if (copy_quit(sc) && !sc->kernels_run)
		segment_promise(&sc->seg);
	link_wake(sc, WAKE_DATA | WAKE_ROOM);
}

/*
 * And wants the same of the other: bytes of ours that are still in the ring do not land there. What
 * is in the ring before them, an acknowledgement perhaps, still counts.
 */
static void stop_announce(struct shm_conn *sc)
{
	/* release: a side that sees it finds every record published before in the ring. */
	atomic_store_explicit(&sc->seg.mine->stop, 1, memory_order_release);
	stop_leave(sc);
}

void shm_lose(struct shm_conn *sc, const struct kv_error *cause)
{
	stop_announce(sc);
	tr_conn_lost(sc->conn, cause);
}

/* It does not linger: what was sent is in the ring and stays there. */
int shm_fence(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(conn);

	tr_conn_goodbye(conn);
	if (!sc->seg.shared)
		return 0;
	if (!sc->fence_deadline_ns) {
		sc->fence_deadline_ns = kv_deadline_ns(SHM_FENCE_GRACE_MS);
		stop_announce(sc);
	}
	if (sc->kernels_run && copy_is_quiet(sc) && cuda_quit(sc)) {
		sc->kernels_run = false;
		segment_promise(&sc->seg);
	}
	if (!copy_is_quiet(sc) || sc->kernels_run) {
		if (kv_now_ns() < sc->fence_deadline_ns)
			return TR_AGAIN;
		return kv_fail(err, KV_ERR_BUSY, "fence",
			       "a %s the memory of process %d of %s does not %s",
			       sc->kernels_run ? "copy by a GPU with" : "call into", (int)sc->pid,
			       tr_conn_address(conn), sc->kernels_run ? "end" : "return");
	}
	/* What comes by the ring is copied by this side, which has just stopped. */
	if (!sc->we_allow_direct)
		return 0;
	/* acquire: pairs with the release in the peer's segment_promise. */
	if (atomic_load_explicit(&sc->seg.theirs->stopped, memory_order_acquire) ||
	    link_peer_is_dead(sc))
		return 0;
	if (kv_now_ns() < sc->fence_deadline_ns)
		return TR_AGAIN;
	return kv_fail(err, KV_ERR_BUSY, "fence",
		       "process %d of %s can write into this process, does not answer, and lives",
		       (int)sc->pid, tr_conn_address(conn));
}
