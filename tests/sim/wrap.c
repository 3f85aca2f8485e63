/* SPDX-License-Identifier: Apache-2.0 */
/* wrap.c -- locks, futexes, time, sleeping, descriptors: points of the schedule */
#include "wrap.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>

#include "fake.h"
#include "schedule.h"
#include "sim.h"

#define EPOCH_NS INT64_C(1000000000000) /* the clock at the beginning */

/* ---------------------------------------------------------------- locks */

int __wrap_pthread_setname_np(pthread_t thread, const char *name)
{
	return sched_is_on() ? 0 : __real_pthread_setname_np(thread, name);
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
	if (!sched_is_on())
		return __real_pthread_mutex_lock(mutex);
	sched_point();
	while (__real_pthread_mutex_trylock(mutex))
		sched_wait(mutex, NULL, 0, SCHED_NEVER);
	return 0;
}

int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex)
{
	sched_point();
	return __real_pthread_mutex_trylock(mutex);
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
	int ret = __real_pthread_mutex_unlock(mutex);

	if (!sched_is_on())
		return ret;
	sched_wake(mutex, INT_MAX);
	sched_point();
	return ret;
}

int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
	if (!sched_is_on())
		return __real_pthread_cond_wait(cond, mutex);
	__real_pthread_mutex_unlock(mutex);
	sched_wake(mutex, INT_MAX);
	sched_wait(cond, NULL, 0, SCHED_NEVER);
	return __wrap_pthread_mutex_lock(mutex);
}

int __wrap_pthread_cond_signal(pthread_cond_t *cond)
{
	if (!sched_is_on())
		return __real_pthread_cond_signal(cond);
	sched_wake(cond, 1);
	sched_point();
	return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *cond)
{
	if (!sched_is_on())
		return __real_pthread_cond_broadcast(cond);
	sched_wake(cond, INT_MAX);
	sched_point();
	return 0;
}

int __wrap_sched_yield(void)
{
	if (!sched_is_on())
		return __real_sched_yield();
	sched_yield_point();
	return 0;
}

static long futex_wait(const atomic_uint *word, unsigned int value, const struct timespec *until)
{
	int64_t at = until ? until->tv_sec * INT64_C(1000000000) + until->tv_nsec : SCHED_NEVER;

	sched_point();
	if (atomic_load(word) != value) {
		errno = EAGAIN;
		return -1;
	}
	if (at != SCHED_NEVER)
		at -= EPOCH_NS;
	if (sched_wait(word, NULL, 0, at))
		return 0;
	errno = ETIMEDOUT;
	return -1;
}

/* It reads six arguments, of which a caller may have given fewer. */
__attribute__((no_sanitize("address"))) long __wrap_syscall(long number, ...)
{
	long a[6];
	va_list ap;

	va_start(ap, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if (!sched_is_on() || number != SYS_futex)
		return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	switch (a[1] & FUTEX_CMD_MASK) {
	case FUTEX_WAIT_BITSET:
		return futex_wait((void *)a[0], (unsigned int)a[2], (void *)a[3]);
	case FUTEX_WAKE:
		sched_wake((void *)a[0], (int)a[2]);
		sched_point();
		return 0;
	default:
		sim_fail("futex operation %ld is not simulated", a[1]);
	}
}

/* ---------------------------------------------------------------- time and chance */

int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
	int64_t now;

	if (!sched_is_on())
		return __real_clock_gettime(clock, ts);
	sched_rare_point();
	now = EPOCH_NS + sched_now_ns();
	ts->tv_sec = now / INT64_C(1000000000);
	ts->tv_nsec = now % INT64_C(1000000000);
	return 0;
}

ssize_t __wrap_getrandom(void *to, size_t n, unsigned int flags)
{
	if (!sched_is_on())
		return __real_getrandom(to, n, flags);
	for (size_t i = 0; i < n; i++)
		((uint8_t *)to)[i] = (uint8_t)(sched_random() >> 32);
	return (ssize_t)n;
}

