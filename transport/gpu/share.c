/* SPDX-License-Identifier: Apache-2.0 */
/* share.c -- a region of a GPU as other processes map it; host memory as GPUs see it */
#include <string.h>

#include "base/error.h"
#include "base/fault.h"
#include "gpu.h"

static int no_share(struct kv_error *err, const void *addr, const char *why)
{
	kv_fail(err, KV_ERR_UNSUPPORTED, "register",
		"the GPU memory at %p cannot be mapped by another process: %s", addr, why);
	kv_error_hint(err,
		      "allocate it with cudaMalloc or by expandable segments (PyTorch: without "
		      "cudaMallocAsync), or KVCACHE_TRANSPORT=ib takes a NIC on one host, too");
	return KV_ERR_UNSUPPORTED;
}

/* Kernels run in the primary context, which does not see the memory of others. */
static bool is_of_primary(const struct cuda_driver *cuda, void *context, int device)
{
	void *primary = NULL;
	bool same;

	if (cuda->primary_retain(&primary, device))
		return false;
	same = primary == context;
	cuda->primary_release(device);
	return same;
}

/* cudaMalloc's. */
static int share_allocation(const struct cuda_driver *cuda, const void *addr, int device,
			    struct gpu_share *share, struct kv_error *err)
{
	cuda_ptr at = (cuda_ptr)(uintptr_t)addr, first = 0;
	void *context = NULL;
	int rc = cuda->pointer_get(&first, POINTER_RANGE_START, at);

	if (!rc)
		rc = cuda->pointer_get(&context, POINTER_CONTEXT, at);
	if (rc || !context)
		return no_share(err, addr, rc ? cuda_error(rc) : "it belongs to no context");
	if (!is_of_primary(cuda, context, device))
		return no_share(err, addr, "it belongs to a context that is not the primary one");
	rc = cuda->push(context);
	if (rc)
		return no_share(err, addr, cuda_error(rc));
	rc = cuda->ipc_get(&share->handle, first);
	cuda->pop(&context);
	if (rc)
		return no_share(err, addr, cuda_error(rc));
	share->offset = at - first;
	return 0;
}

/* It says what of it may be exported, and 0 is an answer: a memory pool's is asked for no more. */
static bool is_mapped_in_pieces(const struct cuda_driver *cuda, cuda_ptr at, void **pool_p)
{
	unsigned long long legacy = 0; /* room for whatever width; it writes 1 byte or more */

	*pool_p = NULL;
	if (cuda->pointer_get(&legacy, POINTER_IPC_CAPABLE, at) || legacy & 0xff)
		return false;
	return cuda->pointer_get(pool_p, POINTER_MEMORY_POOL, at) || !*pool_p;
}

int gpu_share(struct gpu *gpu, const void *addr, size_t len, struct gpu_share *share,
	      struct kv_error *err)
{
	const struct cuda_driver *cuda = cuda_driver("register", err);
	cuda_ptr at = (cuda_ptr)(uintptr_t)addr;
	struct kv_error why;
	int device, ret, rc;
	void *pool;

	if (!cuda)
		return KV_ERR_UNSUPPORTED;
	ret = gpu_check_range(cuda, addr, len, err);
	if (ret)
		return ret;
	rc = cuda->pointer_get(&share->device, POINTER_DEVICE_ORDINAL, at);
	if (!rc)
		rc = cuda->device_get(&device, share->device);
	if (!rc)
		rc = cuda->device_uuid(share->uuid, device);
	if (rc)
		return no_share(err, addr, cuda_error(rc));
	share->span = 0;
	share->piece = 0;
	if (is_mapped_in_pieces(cuda, at, &pool)) {
		ret = gpu_measure(gpu, share->device, addr, len, share, &why);
		if (ret == KV_ERR_UNSUPPORTED)
			return no_share(err, addr, why.message);
		return ret ? kv_error_copy(err, &why) : 0;
	}
	if (pool)
		return no_share(err, addr, "it is of a memory pool (cudaMallocAsync)");
	if (gpu_is_apart(gpu))
		return no_share(err, addr,
				"a context of our own does not see memory of cudaMalloc "
				"(NCCL_CUMEM_ENABLE=1)");
	return share_allocation(cuda, addr, device, share, err);
}

