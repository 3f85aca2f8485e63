/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_vmm.c -- the stand-in's virtual memory management: each piece of memory is a memfd, mapped
 * into reserved address space where no CPU may touch it, and beside that where `seen` finds it
 */
#include "fake_cuda.h"
#include "fake_vmm.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { SPACES = 64, MAPPINGS = 1024, GRANULE = 2 << 20 };
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2 };

struct piece {
	int fd, refs; /* handles and mappings */
	size_t len;
	unsigned int types;
};
static struct space {
	uint8_t *at, *seen;
	size_t len, mapped;
} space[SPACES];
static struct mapping {
	struct space *in;
	size_t off, len;
	struct piece *piece;
} mapping[MAPPINGS];

static struct space *space_of(unsigned long long ptr)
{
	for (int i = 0; i < SPACES; i++)
		if (space[i].at && ptr - (uintptr_t)space[i].at < space[i].len)
			return &space[i];
	return NULL;
}

static struct mapping *mapping_of(unsigned long long ptr)
{
	struct space *s = space_of(ptr);

	for (int i = 0; s && i < MAPPINGS; i++)
		if (mapping[i].in == s && ptr - (uintptr_t)s->at - mapping[i].off < mapping[i].len)
			return &mapping[i];
	return NULL;
}

static void piece_put(struct piece *piece)
{
	if (--piece->refs)
		return;
	close(piece->fd);
	free(piece);
	fake_cuda.open--;
}

static int piece_new(int fd, size_t len, unsigned int types, unsigned long long *piece_p)
{
	struct piece *piece = fd < 0 ? NULL : malloc(sizeof(*piece));

	if (!piece)
		return OUT_OF_MEMORY;
	*piece = (struct piece){ .fd = fd, .refs = 1, .len = len, .types = types };
	fake_cuda.open++;
	*piece_p = (uintptr_t)piece;
	return SUCCESS;
}

uint8_t *fake_vmm_seen(unsigned long long ptr)
{
	const struct space *s = space_of(ptr);

	return s ? s->seen + (ptr - (uintptr_t)s->at) : NULL;
}

int fake_vmm_attribute(void *value, int attribute, unsigned long long ptr)
{
	const struct mapping *m = mapping_of(ptr);

	if (!m)
		return INVALID_VALUE;
	switch (attribute) {
	case 1: /* context: of none */
		*(void **)value = NULL;
		return SUCCESS;
	case 2:
		*(unsigned int *)value = 2;
		return SUCCESS;
	case 9:
		*(int *)value = FAKE_GPU;
		return SUCCESS;
	case 10: /* capable of legacy IPC */
		*(bool *)value = false;
		return SUCCESS;
	case 11: /* of the whole reservation */
		*(unsigned long long *)value = (uintptr_t)m->in->at;
		return SUCCESS;
	case 12:
		*(size_t *)value = m->in->len;
		return SUCCESS;
	case 14: /* allowed handle types */
		*(unsigned long long *)value = fake_cuda.no_types ? 0 : m->piece->types;
		return SUCCESS;
	case 17: /* memory pool */
		*(void **)value = NULL;
		return SUCCESS;
	case 18: /* of this mapping */
		*(size_t *)value = m->len;
		return SUCCESS;
	case 19:
		*(unsigned long long *)value = (uintptr_t)m->in->at + m->off;
		return SUCCESS;
	default:
		return INVALID_VALUE;
	}
}

