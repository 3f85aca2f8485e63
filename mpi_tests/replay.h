/* SPDX-License-Identifier: Apache-2.0 */
/* replay.h -- what the parts of kv_pd_replay share */
#ifndef MPI_TESTS_REPLAY_H
#define MPI_TESTS_REPLAY_H

#include <kvrail/kv.h>
#include <stdint.h>
#include <stdio.h>

#include "hist.h"
#include "job_options.h"
#include "model.h"
#include "pattern.h"
#include "pool.h"
#include "rank.h"
#include "rank_memory.h"
#include "replay_schedule.h"
#include "timeline.h"
#include "trace.h"

enum {
	REPLAY_NOTES = 8,
	REPLAY_NOTE_MAX = 320,
	REPLAY_GUARD = 4096, /* bytes of pattern before and after each tensor */
	REPLAY_CACHE = 0,    /* cache ids */
	REPLAY_MAIL = 1,
	REPLAY_MAIL_BYTES = 64, /* one order */
	REPLAY_FLIGHTS = 2,	/* requests in flight from one prefill rank to one decode rank */
	REPLAY_STEP_MS = 30,	/* trace time of one output token */
	REPLAY_POLL_MS = 500,
};

enum replay_corrupt { CORRUPT_NONE = 0, CORRUPT_BYTE, CORRUPT_SWAP, CORRUPT_FREE };

struct replay_options {
	struct job_options job;
	const struct model *model;
	const char *trace_path;
	uint32_t first, requests; /* requests 0 = all */
	uint32_t layers;
	struct schedule_cut cut;
	uint64_t pool_bytes, source_bytes;
	uint32_t check_every, linger_s;
	int64_t kill_rank; /* -1: nobody */
	uint32_t kill_request;
	int restart;
	int corrupt; /* enum replay_corrupt */
};

/* What a rank hands in at the end. */
struct replay_result {
	uint64_t requests, requests_failed, resent, streamed;
	uint64_t requests_before; /* that its killed predecessor had finished */
	uint64_t prompt_blocks, hit_blocks;
	uint64_t blocks, bytes, transfer_ns;
	uint64_t pool_blocks, evictions;
	uint64_t whole_checks, checked_bytes, check_ns;
	uint64_t wrong_bytes, wrong_blocks;
	uint64_t lost_ops; /* operations that ended with KV_ERR_PEER_LOST */
	uint64_t lost_ns;  /* when the first of them was reported */
	uint64_t false_success; /* arrivals or acknowledgements after the peer was lost */
	uint64_t errors;        /* every other failure */
	uint64_t begin_ns, end_ns;
	char transport[16], path[96];
	uint32_t notes;
	char note[REPLAY_NOTES][REPLAY_NOTE_MAX];
	struct hist batch; /* one layer of one chunk, with its acknowledgement */
	struct timeline timeline; /* the same, since the first process of this rank began */
};

/*
 * What a decode rank tells a prefill rank: send these blocks of this request. Fits one mail block.
 */
struct replay_order {
	uint64_t tag; /* under which the destination blocks are open */
	uint32_t request;
	uint32_t first; /* block of the request; those before it are held already or were sent */
	uint32_t count;
	uint32_t epoch;
	uint64_t check; /* hash of the above: a torn or stale order is an error */
};

/*
 * Mail blocks of each rank: one for each order that can be under way, one more for each decode
 * rank's last.
 */
static inline uint32_t replay_mails(const struct replay_options *opt)
{
	return opt->job.decodes * (opt->job.prefills * REPLAY_FLIGHTS + 1);
}

/* Blocks in memory: `layers` x tensors of the model, each tensor between two guards. */
struct replay_memory {
	const struct model *model;
	uint32_t layers, blocks;
	uint64_t seed;
	struct rank_memory pool; /* in which they lie */
	unsigned char *tensor[MODEL_TENSORS_MAX];
};

struct replay {
	const struct replay_options *opt;
	const struct trace *trace;
	const struct schedule *schedule;
	struct rank *rank;
	struct replay_result *result;
	int is_decode;
	uint32_t self; /* number among the ranks of its kind */
	struct kv_engine *engine;
	struct kv_comm *comm;
	struct kv_cache *cache, *mail;
	struct replay_memory memory;
	unsigned char *mail_memory;
	struct kv_peer *peer[RANK_MAX]; /* of the other kind, by their number */
	uint32_t peers;
};

/* replay_rank.c: one rank from engine to result */
int replay_rank_run(struct rank *rank, void *arg);
void replay_note(struct replay *rp, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Counts a failed operation: PEER_LOST apart, everything else with a note. */
void replay_failed(struct replay *rp, const char *what, const struct kv_error *err);
uint64_t replay_order_hash(const struct replay_order *order);
static inline void replay_beat(struct replay *rp)
{
	atomic_fetch_add(&rp->rank->slot->beat, 1);
}
/* Dies by SIGKILL: at once, or `us` microseconds later while the caller goes on. */
void replay_die(struct replay *rp, uint32_t us);

/* replay_memory.c */
uint64_t replay_memory_bytes(const struct model *model, uint32_t layers, uint32_t blocks);
void replay_memory_place(struct replay_memory *m); /* into its pool */
unsigned char *replay_block(const struct replay_memory *m, uint32_t layer, uint32_t tensor,
			    uint64_t id);
void replay_guards_fill(const struct replay_memory *m);
uint64_t replay_guards_check(const struct replay_memory *m);

/* replay_prefill.c, replay_decode.c: 0, or -1 after a note */
int replay_prefill(struct replay *rp);
int replay_decode(struct replay *rp);

/* What main starts and the ranks read. */
struct replay_job {
	struct replay_options opt;
	struct trace trace;
	struct schedule schedule;
};

/* replay_options.c: ends the program where the options make no sense */
void replay_options_parse(struct replay_options *opt, int argc, char **argv);

/*
 * replay_report.c: the exit code of the job, and unless `out` is NULL the table and opt->json_path.
 * 0 only if every byte was right and every rank did what it had to; with --kill that includes how
 * the survivors took it.
 */
int replay_report(const struct replay_job *job, const struct replay_result *results,
		  const struct rank_fate *fates, FILE *out);

#endif
