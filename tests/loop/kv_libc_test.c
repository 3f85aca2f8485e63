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
#include <stdlib.h>
#include <sys/socket.h>

#include "lib/libc.h"
#include "lib/libc_sweep.h"
#include "lib/port.h"
#include "lib/process.h"

static int play(bool patient, struct kv_error *err)
{
	scene_patience_ms = patient ? RIG_TIMEOUT_MS : slow_ms(300);
	return scene_play(err);
}

CASE(every_call_of_the_c_library_fails_once)
{
	libc_sweep(play);
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
CASE(a_close_waits_for_a_service_thread_that_gets_no_processor)
{
	int before = count_descriptors(), fd;
	struct kv_peer *peer;
	struct kv_error err;
	pthread_t other;
	struct node a;
	uint32_t port;

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
	if (argc > 1)
		setenv("KVCACHE_SHM_PATH", argv[1], 1);
	return run_cases(NULL, NULL);
}
