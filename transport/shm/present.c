/* SPDX-License-Identifier: Apache-2.0 */
/*
 * present.c -- whether the peer's pages are there, so that a call into them needs no thread
 *
 * Handing a call to a thread costs more than the copy of a block, and is needed only where a page
 * has to be fetched by a process that may not answer. So the peer's page table is read first
 * (/proc/PID/pagemap): with every page there the call is made at once. What a process takes away in
 * the microseconds between the two can hold up the calling thread until that process ends; only a
 * process of the same user, or of one that KVCACHE_SHM_ALLOW_UIDS names, can do it
 * (docs/memory-access.md).
 *
 * The file belongs to the address space that it was opened for, not to the number: it gives nothing
 * once that address space has no user. So a look that found the pages needs no look at the pidfd.
 *
 * A look counts for SHM_LOOK_NS: not longer than a call of medium length is in the kernel anyway.
 */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "shm.h"

#define PRESENT (UINT64_C(1) << 63)
#define GUARDED (UINT64_C(1) << 57) /* userfaultfd reports a write */

enum { PAGE_SHIFT = 12, ENTRIES = 512 };

static bool table_shows(int fd, uint64_t first, uint64_t end)
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

/* Buffers that are used again and again (NCCL has 8 of a channel) are not looked at each time. */
static bool pages_are_there(struct shm_conn *sc, uint64_t first, uint64_t end, int64_t now_ns)
{
	/* Buffers of equal length, one behind the other, stand in different entries. */
	size_t i = first / (end - first) % SHM_LOOKS;

	if (first >= sc->looked[i].first && end <= sc->looked[i].end &&
	    now_ns < sc->looked[i].until_ns)
		return true;
	if (!table_shows(sc->pagemap, first, end))
		return false;
	sc->looked[i].first = first;
	sc->looked[i].end = end;
	sc->looked[i].until_ns = now_ns + SHM_LOOK_NS;
	return true;
}

bool present_now(const struct shm_conn *sc, const uint8_t *remote, const struct tr_span *spans,
		 size_t n)
{
	for (size_t i = 0; i < n; i++) {
		uintptr_t at = (uintptr_t)remote + spans[i].remote;

		if (!table_shows(sc->pagemap, at >> PAGE_SHIFT,
				 ((at + spans[i].len - 1) >> PAGE_SHIFT) + 1))
			return false;
	}
	return true;
}

bool present(struct shm_conn *sc, const uint8_t *remote, const struct tr_span *spans, size_t n)
{
	int64_t now_ns;

	if (sc->pagemap < 0 || n > SHM_PRESENT_SPANS)
		return false;
	now_ns = kv_now_ns();
	for (size_t i = 0; i < n; i++) {
		uintptr_t at = (uintptr_t)remote + spans[i].remote;

		if (!pages_are_there(sc, at >> PAGE_SHIFT,
				     ((at + spans[i].len - 1) >> PAGE_SHIFT) + 1, now_ns))
			return false;
	}
	return true;
}
