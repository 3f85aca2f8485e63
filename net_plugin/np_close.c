/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_close.c -- the end of a communicator with requests under way: nothing lands in its memory any
 * more and nothing reads it, or its memory is held and the caller gets an error
 *
 * The end needs this side only, with two exceptions: a sender on this host may be in the middle of
 * a copy straight into our memory, and a NIC may take long to give up its queue pairs. So
 * closeRecv, closeSend, and deregMr of a region in use (NCCL frees memory before it closes) start
 * the end and wait a while. If it is not reached, they fail, and the communicator keeps its
 * connection and its registrations. Every later call of the plugin that is not on the data path
 * looks again; the caller may call close or deregMr again; finalize gives up what has ended by
 * then.
 *
 * NCCL closes one communicator after the other, so those that are closed together are waited for
 * together: the calls share one allowance of time.
 */
#include <poll.h>

#include "base/clock.h"
#include "base/unload.h"
#include "np.h"

enum {
	ALLOWED_MS = 4000, /* of waiting, by all calls that come one after the other */
	DEVICE_MS = 3000,  /* of these: for devices only, which do not depend on a peer */
	REGAIN = 4,	   /* a call comes into this by so many times the pause before it */
	LEAST_MS = 2,	   /* for each call */
	LINGER = 32,	   /* this part of the allowance: for what a sender's NIC sent last */
	EVENTS = 16,
};

/* Everything here is under the lock, and so are the connections of what stands in the list. */
static struct {
	pthread_mutex_t lock;
	struct np_comm *first; /* their end has begun, they are not freed */
	atomic_uint left;      /* of these: have not ended */
	unsigned int waiting;  /* calls */
	int64_t allowed_ns, at_ns;
} ending = { .lock = PTHREAD_MUTEX_INITIALIZER, .allowed_ns = ALLOWED_MS * KV_NS_PER_MS };

/* ---------------------------------------------------------------- is there anything to end? */

static bool is_row(const struct np_request *request, unsigned int i, const struct np_mr *mr)
{
	return (request->left & 1u << i) && request->mr[i] && (!mr || request->mr[i] == mr);
}

/* Requests under way that may touch this region, or any if mr is NULL. */
static bool is_used(struct np_comm *comm, const struct np_mr *mr)
{
	unsigned int n = comm->side->is_send ? (unsigned int)NP_SENDS : (unsigned int)NP_RECVS;
	const struct np_request *request =
		comm->side->is_send ? np_send_of(comm)->request : np_recv_of(comm)->request;

	for (; n--; request++)
		for (unsigned int i = 0; request->kind != NP_FREE && i < request->n; i++)
			if (is_row(request, i, mr))
				return true;
	return false;
}

/*
 * Once this end has stopped, only a copy by the sender's process can land over shared memory: into
 * a receive that may be filled in any order. The rest goes by the ring, and this end has stopped
 * taking it. A sender's own copies have stopped, too. A GPU's kernel or copy engine that works for
 * either end may still run.
 */
static bool waits_for_peer(struct np_comm *comm)
{
	const struct np_recv *r = np_recv_of(comm);

	if (!comm->is_shm || comm->ptr_support != NCCL_PTR_HOST)
		return true;
	for (unsigned int i = 0; !comm->side->is_send && i < NP_RECVS; i++)
		if (r->request[i].kind == NP_RECV && r->request[i].left && r->request[i].any_order)
			return true;
	return false;
}

/* ---------------------------------------------------------------- one step; under the lock */

static bool step(struct np_comm *comm)
{
	struct tr_event events[EVENTS];

	if (comm->ended)
		return true;
	if (tr_fence(comm->conn, comm->linger_ns, NULL) && waits_for_peer(comm))
		return false;
	while (tr_poll(comm->conn, events, EVENTS)) /* operations give their regions back */
		;
	comm->ended = true;
	atomic_fetch_sub(&ending.left, 1);
	return true;
}

static void begin(struct np_comm *comm)
{
	comm->linger_ns = comm->side->is_send ? ending.at_ns + ending.allowed_ns / LINGER : 0;
	if (!comm->failed) {
		comm->failed = true;
		comm->result = ncclInternalError; /* of a call that comes all the same */
	}
	comm->ending = true;
	comm->next = ending.first;
	ending.first = comm;
	atomic_fetch_add(&ending.left, 1);
}

/* ---------------------------------------------------------------- waiting */

/* Under the lock: what has passed since the last time is taken from the allowance, or regained. */
static int64_t account(void)
{
	int64_t now = kv_now_ns(), passed = now - ending.at_ns;
	int64_t allowed = ending.allowed_ns + (ending.waiting ? -passed : passed / REGAIN);

	ending.at_ns = now;
	ending.allowed_ns = allowed < 0				  ? 0
			    : allowed < ALLOWED_MS * KV_NS_PER_MS ? allowed
								  : ALLOWED_MS * KV_NS_PER_MS;
	return now;
}

static bool is_used_up(bool by_peers)
{
	return ending.allowed_ns <= (by_peers ? DEVICE_MS * KV_NS_PER_MS : 0);
}

