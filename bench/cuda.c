/* SPDX-License-Identifier: Apache-2.0 */
/* cuda.c -- CUDA's driver, by a table of its own */
#include "cuda.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

struct cuda_functions cuda;

static const struct {
	const char *name;
	void **to;
} symbols[] = {
	{ "cuInit", (void **)&cuda.init },
	{ "cuDeviceGet", (void **)&cuda.device_get },
	{ "cuDevicePrimaryCtxRetain", (void **)&cuda.primary_retain },
	{ "cuCtxSetCurrent", (void **)&cuda.set_current },
	{ "cuMemGetInfo_v2", (void **)&cuda.mem_info },
	{ "cuMemAlloc_v2", (void **)&cuda.mem_alloc },
	{ "cuMemCreate", (void **)&cuda.piece_create },
	{ "cuMemRelease", (void **)&cuda.piece_release },
	{ "cuMemAddressReserve", (void **)&cuda.reserve },
	{ "cuMemMap", (void **)&cuda.map },
	{ "cuMemSetAccess", (void **)&cuda.set_access },
	{ "cuMemcpyDtoH_v2", (void **)&cuda.to_host },
	{ "cuMemcpyHtoD_v2", (void **)&cuda.to_device },
	{ "cuMemsetD32Async", (void **)&cuda.fill_async },
	{ "cuCtxSynchronize", (void **)&cuda.synchronize },
	{ "cuMemHostAlloc", (void **)&cuda.host_alloc },
	{ "cuIpcGetMemHandle", (void **)&cuda.ipc_get },
	{ "cuIpcOpenMemHandle_v2", (void **)&cuda.ipc_open },
	{ "cuModuleLoadData", (void **)&cuda.module_load },
	{ "cuModuleGetFunction", (void **)&cuda.module_function },
	{ "cuStreamCreate", (void **)&cuda.stream_create },
	{ "cuStreamDestroy_v2", (void **)&cuda.stream_destroy },
	{ "cuStreamQuery", (void **)&cuda.stream_query },
	{ "cuLaunchKernel", (void **)&cuda.launch },
};

_Noreturn void fail(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s\n", what, why);
	exit(1);
}

void must(int rc, const char *what)
{
	char number[32];

	snprintf(number, sizeof(number), "CUDA error %d", rc);
	if (rc)
		fail(what, number);
}

bool cuda_start(int ordinal)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW), *context;
	int device;

	if (!library)
		return false;
	for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
		*symbols[i].to = dlsym(library, symbols[i].name);
		if (!*symbols[i].to)
			fail(symbols[i].name, "libcuda does not have it");
	}
	if (cuda.init(0) || cuda.device_get(&device, ordinal))
		return false;
	must(cuda.primary_retain(&context, device), "cuDevicePrimaryCtxRetain");
	must(cuda.set_current(context), "cuCtxSetCurrent");
	return true;
}

cuda_ptr cuda_alloc_pieces(int ordinal, uint64_t len)
{
	const struct {
		int type, handle_types, location, device;
		char rest[16];
	} properties = { 1, 1, 1, ordinal, { 0 } };
	const struct {
		int location, device, rights;
	} access = { 1, ordinal, 3 };
	const uint64_t most = UINT64_C(20) << 20;
	unsigned long long piece;
	cuda_ptr at;

	must(cuda.reserve(&at, len, 0, 0, 0), "cuMemAddressReserve");
	for (uint64_t done = 0, bytes; done < len; done += bytes) {
		bytes = len - done < most ? len - done : most;
		must(cuda.piece_create(&piece, bytes, &properties, 0), "cuMemCreate");
		must(cuda.map(at + done, bytes, 0, piece, 0), "cuMemMap");
		must(cuda.piece_release(piece), "cuMemRelease");
	}
	must(cuda.set_access(at, len, &access, 1), "cuMemSetAccess");
	return at;
}
