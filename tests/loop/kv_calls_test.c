/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_calls_test.c -- system calls of one block over TCP until it is acknowledged, at both ends
 * together
 *
 * The linker puts these functions in the place of the C library's. A look at a socket in which
 * nothing is does not count: how many there are is a matter of time. One of many rows of writes has
 * to have no more: one in which nobody took a processor away.
 */
#include "kv_rig.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/*
 * sendmsg 2, recvmsg 2, epoll_ctl 3 (whom the socket wakes), poll (has the peer broken the
 * connection?), epoll_wait.
 */
enum { ROWS = 3000, WRITES = 20, CALLS = 9, MOST = WRITES * CALLS + WRITES / 2 };

static _Atomic unsigned int calls;

static long counted(long result)
{
	if (result >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK))
		atomic_fetch_add(&calls, 1);
	return result;
}

#define COUNT(name, type, parameters, arguments)               \
	type __real_##name parameters;                         \
	type __wrap_##name parameters;                         \
	type __wrap_##name parameters                          \
	{                                                      \
		return (type)counted(__real_##name arguments); \
	}

COUNT(sendmsg, ssize_t, (int fd, const struct msghdr *msg, int flags), (fd, msg, flags))
COUNT(recvmsg, ssize_t, (int fd, struct msghdr *msg, int flags), (fd, msg, flags))
COUNT(send, ssize_t, (int fd, const void *p, size_t n, int flags), (fd, p, n, flags))
COUNT(recv, ssize_t, (int fd, void *p, size_t n, int flags), (fd, p, n, flags))
COUNT(read, ssize_t, (int fd, void *p, size_t n), (fd, p, n))
COUNT(write, ssize_t, (int fd, const void *p, size_t n), (fd, p, n))
COUNT(poll, int, (struct pollfd * p, nfds_t n, int ms), (p, n, ms))
COUNT(ppoll, int, (struct pollfd * p, nfds_t n, const struct timespec *t, const sigset_t *s),
      (p, n, t, s))
COUNT(epoll_ctl, int, (int fd, int a, int b, struct epoll_event *e), (fd, a, b, e))
COUNT(epoll_wait, int, (int fd, struct epoll_event *e, int n, int ms), (fd, e, n, ms))
COUNT(syscall, long, (long n, long a, long b, long c, long d, long e, long f),
      (n, a, b, c, d, e, f))

static unsigned int calls_of_a_row(struct node *node)
{
	const struct kv_layers first = { 0, 1 };
	unsigned int before = atomic_load(&calls);

	for (int64_t i = 0; i < WRITES; i++)
		ok(kv_write_blocks(node->peer, node->cache, first, &i, &i, 1, NULL, &node->err),
		   &node->err);
	return atomic_load(&calls) - before;
}

CASE(a_block_until_it_is_acknowledged_makes_as_few_calls_as_before)
{
	const char *options[] = { "KVCACHE_TRANSPORT=tcp", "KVCACHE_VIEW=0", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	unsigned int least = UINT32_MAX;
	cpu_set_t set;
	struct pair p;

	if (sched_getaffinity(0, sizeof(set), &set) || CPU_COUNT(&set) < 2) {
		print_message("skipped: both ends need a processor at the same time\n");
		skip();
	}
	if (slow_ms(1) > 1) {
		print_message("skipped: on an emulated machine something is always in between\n");
		skip();
	}
	config.options = options;
	pair_open(&p, &rig_shape, &config);
	for (int i = 0; i < ROWS && least > MOST; i++) {
		unsigned int row = calls_of_a_row(&p.a);
		struct kv_arrival taken[2 * WRITES];

		/* Else they would stop the writer. */
		ok(kv_poll_arrivals(p.b.engine, taken, 2 * WRITES, &p.b.err), &p.b.err);
		least = row < least ? row : least;
	}
	print_message("%u calls for %d blocks\n", least, WRITES);
	assert_in_range(least, 1, MOST);
	pair_close(&p);
}
