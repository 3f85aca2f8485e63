/* SPDX-License-Identifier: Apache-2.0 */
/* kv_claim.c -- the lock of a peer, taken with a deadline of CLOCK_MONOTONIC */
#include <assert.h>
#include <errno.h>
#include <unistd.h>

#include "base/thread.h"
#include "kv_engine.h"

/*
 * Not a mutex of pthreads: pthread_mutex_clocklock needs glibc 2.30, and pthread_mutex_timedlock
 * follows the wall clock, which may jump. WAITED also stays after a caller gave up, which costs one
 * needless wake-up at the next release. A release with others waiting makes it OFFERED: a thread
 * that was not waiting, the last holder above all, does not get it before them.
 */
enum { FREE, HELD, WAITED, OFFERED };

enum {
	OFFER_NS = 1000000, /* for this long only waiting threads can take it */
	SPINS = 64,	    /* before a waiting thread sleeps: 2 us */
};

static bool claim_swap(struct kv_claim *claim, unsigned int from, unsigned int to)
{
	return atomic_compare_exchange_strong(&claim->word, &from, to);
}

bool kv_claim_try(struct kv_claim *claim)
{
	if (!claim_swap(claim, FREE, HELD) &&
	    (atomic_load(&claim->wanting) || !claim_swap(claim, OFFERED, HELD)))
		return false;
	atomic_store_explicit(&claim->until_ns, KV_NO_DEADLINE, memory_order_relaxed);
	return true;
}

/* A service thread that polls has it for a fraction of a microsecond. */
static bool spin_for(struct kv_claim *claim)
{
	for (int i = 0; i < SPINS; i++) {
		if (atomic_load_explicit(&claim->word, memory_order_relaxed) == FREE &&
		    claim_swap(claim, FREE, HELD))
			return true;
		kv_cpu_relax();
	}
	return false;
}

static bool wait_for(struct kv_claim *claim, int64_t deadline_ns)
{
	bool slept = false;

	if (spin_for(claim))
		return true;
	for (;;) {
		unsigned int word = atomic_load(&claim->word);
		int64_t now, until = deadline_ns;

		if ((word == FREE || (word == OFFERED && slept)) && claim_swap(claim, word, WAITED))
			return true;
		if (word == FREE || (word == HELD && !claim_swap(claim, HELD, WAITED)))
			continue;
		now = kv_now_ns();
		if (now >= deadline_ns)
			return false;
		if (word == HELD)
			word = WAITED;
		if (word == OFFERED && now + OFFER_NS < until)
			until = now + OFFER_NS;
		kv_futex_wait(&claim->word, word, until);
		slept = true;
	}
}

/* Its holder sets at_socket and then looks at `wanting`; here it is the other way round. */
static bool nudge(const struct kv_claim *claim)
{
	uint64_t one = 1;

	return atomic_load(&claim->at_socket) &&
	       write(claim->nudge_fd, &one, sizeof(one)) == (ssize_t)sizeof(one);
}

static void end_nudge(const struct kv_claim *claim)
{
	uint64_t one;

	while (read(claim->nudge_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

bool kv_claim_until(struct kv_claim *claim, int64_t deadline_ns)
{
	bool got = kv_claim_try(claim);

	assert(deadline_ns != KV_NO_DEADLINE);
	if (!got) {
		bool nudges;

		atomic_fetch_add(&claim->wanting, 1);
		nudges = nudge(claim);
		got = wait_for(claim, deadline_ns);
		atomic_fetch_sub(&claim->wanting, 1);
		if (nudges)
			end_nudge(claim);
	}
	if (got)
		atomic_store_explicit(&claim->until_ns, deadline_ns, memory_order_relaxed);
	return got;
}

void kv_claim_hurry(struct kv_claim *claim, int64_t deadline_ns)
{
	int64_t until_ns = atomic_load(&claim->until_ns);

	while (deadline_ns < until_ns &&
	       !atomic_compare_exchange_weak(&claim->until_ns, &until_ns, deadline_ns))
		;
}

bool kv_claim_is_held(const struct kv_claim *claim)
{
	unsigned int word = atomic_load(&claim->word);

	return word == HELD || word == WAITED;
}

void kv_claim_release(struct kv_claim *claim)
{
	if (claim_swap(claim, HELD, FREE))
		return;
	/*
	 * After the store only the address is used: the next holder may free the peer.
	 */
	atomic_store(&claim->word, OFFERED);
	kv_futex_wake(&claim->word, 1);
}
