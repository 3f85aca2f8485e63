/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vmm.c -- memory that is mapped piece by piece (cuMemCreate, cuMemMap), as PyTorch's expandable
 * segments and NCCL's buffers are: its pieces as descriptors, and those of a peer side by side
 *
 * A piece has no IPC handle, but may be exported as a descriptor, whole. What another process does
 * with it later is its own: the memory lives as long as one process has it mapped.
 */
#include "base/error.h"
#include "gpu.h"

/*
 * The piece that holds an address, in a context. POINTER_RANGE_START and POINTER_RANGE_SIZE are of
 * the whole reserved address space.
 */
static int piece_at(const struct cuda_driver *cuda, cuda_ptr at, cuda_ptr *first_p, size_t *len_p)
{
	return cuda->address_range(first_p, len_p, at);
}

static int no_piece(const struct cuda_driver *cuda, const void *addr, size_t len, cuda_ptr at,
		    int rc, struct kv_error *err)
{
	cuda_ptr first = 0, base = 0;
	size_t bytes = 0, size = 0;

	piece_at(cuda, at, &first, &bytes);
	cuda->pointer_get(&base, POINTER_MAPPING_BASE, at);
	cuda->pointer_get(&size, POINTER_MAPPING_SIZE, at);
	return kv_fail(err, KV_ERR_ARG, "register",
		       "of %zu bytes at %p no memory is mapped from 0x%llx on: %s (%zu bytes at "
		       "0x%llx; a mapping of %zu at 0x%llx)",
		       len, addr, at, cuda_error(rc), bytes, first, size, base);
}

static int measure(const struct cuda_driver *cuda, const void *addr, size_t len, bool retain,
		   struct gpu_share *share, struct kv_error *err)
{
	cuda_ptr begin = (cuda_ptr)(uintptr_t)addr, at = begin, first = 0, start = 0;
	int rc;

	while (at - begin < len) {
		unsigned long long types = 0; /* the driver writes all of it */
		size_t bytes = 0, size = 0;

		rc = piece_at(cuda, at, &first, &bytes);
		if (!rc)
			rc = cuda->pointer_get(&types, POINTER_HANDLE_TYPES, at);
		if (!rc)
			rc = cuda->pointer_get(&size, POINTER_MAPPING_SIZE, at);
		if (rc || first > at || bytes <= at - first || bytes != size)
			return no_piece(cuda, addr, len, at, rc, err);
		if (!(types & HANDLE_POSIX_FD))
			return kv_fail(err, KV_ERR_UNSUPPORTED, "register",
				       "the mapping at 0x%llx was made without "
				       "CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR",
				       first);
		start = at == begin ? first : start;
		at = first + bytes;
	}
	share->offset = begin - start;
	share->span = at - start;
	rc = retain && start == first ? cuda->piece_retain(&share->piece, (void *)(uintptr_t)addr)
				      : 0;
	return rc ? no_piece(cuda, addr, len, begin, rc, err) : 0;
}

/* In the primary context, where it was made: another one may not know its range. */
int gpu_measure(struct gpu *gpu, int device, const void *addr, size_t len, struct gpu_share *share,
		struct kv_error *err)
{
	const struct gpu_device *d;
	struct gpu_device primary;
	int mode, rc, ret = gpu_device(gpu, device, &d, err);

	if (ret)
		return ret;
	primary = *d;
	rc = d->cuda->device_get(&device, device);
	if (!rc)
		rc = d->cuda->primary_retain(&primary.context, device);
	if (rc)
		return no_piece(d->cuda, addr, len, (cuda_ptr)(uintptr_t)addr, rc, err);
	rc = gpu_enter(&primary, &mode);
	if (!rc) {
		ret = measure(d->cuda, addr, len, gpu_is_apart(gpu), share, err);
		gpu_leave(&primary, &mode);
	}
	d->cuda->primary_release(device);
	return rc ? no_piece(d->cuda, addr, len, (cuda_ptr)(uintptr_t)addr, rc, err) : ret;
}

int gpu_export_whole(const struct gpu_share *share, int *fd_p)
{
	const struct cuda_driver *cuda = cuda_driver("gpu", NULL);

	return cuda ? cuda->piece_export(fd_p, share->piece, HANDLE_POSIX_FD, 0)
		    : CUDA_INVALID_VALUE;
}

