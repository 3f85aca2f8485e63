/* SPDX-License-Identifier: Apache-2.0 */
/* rank_memory.c -- the pool of a rank, of the host or of a GPU */
#include "rank_memory.h"

#include <stdio.h>

#include "cuda.h"
#include "util.h"

int rank_memory_open(struct rank_memory *m, struct kv_engine *engine, int gpu, uint64_t bytes,
		     struct kv_error *err)
{
	void *base = NULL;
	int rc;

	m->gpu = 0;
	if (gpu < 0) {
		rc = kv_alloc(engine, bytes, &base, err);
		m->bytes = rc ? NULL : base;
		return rc;
	}
	if (!cuda_start(gpu)) {
		*err = (struct kv_error){ .code = KV_ERR_UNSUPPORTED,
					  .block_index = -1,
					  .block_id = -1 };
		snprintf(err->message, sizeof(err->message),
			 "there is no GPU %d here, or its driver does not start", gpu);
		return err->code;
	}
	bytes = (bytes + 4095) & ~UINT64_C(4095);
	must(cuda.mem_alloc(&m->gpu, bytes), "cuMemAlloc");
	m->bytes = need_calloc(bytes, 1);
	rank_memory_put(m, m->bytes, bytes);
	return 0;
}

static cuda_ptr place(const struct rank_memory *m, const void *at)
{
	return m->gpu + (uint64_t)((const unsigned char *)at - m->bytes);
}

void *rank_memory_at(const struct rank_memory *m, const void *at)
{
	return m->gpu ? (void *)(uintptr_t)place(m, at) : (void *)(uintptr_t)at;
}

int rank_memory_kind(const struct rank_memory *m)
{
	return m->gpu ? KV_MEM_CUDA : KV_MEM_HOST;
}

void rank_memory_put(const struct rank_memory *m, const void *at, uint64_t len)
{
	if (!m->gpu)
		return;
	must(cuda.to_device(place(m, at), at, len), "cuMemcpyHtoD");
	must(cuda.synchronize(), "cuCtxSynchronize"); /* a small one may return before */
}

void rank_memory_get(const struct rank_memory *m, void *at, uint64_t len)
{
	if (m->gpu)
		must(cuda.to_host(at, place(m, at), len), "cuMemcpyDtoH");
}
