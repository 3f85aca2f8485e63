/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_schedule.h -- which rank serves which request, and which prefix blocks are equal: pure
 * functions
 */
#ifndef MPI_TESTS_REPLAY_SCHEDULE_H
#define MPI_TESTS_REPLAY_SCHEDULE_H

#include <stdint.h>

#include "trace.h"

struct schedule {
	uint32_t requests;
	uint16_t *prefill; /* of each request: 0 .. prefill ranks - 1 */
	uint16_t *decode;  /* of each request: 0 .. decode ranks - 1 */
};

/* What a request becomes: tokens are divided by `scale` and lie in blocks of `block_tokens`. */
struct schedule_cut {
	uint32_t block_tokens;
	uint32_t scale;
};

uint32_t schedule_blocks(const struct schedule_cut *cut, const struct trace_request *r);

/*
 * A number that is equal for two blocks if and only if (but for a chance of 2^-64) they hold the
 * same tokens after the same prefix. POOL_NO_KEY for a last block that is not full: nobody can
 * reuse it.
 */
uint64_t schedule_key(const struct schedule_cut *cut, const struct trace_request *r,
		      uint32_t block);

/*
 * Prefill ranks take turns. A request goes to the decode rank that got the longest part of its
 * prefix before, unless that one has half as much more to do than the mean; then to the one with
 * the least.
 */
void schedule_make(struct schedule *s, const struct trace *trace, const struct schedule_cut *cut,
		   uint32_t prefills, uint32_t decodes);
void schedule_free(struct schedule *s);

#endif
