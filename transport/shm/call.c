/* SPDX-License-Identifier: Apache-2.0 */
/*
 * call.c -- bytes of operations by process_vm_*: handed to a thread (copy.c), waited for a moment,
 * looked after if it takes longer
 *
 * A call that finds its pages is made here (present.c), a large one together with who helps
 * (help.c). Of the others a connection has one at a time. Its caller waits for it
 * SHM_COPY_PATIENCE_MS; a copy of SHM_ADD_BYTES takes a tenth of that. One that takes longer is
 * late: its operation goes on when it returns, and the connection is given up if that operation is
 * to end before.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "shm.h"

int call_failed(struct shm_conn *sc, int kind, int error, struct kv_error *err)
{
	const char *what = kind == TR_WRITE ? "process_vm_writev" : "process_vm_readv";
	int code = error == ESRCH ? KV_ERR_PEER_LOST : KV_ERR_REMOTE_ACCESS;
	struct kv_error cause;

	kv_fail_errno(&cause, code, error, "shm", "%s with process %d", what, (int)sc->pid);
	shm_lose(sc, &cause);
	return kv_error_copy(err, &cause);
}

int call_open(struct shm_conn *sc, struct kv_error *err)
{
	present_open(sc);
	sc->call_spans = tr_conn_moves_lists(sc->conn) ? TR_SPANS_MOST : SHM_CMA_SPANS;
	if (!sc->call_span)
		sc->call_span =
			kv_fault(SHM_CALL) ? NULL : calloc(sc->call_spans, sizeof(*sc->call_span));
	return sc->call_span ? 0
			     : kv_fail(err, KV_ERR_NOMEM, "mem_open",
				       "cannot allocate the spans of a call");
}

/* Rung by a call that was late. Without one the owner does not sleep (shm_arm). */
static void hang_bell(struct shm_conn *sc)
{
	int bell = sc->bell;

	if (bell >= 0)
		return;
	bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (bell >= 0 && tr_conn_watch(sc->conn, bell, NULL)) {
		close(bell);
		bell = -1;
	}
	/* seq_cst: either the thread sees the bell, or copy_end sees here that it was done. */
	atomic_store(&sc->bell, bell);
}

/* 0, TR_AGAIN: the caller does not wait any more, or -errno. */
static int wait_a_moment(struct shm_conn *sc, struct tr_op *op)
{
	int ret = copy_wait(&sc->call, kv_deadline_ns(SHM_COPY_PATIENCE_MS));

	if (ret != TR_AGAIN)
		return ret;
	hang_bell(sc);
	ret = copy_end(&sc->call);
	if (ret != TR_AGAIN)
		return ret;
	sc->late = op;
	sc->late_deadline_ns = INT64_MAX;
	shm_op_of(op)->late = true;
	return ret;
}

/* Large enough, of spans that are long enough, and there is somebody. */
static bool worth_sharing(const struct shm_conn *sc, uint64_t len, size_t n)
{
	return len >= SHM_HELP_LEAST && len / n >= SHM_HELP_SPAN && sc->pagemap >= 0 &&
	       atomic_load_explicit(&sc->ctx->helped, memory_order_relaxed);
}

long call_move(struct shm_conn *sc, struct tr_op *op, struct tr_mem *lmem, uint8_t *remote,
	       const struct tr_span *spans, size_t n)
{
	struct copy_job *call = &sc->call;
	uint64_t len = 0;
	bool shared;
	int ret;

	if (sc->late)
		return 0;
	n = n < sc->call_spans ? n : sc->call_spans;
	for (size_t i = 0; i < n; i++)
		len += spans[i].len;
	shared = worth_sharing(sc, len, n);
	/* Calls that do not return may hold every thread: a call that needs none is still made. */
	if (n > SHM_PRESENT_SPANS && !shared && copy_is_full(sc)) {
		n = SHM_PRESENT_SPANS;
		sc->cut = true;
	}
	tr_conn_count(sc->conn)->syscalls += shared ? n + 1 : 2;
	tr_conn_count(sc->conn)->work_requests++;
	if (!shared && present(sc, remote, spans, n)) {
		ret = cma_move(sc, op->kind, true, lmem->addr, remote, spans, n);
		return ret ? -ret : (long)n;
	}
	memcpy(sc->call_span, spans, n * sizeof(*spans)); /* the call may outlast the caller's */
	*call = (struct copy_job){ .sc = sc,
				   .mem = lmem,
				   .kind = op->kind,
				   .local = lmem->addr,
				   .remote = remote,
				   .span = sc->call_span,
				   .spans = (uint32_t)n,
				   .len = len };
	if (shared)
		help_share(call);
	/* A process that can start no thread makes the call here, whatever it may take. */
	if (shared || copy_begin(call))
		ret = wait_a_moment(sc, op);
	else
		ret = -cma_move(sc, call->kind, false, call->local, call->remote, spans, n);
	return ret < 0 ? ret : (long)n;
}

