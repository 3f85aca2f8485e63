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

static int piece_at(const struct cuda_driver *cuda, cuda_ptr at, cuda_ptr *first_p, size_t *len_p)
{
	int rc = cuda->pointer_get(first_p, POINTER_MAPPING_BASE, at);

	return rc ? rc : cuda->pointer_get(len_p, POINTER_MAPPING_SIZE, at);
}

int gpu_measure(const struct cuda_driver *cuda, const void *addr, size_t len, uint64_t *offset_p,
		uint64_t *span_p, struct kv_error *err)
{
	cuda_ptr begin = (cuda_ptr)(uintptr_t)addr, at = begin, first = 0, start = 0;
	size_t bytes = 0;

	while (at - begin < len) {
		unsigned int types = 0;
		int rc = piece_at(cuda, at, &first, &bytes);

		if (!rc)
			rc = cuda->pointer_get(&types, POINTER_HANDLE_TYPES, at);
		if (rc || first > at || bytes <= at - first)
			return kv_fail(err, KV_ERR_ARG, "register",
				       "of %zu bytes at %p no memory is mapped from 0x%llx on: %s",
				       len, addr, at, cuda_error(rc));
		if (!(types & HANDLE_POSIX_FD))
			return kv_fail(err, KV_ERR_UNSUPPORTED, "register",
				       "the mapping at 0x%llx was made without "
				       "CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR",
				       first);
		start = at == begin ? first : start;
		at = first + bytes;
	}
	*offset_p = begin - start;
	*span_p = at - start;
	return 0;
}

int gpu_export(const void *addr, int *fd_p, uint64_t *len_p)
{
	struct kv_error none;
	const struct cuda_driver *cuda = cuda_driver("export", &none);
	cuda_ptr at = (cuda_ptr)(uintptr_t)addr, first = 0;
	unsigned long long piece = 0;
	size_t len = 0;
	int rc = cuda ? piece_at(cuda, at, &first, &len) : CUDA_INVALID_VALUE;

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
