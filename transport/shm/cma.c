/* SPDX-License-Identifier: Apache-2.0 */
/* cma.c -- cross memory attach: the kernel copies between two processes, many spans a call */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/fault.h"
#include "shm.h"

/*
 * What the kernel says to a call for an address that no process has: it checks the right before the
 * address, so EFAULT means that it allows it. No address that the peer names is touched here: its
 * page may be one that never comes (userfaultfd, FUSE).
 */
static int touch(pid_t pid, bool write)
{
	uint8_t byte = 0;
	struct iovec mine = { &byte, 1 }, theirs = { (void *)(uintptr_t)-4096, 1 };

	if ((write ? process_vm_writev(pid, &mine, 1, &theirs, 1, 0)
		   : process_vm_readv(pid, &mine, 1, &theirs, 1, 0)) >= 0)
		errno = 0;
	return errno;
}

static bool may_touch(const struct shm_conn *sc, bool write)
{
	if (kv_fault(SHM_PROBE))
		return errno = EPERM, false;
	return touch(sc->pid, write) == EFAULT;
}

/* no_cma gives the reasons why not. */
void cma_probe(struct shm_conn *sc)
{
	if (sc->pid <= 0) {
		snprintf(sc->no_cma, sizeof(sc->no_cma),
			 "the peer is not visible in this pid namespace");
		return;
	}
	if (sc->pidfd < 0) {
		snprintf(sc->no_cma, sizeof(sc->no_cma), "%s", sc->no_pidfd);
		return;
	}
	for (int write = 0; write < 2; write++)
		if (!may_touch(sc, write)) {
			snprintf(sc->no_cma, sizeof(sc->no_cma), "%s of process %d: %s",
				 write ? "process_vm_writev" : "process_vm_readv", (int)sc->pid,
				 kv_errno_text(errno));
			return;
		}
	sc->cma_works = true;
}

/* A process has as many as it likes: with more it is not known. */
enum { THREADS_LOOKED_AT = 4096 };

static bool is_gone(pid_t thread)
{
	return touch(thread, false) == ESRCH;
}

/* Of all its threads, as the first one may have ended alone. */
static bool no_thread_has_memory(pid_t pid)
{
	int n = 0, with = 0;
	char path[64];
	DIR *threads;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	threads = opendir(path);
	if (!threads)
		return false;
	for (const struct dirent *d; !with && n < THREADS_LOOKED_AT && (d = readdir(threads)); n++)
		with = d->d_name[0] != '.' && !is_gone((pid_t)strtol(d->d_name, NULL, 10));
	closedir(threads);
	return n && n < THREADS_LOOKED_AT && !with;
}

bool cma_peer_is_ending(const struct shm_conn *sc)
{
	return sc->cma_works && is_gone(sc->pid) && no_thread_has_memory(sc->pid);
}

static ssize_t transfer(const struct shm_conn *sc, int kind, bool alive, struct iovec *local,
			struct iovec *remote, size_t n)
{
	/*
	 * A pid may be given to another process once its own is gone and reaped; then we would
	 * write into that one. The pidfd shows it before each call; between the two the number
	 * would have to be freed and the whole pid space to wrap around.
	 */
	if (!alive && link_peer_is_dead(sc)) {
		errno = ESRCH;
		return -1;
	}
	if (kv_fault(SHM_PROCESS_VM)) {
		errno = EPERM;
		return -1;
	}
	return kind == TR_WRITE ? process_vm_writev(sc->pid, local, n, remote, n, 0)
				: process_vm_readv(sc->pid, local, n, remote, n, 0);
}

/*
 * Takes `done` bytes off the front of two lists of equal lengths; returns how many entries are
 * gone.
 */
static size_t skip(struct iovec *local, struct iovec *remote, size_t n, size_t done)
{
	size_t i = 0;

	while (i < n && done >= local[i].iov_len)
		done -= local[i++].iov_len;
	if (i < n) {
		local[i].iov_base = (uint8_t *)local[i].iov_base + done;
		local[i].iov_len -= done;
		remote[i].iov_base = (uint8_t *)remote[i].iov_base + done;
		remote[i].iov_len -= done;
	}
	return i;
}

int cma_move(const struct shm_conn *sc, int kind, bool alive, uint8_t *local, uint8_t *remote,
	     const struct tr_span *spans, size_t n)
{
	struct iovec ours[SHM_CMA_SPANS], theirs[SHM_CMA_SPANS];
	size_t left = 0;

	for (size_t next = 0; next < n || left;) {
		size_t gone;
		ssize_t done;

		for (; next < n && left < SHM_CMA_SPANS; next++, left++) {
			ours[left] = (struct iovec){ local + spans[next].local, spans[next].len };
			theirs[left] =
				(struct iovec){ remote + spans[next].remote, spans[next].len };
		}
		done = transfer(sc, kind, alive, ours, theirs, left);
		alive = false;
		if (done <= 0) /* 0: a span is never empty, so nothing could be moved */
			return done ? errno : EFAULT;
		gone = skip(ours, theirs, left, (size_t)done);
		left -= gone;
		/*
		 * After a partial transfer the next call begins with what is left and shows the
		 * cause, if there is one.
		 */
		memmove(ours, ours + gone, left * sizeof(*ours));
		memmove(theirs, theirs + gone, left * sizeof(*theirs));
	}
	return 0;
}
