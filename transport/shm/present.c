/* SPDX-License-Identifier: Apache-2.0 */
/*
 * present.c -- whether the peer's pages are there, so that a call into them needs no thread
 *
 * Handing a call to a thread costs more than the copy of a block, and is needed only where a page
 * has to be fetched by a process that may not answer. So the peer's page table is read first
 * (/proc/PID/pagemap): with every page there the call is made at once. What a process takes away in
 * the microsecond between the two can hold up the calling thread until that process ends; only a
 * process of the same user, or of one that KVCACHE_SHM_ALLOW_UIDS names, can do it
 * (docs/memory-access.md).
 */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "shm.h"

#define PRESENT (UINT64_C(1) << 63)
#define GUARDED (UINT64_C(1) << 57) /* userfaultfd reports a write */

enum { PAGE_SHIFT = 12, ENTRIES = 512 };

static bool is_there(int fd, uint64_t first, uint64_t end)
{
	uint64_t entry[ENTRIES];

	for (uint64_t n; first < end; first += n) {
		n = end - first < ENTRIES ? end - first : ENTRIES;
		if (pread(fd, entry, n * 8, (off_t)(first * 8)) != (ssize_t)(n * 8))
			return false;
		for (uint64_t i = 0; i < n; i++)
			if ((entry[i] & (PRESENT | GUARDED)) != PRESENT)
				return false;
	}
	return true;
}

void present_open(struct shm_conn *sc)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)sc->pid);
	if (sc->pagemap < 0 && sysconf(_SC_PAGESIZE) == 1 << PAGE_SHIFT)
		sc->pagemap = open(path, O_RDONLY | O_CLOEXEC);
	/* The pid is still the peer's: no other process's table was opened. */
	if (sc->pagemap >= 0 && link_peer_is_dead(sc)) {
		close(sc->pagemap);
		sc->pagemap = -1;
	}
}

bool present(struct shm_conn *sc, const uint8_t *remote, const struct tr_span *spans, size_t n)
{
	if (sc->pagemap < 0 || n > SHM_PRESENT_SPANS)
		return false;
	for (size_t i = 0; i < n; i++) {
		uintptr_t at = (uintptr_t)remote + spans[i].remote;

		if (!is_there(sc->pagemap, at >> PAGE_SHIFT,
			      ((at + spans[i].len - 1) >> PAGE_SHIFT) + 1))
			return false;
	}
	return true;
}
