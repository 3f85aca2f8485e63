/* SPDX-License-Identifier: Apache-2.0 */
/* kv_wait.c -- an operation by the thread that waits for it: its steps, a look, cancel, free */
#include "kv_api.h"

#include <poll.h>

static bool reached(const struct kv_op *op, int grade)
{
	return atomic_load(&op->ended) || atomic_load(&op->grade) >= grade;
}

/*
 * How long to spin from now on: the option's time, or half of what the operation has taken so far,
 * but not above SPIN_MOST_NS. Sleeping costs two context switches on each side, which shows on an
 * operation of a millisecond; an operation that takes long hardly spins. But while a device
 * completes one part after the other, so that a sleeper would be woken at once: for SPIN_MOVING
 * times the option's time after each of them.
 */
enum { SPIN_SHARE = 2, SPIN_MOST_NS = 500000, SPIN_MOVING = 3 };
/*
 * How long to sleep at the socket of the peer, where the transport has one. That costs no
 * processor, and the answer wakes this thread; later it wakes the service thread, which wakes this
 * one. An engine without that thread serves its other peers instead.
 */
enum { AWAIT_NS = 5000000, AWAIT_GPU_NS = 50000 }; /* a GPU that is done wakes nobody */

static int64_t spin_until(const struct kv_op *op)
{
	int64_t now = kv_now_ns(), spin = op->engine->spin_ns;
	int64_t share = kv_sooner((now - op->begun_ns) / SPIN_SHARE, SPIN_MOST_NS);

	return now + (spin && share > spin ? share : spin);
}

static uint64_t completions_of(const struct kv_peer *peer)
{
	return peer->state == KV_PEER_UP ? tr_conn_completions(peer->conn) : 0;
}

bool kv_op_progress(struct kv_op *op)
{
	bool any = false, moved, posting;

	do {
		moved = kv_peer_progress(op->peer, true);
		any |= moved;
		posting = op->stage >= KV_STAGE_BEGIN && op->stage < KV_STAGE_FLIGHT;
		op->passed = moved && posting && atomic_load(&op->peer->claim.wanting);
	} while (moved && posting && !op->passed);
	return any;
}

/* Otherwise all that there is is to poll. */
static bool has_socket(const struct kv_peer *peer)
{
	return peer->state == KV_PEER_UP && tr_conn_awaits(peer->conn);
}

static int64_t await_until(const struct kv_op *op, int64_t deadline_ns)
{
	int64_t until = kv_sooner(deadline_ns, op->deadline_ns);

	if (op->engine->caller_mode || !has_socket(op->peer))
		return 0;
	return kv_sooner(kv_now_ns() + AWAIT_NS, until);
}

/* True if it slept, until something came, for so long, or until another thread wants the peer. */
static bool await_peer(struct kv_peer *peer, int64_t looks_ns, int64_t most_ns)
{
	struct kv_claim *claim = &peer->claim;
	bool slept = false;

	if (!has_socket(peer))
		return false;
	atomic_store(&claim->at_socket, true);
	if (!atomic_load(&claim->wanting))
		slept = tr_conn_await(peer->conn, looks_ns,
				      peer->awaits ? kv_sooner(most_ns, AWAIT_GPU_NS) : most_ns,
				      claim->nudge_fd);
	atomic_store(&claim->at_socket, false);
	return slept;
}

/* It would be missed: a batch of a GPU takes so long, and a wake-up as much again. */
static bool kernel_runs(const struct kv_op *op, int64_t now)
{
	return op->engine->spin_ns && now - op->begun_ns < SPIN_MOST_NS &&
	       op->peer->state == KV_PEER_UP && tr_conn_computes(op->peer->conn);
}

void kv_op_spin(struct kv_op *op, int grade, int64_t deadline_ns)
{
	int64_t until = spin_until(op), leave = await_until(op, deadline_ns);
	uint64_t seen = completions_of(op->peer), completions;

	while (!reached(op, grade) && !atomic_load(&op->peer->claim.wanting)) {
		int64_t now = kv_now_ns(), last = kv_later(until, leave);
		bool slept = now < last && await_peer(op->peer, until - now, last - now);

		if (!slept)
			kv_cpu_relax();
		if (kv_op_progress(op)) {
			until = spin_until(op);
			leave = await_until(op, deadline_ns);
		} else if ((completions = completions_of(op->peer)) != seen) {
			seen = completions;
			until = kv_later(until, now + SPIN_MOVING * op->engine->spin_ns);
		} else if (!slept && now >= until && !kernel_runs(op, now)) {
			return;
		}
	}
}

