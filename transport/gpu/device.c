/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device.c -- GPUs that this process uses: the primary context, retained, or one of our own, and
 * the kernel in it
 *
 * A call that has to wait for the kernels of a context (freeing memory, loading a module, which the
 * first launch of any kernel does) holds up every other call into that context. Where an
 * application's kernels wait for bytes that are copied here, as NCCL's do, that would be for ever.
 * A context of our own is not held up (docs/nccl.md), but sees only memory that is mapped piece by
 * piece, which belongs to no context.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/fault.h"
#include "gpu.h"

enum { DEVICES = 64, SCRATCH_BYTES = 64 << 10 }; /* a page of a GPU */

struct gpu {
	pthread_mutex_t lock;
	bool apart;			   /* in contexts of our own */
	struct gpu_device device[DEVICES]; /* by ordinal; context NULL: not used yet */
	cuda_ptr scratch[DEVICES];	   /* 0: none */
	_Atomic(struct gpu_queue *) kept;  /* whose kernel still ran when it was to be closed */
	struct gpu *next_kept;
};

int gpu_open(bool apart, struct gpu **gpu_p, struct kv_error *err)
{
	struct gpu *gpu = kv_fault(GPU_ALLOC) ? NULL : calloc(1, sizeof(*gpu));

	if (!gpu)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate the table of GPUs");
	pthread_mutex_init(&gpu->lock, NULL);
	gpu->apart = apart;
	*gpu_p = gpu;
	return 0;
}

bool gpu_is_apart(const struct gpu *gpu)
{
	return gpu->apart;
}

int gpu_used(struct gpu *gpu)
{
	int i = 0;

	pthread_mutex_lock(&gpu->lock);
	while (i < DEVICES && !gpu->device[i].context)
		i++;
	pthread_mutex_unlock(&gpu->lock);
	return i < DEVICES ? i : -1;
}

/* ---------------------------------------------------------------- contexts of our own */

/* Half a gigabyte each: one for a GPU, for all that are apart. */
static struct {
	pthread_mutex_t lock;
	void *context[DEVICES];
	unsigned int users[DEVICES];
} own = { .lock = PTHREAD_MUTEX_INITIALIZER };

static int take_context(const struct gpu *gpu, const struct cuda_driver *cuda, int ordinal,
			int device, void **context_p)
{
	void *popped;
	int rc = 0;

	if (!gpu->apart)
		return cuda->primary_retain(context_p, device);
	pthread_mutex_lock(&own.lock);
	if (!own.users[ordinal]) {
		rc = cuda->context_create(&own.context[ordinal], 0, device);
		if (!rc)
			cuda->pop(&popped);
	}
	own.users[ordinal] += !rc;
	*context_p = rc ? NULL : own.context[ordinal];
	pthread_mutex_unlock(&own.lock);
	return rc;
}

static void give_context(const struct gpu *gpu, const struct cuda_driver *cuda, int ordinal)
{
	int device;

	if (!gpu->apart) {
		if (!cuda->device_get(&device, ordinal))
			cuda->primary_release(device);
		return;
	}
	pthread_mutex_lock(&own.lock);
	if (!--own.users[ordinal])
		cuda->context_destroy(own.context[ordinal]);
	pthread_mutex_unlock(&own.lock);
}

int gpu_enter(const struct gpu_device *d, int *capture_mode)
{
	int rc = d->cuda->push(d->context);

	*capture_mode = CAPTURE_RELAXED;
	if (!rc)
		d->cuda->exchange_capture_mode(capture_mode);
	return rc;
}

void gpu_leave(const struct gpu_device *d, int *capture_mode)
{
	void *context;

	d->cuda->exchange_capture_mode(capture_mode);
	d->cuda->pop(&context);
}

/* Nothing else leads to them any more. */
static _Atomic(struct gpu *) kept;

void gpu_keep(struct gpu *gpu, struct gpu_queue *queue, struct gpu_queue **next_p)
{
	*next_p = atomic_load(&gpu->kept);
	while (!atomic_compare_exchange_weak(&gpu->kept, next_p, queue))
		;
}