/* ---------------------------------------------------------------- sleeping on descriptors */

static int poll_until(struct pollfd *fds, nfds_t n, int64_t until_ns)
{
	for (;;) {
		int ret = n ? __real_poll(fds, n, 0) : 0;

		if (ret || sched_now_ns() >= until_ns)
			return ret;
		sched_wait(NULL, fds, n, until_ns);
	}
}

static int64_t after_ms(int ms)
{
	return ms < 0 ? SCHED_NEVER : sched_now_ns() + ms * INT64_C(1000000);
}

int __wrap_poll(struct pollfd *fds, nfds_t n, int ms)
{
	if (!sched_is_on())
		return __real_poll(fds, n, ms);
	sched_point();
	return poll_until(fds, n, after_ms(ms));
}

int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *ts, const sigset_t *mask)
{
	if (!sched_is_on())
		return __real_ppoll(fds, n, ts, mask);
	sched_point();
	return poll_until(fds, n,
			  ts ? sched_now_ns() + ts->tv_sec * INT64_C(1000000000) + ts->tv_nsec
			     : SCHED_NEVER);
}

int __wrap_epoll_wait(int epfd, struct epoll_event *events, int max, int ms)
{
	struct pollfd p = { .fd = epfd, .events = POLLIN };
	int64_t until_ns = after_ms(ms);

	if (!sched_is_on())
		return __real_epoll_wait(epfd, events, max, ms);
	sched_point();
	for (;;) {
		int ret = __real_epoll_wait(epfd, events, max, 0);

		if (ret || sched_now_ns() >= until_ns)
			return ret;
		sched_wait(NULL, &p, 1, until_ns);
	}
}

int __wrap_epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
	int ret = __real_epoll_ctl(epfd, op, fd, event);

	sched_moved();
	return ret;
}

/* What moves bytes through a descriptor: those that sleep on one look again. */
#define MOVES(type, name, parameters, arguments) \
	type __wrap_##name parameters            \
	{                                        \
		type ret;                        \
                                                 \
		sched_point();                   \
		ret = __real_##name arguments;   \
		sched_moved();                   \
		return ret;                      \
	}

MOVES(ssize_t, write, (int fd, const void *p, size_t n), (fd, p, n))
MOVES(int, eventfd_read, (int fd, eventfd_t *v), (fd, v))
MOVES(int, eventfd_write, (int fd, eventfd_t v), (fd, v))
MOVES(ssize_t, send, (int fd, const void *p, size_t n, int flags), (fd, p, n, flags))
MOVES(ssize_t, recv, (int fd, void *p, size_t n, int flags), (fd, p, n, flags))
MOVES(ssize_t, sendmsg, (int fd, const struct msghdr *m, int flags), (fd, m, flags))
MOVES(ssize_t, recvmsg, (int fd, struct msghdr *m, int flags), (fd, m, flags))
MOVES(int, shutdown, (int fd, int how), (fd, how))
MOVES(ssize_t, process_vm_writev,
      (pid_t pid, const struct iovec *l, unsigned long nl, const struct iovec *r, unsigned long nr,
       unsigned long flags),
      (pid, l, nl, r, nr, flags))
MOVES(ssize_t, process_vm_readv,
      (pid_t pid, const struct iovec *l, unsigned long nl, const struct iovec *r, unsigned long nr,
       unsigned long flags),
      (pid, l, nl, r, nr, flags))

/* An event descriptor that blocks is slept on. */
ssize_t __wrap_read(int fd, void *p, size_t n)
{
	struct pollfd poll = { .fd = fd, .events = POLLIN };
	ssize_t ret;

	if (!sched_is_on())
		return __real_read(fd, p, n);
	sched_point();
	if (sim_fd_blocks(fd))
		poll_until(&poll, 1, SCHED_NEVER);
	ret = __real_read(fd, p, n);
	sched_moved();
	return ret;
}

int __wrap_munmap(void *addr, size_t len)
{
	if (sched_is_on())
		fake_unmaps(addr, len);
	return __real_munmap(addr, len);
}
