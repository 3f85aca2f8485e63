/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_load.c -- libcuda.so.1, found where it is loaded; the only file that names its symbols */
#include "cuda_load.h"

#include <dlfcn.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/library.h"

static struct cuda_driver cuda;

static const struct kv_symbol symbols[] = {
	{ "cuInit", (void **)&cuda.init, false },
	{ "cuGetErrorName", (void **)&cuda.error_name, false },
	{ "cuDeviceGet", (void **)&cuda.device_get, false },
	{ "cuDeviceGetCount", (void **)&cuda.device_count, false },
	{ "cuDeviceGetUuid_v2", (void **)&cuda.device_uuid, false },
	{ "cuDeviceGetAttribute", (void **)&cuda.device_attribute, false },
	{ "cuDeviceCanAccessPeer", (void **)&cuda.can_access, false },
	{ "cuPointerGetAttribute", (void **)&cuda.pointer_get, false },
	{ "cuPointerSetAttribute", (void **)&cuda.pointer_set, false },
	{ "cuDevicePrimaryCtxRetain", (void **)&cuda.primary_retain, false },
	{ "cuDevicePrimaryCtxRelease_v2", (void **)&cuda.primary_release, false },
	{ "cuCtxCreate_v2", (void **)&cuda.context_create, false },
	{ "cuCtxDestroy_v2", (void **)&cuda.context_destroy, false },
	{ "cuCtxPushCurrent_v2", (void **)&cuda.push, false },
	{ "cuCtxPopCurrent_v2", (void **)&cuda.pop, false },
	{ "cuThreadExchangeStreamCaptureMode", (void **)&cuda.exchange_capture_mode, false },
	{ "cuMemGetHandleForAddressRange", (void **)&cuda.get_handle, true },
	{ "cuIpcGetMemHandle", (void **)&cuda.ipc_get, false },
	{ "cuIpcOpenMemHandle_v2", (void **)&cuda.ipc_open, false },
	{ "cuIpcCloseMemHandle", (void **)&cuda.ipc_close, false },
	{ "cuMemGetAddressRange_v2", (void **)&cuda.address_range, false },
	{ "cuMemRetainAllocationHandle", (void **)&cuda.piece_retain, false },
	{ "cuMemRelease", (void **)&cuda.piece_release, false },
	{ "cuMemExportToShareableHandle", (void **)&cuda.piece_export, false },
	{ "cuMemImportFromShareableHandle", (void **)&cuda.piece_import, false },
	{ "cuMemAddressReserve", (void **)&cuda.reserve, false },
	{ "cuMemAddressFree", (void **)&cuda.unreserve, false },
	{ "cuMemMap", (void **)&cuda.map, false },
	{ "cuMemUnmap", (void **)&cuda.unmap, false },
	{ "cuMemSetAccess", (void **)&cuda.set_access, false },
	{ "cuMemAlloc_v2", (void **)&cuda.mem_alloc, false },
	{ "cuMemFree_v2", (void **)&cuda.mem_free, false },
	{ "cuMemHostAlloc", (void **)&cuda.host_alloc, false },
	{ "cuMemFreeHost", (void **)&cuda.host_free, false },
	{ "cuMemHostRegister_v2", (void **)&cuda.host_register, false },
	{ "cuMemHostUnregister", (void **)&cuda.host_unregister, false },
	{ "cuMemHostGetDevicePointer_v2", (void **)&cuda.host_pointer, false },
	{ "cuModuleLoadData", (void **)&cuda.module_load, false },
	{ "cuModuleUnload", (void **)&cuda.module_unload, false },
	{ "cuModuleGetFunction", (void **)&cuda.module_function, false },
	{ "cuCtxGetStreamPriorityRange", (void **)&cuda.priorities, false },
	{ "cuStreamCreateWithPriority", (void **)&cuda.stream_create, false },
	{ "cuStreamDestroy_v2", (void **)&cuda.stream_destroy, false },
	{ "cuStreamGetCtx", (void **)&cuda.stream_context, false },
	{ "cuCtxGetCurrent", (void **)&cuda.current, false },
	{ "cuEventCreate", (void **)&cuda.event_create, false },
	{ "cuEventDestroy_v2", (void **)&cuda.event_destroy, false },
	{ "cuEventRecord", (void **)&cuda.event_record, false },
	{ "cuEventQuery", (void **)&cuda.event_query, false },
	{ "cuMemcpyAsync", (void **)&cuda.copy, false },
	{ "cuMemcpy2DAsync_v2", (void **)&cuda.copy_rows, false },
	{ "cuMemcpyBatchAsync", (void **)&cuda.copy_batch, true },
	{ "cuLaunchKernel", (void **)&cuda.launch, false },
	{ NULL, NULL, false },
};

static const struct cuda_driver *find_driver(struct kv_library *library, const char *op,
					     const char *why, struct kv_error *err)
{
	const char *lacks;

	if (kv_library_load(library, kv_fault(GPU_DLOPEN), &lacks))
		return &cuda;
	if (lacks)
		kv_fail(err, KV_ERR_UNSUPPORTED, op, "%s has no %s", library->file, lacks);
	else
		kv_fail(err, KV_ERR_UNSUPPORTED, op, "%s", why);
	return NULL;
}

const struct cuda_driver *cuda_driver(const char *op, struct kv_error *err)
{
	static struct kv_library library = { "libcuda.so.1", RTLD_NOW | RTLD_NOLOAD, symbols,
					     false };

	return find_driver(&library, op, "CUDA does not run in this process", err);
}

const struct cuda_driver *cuda_driver_start(struct kv_error *err)
{
	static struct kv_library library = { "libcuda.so.1", RTLD_NOW, symbols, false };
	int rc;

	if (!find_driver(&library, "gpu", "the CUDA driver (libcuda.so.1) is not installed", err))
		return NULL;
	rc = cuda.init(0);
	if (!rc)
		return &cuda;
	kv_fail(err, KV_ERR_UNSUPPORTED, "gpu", "CUDA does not start: %s", cuda_error(rc));
	return NULL;
}

bool cuda_is_installed(void)
{
	void *library = kv_fault(GPU_DLOPEN) ? NULL : dlopen("libcuda.so.1", RTLD_LAZY);

	if (library)
		dlclose(library);
	return library;
}

const char *cuda_error(int error)
{
	const char *name = NULL;

	return !cuda.error_name(error, &name) && name ? name : "an unknown error";
}