/* A context that the application has destroyed took its module with it: errors mean nothing. */
void gpu_close(struct gpu *gpu)
{
	if (atomic_load(&gpu->kept)) {
		gpu->next_kept = atomic_load(&kept);
		while (!atomic_compare_exchange_weak(&kept, &gpu->next_kept, gpu))
			;
		return;
	}
	for (int i = 0; i < DEVICES; i++) {
		struct gpu_device *d = &gpu->device[i];
		int mode;

		if (!d->context)
			continue;
		if (!gpu_enter(d, &mode)) {
			if (gpu->scratch[i])
				d->cuda->mem_free(gpu->scratch[i]);
			d->cuda->module_unload(d->module);
			gpu_leave(d, &mode);
		}
		give_context(gpu, d->cuda, i);
	}
	pthread_mutex_destroy(&gpu->lock);
	free(gpu);
}

static int load_kernel(struct gpu_device *d)
{
	int mode, rc = gpu_enter(d, &mode);

	if (rc)
		return rc;
	/* A GPU, or a driver, that they are not for gets the text. */
	rc = *gpu_copy_cubins ? d->cuda->module_load(&d->module, gpu_copy_cubins)
			      : CUDA_INVALID_VALUE;
	if (rc)
		rc = d->cuda->module_load(&d->module, gpu_copy_ptx);
	if (!rc)
		rc = d->cuda->module_function(&d->kernel, d->module, "kvrail_copy");
	gpu_leave(d, &mode);
	return rc;
}

/* Under the lock. */
static int first_use(struct gpu *gpu, struct gpu_device *d, int ordinal, struct kv_error *err)
{
	const struct cuda_driver *cuda = cuda_driver("gpu", err);
	int device, rc;

	if (!cuda)
		return KV_ERR_UNSUPPORTED;
	rc = cuda->device_get(&device, ordinal);
	if (!rc)
		rc = take_context(gpu, cuda, ordinal, device, &d->context);
	if (rc)
		return kv_fail(err, KV_ERR_DEVICE, "gpu", "GPU %d has no %s context: %s", ordinal,
			       gpu->apart ? "further" : "primary", cuda_error(rc));
	d->cuda = cuda;
	d->device = ordinal;
	rc = load_kernel(d);
	if (!rc)
		return 0;
	give_context(gpu, cuda, ordinal);
	d->context = NULL;
	kv_fail(err, KV_ERR_DEVICE, "gpu", "GPU %d does not take the copy kernel: %s", ordinal,
		cuda_error(rc));
	kv_error_hint(err, "it needs compute capability 8.0 or later, and a driver of CUDA 11");
	return KV_ERR_DEVICE;
}

int gpu_device(struct gpu *gpu, int device, const struct gpu_device **device_p,
	       struct kv_error *err)
{
	int ret = 0;

	if (device < 0 || device >= DEVICES)
		return kv_fail(err, KV_ERR_DEVICE, "gpu", "GPU %d is not one of %d", device,
			       DEVICES);
	pthread_mutex_lock(&gpu->lock);
	if (!gpu->device[device].context)
		ret = first_use(gpu, &gpu->device[device], device, err);
	gpu->device[device].gpu = gpu;
	pthread_mutex_unlock(&gpu->lock);
	*device_p = &gpu->device[device];
	return ret;
}

int gpu_scratch(struct gpu *gpu, int device, void **addr_p, size_t *len_p, struct kv_error *err)
{
	const struct gpu_device *d;
	int mode, rc = 0, ret = gpu_device(gpu, device, &d, err);

	if (ret)
		return ret;
	pthread_mutex_lock(&gpu->lock);
	if (!gpu->scratch[device]) {
		rc = kv_fault(GPU_SCRATCH) ? CUDA_OUT_OF_MEMORY : gpu_enter(d, &mode);
		if (!rc) {
			rc = d->cuda->mem_alloc(&gpu->scratch[device], SCRATCH_BYTES);
			gpu_leave(d, &mode);
		}
	}
	*addr_p = (void *)(uintptr_t)gpu->scratch[device];
	pthread_mutex_unlock(&gpu->lock);
	*len_p = SCRATCH_BYTES;
	return !rc ? 0
		   : kv_fail(err, KV_ERR_DEVICE, "gpu",
			     "GPU %d needs a flush after a NIC's writes, and has no memory for it: %s",
			     device, cuda_error(rc));
}

int gpu_prepare(struct gpu *gpu, int device, struct kv_error *err)
{
	const struct gpu_device *d;

	return gpu_device(gpu, device, &d, err);
}
