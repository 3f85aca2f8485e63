/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_libc_test.c -- each call of the C library that the library makes fails once, whether somebody
 * thought of it (kv_fault_test) or not: success, or an error with its cause; no crash, no hang,
 * nothing left behind, and a second attempt works
 *
 * usage: kv_libc_test [pool|cma|ring]; KVRAIL_LONG=1: every call, not only some of many
 */
#include "kv_scene.h"

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "lib/libc.h"
#include "lib/process.h"

static void be_patient(bool patient)
{
	scene_patience_ms = patient ? RIG_TIMEOUT_MS : slow_ms(300);
	setenv("KVCACHE_HANDSHAKE_MS", patient ? "20000" : "600", 1);
}

/* Whether the call was made so often; counts the errors of the scene. */
static bool fail_once(enum libc_call call, uint32_t nth, unsigned int *errors_p)
{
	int descriptors = count_descriptors(), ret;
	struct kv_error err = { 0 };

	be_patient(false);
	libc_arm(call, nth);
	ret = scene_play(&err);
	if (ret && !libc_fired()) { /* a busy machine, or the end of the calls: that is looked at */
		be_patient(true);
		libc_arm(call, nth);
		ret = scene_play(&err);
	}
	libc_arm(call, 0);
	if (ret && (err.code != ret || !err.message[0] || !err.op[0]))
		fail_msg("%s, call %u: %d without its cause", libc_name(call), nth, ret);
	if (count_descriptors() != descriptors)
		fail_msg("%s, call %u: %d descriptors, %d before", libc_name(call), nth,
			 count_descriptors(), descriptors);
	*errors_p += ret != 0;
	return libc_fired();
}

static void play_well(void)
{
	struct kv_error err;

	be_patient(true);
	ok(scene_play(&err), &err);
}

static void every_call_of_the_c_library_fails_once(void **state)
{
	unsigned int calls = 0;

	(void)state;
	play_well(); /* what is made once stays */
	for (enum libc_call call = 0; call < LIBC_COUNT; call++) {
		unsigned int errors = 0, failed = 0;

		for (uint32_t nth = 1; fail_once(call, nth, &errors); nth = libc_next(nth))
			failed++;
		play_well();
		printf("%s: %u failed, %u times the scene did\n", libc_name(call), failed, errors);
		calls += failed > 0;
	}
	assert_true(calls > LIBC_COUNT / 2);
}

/* Says the beginning of a frame, slowly: what comes later wakes the service thread. */
static void *drip(void *arg)
{
	int listener = *(const int *)arg, fd;

	while (!libc_fired() && (fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		for (int i = 0; i < 8 && !libc_fired(); i++) {
			send(fd, &"KVRL\1\0\0\0"[i], 1, MSG_NOSIGNAL);
			poll(NULL, 0, 10);
		}
		close(fd);
	}
	return NULL;
}

/* As where a machine has too much to do: it comes back long after everybody else. */
static void a_close_waits_for_a_service_thread_that_gets_no_processor(void **state)
{
	int before = count_descriptors(), fd;
	struct kv_peer *peer;
	struct kv_error err;
	pthread_t other;
	struct node a;
	uint32_t port;

	(void)state;
	fd = port_hold(&port);
	assert_int_equal(listen(fd, 1), 0);
	ok(scene_open_side(&a, 1, &err), &err);
	libc_delay(LIBC_epoll_wait, 3000);
	assert_int_equal(pthread_create(&other, NULL, drip, &fd), 0);
	while (!libc_fired())
		assert_true(kv_connect(a.engine, NULL, port, 100, &peer, &err) < 0);
	kv_engine_close(a.engine);
	shutdown(fd, SHUT_RDWR); /* it may wait for one more */
	assert_int_equal(pthread_join(other, NULL), 0);
	close(fd);
	assert_int_equal(count_descriptors(), before);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_close_waits_for_a_service_thread_that_gets_no_processor),
		cmocka_unit_test(every_call_of_the_c_library_fails_once),
	};

	if (argc > 1)
		setenv("KVCACHE_SHM_PATH", argv[1], 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
