/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_check.h -- does every byte of a decode pool hold what it must?
 *
 * A FREE block must hold its stamp, a HELD one the test data of its request; an OPEN one may be in
 * the middle of a write. What is found wrong is counted, described and then put right, so that each
 * wrong byte counts once.
 */
#ifndef MPI_TESTS_REPLAY_CHECK_H
#define MPI_TESTS_REPLAY_CHECK_H

#include "replay.h"

struct replay_check {
	struct replay *rp;
	const struct pool *pool;
	uint64_t random;
};

/* Blocks that have just arrived: ids[i] is block first + i of the request. */
struct replay_chunk {
	uint32_t request, first, count, epoch;
	const int64_t *ids;
};

/* Writes the stamp of a free block into all its layers. */
void replay_check_stamp(struct replay_check *c, uint32_t id);

/* One layer of a chunk: every byte of it, the blocks beside it, and some free blocks. */
void replay_check_arrived(struct replay_check *c, const struct replay_chunk *chunk, uint32_t layer);

/* The whole pool and the guards. */
void replay_check_whole(struct replay_check *c);

/* The check of the check: damages a layer that has arrived, before it is checked. */
void replay_check_corrupt(struct replay_check *c, const struct replay_chunk *chunk, uint32_t layer);

#endif