int gpu_of(const void *addr, size_t len, int *device_p, struct kv_error *err)
{
	const struct cuda_driver *cuda = cuda_driver("register", err);
	cuda_ptr at = (cuda_ptr)(uintptr_t)addr;
	void *context = NULL;
	int ret, rc;

	if (!cuda)
		return KV_ERR_UNSUPPORTED;
	ret = gpu_check_range(cuda, addr, len, err);
	if (ret)
		return ret;
	rc = cuda->pointer_get(device_p, POINTER_DEVICE_ORDINAL, at);
	if (rc)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "register", "no GPU is known for %p: %s",
			       addr, cuda_error(rc));
	/* Memory that is mapped piece by piece, or a pool's, may have none. */
	if (!cuda->pointer_get(&context, POINTER_CONTEXT, at) && context &&
	    !is_of_primary(cuda, context, *device_p))
		return kv_fail(err, KV_ERR_UNSUPPORTED, "register",
			       "the GPU memory at %p belongs to a context that is not GPU %d's "
			       "primary one",
			       addr, *device_p);
	return 0;
}

/* Between two GPUs of this process. */
static int check_link(const struct cuda_driver *cuda, int from, int to, struct kv_error *err)
{
	int can = 0, rc;

	if (from < 0 || from == to)
		return 0;
	rc = cuda->can_access(&can, from, to);
	if (!rc && can)
		return 0;
	return kv_fail(err, KV_ERR_UNSUPPORTED, "gpu", "GPU %d does not reach GPU %d%s%s", from, to,
		       rc ? ": " : "", rc ? cuda_error(rc) : "");
}

int gpu_find(const char uuid[16], int from, int *device_p, struct kv_error *err)
{
	const struct cuda_driver *cuda = cuda_driver_start(err);
	int count = 0, device;
	char other[16];

	if (!cuda)
		return KV_ERR_UNSUPPORTED;
	cuda->device_count(&count);
	for (int i = 0; i < count; i++)
		if (!cuda->device_get(&device, i) && !cuda->device_uuid(other, device) &&
		    !memcmp(other, uuid, sizeof(other))) {
			if (device_p)
				*device_p = i;
			return check_link(cuda, from, i, err);
		}
	kv_fail(err, KV_ERR_UNSUPPORTED, "gpu",
		"the peer's GPU is not one of the %d that this process sees", count);
	kv_error_hint(err, "CUDA_VISIBLE_DEVICES hides it, or the container has no access to it");
	return KV_ERR_UNSUPPORTED;
}

int gpu_pin(struct gpu *gpu, int device, void *addr, size_t len, bool *pinned_p, uint64_t *at_p,
	    struct kv_error *err)
{
	const struct gpu_device *d;
	cuda_ptr at = 0;
	int mode, rc, ret = gpu_device(gpu, device, &d, err);

	if (ret)
		return ret;
	*pinned_p = false;
	rc = kv_fault(GPU_PIN) ? CUDA_OUT_OF_MEMORY : gpu_enter(d, &mode);
	if (!rc) {
		rc = d->cuda->host_register(addr, len, HOST_PORTABLE_MAPPED);
		*pinned_p = !rc;
		if (!rc || rc == CUDA_ALREADY_REGISTERED)
			rc = d->cuda->host_pointer(&at, addr, 0);
		if (rc && *pinned_p)
			d->cuda->host_unregister(addr);
		gpu_leave(d, &mode);
	}
	if (rc)
		return kv_fail(err, KV_ERR_DEVICE, "gpu",
			       "%zu bytes of host memory cannot be pinned for GPU %d: %s", len,
			       device, cuda_error(rc));
	*at_p = at;
	return 0;
}

void gpu_unpin(struct gpu *gpu, int device, void *addr)
{
	const struct gpu_device *d;
	int mode;

	if (gpu_device(gpu, device, &d, NULL))
		return;
	if (gpu_enter(d, &mode))
		return;
	d->cuda->host_unregister(addr);
	gpu_leave(d, &mode);
}
