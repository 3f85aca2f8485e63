/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wrap.h -- the C library's functions in which threads meet, wait or ask for the time
 *
 * The linker (--wrap) sends every call of X in the program to __wrap_X; __real_X is the library's.
 */
#ifndef SIM_WRAP_H
#define SIM_WRAP_H

#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#define SIM_WRAPS(X)                                                                             \
	X(int, pthread_create, (pthread_t *, const pthread_attr_t *, void *(*)(void *), void *)) \
	X(int, pthread_join, (pthread_t, void **))                                               \
	X(int, pthread_detach, (pthread_t))                                                      \
	X(int, pthread_setname_np, (pthread_t, const char *))                                    \
	X(int, pthread_mutex_lock, (pthread_mutex_t *))                                          \
	X(int, pthread_mutex_trylock, (pthread_mutex_t *))                                       \
	X(int, pthread_mutex_unlock, (pthread_mutex_t *))                                        \
	X(int, pthread_cond_wait, (pthread_cond_t *, pthread_mutex_t *))                         \
	X(int, pthread_cond_signal, (pthread_cond_t *))                                          \
	X(int, pthread_cond_broadcast, (pthread_cond_t *))                                       \
	X(int, sched_yield, (void))                                                              \
	X(long, syscall, (long, ...))                                                            \
	X(int, clock_gettime, (clockid_t, struct timespec *))                                    \
	X(ssize_t, getrandom, (void *, size_t, unsigned int))                                    \
	X(int, poll, (struct pollfd *, nfds_t, int))                                             \
	X(int, ppoll, (struct pollfd *, nfds_t, const struct timespec *, const sigset_t *))      \
	X(int, epoll_wait, (int, struct epoll_event *, int, int))                                \
	X(int, epoll_ctl, (int, int, int, struct epoll_event *))                                 \
	X(ssize_t, read, (int, void *, size_t))                                                  \
	X(ssize_t, write, (int, const void *, size_t))                                           \
	X(int, eventfd_read, (int, eventfd_t *))                                                 \
	X(int, eventfd_write, (int, eventfd_t))                                                  \
	X(ssize_t, send, (int, const void *, size_t, int))                                       \
	X(ssize_t, recv, (int, void *, size_t, int))                                             \
	X(ssize_t, sendmsg, (int, const struct msghdr *, int))                                   \
	X(ssize_t, recvmsg, (int, struct msghdr *, int))                                         \
	X(int, shutdown, (int, int))                                                             \
	X(int, close, (int))                                                                     \
	X(int, socket, (int, int, int))                                                          \
	X(int, bind, (int, const struct sockaddr *, socklen_t))                                  \
	X(int, connect, (int, const struct sockaddr *, socklen_t))                               \
	X(int, accept4, (int, struct sockaddr *, socklen_t *, int))                              \
	X(int, getsockname, (int, struct sockaddr *, socklen_t *))                               \
	X(int, getpeername, (int, struct sockaddr *, socklen_t *))                               \
	X(int, setsockopt, (int, int, int, const void *, socklen_t))                             \
	X(int, getsockopt, (int, int, int, void *, socklen_t *))                                 \
	X(int, munmap, (void *, size_t))                                                         \
	X(ssize_t, process_vm_writev,                                                            \
	  (pid_t, const struct iovec *, unsigned long, const struct iovec *, unsigned long,      \
	   unsigned long))                                                                       \
	X(ssize_t, process_vm_readv,                                                             \
	  (pid_t, const struct iovec *, unsigned long, const struct iovec *, unsigned long,      \
	   unsigned long))

/* NOLINTNEXTLINE: names that the linker makes */
#define SIM_DECLARE(type, name, arguments) \
	type __real_##name arguments;      \
	type __wrap_##name arguments;
SIM_WRAPS(SIM_DECLARE)
#undef SIM_DECLARE

#endif
