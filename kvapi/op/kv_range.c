/* SPDX-License-Identifier: Apache-2.0 */
/* kv_range.c -- the only file that sees NVTX; part of the library where its header is */
#include "kv_range.h"

#include <nvtx3/nvToolsExt.h>
#include <pthread.h>

bool kv_ranges;

static struct {
	nvtxDomainHandle_t domain;
	nvtxStringHandle_t kind[KV_KINDS];
} ranges;

static void find_profiler(void)
{
	ranges.domain = nvtxDomainCreateA("kvrail");
	if (!ranges.domain)
		return;
	for (int kind = 0; kind < KV_KINDS; kind++)
		ranges.kind[kind] = nvtxDomainRegisterStringA(ranges.domain, kv_op_kind_name(kind));
	kv_ranges = true;
}

void kv_ranges_look(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, find_profiler);
}

void kv_range_start(struct kv_op *op)
{
	nvtxEventAttributes_t says = { .version = NVTX_VERSION,
				       .size = NVTX_EVENT_ATTRIB_STRUCT_SIZE,
				       .messageType = NVTX_MESSAGE_TYPE_REGISTERED,
				       .message.registered = ranges.kind[op->kind],
				       .payloadType = NVTX_PAYLOAD_TYPE_UNSIGNED_INT64,
				       .payload.ullValue = op->bytes };

	op->range = nvtxDomainRangeStartEx(ranges.domain, &says);
}

void kv_range_stop(struct kv_op *op)
{
	nvtxDomainRangeEnd(ranges.domain, op->range);
}
