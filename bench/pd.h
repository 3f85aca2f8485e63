/* SPDX-License-Identifier: Apache-2.0 */
/* pd.h -- what the parts of kv_pd_bench share */
#ifndef BENCH_PD_H
#define BENCH_PD_H

#include <kvrail/kv.h>
#include <stdint.h>
#include <stdio.h>

#include "hist.h"
#include "job_options.h"
#include "rank.h"

enum {
	BENCH_ROWS_MAX = KV_CACHES_MAX, /* each block size is a cache of its own */
	BENCH_BATCHES = 64,		/* cold: so many different batches in turn */
	BENCH_NOTE_MAX = 320,
	BENCH_IN_FLIGHT_MAX = 16,
};

struct bench_options {
	struct job_options job;
	uint64_t first_bytes, last_bytes; /* block sizes */
	uint32_t factor;
	uint32_t batch; /* blocks that one prefill rank writes to one decode rank at a time */
	uint32_t iters, warmup;
	uint32_t layers, tensors;
	uint64_t pool_bytes;
	int check, hot, two_sided, corrupt;
	uint32_t in_flight; /* batches that are begun before the first of them is waited for */
	uint32_t rows;
	uint64_t row_bytes[BENCH_ROWS_MAX];
};

/* What a rank says of one block size. All ranks see all of them. */
struct bench_row {
	uint64_t begin_ns, end_ns; /* of the measured iterations */
	uint64_t bytes;		   /* moved in them */
	uint64_t wrong;
	uint64_t memcpy_ns, nt_ns; /* floor: one batch to one decode rank; 0 = not measured */
	uint32_t failed;
	char note[BENCH_NOTE_MAX];
	struct hist batch;
};

/* ---------------------------------------------------------------- pd_ids.c */

/* The blocks of one pair of ranks: which source block goes where, for each batch. */
struct bench_ids {
	uint32_t batch, batches;
	uint32_t source_blocks;	   /* of the prefill rank */
	uint32_t part_first, part; /* this prefill rank's part of the decode rank's blocks */
	int64_t *source, *dest;	   /* batches x batch */
};

uint32_t bench_batches(const struct bench_options *opt);

/* Blocks of a prefill rank's pool and of a decode rank's pool at a block size. */
uint32_t bench_source_blocks(const struct bench_options *opt, uint64_t block_bytes);
uint32_t bench_dest_blocks(const struct bench_options *opt, uint64_t block_bytes);

/* The same on both ranks of the pair: a function of the options alone. */
void bench_ids_create(struct bench_ids *ids, const struct bench_options *opt, uint32_t row,
		      uint32_t prefill, uint32_t decode);
void bench_ids_destroy(struct bench_ids *ids);

/* ---------------------------------------------------------------- pd_data.c */

struct bench_pool {
	const struct bench_options *opt;
	unsigned char *base;
	uint32_t row, blocks;
	uint64_t block_bytes;
};

unsigned char *bench_block(const struct bench_pool *p, uint32_t layer, uint32_t tensor,
			   uint64_t id);

/* Test data into all blocks of a prefill rank's pool, or into n of them with another epoch. */
void bench_fill_source(const struct bench_pool *p, uint32_t prefill);
void bench_refill(const struct bench_pool *p, uint32_t prefill, const int64_t *ids, uint32_t n,
		  uint64_t epoch);
void bench_stamp(const struct bench_pool *p);

/*
 * After `iterations`, the last of them with epoch 1: wrong bytes in this pair's part of a decode
 * pool.
 */
uint64_t bench_check(const struct bench_pool *p, const struct bench_ids *ids, uint32_t prefill,
		     uint32_t iterations, char *note, size_t note_cap);

/* ---------------------------------------------------------------- pd_floor.c */

/*
 * The median time of copying one batch in this process, with memcpy and with non-temporal stores (0
 * = not here). *beat grows with each batch.
 */
void bench_floor(const struct bench_pool *source, unsigned char *dest, uint32_t dest_blocks,
		 const struct bench_ids *ids, _Atomic uint64_t *beat, uint64_t *memcpy_ns_p,
		 uint64_t *nt_ns_p);

/* ---------------------------------------------------------------- pd_rank.c */

/* What a rank hands in at the end. */
struct bench_result {
	uint32_t failed, rows;
	uint64_t wrong;
};

int bench_rank_run(struct rank *rank, void *arg);

/*
 * ---------------------------------------------------------------- pd_report.c, used by rank 0
 */

struct bench_report;

struct bench_report *bench_report_begin(const struct bench_options *opt, const char *transport,
					const char *path, const char *spin_us);
void bench_report_row(struct bench_report *r, uint32_t row, const struct bench_row *rows);
/* The footer, and the JSON file; -1 if it cannot be written. Frees `r`. */
int bench_report_end(struct bench_report *r);

/* ---------------------------------------------------------------- pd_options.c */

void bench_options_parse(struct bench_options *opt, int argc, char **argv);

#endif
