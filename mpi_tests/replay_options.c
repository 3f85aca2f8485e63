/* SPDX-License-Identifier: Apache-2.0 */
/* replay_options.c -- the command line of kv_pd_replay */
#include <argp.h>
#include <stdlib.h>
#include <string.h>

#include "replay.h"

enum {
	KEY_FIRST = JOB_KEY_PROGRAM,
	KEY_SOURCE,
	KEY_KILL,
	KEY_RESTART,
	KEY_CORRUPT,
	KEY_POOL,
	KEY_CHECK,
	KEY_LINGER,
};

static const struct argp_option options[] = {
	{ NULL, 0, NULL, 0, "What is replayed:", JOB_GROUP_WHAT },
	{ "model", 'm', "NAME", 0, "geometry of the KV cache (llama3-8b); 'list' prints all",
	  JOB_GROUP_WHAT },
	{ "first", KEY_FIRST, "N", 0, "leave out the first N requests of the trace (0)",
	  JOB_GROUP_WHAT },
	{ "requests", 'n', "N", 0, "replay N requests; 0 = to the end of the trace (0)",
	  JOB_GROUP_WHAT },
	{ "layers", 'l', "L", 0, "move only the first L layers (all of the model)",
	  JOB_GROUP_WHAT },
	{ "scale", 's', "S", 0, "divide input token counts by S (1); times stay as in the trace",
	  JOB_GROUP_WHAT },
	{ "pool", KEY_POOL, "BYTES", 0, "KV cache of each decode rank (1G)", JOB_GROUP_WHAT },
	{ "source", KEY_SOURCE, "BYTES", 0, "KV cache of each prefill rank (a quarter of the pool)",
	  JOB_GROUP_WHAT },
	{ NULL, 0, NULL, 0, "Checks and faults:", JOB_GROUP_HOW },
	{ "check-every", KEY_CHECK, "K", 0,
	  "check the whole pool after every K requests (50); 0 = only at the end", JOB_GROUP_HOW },
	{ "linger", KEY_LINGER, "SECONDS", 0,
	  "each rank stays so long before it closes, for a reader of its metrics (0)",
	  JOB_GROUP_HOW },
	{ "kill", KEY_KILL, "RANK@REQUEST", 0,
	  "let this rank die by SIGKILL in the middle of that request, or of the next one that it "
	  "serves",
	  JOB_GROUP_HOW },
	{ "restart", KEY_RESTART, NULL, 0, "replace the killed rank by a new process",
	  JOB_GROUP_HOW },
	{ "corrupt", KEY_CORRUPT, "byte|swap|free", 0,
	  "test of the check itself: after the first arrival at the first decode rank flip a bit "
	  "of a block, exchange "
	  "two blocks, or write into a free block. The run must fail",
	  JOB_GROUP_HOW },
	{ 0 },
};

static const char doc[] =
	"Replay a request trace: prefill ranks write the KV cache of each request, layer by layer, "
	"into scattered blocks "
	"of decode ranks, which check every byte."
	"\vBYTES take the suffixes K, M, G (powers of two). How the bytes travel is chosen by the "
	"KVCACHE_* environment; "
	"KVCACHE_SHM_PATH=pool|cma|ring forces one way of shared memory.\n\n"
	"Exit code: 0 every byte was right and every rank did what it had to, 1 not so, 2 the "
	"command line or the trace "
	"is wrong, 3 the job could not be run.\n\n"
	"Examples:\n"
	"  kv_pd_replay --local 2+2 --requests 100 --scale 64 --layers 4 --pool 256M trace.jsonl\n"
	"  mpirun -np 4 kv_pd_replay --prefill 2 --decode 2 --model deepseek-v3-mla --scale 16 "
	"trace.jsonl";

static void set_kill(struct replay_options *o, const char *arg, struct argp_state *state)
{
	uint32_t rank;

	job_pair(arg, '@', UINT32_MAX, &rank, &o->kill_request, "--kill", state);
	o->kill_rank = rank;
}

static void set_model(struct replay_options *o, const char *arg, struct argp_state *state)
{
	if (strcmp(arg, "list") == 0) {
		model_list(stdout);
		exit(0);
	}
	o->model = model_find(arg);
	if (!o->model)
		argp_error(state, "--model: '%s' is not known; --model list prints all", arg);
}

