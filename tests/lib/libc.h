/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libc.h -- the nth call of a function of the C library fails, once, as it could
 *
 * For programs that are linked with the library's objects and kvrail_libc (tests/CMakeLists.txt):
 * their calls, the library's among them, come through here. So a call fails that no fault point
 * (base/fault.def) knows.
 */
#ifndef LIBC_H
#define LIBC_H

#include <stdbool.h>
#include <stdint.h>

/* X(name, type, parameters, arguments, result of the failure, errno) */
#define LIBC_CALLS(X)                                                                              \
	X(malloc, void *, (size_t n), (n), NULL, ENOMEM)                                           \
	X(calloc, void *, (size_t n, size_t m), (n, m), NULL, ENOMEM)                              \
	X(realloc, void *, (void *p, size_t n), (p, n), NULL, ENOMEM)                              \
	X(mmap, void *, (void *p, size_t n, int a, int b, int fd, off_t o), (p, n, a, b, fd, o),   \
	  MAP_FAILED, ENOMEM)                                                                      \
	X(madvise, int, (void *p, size_t n, int a), (p, n, a), -1, ENOMEM)                         \
	X(memfd_create, int, (const char *s, unsigned int a), (s, a), -1, EMFILE)                  \
	X(ftruncate, int, (int fd, off_t n), (fd, n), -1, ENOSPC)                                  \
	X(socket, int, (int a, int b, int c), (a, b, c), -1, EMFILE)                               \
	X(accept4, int, (int fd, struct sockaddr *p, socklen_t *n, int a), (fd, p, n, a), -1,      \
	  EMFILE)                                                                                  \
	X(bind, int, (int fd, const struct sockaddr *p, socklen_t n), (fd, p, n), -1, ENOMEM)      \
	X(listen, int, (int fd, int n), (fd, n), -1, ENOBUFS)                                      \
	X(connect, int, (int fd, const struct sockaddr *p, socklen_t n), (fd, p, n), -1, ENOMEM)   \
	X(getsockname, int, (int fd, struct sockaddr *p, socklen_t *n), (fd, p, n), -1, ENOBUFS)   \
	X(getpeername, int, (int fd, struct sockaddr *p, socklen_t *n), (fd, p, n), -1, ENOBUFS)   \
	X(setsockopt, int, (int fd, int a, int b, const void *p, socklen_t n), (fd, a, b, p, n),   \
	  -1, ENOMEM)                                                                              \
	X(getsockopt, int, (int fd, int a, int b, void *p, socklen_t *n), (fd, a, b, p, n), -1,    \
	  ENOBUFS)                                                                                 \
	X(send, ssize_t, (int fd, const void *p, size_t n, int a), (fd, p, n, a), -1, ENOBUFS)     \
	X(recv, ssize_t, (int fd, void *p, size_t n, int a), (fd, p, n, a), -1, ENOMEM)            \
	X(sendmsg, ssize_t, (int fd, const struct msghdr *p, int a), (fd, p, a), -1, ENOBUFS)      \
	X(recvmsg, ssize_t, (int fd, struct msghdr *p, int a), (fd, p, a), -1, ENOMEM)             \
	X(epoll_create1, int, (int a), (a), -1, EMFILE)                                            \
	X(epoll_ctl, int, (int fd, int a, int b, struct epoll_event *p), (fd, a, b, p), -1,        \
	  ENOMEM)                                                                                  \
	X(epoll_wait, int, (int fd, struct epoll_event *p, int n, int ms), (fd, p, n, ms), -1,     \
	  EINTR)                                                                                   \
	X(poll, int, (struct pollfd * p, nfds_t n, int ms), (p, n, ms), -1, EINTR)                 \
	X(eventfd, int, (unsigned int n, int a), (n, a), -1, EMFILE)                               \
	X(open, int, (const char *s, int a, mode_t m), (s, a, m), -1, EMFILE)                      \
	X(pread, ssize_t, (int fd, void *p, size_t n, off_t o), (fd, p, n, o), -1, EIO)            \
	X(read, ssize_t, (int fd, void *p, size_t n), (fd, p, n), -1, EIO)                         \
	X(fstat, int, (int fd, struct stat *p), (fd, p), -1, ENOMEM)                               \
	X(fstatfs, int, (int fd, struct statfs *p), (fd, p), -1, ENOMEM)                           \
	X(fcntl, int, (int fd, int a, long n), (fd, a, n), -1, ENOMEM)                             \
	X(getrandom, ssize_t, (void *p, size_t n, unsigned int a), (p, n, a), -1, EINTR)           \
	X(syscall, long, (long n, long a, long b, long c, long d, long e), (n, a, b, c, d, e), -1, \
	  EMFILE)                                                                                  \
	X(process_vm_readv, ssize_t,                                                               \
	  (pid_t pid, const struct iovec *p, unsigned long n, const struct iovec *q,               \
	   unsigned long m, unsigned long a),                                                      \
	  (pid, p, n, q, m, a), -1, EPERM)                                                         \
	X(process_vm_writev, ssize_t,                                                              \
	  (pid_t pid, const struct iovec *p, unsigned long n, const struct iovec *q,               \
	   unsigned long m, unsigned long a),                                                      \
	  (pid, p, n, q, m, a), -1, EPERM)                                                         \
	X(pthread_create, int,                                                                     \
	  (pthread_t * t, const pthread_attr_t *a, void *(*run)(void *), void *p), (t, a, run, p), \
	  EAGAIN, EAGAIN)

enum libc_call {
#define LIBC_ENUM(name, ...) LIBC_##name,
	LIBC_CALLS(LIBC_ENUM)
#undef LIBC_ENUM
	LIBC_COUNT
};

const char *libc_name(enum libc_call call);
/* From now on: the nth one fails; 0: none, and libc_fired stays what it was. */
void libc_arm(enum libc_call call, uint32_t nth);
void libc_delay(enum libc_call call, int ms); /* the next one succeeds, so much later */
bool libc_fired(void);
/* All of them or few of many: the first ones, then farther and farther apart. */
uint32_t libc_next(uint32_t nth);

#endif