bool kv_op_wait_for(struct kv_op *op, int grade, int64_t deadline_ns)
{
	struct kv_peer *peer = op->peer;
	int64_t give_up_ns = op->deadline_ns;

	while (!reached(op, grade)) {
		uint32_t seq = kv_waiter_enter(op->waiter);
		int64_t own = KV_NO_DEADLINE;
		bool passed;

		if (!kv_claim_until(&peer->claim, kv_sooner(deadline_ns, give_up_ns))) {
			kv_waiter_leave(op->waiter);
			if (give_up_ns >= deadline_ns)
				return reached(op, grade);
			/*
			 * The operation's deadline has passed; it now counts for the holder of the
			 * peer, too.
			 */
			kv_claim_hurry(&peer->claim, op->deadline_ns);
			give_up_ns = deadline_ns;
			continue;
		}
		if (!op->spun) {
			kv_peer_poll_on(peer);
			kv_op_progress(op);
			kv_op_spin(op, grade, deadline_ns);
		}
		op->spun = false;
		/* No other thread may be there to see that its deadline has passed. */
		if (op->stage != KV_STAGE_STOP)
			own = op->deadline_ns;
		passed = op->passed;
		kv_peer_release(peer);
		if (!passed && !reached(op, grade) && kv_now_ns() < deadline_ns)
			kv_service_sleep(
				op->engine, op->waiter, seq,
				kv_sooner(kv_sooner(deadline_ns, own), kv_deadline_ns(KV_TICK_MS)),
				op->blocking ? op->deadline_ns : deadline_ns);
		kv_waiter_leave(op->waiter);
		if (kv_now_ns() >= deadline_ns)
			return reached(op, grade);
	}
	return true;
}

int kv_op_result(const struct kv_op *op, struct kv_error *err)
{
	if (!op->result)
		return 0;
	return kv_error_copy(err, &op->err);
}

static int use_op(const struct kv_op *op, const char *name, struct kv_error *err)
{
	if (!op)
		return kv_fail(err, KV_ERR_ARG, name, "op is NULL");
	if (op->magic != KV_MAGIC_OP)
		return kv_fail(err, KV_ERR_CLOSED, name, "the operation was freed");
	return kv_engine_use(op->engine, name, err);
}

int kv_test(struct kv_op *op, struct kv_error *err)
{
	int ret = use_op(op, "test", err);

	if (ret)
		return ret;
	/* A thread that has the claim makes progress itself. */
	if (!atomic_load(&op->ended) && kv_claim_try(&op->peer->claim)) {
		kv_peer_progress(op->peer, true);
		kv_peer_release(op->peer);
	}
	if (!atomic_load(&op->ended))
		return atomic_load(&op->grade);
	return op->result ? kv_op_result(op, err) : KV_ACKED;
}

int kv_wait(struct kv_op *op, int grade, int64_t timeout_ms, struct kv_error *err)
{
	int64_t deadline;
	int ret = use_op(op, "wait", err);

	if (!ret)
		ret = kv_engine_deadline(timeout_ms, "wait", &deadline, err);
	if (ret)
		return ret;
	if (grade < KV_SENT || grade > KV_ACKED)
		return kv_fail(err, KV_ERR_ARG, "wait", "grade is %d; it must be %d..%d", grade,
			       KV_SENT, KV_ACKED);
	if (!kv_op_wait_for(op, grade, deadline))
		return kv_peer_fail(
			op->peer, err, KV_ERR_TIMEOUT, "wait",
			"%s has not reached grade %d within %lld ms and is still running",
			kv_op_name(op), grade, (long long)timeout_ms);
	return atomic_load(&op->ended) ? kv_op_result(op, err) : 0;
}

/*
 * A receive ends at its deadline, though a writer that does not answer may reach its blocks until
 * that is fenced. Waits for it.
 */
static bool blocks_are_closed(struct kv_op *op, int64_t deadline_ns)
{
	struct kv_peer *peer = op->peer;

	while (op->kind == KV_OP_RECV && kv_claim_until(&peer->claim, deadline_ns)) {
		bool open = peer->state != KV_PEER_CLOSED && kv_recv_is_open(op);

		if (open)
			kv_peer_fence(peer);
		kv_peer_release(peer);
		if (!open)
			return true;
		if (kv_now_ns() >= deadline_ns)
			return false;
		poll(NULL, 0, 1);
	}
	return op->kind != KV_OP_RECV;
}

int kv_cancel(struct kv_op *op, int64_t timeout_ms, struct kv_error *err)
{
	int64_t deadline, late;
	int ret = use_op(op, "cancel", err);

	if (!ret)
		ret = kv_engine_deadline(timeout_ms, "cancel", &deadline, err);
	if (ret)
		return ret;
	/* The transport itself gives up at the deadline; what it then reports takes a moment. */
	late = deadline + KV_TICK_MS * KV_NS_PER_MS;
	if (!atomic_load(&op->ended)) {
		ret = kv_peer_claim_for(op->peer, deadline, KV_ERR_BUSY, "cancel", err);
		if (ret)
			return ret;
		kv_stop(op, KV_ERR_CANCELLED, deadline, NULL);
		kv_peer_release(op->peer);
		kv_op_wait_for(op, KV_ACKED, late);
	}
	if (atomic_load(&op->ended) && blocks_are_closed(op, late))
		return 0;
	return kv_peer_fail(op->peer, err, KV_ERR_BUSY, "cancel",
			    "%s has not stopped the transfer that its process performs",
			    op->peer->name);
}

int kv_op_free(struct kv_op *op, struct kv_error *err)
{
	int ret;

	if (!op)
		return 0;
	ret = use_op(op, "op_free", err);
	if (ret)
		return ret;
	if (!atomic_load(&op->ended))
		return kv_peer_fail(op->peer, err, KV_ERR_BUSY, "op_free",
				    "%s has not ended: wait for it or cancel it", kv_op_name(op));
	if (atomic_load(&op->grouped))
		return kv_peer_fail(op->peer, err, KV_ERR_BUSY, "op_free",
				    "%s belongs to a group: kv_group_end comes first",
				    kv_op_name(op));
	kv_op_give(op);
	return 0;
}