static void set_corrupt(struct replay_options *o, const char *arg, struct argp_state *state)
{
	static const char *const kinds[] = { NULL, "byte", "swap", "free" };

	for (o->corrupt = CORRUPT_FREE; o->corrupt > 0; o->corrupt--)
		if (strcmp(arg, kinds[o->corrupt]) == 0)
			return;
	argp_error(state, "--corrupt: '%s' is not byte, swap or free", arg);
}

static void check_together(struct replay_options *o, struct argp_state *state)
{
	uint64_t block;

	if (!o->trace_path)
		argp_error(state, "which trace?");
	if (o->layers == 0)
		o->layers = o->model->layers;
	if (o->layers > o->model->layers)
		argp_error(state, "--layers: %s has %u", o->model->name, o->model->layers);
	if (o->source_bytes == 0)
		o->source_bytes = o->pool_bytes / 4;
	block = model_layer_bytes(o->model) * o->layers;
	if (o->pool_bytes / block < 16 || o->source_bytes / block < 4)
		argp_error(
			state,
			"a block in all layers is %llu bytes: the pool must hold 16 of them, the "
			"source pool 4",
			(unsigned long long)block);
	if (o->pool_bytes / block > POOL_BLOCKS_MAX || o->source_bytes / block > POOL_BLOCKS_MAX)
		argp_error(state, "a pool of more than %d blocks", POOL_BLOCKS_MAX);
	if (o->kill_rank >= (int64_t)(o->job.prefills + o->job.decodes))
		argp_error(state, "--kill: there are %u ranks, counted from 0",
			   o->job.prefills + o->job.decodes);
	if (o->restart && o->kill_rank < 0)
		argp_error(state, "--restart goes with --kill");
	if (o->restart && *o->job.address)
		argp_error(state, "--restart is for ranks of one host");
	o->kill_request -= o->kill_rank >= 0 && o->kill_request >= o->first ? o->first : 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct replay_options *o = state->input;

	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = &o->job;
		break;
	case 'm':
		set_model(o, arg, state);
		break;
	case KEY_FIRST:
		o->first = job_number32(arg, 0, TRACE_REQUESTS_MAX, "--first", state);
		break;
	case 'n':
		o->requests = job_number32(arg, 0, TRACE_REQUESTS_MAX, "--requests", state);
		break;
	case 'l':
		o->layers = job_number32(arg, 1, KV_LAYERS_MAX, "--layers", state);
		break;
	case 's':
		o->cut.scale = job_number32(arg, 1, 1 << 20, "--scale", state);
		break;
	case KEY_POOL:
		o->pool_bytes = job_number(arg, 1, UINT64_C(1) << 44, "--pool", state);
		break;
	case KEY_SOURCE:
		o->source_bytes = job_number(arg, 1, UINT64_C(1) << 44, "--source", state);
		break;
	case KEY_CHECK:
		o->check_every = job_number32(arg, 0, UINT32_MAX, "--check-every", state);
		break;
	case KEY_LINGER:
		o->linger_s = job_number32(arg, 0, 3600, "--linger", state);
		break;
	case KEY_KILL:
		set_kill(o, arg, state);
		break;
	case KEY_RESTART:
		o->restart = 1;
		break;
	case KEY_CORRUPT:
		set_corrupt(o, arg, state);
		break;
	case ARGP_KEY_ARG:
		if (o->trace_path)
			argp_error(state, "one trace only");
		o->trace_path = arg;
		break;
	case ARGP_KEY_END:
		check_together(o, state);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

void replay_options_parse(struct replay_options *opt, int argc, char **argv)
{
	static const struct argp argp = {
		options, parse, "TRACE.jsonl", doc, job_argp, NULL, NULL
	};

	*opt = (struct replay_options){
		.job = job_defaults("kv_pd_replay", argc, argv),
		.model = model_find("llama3-8b"),
		.cut = { .scale = 1 },
		.pool_bytes = UINT64_C(1) << 30,
		.check_every = 50,
		.kill_rank = -1,
	};
	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, opt);
	opt->cut.block_tokens = opt->model->block_tokens;
}
