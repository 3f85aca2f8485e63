/* SPDX-License-Identifier: Apache-2.0 */
/* rank_memory.h -- the pool of a rank: of the host, or of a GPU and a copy for CPUs */
#ifndef MPI_TESTS_RANK_MEMORY_H
#define MPI_TESTS_RANK_MEMORY_H

#include <kvrail/kv.h>

struct rank_memory {
	unsigned char *bytes;	/* zeroed; the pool, or the copy */
	unsigned long long gpu; /* its address there; 0: of the host */
};

/* gpu: its ordinal, or -1. UNSUPPORTED: there is no such GPU. It lives as long as the engine. */
int rank_memory_open(struct rank_memory *m, struct kv_engine *engine, int gpu, uint64_t bytes,
		     struct kv_error *err);
/* What an address of `bytes` is called in a layout, and where that is. */
void *rank_memory_at(const struct rank_memory *m, const void *at);
int rank_memory_kind(const struct rank_memory *m);
/* After the copy was written, before it is read; nothing without a GPU. */
void rank_memory_put(const struct rank_memory *m, const void *at, uint64_t len);
void rank_memory_get(const struct rank_memory *m, void *at, uint64_t len);

#endif