static int64_t start_waiting(void)
{
	int64_t now;

	pthread_mutex_lock(&ending.lock);
	now = account();
	ending.waiting++;
	pthread_mutex_unlock(&ending.lock);
	return now + LEAST_MS * KV_NS_PER_MS;
}

static void stop_waiting(void)
{
	pthread_mutex_lock(&ending.lock);
	account();
	ending.waiting--;
	pthread_mutex_unlock(&ending.lock);
}

static void nap(long us)
{
	ppoll(NULL, 0, &(struct timespec){ .tv_nsec = us * 1000 }, NULL);
}

static bool wait_end(struct np_comm *comm)
{
	int64_t least_ns = start_waiting();
	bool ended = false, late = false;

	for (long us = 20; !ended && !late; us = us < 1000 ? 2 * us : 1000) {
		pthread_mutex_lock(&ending.lock);
		if (!comm->ending)
			begin(comm);
		ended = step(comm);
		late = account() >= least_ns && is_used_up(comm->is_shm);
		pthread_mutex_unlock(&ending.lock);
		if (!ended && !late)
			nap(us);
	}
	stop_waiting();
	return ended;
}

static ncclResult_t not_ended(const struct np_comm *comm, const char *what)
{
	struct kv_error err;

	kv_fail(&err, KV_ERR_BUSY, what,
		"%s can still %s memory of this communicator: a request was under way, and %s; its registrations are kept",
		comm->side->is_send ? "a device"
		: comm->is_shm	    ? "the sender"
				    : "a peer",
		comm->side->is_send ? "read" : "write",
		comm->is_shm ? "the sender's process lives and has not stopped"
			     : "the device has not given up its queue pairs");
	kv_error_hint(&err, "do not reuse the memory before closing or deregistering it again has "
			    "succeeded");
	return np_fail(&err, what);
}

ncclResult_t np_end_use(struct np_comm *comm, const struct np_mr *mr, const char *what)
{
	if (!comm->ending && !is_used(comm, mr))
		return ncclSuccess;
	return wait_end(comm) ? ncclSuccess : not_ended(comm, what);
}

/* ---------------------------------------------------------------- close */

static void forget(struct np_comm *comm)
{
	struct np_comm **at;

	if (!comm->ending)
		return;
	pthread_mutex_lock(&ending.lock);
	for (at = &ending.first; *at != comm; at = &(*at)->next)
		;
	*at = comm->next;
	if (!comm->ended)
		atomic_fetch_sub(&ending.left, 1);
	pthread_mutex_unlock(&ending.lock);
	comm->ending = false;
}

static ncclResult_t close_comm(struct np_comm *comm, const char *what)
{
	ncclResult_t result;

	np_end_step();
	if (!comm)
		return ncclSuccess;
	result = np_end_use(comm, NULL, what);
	if (result) {
		comm->closed = true;
		return result;
	}
	forget(comm);
	np_comm_free(comm);
	return ncclSuccess;
}

ncclResult_t np_close_send(void *comm)
{
	return close_comm(comm, "closeSend");
}

ncclResult_t np_close_recv(void *comm)
{
	return close_comm(comm, "closeRecv");
}

/* ---------------------------------------------------- what was closed and could not be given up */

/* Takes out one that NCCL has closed and that has ended. ctx NULL: of any finalized context. */
static struct np_comm *take_ended(const struct np_context *ctx)
{
	struct np_comm *found = NULL;

	pthread_mutex_lock(&ending.lock);
	for (struct np_comm **at = &ending.first; !found && *at;) {
		struct np_comm *comm = *at;

		if (step(comm) && comm->closed && (ctx ? comm->ctx == ctx : comm->ctx->finalized)) {
			*at = comm->next;
			comm->ending = false;
			found = comm;
		} else {
			at = &comm->next;
		}
	}
	pthread_mutex_unlock(&ending.lock);
	return found;
}

void np_end_step(void)
{
	struct np_comm *comm;

	if (!atomic_load_explicit(&ending.left, memory_order_relaxed))
		return;
	while ((comm = take_ended(NULL))) {
		np_info("a communicator that could not be closed has ended");
		np_comm_free(comm);
	}
}

/* Under the lock. */
static unsigned int count_left(const struct np_context *ctx)
{
	unsigned int n = 0;

	for (struct np_comm *comm = ending.first; comm; comm = comm->next)
		n += comm->ctx == ctx && comm->closed && !comm->ended;
	return n;
}

void np_end_all(struct np_context *ctx)
{
	int64_t least_ns = start_waiting();
	struct np_comm *comm;
	unsigned int left;
	bool late;

	do {
		while ((comm = take_ended(ctx)))
			np_comm_free(comm);
		pthread_mutex_lock(&ending.lock);
		left = count_left(ctx);
		late = account() >= least_ns && is_used_up(true);
		pthread_mutex_unlock(&ending.lock);
		if (left && !late)
			nap(1000);
	} while (left && !late);
	stop_waiting();
	if (!left)
		return;
	np_warn("finalize: %u communicators have not ended; their connections and regions stay registered until they have",
		left);
	kv_stay_loaded(); /* a device's thread may still run this code */
}
