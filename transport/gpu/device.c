/* SPDX-License-Identifier: Apache-2.0 */
/* device.c -- GPUs that this process uses: the primary context, retained, and the kernel in it */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/fault.h"
#include "gpu.h"

enum { DEVICES = 64 };

struct gpu {
	pthread_mutex_t lock;
	struct gpu_device device[DEVICES]; /* by ordinal; context NULL: not used yet */
	_Atomic(struct gpu_queue *) kept;  /* whose kernel still ran when it was to be closed */
	struct gpu *next_kept;
};

int gpu_open(struct gpu **gpu_p, struct kv_error *err)
{
	struct gpu *gpu = kv_fault(GPU_ALLOC) ? NULL : calloc(1, sizeof(*gpu));

	if (!gpu)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate the table of GPUs");
	pthread_mutex_init(&gpu->lock, NULL);
	*gpu_p = gpu;
	return 0;
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
			d->cuda->module_unload(d->module);
			gpu_leave(d, &mode);
		}
		d->cuda->primary_release(i);
	}
	pthread_mutex_destroy(&gpu->lock);
	free(gpu);
}

static int load_kernel(struct gpu_device *d)
{
	int mode, rc = gpu_enter(d, &mode);

	if (rc)
		return rc;
	rc = d->cuda->module_load(&d->module, gpu_copy_ptx);
	if (!rc)
		rc = d->cuda->module_function(&d->kernel, d->module, "kvrail_copy");
	gpu_leave(d, &mode);
	return rc;
}

/* Under the lock. */
static int first_use(struct gpu_device *d, int ordinal, struct kv_error *err)
{
	const struct cuda_driver *cuda = cuda_driver("gpu", err);
	int device, rc;

	if (!cuda)
		return KV_ERR_UNSUPPORTED;
	rc = cuda->device_get(&device, ordinal);
	if (!rc)
		rc = cuda->primary_retain(&d->context, device);
	if (rc)
		return kv_fail(err, KV_ERR_DEVICE, "gpu", "GPU %d has no primary context: %s",
			       ordinal, cuda_error(rc));
	d->cuda = cuda;
	d->device = ordinal;
	rc = load_kernel(d);
	if (!rc)
		return 0;
	cuda->primary_release(device);
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
		ret = first_use(&gpu->device[device], device, err);
	gpu->device[device].gpu = gpu;
	pthread_mutex_unlock(&gpu->lock);
	*device_p = &gpu->device[device];
	return ret;
}

int gpu_prepare(struct gpu *gpu, int device, struct kv_error *err)
{
	const struct gpu_device *d;

	return gpu_device(gpu, device, &d, err);
}
