/* SPDX-License-Identifier: Apache-2.0 */
/* fds.c -- a set of descriptors, emptied in a forked child */
#include "fds.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <unistd.h>

/* Linux's usual ceiling (fs.nr_open). A higher one stays open in a child: nothing worse happens. */
enum { FDS_MAX = 1 << 20 };

/* 128 KiB of zeroes, of which only touched pages exist */
static uint64_t noted[FDS_MAX / 64];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void set(int fd, int on)
{
	uint64_t bit = UINT64_C(1) << (fd & 63);

	if (fd < 0 || fd >= FDS_MAX)
		return;
	if (on)
		noted[fd / 64] |= bit;
	else
		noted[fd / 64] &= ~bit;
}

static void before_fork(void)
{
	pthread_mutex_lock(&lock);
}

static void in_parent(void)
{
	pthread_mutex_unlock(&lock);
}

/* The thread that called fork holds the lock, and is the only one there is. */
static void in_child(void)
{
	for (int i = 0; i < FDS_MAX / 64; i++)
		for (; noted[i]; noted[i] &= noted[i] - 1)
			close(i * 64 + __builtin_ctzll(noted[i]));
	pthread_mutex_unlock(&lock);
}

static void install(void)
{
	pthread_atfork(before_fork, in_parent, in_child);
}

void kv_fd_begin(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, install);
	pthread_mutex_lock(&lock);
}

int kv_fd_end(int fd)
{
	int kept = errno;

	set(fd, 1);
	pthread_mutex_unlock(&lock);
	errno = kept;
	return fd;
}

void kv_fd_close(int fd)
{
	if (fd < 0)
		return;
	pthread_mutex_lock(&lock);
	set(fd, 0);
	close(fd);
	pthread_mutex_unlock(&lock);
}

void kv_fd_lend(int fd)
{
	kv_fd_begin();
	kv_fd_end(fd);
}

void kv_fd_unlend(int fd)
{
	pthread_mutex_lock(&lock);
	set(fd, 0);
	pthread_mutex_unlock(&lock);
}
