/* SPDX-License-Identifier: Apache-2.0 */
/* floor.h -- what the files of kv_floor share */
#ifndef FLOOR_H
#define FLOOR_H

#include "../tests/loop/tr_pair.h"

enum { SIZES_MAX = 16, PAIRS_MAX = 99 };
enum { POOL_KEY = 1 }; /* the bytes of the source pool: pattern.h */

struct floor_config {
	size_t pool;
	uint32_t batch, batches, pairs;
	size_t measure_bytes; /* of one measurement */
	size_t sizes[SIZES_MAX];
	unsigned int n_sizes;
	const char *json;
	const char *path; /* NULL: all */
	bool cpu;
	bool quick;
};
extern struct floor_config cfg;
extern uint8_t *shared_floor; /* the floor's destination, mapped before the fork */

enum way { FLOOR_NT, FLOOR_PLAIN, FLOOR_CMA, FLOOR_TCP, KVRAIL, WAYS };

/*
 * One block size: where each of `batch` x `batches` blocks comes from and goes to. Equal on both
 * sides.
 */
struct plan {
	size_t size;
	uint32_t blocks;
	uint32_t *from,
		*to; /* shuffled ids of all blocks; batch k begins at k * batch, modulo blocks */
};

struct bench {
	struct pair_side *s;
	struct plan plan;
	uint8_t *floor_dst;
	uint64_t peer_base;
	uint32_t next; /* batch */
	bool both_ends; /* whose processor time counts */
	unsigned int acks;
};

/* Commands of the writer to the receiver, by message. */
enum { CMD_PLAN = 1, CMD_READ_FLOOR, CMD_READ, CMD_CHECK, CMD_QUIT };
struct command {
	uint32_t kind, batch;
	uint64_t value; /* PLAN: size. CHECK: answer = wrong blocks */
};

/* floor_loops.c */
void plan_make(struct plan *p, size_t size);
static inline uint32_t plan_slot(const struct plan *p, uint32_t batch, uint32_t i)
{
	uint64_t at = (uint64_t)(batch % cfg.batches) * cfg.batch + i;

	return (uint32_t)(at % p->blocks);
}

void floor_batch(struct bench *b, enum way way);

/* floor_tcp.c: the sockets are made before the fork; the receiving process serves them */
void floor_tcp_open(void);
void floor_tcp_serve(struct pair_side *s);
void floor_tcp_batch(struct bench *b);
void floor_tcp_end(void); /* of the writer: ends the other's thread */

/* floor_receiver.c: the other process, until CMD_QUIT */
void receiver(struct pair_side *s);

#endif
