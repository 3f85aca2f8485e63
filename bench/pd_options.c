/* SPDX-License-Identifier: Apache-2.0 */
/* pd_options.c -- the command line of kv_pd_bench */
#include <argp.h>

#include "pd.h"

enum {
	KEY_HOT = JOB_KEY_PROGRAM,
	KEY_TWO_SIDED,
	KEY_LAYERS,
	KEY_TENSORS,
	KEY_POOL,
	KEY_CORRUPT,
	KEY_IN_FLIGHT,
};

static const struct argp_option options[] = {
	{ NULL, 0, NULL, 0, "What is moved:", JOB_GROUP_WHAT },
	{ "min-bytes", 'b', "BYTES", 0, "first block size (1K)", JOB_GROUP_WHAT },
	{ "max-bytes", 'e', "BYTES", 0, "last block size (256K)", JOB_GROUP_WHAT },
	{ "factor", 'f', "F", 0, "from one size to the next (2)", JOB_GROUP_WHAT },
	{ "batch", 'n', "N", 0, "blocks to each decode rank in one operation (1538)",
	  JOB_GROUP_WHAT },
	{ "layers", KEY_LAYERS, "L", 0, "layers in one operation (1)", JOB_GROUP_WHAT },
	{ "tensors", KEY_TENSORS, "T", 0, "tensors of each layer (1)", JOB_GROUP_WHAT },
	{ "two-sided", KEY_TWO_SIDED, NULL, 0,
	  "kv_send_blocks and kv_recv_blocks, not kv_write_blocks", JOB_GROUP_WHAT },
	{ "in-flight", KEY_IN_FLIGHT, "N", 0,
	  "write N batches ahead of the one that is waited for; to one decode rank (1)",
	  JOB_GROUP_WHAT },
	{ "pool", KEY_POOL, "BYTES", 0, "memory of each rank (1G)", JOB_GROUP_WHAT },
	{ "hot", KEY_HOT, NULL, 0, "the same batch again and again, in the caches",
	  JOB_GROUP_WHAT },
	{ NULL, 0, NULL, 0, "How it is measured:", JOB_GROUP_HOW },
	{ "iters", 'i', "N", 0, "measured iterations (64)", JOB_GROUP_HOW },
	{ "warmup", 'w', "N", 0,
	  "iterations before them (64: each of the different batches once, so that every page was "
	  "touched)",
	  JOB_GROUP_HOW },
	{ "check", 'c', "0|1", 0, "check every byte of the decode pools after each size (1)",
	  JOB_GROUP_HOW },
	{ "corrupt", KEY_CORRUPT, NULL, 0,
	  "test of the check itself: flip a bit in the first decode rank before it checks. The run "
	  "must fail",
	  JOB_GROUP_HOW },
	{ 0 },
};

static const char doc[] =
	"Measure how fast prefill ranks write shuffled blocks of a fixed size into decode ranks. "
	"Each "
	"prefill rank writes to each decode rank; with several of them as one group."
	"\vBYTES take the suffixes K, M, G (powers of two). How the bytes travel is chosen by the "
	"KVCACHE_* environment.\n\n"
	"Exit code: 0, 1 wrong bytes or a failed operation or a dead rank, 2 the command line is "
	"wrong, "
	"3 the job could not be run.\n\n"
	"Examples:\n"
	"  kv_pd_bench --local 1+1\n"
	"  mpirun -np 4 kv_pd_bench --prefill 2 --decode 2 -b 4K -e 64K -J table.json";

static void check_together(struct bench_options *o, struct argp_state *state)
{
	uint64_t bytes;

	if (o->first_bytes > o->last_bytes)
		argp_error(state, "-b is larger than -e");
	if (o->two_sided && o->batch > KV_LEASE_BLOCKS_MAX)
		argp_error(state, "--two-sided takes batches of at most %d blocks",
			   KV_LEASE_BLOCKS_MAX);
	if (o->in_flight > 1 && (o->two_sided || o->job.decodes > 1))
		argp_error(state, "--in-flight is for kv_write_blocks to one decode rank");
	for (bytes = o->first_bytes; bytes <= o->last_bytes; bytes *= o->factor) {
		if (o->rows == BENCH_ROWS_MAX)
			argp_error(state, "more than %d block sizes", BENCH_ROWS_MAX);
		o->row_bytes[o->rows++] = bytes;
	}
}

static error_t parse_measure(int key, char *arg, struct bench_options *o, struct argp_state *state)
{
	switch (key) {
	case 'i':
		o->iters = job_number32(arg, 1, 1 << 30, "-i", state);
		break;
	case 'w':
		o->warmup = job_number32(arg, 0, 1 << 30, "-w", state);
		break;
	case 'c':
		o->check = (int)job_number(arg, 0, 1, "-c", state);
		break;
	case KEY_CORRUPT:
		o->corrupt = 1;
		break;
	case ARGP_KEY_ARG:
		argp_error(state, "'%s': no argument is expected", arg);
		break;
	case ARGP_KEY_END:
		check_together(o, state);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct bench_options *o = state->input;

	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = &o->job;
		break;
	case 'b':
		o->first_bytes = job_number(arg, 1, 1 << 30, "-b", state);
		break;
	case 'e':
		o->last_bytes = job_number(arg, 1, 1 << 30, "-e", state);
		break;
	case 'f':
		o->factor = job_number32(arg, 2, 1 << 20, "-f", state);
		break;
	case 'n':
		o->batch = job_number32(arg, 1, KV_CALL_BLOCKS_MAX, "-n", state);
		break;
	case KEY_LAYERS:
		o->layers = job_number32(arg, 1, KV_LAYERS_MAX, "--layers", state);
		break;
	case KEY_TENSORS:
		o->tensors = job_number32(arg, 1, KV_TENSORS_MAX, "--tensors", state);
		break;
	case KEY_TWO_SIDED:
		o->two_sided = 1;
		break;
	case KEY_POOL:
		o->pool_bytes = job_number(arg, 1, UINT64_C(1) << 44, "--pool", state);
		break;
	case KEY_IN_FLIGHT:
		o->in_flight = job_number32(arg, 1, BENCH_IN_FLIGHT_MAX, "--in-flight", state);
		break;
	case KEY_HOT:
		o->hot = 1;
		break;
	default:
		return parse_measure(key, arg, o, state);
	}
	return 0;
}

void bench_options_parse(struct bench_options *opt, int argc, char **argv)
{
	static const struct argp argp = { options, parse, NULL, doc, job_argp, NULL, NULL };

	*opt = (struct bench_options){
		.job = job_defaults("kv_pd_bench", argc, argv),
		.first_bytes = 1 << 10,
		.last_bytes = 256 << 10,
		.factor = 2,
		.batch = 1538,
		.iters = BENCH_BATCHES,
		.warmup = BENCH_BATCHES,
		.layers = 1,
		.tensors = 1,
		.in_flight = 1,
		.pool_bytes = UINT64_C(1) << 30,
		.check = 1,
	};
	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, opt);
}
