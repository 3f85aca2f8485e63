/* SPDX-License-Identifier: Apache-2.0 */
/* thread.h -- threads of the library, and sleeping until a word of memory changes */
#ifndef BASE_THREAD_H
#define BASE_THREAD_H

#include <pthread.h>
#include <stdint.h>

/* 0 or errno. No signal of the application is ever handled in it. name: NULL, or for ps. */
int kv_thread_start(pthread_t *thread, const char *name, void *(*run)(void *arg), void *arg);

/*
 * Sleeps while *word is `value`, until `deadline_ns`. Any return is a reason to look again: woken,
 * timed out, interrupted, or the word had changed.
 */
void kv_futex_wait(void *word, uint32_t value, int64_t deadline_ns);
void kv_futex_wake(void *word, int threads);

/*
 * A function that looks at what other threads change meanwhile, to show it to people: what it sees
 * may be half old. It follows no pointer that can go, and calls nothing.
 */
#define KV_LOOKS __attribute__((noinline, no_sanitize("thread")))
#define KV_SEEN(what) (*(const volatile __typeof__(what) *)&(what))

#endif
