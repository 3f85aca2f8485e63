/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvtx_profiler.c -- a profiler as NVTX loads one (NVTX_INJECTION64_PATH): a line on stderr for
 * each range of the domain kvrail that begins or ends
 */
#include <nvtx3/nvToolsExt.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char mark; /* stands for the domain */
static atomic_ullong ids;

static nvtxDomainHandle_t create(const char *name)
{
	return strcmp(name, "kvrail") ? NULL : (nvtxDomainHandle_t)&mark;
}

static nvtxStringHandle_t keep(nvtxDomainHandle_t domain, const char *string)
{
	return (nvtxStringHandle_t)strdup(string);
}

static nvtxRangeId_t start(nvtxDomainHandle_t domain, const nvtxEventAttributes_t *says)
{
	nvtxRangeId_t id = atomic_fetch_add(&ids, 1) + 1;

	fprintf(stderr, "nvtx %d start %llu %s %llu%s\n", (int)getpid(), (unsigned long long)id,
		(const char *)says->message.registered, (unsigned long long)says->payload.ullValue,
		(char *)domain == &mark ? "" : " of another domain");
	return id;
}

static void end(nvtxDomainHandle_t domain, nvtxRangeId_t id)
{
	fprintf(stderr, "nvtx %d end %llu%s\n", (int)getpid(), (unsigned long long)id,
		(char *)domain == &mark ? "" : " of another domain");
}

__attribute__((visibility("default"))) int
InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table)
{
	const NvtxExportTableCallbacks *callbacks = get_table(NVTX_ETID_CALLBACKS);
	NvtxFunctionTable table;
	unsigned int size;

	if (!callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size))
		return 0;
	*table[NVTX_CBID_CORE2_DomainCreateA] = (NvtxFunctionPointer)create;
	*table[NVTX_CBID_CORE2_DomainRegisterStringA] = (NvtxFunctionPointer)keep;
	*table[NVTX_CBID_CORE2_DomainRangeStartEx] = (NvtxFunctionPointer)start;
	*table[NVTX_CBID_CORE2_DomainRangeEnd] = (NvtxFunctionPointer)end;
	return 1;
}
