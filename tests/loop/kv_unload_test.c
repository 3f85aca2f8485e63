/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_unload_test.c -- a program closes the library (dlclose) while a thread of it is in a call that
 * has not returned: the code stays, as the thread comes back to it
 */
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <kvrail/kv.h>

#include "base/clock.h"
#include "lib/names.h"
#include "lib/process.h"
#include "lib/slow.h"
#include "lib/stuck.h"
#include "lib/test.h"
#include "unload.h"

#ifdef __SANITIZE_THREAD__
enum { OWN_THREADS = 2 }; /* it has one itself as soon as there is another */
#else
enum { OWN_THREADS = 1 };
#endif

static const char *path;

/* A thread without its code ends the process. */
static void await_the_thread(void)
{
	int64_t end = kv_deadline_ns(slow_ms(20000));

	while (count_threads() > OWN_THREADS) {
		assert_true(kv_now_ns() < end);
		poll(NULL, 0, 1);
	}
}

static void *world(const char *name, void **function_p)
{
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

	if (!library)
		fail_msg("%s", dlerror());
	*function_p = dlsym(library, name);
	assert_non_null(*function_p);
	return library;
}

CASE(code_stays_while_a_call_into_another_process_is_stuck)
{
	int (*stuck_call)(void);
	void *library = world("unload_stuck_call", (void **)&stuck_call);
	int child;

	child = stuck_call();
	assert_int_equal(dlclose(library), 0);
	assert_true(count_threads() > OWN_THREADS);
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, NULL, 0), child);
	await_the_thread();
}

CASE(code_stays_while_a_name_is_asked_for)
{
	void (*resolver)(void);
	void *library = world("unload_resolver", (void **)&resolver);

	resolver();
	assert_int_equal(dlclose(library), 0);
	assert_int_equal(names_asked(), 1);
	names_answer(true);
	await_the_thread();
}

static atomic_bool in_log, released;
static pthread_t main_thread;

/* The first that comes, but the test itself, stays until it is released. */
static void stay(void *arg, int level, const char *line)
{
	if (pthread_equal(pthread_self(), main_thread) || atomic_exchange(&in_log, true))
		return;
	while (!atomic_load(&released))
		poll(NULL, 0, 1);
}

static bool is_in_log(void)
{
	return atomic_load(&in_log);
}

static void a_log_callback_does_not_return(int progress)
{
	void (*leave)(int progress, void (*log)(void *arg, int level, const char *line),
		      bool (*inside)(void));
	void *library = world("unload_log", (void **)&leave);

	main_thread = pthread_self();
	leave(progress, stay, is_in_log);
	assert_int_equal(dlclose(library), 0);
	assert_true(threads_have_gone(OWN_THREADS + 1)); /* that one, and no other */
	atomic_store(&released, true);
	await_the_thread();
}

CASE(code_stays_while_the_service_thread_is_in_a_callback)
{
	a_log_callback_does_not_return(KV_PROGRESS_AUTO);
}

CASE(code_stays_while_a_thread_that_drives_the_engine_is_in_a_callback)
{
	a_log_callback_does_not_return(KV_PROGRESS_CALLER);
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: kv_unload_test LIBRARY TEST\n");
		return 2;
	}
	path = argv[1];
	if (strstr(argv[2], "stuck") && !stuck_can())
		return 77;
	setenv("KVCACHE_SHM_PATH", "cma", 1);
	cmocka_set_test_filter(argv[2]);
	return run_cases(NULL, NULL);
}