/* Its bytes may still move: no operation of the connection may be reported as cancelled now. */
static void give_up(struct shm_conn *sc, struct tr_op *op)
{
	struct kv_error cause;

	kv_fail(&cause, KV_ERR_TIMEOUT, "cancel",
		"a call into the memory of process %d of %s does not return", (int)sc->pid,
		tr_conn_address(sc->conn));
	kv_error_hint(&cause,
		      "its memory may be of a file system that does not answer, or wait for "
		      "a userfaultfd handler");
	if (op->state == TR_OP_STOPPING)
		op->state = TR_OP_COMMITTED; /* it ends in doubt */
	shm_lose(sc, &cause);
}

bool call_end_late(struct shm_conn *sc)
{
	struct tr_op *op = sc->late;
	eventfd_t rings;
	int ret = copy_end(&sc->call);

	if (ret == TR_AGAIN && kv_now_ns() < sc->late_deadline_ns)
		return false;
	if (ret == TR_AGAIN) {
		give_up(sc, op);
		return true;
	}
	if (sc->bell >= 0)
		eventfd_read(sc->bell, &rings);
	sc->late = NULL;
	shm_op_of(op)->late = false;
	sc->cut = true; /* a call that was refused meanwhile is tried again */
	if (ret < 0)
		call_failed(sc, op->kind, -ret, NULL);
	return true;
}

void call_cancel_late(struct shm_conn *sc, int64_t deadline_ns)
{
	int64_t grace_ns = kv_deadline_ns(SHM_FENCE_GRACE_MS);

	sc->late_deadline_ns = deadline_ns < grace_ns ? deadline_ns : grace_ns;
}

/*
 * One large range, in pieces by several threads, where an option asks for them: what it is worth
 * stands in docs/nccl.md (threads2, threads4).
 */

bool call_split(struct shm_conn *sc, struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		const struct tr_span *spans, size_t n)
{
	const struct shm_rmem *rm = rmem->priv;
	struct shm_op *so = shm_op_of(op);

	if (!sc->ctx->split || op->kind != TR_WRITE || n != 1 || spans->len < SHM_COPY_LEAST ||
	    so->copying)
		return false;
	so->range = *spans;
	so->rmem = rmem;
	so->job = (struct copy_job){ .sc = sc,
				     .mem = lmem,
				     .kind = TR_WRITE,
				     .split = true,
				     .local = lmem->addr,
				     .remote = rm->addr,
				     .span = &so->range,
				     .spans = 1,
				     .len = spans->len };
	so->copying = copy_begin(&so->job);
	sc->copies += so->copying;
	return so->copying;
}

int call_end_split(struct shm_conn *sc, struct tr_op *op, struct kv_error *err)
{
	struct shm_op *so = shm_op_of(op);
	int ret = copy_end(&so->job);

	if (ret == TR_AGAIN || (ret == -EFAULT && sc->rest.op))
		return TR_AGAIN;
	so->copying = false;
	sc->copies--;
	if (!path_falls_back(so->rmem->priv, -ret))
		return ret ? call_failed(sc, TR_WRITE, -ret, err) : 0;
	so->in_ring = true; /* the region's owner copies */
	sc->rest.op = op;
	sc->rest.of = NULL;
	sc->rest.src = so->job.local + so->range.local;
	sc->rest.offset = so->range.remote;
	sc->rest.left = so->range.len;
	sc->rest.addr = (uintptr_t)so->job.remote + so->range.remote;
	sc->rest.mem = so->rmem->id;
	return 0;
}

bool call_cancel_split(struct shm_conn *sc, struct tr_op *op)
{
	struct shm_op *so = shm_op_of(op);

	copy_stop(&so->job);
	if (copy_wait(&so->job, kv_deadline_ns(SHM_COPY_PATIENCE_MS)) == TR_AGAIN) {
		give_up(sc, op);
		return false;
	}
	so->copying = false;
	sc->copies--;
	return true;
}
