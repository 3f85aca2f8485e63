/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_admit.h -- the decode rank's scheduler: which blocks a request gets, and when they come
 * back
 *
 * Time is trace time: a request arrives at its timestamp, runs output_tokens steps after that and
 * then gives its blocks back. Where the pool is too full for the next request, time moves on to the
 * end of the running request that ends first.
 *
 * ASSUMPTIONS: requests are admitted in trace order; an admitted request is finished or dropped
 * exactly once.
 */
#ifndef MPI_TESTS_REPLAY_ADMIT_H
#define MPI_TESTS_REPLAY_ADMIT_H

#include "pool.h"
#include "replay_schedule.h"

enum admit_status { ADMIT_OK = 0, ADMIT_WAIT };

/* A request that holds blocks. */
struct admitted {
	uint32_t request;
	uint32_t blocks; /* of the whole prompt */
	uint32_t hits;   /* the first of them, already held */
	uint32_t window; /* streamed: so many blocks at a time; 0 = it has all its blocks */
	uint32_t held; /* length of `ids` */
	int64_t *ids;  /* hits first, then what was allocated */
	uint64_t end_ms;
};

struct admit {
	struct pool *pool;
	const struct schedule_cut *cut;
	uint32_t step_ms;
	uint64_t clock_ms;
	struct admitted *running; /* finished ones whose blocks are still referenced */
	uint32_t runs, room;
};

/*
 * Gives request `number` its prefix and new blocks. A request that needs more than half of the pool
 * is to be streamed: it gets a window. ADMIT_WAIT: blocks are held by requests that are still being
 * transferred; nothing changed but the clock.
 */
enum admit_status admit_request(struct admit *a, const struct trace_request *r, uint32_t number,
				struct admitted *got);

/* All blocks have arrived: it keeps them until its end in trace time. */
void admit_finished(struct admit *a, struct admitted *done);

/* It failed: everything goes back now. */
void admit_dropped(struct admit *a, struct admitted *lost);

void admit_free(struct admit *a);

#endif