int fake_vmm_export(unsigned long long ptr, size_t len)
{
	const struct mapping *m = mapping_of(ptr);
	size_t at = m ? ptr - (uintptr_t)m->in->at - m->off : 0;
	char path[64];
	int fd;

	if (!m || ptr % 4096 || len % 4096 || len > m->len - at)
		return -1;
	/* Another descriptor, as each has its own position. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", m->piece->fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	return fd >= 0 && lseek(fd, (off_t)at, SEEK_SET) < 0 ? -1 : fd;
}

/* Of the mapping. */
EXPORT int cuMemGetAddressRange_v2(unsigned long long *first_p, size_t *len_p,
				   unsigned long long ptr);
EXPORT int cuMemGetAddressRange_v2(unsigned long long *first_p, size_t *len_p,
				   unsigned long long ptr)
{
	const struct mapping *m = mapping_of(ptr);

	if (!m || !fake_cuda.contexts)
		return INVALID_VALUE;
	*first_p = (uintptr_t)m->in->at + m->off;
	*len_p = m->len;
	return SUCCESS;
}

struct properties { /* CUmemAllocationProp */
	int type;
	unsigned int types;
	int location, device;
	char rest[16];
};

EXPORT int cuMemCreate(unsigned long long *piece_p, size_t len, const struct properties *p,
		       unsigned long long flags);
EXPORT int cuMemCreate(unsigned long long *piece_p, size_t len, const struct properties *p,
		       unsigned long long flags)
{
	int fd;

	if (!len || len % GRANULE || p->type != 1 || p->location != 1 || flags)
		return INVALID_VALUE;
	fd = memfd_create("fake-piece", MFD_CLOEXEC);
	if (fd >= 0 && ftruncate(fd, (off_t)len))
		return OUT_OF_MEMORY;
	return piece_new(fd, len, p->types, piece_p);
}

EXPORT int cuMemRelease(unsigned long long piece);
EXPORT int cuMemRelease(unsigned long long piece)
{
	piece_put((struct piece *)(uintptr_t)piece);
	return SUCCESS;
}

EXPORT int cuMemRetainAllocationHandle(unsigned long long *piece_p, void *ptr);
EXPORT int cuMemRetainAllocationHandle(unsigned long long *piece_p, void *ptr)
{
	const struct mapping *m = mapping_of((uintptr_t)ptr);

	if (!m)
		return INVALID_VALUE;
	m->piece->refs++;
	*piece_p = (uintptr_t)m->piece;
	return SUCCESS;
}

EXPORT int cuMemExportToShareableHandle(void *fd_p, unsigned long long handle, int type,
					unsigned long long flags);
EXPORT int cuMemExportToShareableHandle(void *fd_p, unsigned long long handle, int type,
					unsigned long long flags)
{
	const struct piece *piece = (struct piece *)(uintptr_t)handle;

	if (fake_cuda.export_piece_says)
		return fake_cuda.export_piece_says;
	if (type != 1 || !(piece->types & 1) || flags)
		return INVALID_VALUE;
	*(int *)fd_p = fcntl(piece->fd, F_DUPFD_CLOEXEC, 0);
	fake_cuda.exported_pieces++;
	return *(int *)fd_p < 0 ? OUT_OF_MEMORY : SUCCESS;
}

/* Takes what was exported, and nothing else. */
EXPORT int cuMemImportFromShareableHandle(unsigned long long *piece_p, void *fd, int type);
EXPORT int cuMemImportFromShareableHandle(unsigned long long *piece_p, void *fd, int type)
{
	char link[64], name[64] = "";
	struct stat st;

	if (fake_cuda.import_says)
		return fake_cuda.import_says;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", (int)(intptr_t)fd);
	if (type != 1 || readlink(link, name, sizeof(name) - 1) < 0 ||
	    strncmp(name, "/memfd:fake-piece", 17) || fstat((int)(intptr_t)fd, &st))
		return INVALID_VALUE;
	return piece_new(fcntl((int)(intptr_t)fd, F_DUPFD_CLOEXEC, 0), (size_t)st.st_size, 1,
			 piece_p);
}

EXPORT int cuMemAddressReserve(unsigned long long *ptr_p, size_t len, size_t alignment,
			       unsigned long long at, unsigned long long flags);
EXPORT int cuMemAddressReserve(unsigned long long *ptr_p, size_t len, size_t alignment,
			       unsigned long long at, unsigned long long flags)
{
	int none = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, i = 0;

	while (i < SPACES && space[i].at)
		i++;
	if (i == SPACES || !len || len % GRANULE || alignment || at || flags)
		return INVALID_VALUE;
	space[i] = (struct space){ .at = mmap(NULL, len, PROT_NONE, none, -1, 0),
				   .seen = mmap(NULL, len, PROT_NONE, none, -1, 0),
				   .len = len };
	if (space[i].at == MAP_FAILED || space[i].seen == MAP_FAILED)
		return OUT_OF_MEMORY;
	fake_cuda.open++;
	*ptr_p = (uintptr_t)space[i].at;
	return SUCCESS;
}

EXPORT int cuMemAddressFree(unsigned long long ptr, size_t len);
EXPORT int cuMemAddressFree(unsigned long long ptr, size_t len)
{
	struct space *s = space_of(ptr);

	if (!s || (uintptr_t)s->at != ptr || s->len != len || s->mapped)
		return INVALID_VALUE;
	munmap(s->at, len);
	munmap(s->seen, len);
	s->at = NULL;
	fake_cuda.open--;
	return SUCCESS;
}

EXPORT int cuMemMap(unsigned long long ptr, size_t len, size_t offset, unsigned long long handle,
		    unsigned long long flags);
EXPORT int cuMemMap(unsigned long long ptr, size_t len, size_t offset, unsigned long long handle,
		    unsigned long long flags)
{
	struct piece *piece = (struct piece *)(uintptr_t)handle;
	struct space *s = space_of(ptr);
	size_t off = s ? ptr - (uintptr_t)s->at : 0;
	int i = 0;

	while (i < MAPPINGS && mapping[i].in)
		i++;
	if (i == MAPPINGS || !s || len != piece->len || len > s->len - off || offset || flags ||
	    mapping_of(ptr) || mapping_of(ptr + len - 1))
		return INVALID_VALUE;
	if (mmap(s->seen + off, len, PROT_NONE, MAP_SHARED | MAP_FIXED, piece->fd, 0) == MAP_FAILED)
		return OUT_OF_MEMORY;
	piece->refs++;
	mapping[i] = (struct mapping){ .in = s, .off = off, .len = len, .piece = piece };
	s->mapped += len;
	return SUCCESS;
}

/* Whole mappings, side by side. */
static bool is_whole(unsigned long long ptr, size_t len)
{
	for (size_t done = 0; done < len;) {
		const struct mapping *m = mapping_of(ptr + done);

		if (!m || (uintptr_t)m->in->at + m->off != ptr + done || m->len > len - done)
			return false;
		done += m->len;
	}
	return true;
}

EXPORT int cuMemUnmap(unsigned long long ptr, size_t len);
EXPORT int cuMemUnmap(unsigned long long ptr, size_t len)
{
	if (!is_whole(ptr, len))
		return INVALID_VALUE;
	mmap(fake_vmm_seen(ptr), len, PROT_NONE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	for (size_t done = 0, bytes; done < len; done += bytes) {
		struct mapping *m = mapping_of(ptr + done);

		bytes = m->len;
		m->in->mapped -= bytes;
		m->in = NULL;
		piece_put(m->piece);
	}
	return SUCCESS;
}

struct access { /* CUmemAccessDesc */
	int location, device, rights;
};

EXPORT int cuMemSetAccess(unsigned long long ptr, size_t len, const struct access *access,
			  size_t n);
EXPORT int cuMemSetAccess(unsigned long long ptr, size_t len, const struct access *access, size_t n)
{
	if (n != 1 || access->location != 1 || access->device != FAKE_GPU || access->rights != 3 ||
	    !len || !is_whole(ptr, len))
		return INVALID_VALUE;
	return mprotect(fake_vmm_seen(ptr), len, PROT_READ | PROT_WRITE) ? OUT_OF_MEMORY : SUCCESS;
}

/* ---------------------------------------------------------------- as PyTorch does it */

EXPORT uint8_t *fake_cuda_map(int n, uint8_t **addr_p);
EXPORT uint8_t *fake_cuda_map(int n, uint8_t **addr_p)
{
	const struct properties p = { .type = 1, .types = 1, .location = 1, .device = FAKE_GPU };
	const struct access access = { 1, FAKE_GPU, 3 };
	unsigned long long at, piece;

	if (cuMemAddressReserve(&at, ((size_t)n + 8) * GRANULE, 0, 0, 0))
		return NULL;
	for (int i = 0; i < n; i++) {
		if (cuMemCreate(&piece, GRANULE, &p, 0) ||
		    cuMemMap(at + (size_t)i * GRANULE, GRANULE, 0, piece, 0))
			return NULL;
		cuMemRelease(piece);
	}
	if (cuMemSetAccess(at, (size_t)n * GRANULE, &access, 1))
		return NULL;
	*addr_p = (uint8_t *)(uintptr_t)at;
	return fake_vmm_seen(at);
}

EXPORT void fake_cuda_unmap(uint8_t *addr);
EXPORT void fake_cuda_unmap(uint8_t *addr)
{
	struct space *s = space_of((uintptr_t)addr);

	cuMemUnmap((uintptr_t)addr, s->mapped);
	cuMemAddressFree((uintptr_t)addr, s->len);
}

EXPORT int cuCtxSynchronize(void);
EXPORT int cuCtxSynchronize(void)
{
	return SUCCESS;
}
