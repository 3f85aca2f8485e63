/* SPDX-License-Identifier: Apache-2.0 */
/* cma.c -- cross memory attach: the kernel copies between two processes, many spans a call */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/fault.h"
#include "shm.h"

/*
 * Whether the kernel allows it. It checks the right before the address, so an address that no
 * process has is enough: EFAULT means yes. No address that the peer names is touched here: its page
 * may be one that never comes (userfaultfd, FUSE).
 */
static bool may_touch(const struct shm_conn *sc, bool write)
{
	uint8_t byte = 0;
	struct iovec mine = { &byte, 1 }, theirs = { (void *)(uintptr_t)-4096, 1 };

	if (kv_fault(SHM_PROBE))
		return errno = EPERM, false;
	return (write ? process_vm_writev(sc->pid, &mine, 1, &theirs, 1, 0)
		      : process_vm_readv(sc->pid, &mine, 1, &theirs, 1, 0)) < 0 &&
	       errno == EFAULT;
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
