/* SPDX-License-Identifier: Apache-2.0 */
/* thread.c -- threads of the library, and sleeping until a word of memory changes */
#include "thread.h"

#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int kv_thread_start(pthread_t *thread, const char *name, void *(*run)(void *arg), void *arg)
{
	sigset_t all, before;
	int ret;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* the thread inherits it */
	ret = pthread_create(thread, NULL, run, arg);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!ret && name)
		pthread_setname_np(*thread, name);
	return ret;
}

void kv_futex_wait(void *word, uint32_t value, int64_t deadline_ns)
{
	struct timespec ts = { .tv_sec = deadline_ns / INT64_C(1000000000),
			       .tv_nsec = deadline_ns % INT64_C(1000000000) };

	syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, value, &ts, NULL,
		FUTEX_BITSET_MATCH_ANY);
}

void kv_futex_wake(void *word, int threads)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
}
