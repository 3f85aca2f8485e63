/* SPDX-License-Identifier: Apache-2.0 */
/* bench_options.c -- the command line of kv_pd_bench */
#include <argp.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "util.h"

enum {
	KEY_LOCAL = 256,
	KEY_HOT,
	KEY_TWO_SIDED,
	KEY_LAYERS,
	KEY_TENSORS,
	KEY_POOL,
	KEY_SEED,
	KEY_TIMEOUT,
	KEY_PLOT,
	KEY_CORRUPT,
};

static const struct argp_option options[] = {
	{ NULL, 0, NULL, 0, "Ranks:", 1 },
	{ "prefill", 'p', "P", 0, "number of prefill ranks (1)", 1 },
	{ "decode", 'd', "D", 0, "number of decode ranks (1)", 1 },
	{ "local", KEY_LOCAL, "P+D", 0,
	  "run without MPI: fork P prefill and D decode ranks here. Assumed when no mpirun is "
	  "around",
	  1 },
	{ NULL, 0, NULL, 0, "What is moved:", 2 },
	{ "min-bytes", 'b', "BYTES", 0, "first block size (1K)", 2 },
	{ "max-bytes", 'e', "BYTES", 0, "last block size (256K)", 2 },
	{ "factor", 'f', "F", 0, "from one size to the next (2)", 2 },
	{ "batch", 'n', "N", 0, "blocks to each decode rank in one operation (1538)", 2 },
	{ "layers", KEY_LAYERS, "L", 0, "layers in one operation (1)", 2 },
	{ "tensors", KEY_TENSORS, "T", 0, "tensors of each layer (1)", 2 },
	{ "two-sided", KEY_TWO_SIDED, NULL, 0,
	  "kv_send_blocks and kv_recv_blocks, not kv_write_blocks", 2 },
	{ "pool", KEY_POOL, "BYTES", 0, "memory of each rank (1G)", 2 },
	{ "hot", KEY_HOT, NULL, 0, "the same batch again and again, in the caches", 2 },
	{ NULL, 0, NULL, 0, "How it is measured:", 3 },
	{ "iters", 'i', "N", 0, "measured iterations (64)", 3 },
	{ "warmup", 'w', "N", 0,
	  "iterations before them (64: each of the different batches once, so that every page was "
	  "touched)",
	  3 },
	{ "check", 'c', "0|1", 0, "check every byte of the decode pools after each size (1)", 3 },
	{ "corrupt", KEY_CORRUPT, NULL, 0,
	  "test of the check itself: flip a bit in the first decode rank before it checks. The run "
	  "must fail",
	  3 },
	{ "seed", KEY_SEED, "N", 0, "seed of the test data and of the ids (1)", 3 },
	{ "timeout", KEY_TIMEOUT, "SECONDS", 0, "deadline of each operation (30)", 3 },
	{ NULL, 0, NULL, 0, "Output:", 4 },
	{ "json", 'J', "FILE", 0, "write the table to FILE as well", 4 },
	{ "plot", KEY_PLOT, "FILE.png", 0, "draw the table (needs python3 and matplotlib)", 4 },
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

static uint64_t number(const char *text, uint64_t min, uint64_t max, const char *name,
		       struct argp_state *state)
{
	uint64_t v = 0;

	if (size_parse(text, &v) || v < min || v > max)
		argp_error(state, "%s: '%s' is not a number from %llu to %llu", name, text,
			   (unsigned long long)min, (unsigned long long)max);
	return v;
}

static uint32_t number32(const char *text, uint32_t min, uint32_t max, const char *name,
			 struct argp_state *state)
{
	return (uint32_t)number(text, min, max, name, state);
}

static void set_local(struct bench_options *o, char *arg, struct argp_state *state)
{
	char *plus = strchr(arg, '+');

	if (!plus)
		argp_error(state, "--local: '%s' is not of the form P+D", arg);
	*plus = 0;
	o->prefills = number32(arg, 1, RANK_MAX, "--local", state);
	o->decodes = number32(plus + 1, 1, RANK_MAX, "--local", state);
	*plus = '+';
	o->local = 1;
}

static void check_together(struct bench_options *o, struct argp_state *state)
{
	uint64_t bytes;

	if (o->prefills + o->decodes > RANK_MAX)
		argp_error(state, "at most %d ranks", RANK_MAX);
	if (o->first_bytes > o->last_bytes)
		argp_error(state, "-b is larger than -e");
	if (o->two_sided && o->batch > KV_LEASE_BLOCKS_MAX)
		argp_error(state, "--two-sided takes batches of at most %d blocks",
			   KV_LEASE_BLOCKS_MAX);
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
		o->iters = number32(arg, 1, 1 << 30, "-i", state);
		break;
	case 'w':
		o->warmup = number32(arg, 0, 1 << 30, "-w", state);
		break;
	case 'c':
		o->check = (int)number(arg, 0, 1, "-c", state);
		break;
	case KEY_SEED:
		o->seed = number(arg, 0, UINT64_MAX, "--seed", state);
		break;
	case KEY_TIMEOUT:
		o->timeout_ms = 1000 * (int64_t)number(arg, 1, 3600, "--timeout", state);
		break;
	case KEY_CORRUPT:
		o->corrupt = 1;
		break;
	case 'J':
		o->json_path = arg;
		break;
	case KEY_PLOT:
		o->plot_path = arg;
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
	case 'p':
		o->prefills = number32(arg, 1, RANK_MAX, "--prefill", state);
		break;
	case 'd':
		o->decodes = number32(arg, 1, RANK_MAX, "--decode", state);
		break;
	case KEY_LOCAL:
		set_local(o, arg, state);
		break;
	case 'b':
		o->first_bytes = number(arg, 1, 1 << 30, "-b", state);
		break;
	case 'e':
		o->last_bytes = number(arg, 1, 1 << 30, "-e", state);
		break;
	case 'f':
		o->factor = number32(arg, 2, 1 << 20, "-f", state);
		break;
	case 'n':
		o->batch = number32(arg, 1, KV_CALL_BLOCKS_MAX, "-n", state);
		break;
	case KEY_LAYERS:
		o->layers = number32(arg, 1, KV_LAYERS_MAX, "--layers", state);
		break;
	case KEY_TENSORS:
		o->tensors = number32(arg, 1, KV_TENSORS_MAX, "--tensors", state);
		break;
	case KEY_TWO_SIDED:
		o->two_sided = 1;
		break;
	case KEY_POOL:
		o->pool_bytes = number(arg, 1, UINT64_C(1) << 44, "--pool", state);
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
	static const struct argp argp = { options, parse, NULL, doc, NULL, NULL, NULL };

	*opt = (struct bench_options){
		.prefills = 1,
		.decodes = 1,
		.local = !rank_launched(),
		.first_bytes = 1 << 10,
		.last_bytes = 256 << 10,
		.factor = 2,
		.batch = 1538,
		.iters = BENCH_BATCHES,
		.warmup = BENCH_BATCHES,
		.layers = 1,
		.tensors = 1,
		.pool_bytes = UINT64_C(1) << 30,
		.check = 1,
		.seed = 1,
		.timeout_ms = 30000,
	};
	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, opt);
}
