/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench.h -- kvrail bench: one side writes blocks of several sizes into the other's memory, the
 * other checks every byte
 *
 *   connecting side                        listening side
 *   connect, with the control cache only   lease one control block to it
 *   send the plan                          take the memory that it needs, register a cache for
 *   close, connect again                   each block size, answer
 *   a round: fill, write batch by batch
 *   send BENCH_CHECK                       check every byte of the round, answer
 *   ...
 *   send BENCH_DONE                        end
 *
 * A round is as many batches as the memory holds; each has other test data (the epoch of
 * pattern.h), so that bytes of an earlier round are wrong bytes.
 */
#ifndef KVRAIL_TOOL_BENCH_H
#define KVRAIL_TOOL_BENCH_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include <kvrail/kv.h>

#include "copy.h"

enum {
	BENCH_PORT = 7472,
	BENCH_ROWS_MAX = KV_CACHES_MAX - 1, /* each block size is a cache of its own */
	BENCH_CONTROL_ID = KV_CACHES_MAX - 1,
	BENCH_CONTROL_BYTES = 1024,
	BENCH_ROUND_MAX = 64, /* batches of one round */
	BENCH_CLOSE_MS = 500,
	BENCH_SLICE_MS = 100, /* so often a wait looks for Ctrl-C */
};
#define BENCH_POOL_BYTES (UINT64_C(256) << 20) /* a round's memory; one batch may be larger */
#define BENCH_POOL_MAX (UINT64_C(8) << 30)

/* What the connecting side asks for. Sent as it is: both ends have the same byte order. */
struct bench_plan {
	char magic[8];
	uint32_t batch, rows, timeout_ms, reserved;
	uint64_t seed;
	uint64_t row_bytes[BENCH_ROWS_MAX];
};
#define BENCH_MAGIC "kvbench1"

enum bench_kind {
	BENCH_PLAN = 1,
	BENCH_READY,
	BENCH_REFUSED,
	BENCH_CHECK,
	BENCH_VERDICT,
	BENCH_DONE,
};

struct bench_message {
	uint32_t kind;
	/* BENCH_CHECK: which round, and how much of it was written */
	uint32_t row, round, batches;
	uint64_t wrong; /* BENCH_VERDICT */
	union {
		struct bench_plan plan;
		char text[512]; /* BENCH_REFUSED, BENCH_VERDICT: the cause; "" = none */
	};
};
_Static_assert(sizeof(struct bench_message) <= BENCH_CONTROL_BYTES, "it travels in one block");

struct bench_options {
	bool listen, keep, corrupt;
	char host[256];
	uint32_t port;
	int64_t wait_s; /* of the listening side, for somebody to connect */
	uint32_t iters, warmup;
	uint64_t first_bytes, last_bytes;
	uint32_t factor;
	struct bench_plan plan;
	const char *json_path;
	const char *command; /* as it was typed */
};

/* ---------------------------------------------------------------- side.c: what both sides need */

struct bench_side {
	struct kv_engine *engine;
	struct kv_cache *control; /* block 0 goes out, block 1 comes in */
	unsigned char *messages;
	struct kv_peer *peer; /* the other side */
	struct kv_lease *inbox;
	unsigned char *pool;
	struct kv_cache *cache[BENCH_ROWS_MAX];
	struct kv_error err; /* of the call that failed last */
	char said[1536];     /* what went wrong, as it was said on stderr */
};

extern volatile sig_atomic_t bench_interrupted;

int bench_side_open(struct bench_side *s, const char *name);
void bench_side_close(struct bench_side *s);

/* The plan's memory and caches. */
int bench_side_take(struct bench_side *s, const struct bench_plan *plan);
void bench_side_drop(struct bench_side *s);

int bench_send(struct bench_side *s, const struct bench_message *m, int64_t timeout_ms);

/* Says on stderr what went wrong (s->err); returns the exit status. */
int bench_complain(struct bench_side *s, const char *what);

uint32_t bench_round_batches(const struct bench_plan *plan, uint32_t row);
uint64_t bench_pool_bytes(const struct bench_plan *plan);

/* A permutation of a round's blocks; NULL: out of memory. */
int64_t *bench_ids(const struct bench_plan *plan, uint32_t row, bool destination);

void bench_fill(const struct bench_plan *plan, unsigned char *pool, uint32_t row, uint32_t round,
		uint32_t batches, const int64_t *ids);

/* How many bytes of a round are wrong; `text` names the first. */
uint64_t bench_verify(const struct bench_plan *plan, const unsigned char *pool, uint32_t row,
		      uint32_t round, uint32_t batches, const int64_t *ids, char *text, size_t cap);

/* How the floor copies blocks of this size; *name_p: the stores. */
copy_fn *bench_copy(uint64_t bytes, const char **name_p);

/* The median time of copying one batch in this process, 0: out of memory. */
uint64_t bench_floor(const struct bench_plan *plan, const unsigned char *pool, uint32_t row,
		     const int64_t *from, const int64_t *to);

/* ---------------------------------------------------------------- report.c: the table and JSON */

struct bench_row {
	uint64_t samples, sum_ns, p1_ns, p50_ns, p99_ns, p999_ns, floor_ns, wrong;
};

struct bench_report;

/* -1 after a sentence on stderr where the JSON file cannot be written. */
int bench_report_open(struct bench_report **r_p, const struct bench_options *opt);
void bench_report_begin(struct bench_report *r, struct bench_side *s);
void bench_report_progress(struct bench_report *r, uint32_t row, uint32_t done, uint32_t of);
void bench_report_row(struct bench_report *r, uint32_t row, const struct bench_row *line);
void bench_report_note(struct bench_report *r, const char *text);
/* Writes the JSON document with the exit status and `error`, frees `r`. The exit status. */
int bench_report_end(struct bench_report *r, int status, const char *error);

/* ---------------------------------------------------------------- the two sides; exit status */

int bench_connect(const struct bench_options *opt);
int bench_listen(const struct bench_options *opt);

#endif