void gpu_unshare(const struct gpu_share *share)
{
	const struct cuda_driver *cuda = share->piece ? cuda_driver("gpu", NULL) : NULL;

	if (cuda)
		cuda->piece_release(share->piece);
}

static int export_piece(const struct cuda_driver *cuda, const void *addr, int *fd_p,
			uint64_t *len_p)
{
	cuda_ptr at = (cuda_ptr)(uintptr_t)addr, first = 0;
	unsigned long long piece = 0;
	size_t len = 0;
	int rc = piece_at(cuda, at, &first, &len);

	if (!rc && first != at)
		rc = CUDA_INVALID_VALUE; /* it was mapped anew */
	if (!rc)
		rc = cuda->piece_retain(&piece, (void *)(uintptr_t)addr);
	if (rc)
		return rc;
	rc = cuda->piece_export(fd_p, piece, HANDLE_POSIX_FD, 0);
	cuda->piece_release(piece);
	*len_p = len;
	return rc;
}

int gpu_export(struct gpu *gpu, int device, const void *addr, int *fd_p, uint64_t *len_p)
{
	const struct gpu_device *d;
	int mode, rc;

	if (gpu_device(gpu, device, &d, NULL))
		return CUDA_INVALID_VALUE;
	rc = gpu_enter(d, &mode);
	if (rc)
		return rc;
	rc = export_piece(d->cuda, addr, fd_p, len_p);
	gpu_leave(d, &mode);
	return rc;
}

/* ---------------------------------------------------------------- a peer's */

static int not_mapped(int device, int rc, struct kv_error *err)
{
	return kv_fail(err, KV_ERR_UNREACHABLE, "gpu",
		       "the peer's GPU memory cannot be mapped on GPU %d: %s", device,
		       cuda_error(rc));
}

/* In the GPU's context. */
static int map_piece(const struct cuda_driver *cuda, struct gpu_range *range, int fd, uint64_t len)
{
	cuda_ptr at = range->at;
	unsigned long long piece;
	int rc = cuda->piece_import(&piece, (void *)(intptr_t)fd, HANDLE_POSIX_FD);

	if (rc)
		return rc;
	rc = at ? 0 : cuda->reserve(&at, range->len, 0, 0, 0);
	range->at = rc ? 0 : at;
	if (!rc)
		rc = cuda->map(at + range->filled, len, 0, piece, 0);
	cuda->piece_release(piece); /* the mapping keeps it */
	range->filled += rc ? 0 : len;
	return rc;
}

int gpu_range_add(struct gpu *gpu, int device, struct gpu_range *range, int fd, uint64_t len,
		  struct kv_error *err)
{
	const struct gpu_device *d;
	int mode, rc, ret = gpu_device(gpu, device, &d, err);

	if (ret)
		return ret;
	rc = gpu_enter(d, &mode);
	if (!rc) {
		rc = map_piece(d->cuda, range, fd, len);
		gpu_leave(d, &mode);
	}
	return rc ? not_mapped(device, rc, err) : 0;
}

int gpu_range_allow(struct gpu *gpu, int device, const struct gpu_range *range,
		    struct kv_error *err)
{
	const struct cuda_access access = { LOCATION_DEVICE, device, ACCESS_READ_WRITE };
	const struct gpu_device *d;
	int mode, rc, ret = gpu_device(gpu, device, &d, err);

	if (ret)
		return ret;
	rc = gpu_enter(d, &mode);
	if (!rc) {
		rc = d->cuda->set_access(range->at, range->filled, &access, 1);
		gpu_leave(d, &mode);
	}
	return rc ? not_mapped(device, rc, err) : 0;
}

void gpu_range_free(struct gpu *gpu, int device, struct gpu_range *range)
{
	const struct gpu_device *d;
	int mode;

	if (!range->at || gpu_device(gpu, device, &d, NULL) || gpu_enter(d, &mode))
		return;
	if (range->filled)
		d->cuda->unmap(range->at, range->filled);
	d->cuda->unreserve(range->at, range->len);
	gpu_leave(d, &mode);
	*range = (struct gpu_range){ 0 };
}
