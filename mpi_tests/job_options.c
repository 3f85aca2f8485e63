/* SPDX-License-Identifier: Apache-2.0 */
/* job_options.c -- the options that both programs have */
#include "job_options.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rank.h"
#include "results.h"
#include "util.h"

enum { KEY_LOCAL = JOB_KEY_FIRST, KEY_INTERFACE, KEY_MEMORY, KEY_SEED, KEY_TIMEOUT, KEY_PLOT };

static const struct argp_option options[] = {
	{ NULL, 0, NULL, 0, "Ranks:", JOB_GROUP_RANKS },
	{ "prefill", 'p', "P", 0, "number of prefill ranks (1)", JOB_GROUP_RANKS },
	{ "decode", 'd', "D", 0, "number of decode ranks (1)", JOB_GROUP_RANKS },
	{ "local", KEY_LOCAL, "P+D", 0,
	  "run without MPI: fork P prefill and D decode ranks here. Assumed when no mpirun is "
	  "around",
	  JOB_GROUP_RANKS },
	{ "interface", KEY_INTERFACE, "NAME", 0,
	  "ranks on several hosts: each listens at the IPv4 address of this interface (eth0)",
	  JOB_GROUP_RANKS },
	{ "memory", KEY_MEMORY, "host|cuda[:N]", 0,
	  "where the pools lie; cuda: on GPU N (0) of each rank, as CUDA_VISIBLE_DEVICES numbers "
	  "them (host)",
	  JOB_GROUP_WHAT },
	{ "seed", KEY_SEED, "N", 0, "seed of the test data and of the block ids (1)",
	  JOB_GROUP_HOW },
	{ "timeout", KEY_TIMEOUT, "SECONDS", 0, "deadline of each operation (30)", JOB_GROUP_HOW },
	{ NULL, 0, NULL, 0, "Output:", JOB_GROUP_OUTPUT },
	{ "json", 'J', "FILE", 0, "write the results to FILE as well (bench/README.md)",
	  JOB_GROUP_OUTPUT },
	{ "plot", KEY_PLOT, "FILE.png", 0,
	  "draw them (needs python3 and matplotlib); without -J the JSON is in FILE.png.json",
	  JOB_GROUP_OUTPUT },
	{ 0 },
};

uint64_t job_number(const char *text, uint64_t min, uint64_t max, const char *name,
		    struct argp_state *state)
{
	uint64_t v = 0;

	if (size_parse(text, &v) || v < min || v > max)
		argp_error(state, "%s: '%s' is not a number from %llu to %llu", name, text,
			   (unsigned long long)min, (unsigned long long)max);
	return v;
}

uint32_t job_number32(const char *text, uint32_t min, uint32_t max, const char *name,
		      struct argp_state *state)
{
	return (uint32_t)job_number(text, min, max, name, state);
}

void job_pair(const char *text, char sep, uint32_t max, uint32_t *a, uint32_t *b, const char *name,
	      struct argp_state *state)
{
	char first[32];
	const char *at = strchr(text, sep);

	if (!at || (size_t)(at - text) >= sizeof(first))
		argp_error(state, "%s: '%s' is not of the form A%cB", name, text, sep);
	memcpy(first, text, (size_t)(at - text));
	first[at - text] = 0;
	*a = job_number32(first, 0, max, name, state);
	*b = job_number32(at + 1, 0, max, name, state);
}

static void find_address(const char *name, struct job_options *o, struct argp_state *state)
{
	struct ifaddrs *all = NULL;

	if (getifaddrs(&all))
		argp_failure(state, 1, errno, "getifaddrs");
	for (const struct ifaddrs *a = all; a; a = a->ifa_next)
		if (!strcmp(a->ifa_name, name) && a->ifa_addr && a->ifa_addr->sa_family == AF_INET)
			inet_ntop(AF_INET, &((const struct sockaddr_in *)a->ifa_addr)->sin_addr,
				  o->address, sizeof(o->address));
	freeifaddrs(all);
	if (!*o->address)
		argp_error(state, "--interface: '%s' has no IPv4 address on this host", name);
}

/* host, cuda or cuda:N */
static int gpu_of(const char *arg, struct argp_state *state)
{
	if (!strcmp(arg, "host"))
		return -1;
	if (!strcmp(arg, "cuda"))
		return 0;
	if (strncmp(arg, "cuda:", 5))
		argp_error(state, "--memory is '%s'; it must be host, cuda or cuda:N", arg);
	return (int)job_number(arg + 5, 0, 63, "--memory", state);
}

static void check_ranks(const struct job_options *o, struct argp_state *state)
{
	if (!o->prefills || !o->decodes || o->prefills + o->decodes > RANK_MAX)
		argp_error(
			state,
			"%u prefill and %u decode ranks: at least one of each, at most %d in all",
			o->prefills, o->decodes, RANK_MAX);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct job_options *o = state->input;

	switch (key) {
	case 'p':
		o->prefills = job_number32(arg, 1, RANK_MAX, "--prefill", state);
		break;
	case 'd':
		o->decodes = job_number32(arg, 1, RANK_MAX, "--decode", state);
		break;
	case KEY_LOCAL:
		job_pair(arg, '+', RANK_MAX, &o->prefills, &o->decodes, "--local", state);
		o->local = 1;
		break;
	case KEY_INTERFACE:
		find_address(arg, o, state);
		break;
	case KEY_MEMORY:
		o->gpu = gpu_of(arg, state);
		break;
	case KEY_SEED:
		o->seed = job_number(arg, 0, UINT64_MAX, "--seed", state);
		break;
	case KEY_TIMEOUT:
		o->timeout_ms = 1000 * (int64_t)job_number(arg, 1, 3600, "--timeout", state);
		break;
	case 'J':
		o->json_path = arg;
		break;
	case KEY_PLOT:
		o->plot_path = arg;
		break;
	case ARGP_KEY_END:
		check_ranks(o, state);
		if (o->plot_path && !o->json_path &&
		    asprintf(&o->plot_json, "%s.json", o->plot_path) > 0)
			o->json_path = o->plot_json;
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static const struct argp argp = { .options = options, .parser = parse };
const struct argp_child job_argp[] = { { .argp = &argp }, { 0 } };

struct job_options job_defaults(const char *program, int argc, char **argv)
{
	return (struct job_options){
		.program = program,
		.command = results_command(argc, argv),
		.prefills = 1,
		.decodes = 1,
		.local = !rank_launched(),
		.gpu = -1,
		.seed = 1,
		.timeout_ms = 30000,
	};
}

void job_options_free(struct job_options *o)
{
	free(o->command);
	free(o->plot_json);
}
