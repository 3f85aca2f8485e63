/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_claim.c -- who may touch a peer: a lock that is waited for until a deadline of CLOCK_MONOTONIC
 */
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kv_internal.h"

/*
 * Not a mutex of pthreads: pthread_mutex_clocklock needs glibc 2.30, and pthread_mutex_timedlock
 * follows the wall clock, which may jump. WAITED is also left behind by one who gave up, which
 * costs a futile wake-up at the next release.
 */
enum { FREE, HELD, WAITED };

bool kv_claim_try(struct kv_claim *claim)
{
	unsigned int was = FREE;

	return atomic_compare_exchange_strong(&claim->word, &was, HELD);
}

bool kv_claim_until(struct kv_claim *claim, int64_t deadline_ns)
{
	struct timespec ts = { .tv_sec = deadline_ns / INT64_C(1000000000),
			       .tv_nsec = deadline_ns % INT64_C(1000000000) };
	bool got = kv_claim_try(claim);

	if (got)
		return true;
	atomic_fetch_add(&claim->wanting, 1);
	while (!(got = atomic_exchange(&claim->word, WAITED) == FREE) && kv_now_ns() < deadline_ns)
		syscall(SYS_futex, &claim->word, FUTEX_WAIT_BITSET_PRIVATE, WAITED,
			deadline_ns == KV_NO_DEADLINE ? NULL : &ts, NULL, FUTEX_BITSET_MATCH_ANY);
	atomic_fetch_sub(&claim->wanting, 1);
	return got;
}

void kv_claim_release(struct kv_claim *claim)
{
	/*
	 * After the exchange only the address is used: who takes the claim next may free the peer.
	 */
	if (atomic_exchange(&claim->word, FREE) == WAITED)
		syscall(SYS_futex, &claim->word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}
