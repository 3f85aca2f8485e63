/* SPDX-License-Identifier: Apache-2.0 */
/* main.c -- the command line of a simulation: which seeds, and what to do with a failure */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "plan.h"
#include "run.h"

struct options {
	uint64_t from, seeds, schedule, blocks, faults;
	double seconds;
	bool one, twice, shrink, longer, storm;
	const char *keep, *json, *way;
};

struct total {
	struct sim_result sum;
	uint64_t seeds, failed;
	double seconds;
};

static double now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void usage(const struct sim *sim, FILE *to)
{
	fprintf(to,
		"usage: %s [options]\n\n%s\n\n"
		"  --seeds N       run N seeds (default 100)\n"
		"  --seconds S     or as many as S seconds hold\n"
		"  --from SEED     the first (default 1)\n"
		"  --seed SEED     run one and say what it does\n"
		"  --schedule N    of that seed: another order of its threads\n"
		"  --keep LIST     of that seed: only these steps (3,5-9); none leaves no step\n"
		"  --shrink        leave steps out of a seed that fails as long as it fails\n"
		"  --way WAY       not over the fake device: auto or ring, over shared memory\n"
		"  --storm         many short faults, and large operations\n"
		"  --replay        run each seed twice: both must do the same\n"
		"  --long          until 10^8 blocks were moved and 10^6 faults made (or --seconds are over)\n"
		"  --json FILE     write the counts there as well\n"
		"  --help          this\n\n"
		"Exit status 1: an invariant was broken; the seed and how to run it again are printed.\n",
		sim->name, sim->about);
}

/* "3,5-9": everything else is left out. */
static void keep_only(struct sim_plan *plan, const char *list)
{
	if (!list)
		return;
	memset(plan->left_out, true, sizeof(plan->left_out));
	while (*list >= '0' && *list <= '9') {
		char *end;
		long first = strtol(list, &end, 10), last = first;

		if (*end == '-')
			last = strtol(end + 1, &end, 10);
		for (long i = first; i <= last && i < plan->steps; i++)
			plan->left_out[i] = false;
		list = *end ? end + 1 : end;
	}
}

static const char *commit(void)
{
	static char text[80] = "unknown";
	FILE *git = popen("git -C " SIM_SOURCE " describe --always --dirty 2>/dev/null", "r");

	if (git && fgets(text, sizeof(text), git))
		text[strcspn(text, "\n")] = '\0';
	if (git)
		pclose(git);
	return text;
}

static void print_replay(const struct sim *sim, const struct sim_plan *plan)
{
	bool all = true, first = true;

	printf("replay: %s --seed %llu", sim->name, (unsigned long long)plan->seed);
	if (plan->way)
		printf(" --way %s", plan->way);
	if (plan->storm)
		printf(" --storm");
	if (plan->schedule)
		printf(" --schedule %llu", (unsigned long long)plan->schedule);
	for (int i = 0; i < plan->steps; i++)
		all &= !plan->left_out[i];
	for (int i = 0; !all && i < plan->steps; i++) {
		if (!plan->left_out[i])
			printf("%s%d", first ? " --keep " : ",", i);
		first &= plan->left_out[i];
	}
	printf("%s\n", !all && first ? " --keep none" : "");
}

static void report(const struct sim *sim, struct sim_plan *plan, const struct options *o)
{
	printf("%s: seed %llu FAILED at %.6f s of its time: %s\ncommit: %s\n", sim->name,
	       (unsigned long long)plan->seed, (double)sim_result->failed_ns / 1e9, sim_result->why,
	       commit());
	print_replay(sim, plan);
	fflush(stdout);
	if (!o->shrink)
		return;
	printf("shrunk to %d steps:", shrink_plan(sim, plan));
	for (int i = 0; i < plan->steps; i++)
		if (!plan->left_out[i])
			printf(" %d:%s(%d)", i, plan->step[i].kind->name, plan->step[i].actor);
	printf("\n%s\n", sim_result->why);
	print_replay(sim, plan);
}

static void add(struct sim_result *sum)
{
	sum->operations += sim_result->operations;
	sum->blocks += sim_result->blocks;
	sum->faults += sim_result->faults;
	sum->steps += sim_result->steps;
	sum->checks += sim_result->checks;
	sum->switches += sim_result->switches;
	sum->points += sim_result->points;
	sum->virtual_ns += sim_result->virtual_ns;
}

/* False: it failed. */
static bool run_seed(const struct sim *sim, uint64_t seed, const struct options *o,
		     struct total *total)
{
	static struct sim_plan plan;
	uint64_t hash;
	bool good;

	plan.seed = seed;
	plan.schedule = o->schedule;
	plan.way = o->way;
	plan.storm = o->storm;
	plan_make(sim, &plan);
	keep_only(&plan, o->keep);
	good = run_plan(sim, &plan);
	add(&total->sum);
	total->seeds++;
	if (good && o->twice) {
		hash = sim_result->hash;
		good = run_plan(sim, &plan) && sim_result->hash == hash;
		if (!good && !sim_result->kind)
			snprintf(sim_result->why, sizeof(sim_result->why),
				 "two runs differ: %016llx, %016llx", (unsigned long long)hash,
				 (unsigned long long)sim_result->hash);
	}
	if (good)
		return true;
	total->failed++;
	report(sim, &plan, o);
	return false;
}

static void write_counts(const struct sim *sim, const struct total *t, FILE *to, const char *after)
{
	const struct sim_result *s = &t->sum;

	fprintf(to,
		"{\"program\": \"%s\", \"commit\": \"%s\", \"seeds\": %llu, \"failed\": %llu, "
		"\"seconds\": %.1f, \"operations\": %llu, \"blocks\": %llu, \"faults\": %llu, "
		"\"steps\": %llu, \"checks\": %llu, \"switches\": %llu, \"points\": %llu, "
		"\"virtual_seconds\": %.1f}%s",
		sim->name, commit(), (unsigned long long)t->seeds, (unsigned long long)t->failed,
		t->seconds, (unsigned long long)s->operations, (unsigned long long)s->blocks,
		(unsigned long long)s->faults, (unsigned long long)s->steps,
		(unsigned long long)s->checks, (unsigned long long)s->switches,
		(unsigned long long)s->points, (double)s->virtual_ns / 1e9, after);
}

static bool goes_on(const struct options *o, const struct total *t, double began)
{
	if (o->seconds > 0 && now_s() - began >= o->seconds)
		return false;
	if (o->longer)
		return t->sum.blocks < o->blocks || t->sum.faults < o->faults;
	return o->seconds > 0 || t->seeds < o->seeds;
}

static int read_options(const struct sim *sim, int argc, char **argv, struct options *o)
{
	static const struct option known[] = {
		{ "seeds", required_argument, NULL, 'n' },
		{ "seconds", required_argument, NULL, 't' },
		{ "from", required_argument, NULL, 'f' },
		{ "seed", required_argument, NULL, 's' },
		{ "schedule", required_argument, NULL, 'c' },
		{ "keep", required_argument, NULL, 'k' },
		{ "way", required_argument, NULL, 'w' },
		{ "storm", no_argument, NULL, 'm' },
		{ "shrink", no_argument, NULL, 'r' },
		{ "replay", no_argument, NULL, 'p' },
		{ "long", no_argument, NULL, 'l' },
		{ "json", required_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", known, NULL)) >= 0) {
		switch (c) {
		case 'n':
			o->seeds = strtoull(optarg, NULL, 10);
			break;
		case 't':
			o->seconds = strtod(optarg, NULL);
			break;
		case 's':
			o->one = true;
			o->seeds = 1;
			/* fallthrough */
		case 'f':
			o->from = strtoull(optarg, NULL, 10);
			break;
		case 'c':
			o->schedule = strtoull(optarg, NULL, 10);
			break;
		case 'k':
			o->keep = optarg;
			break;
		case 'w':
			o->way = optarg;
			break;
		case 'm':
			o->storm = true;
			break;
		case 'r':
			o->shrink = true;
			break;
		case 'p':
			o->twice = true;
			break;
		case 'l':
			o->longer = true;
			break;
		case 'j':
			o->json = optarg;
			break;
		case 'h':
			usage(sim, stdout);
			exit(0);
		default:
			usage(sim, stderr);
			return 2;
		}
	}
	return 0;
}

int sim_main(const struct sim *sim, int argc, char **argv)
{
	struct options o = { .from = 1, .seeds = 100, .blocks = 100000000, .faults = 1000000 };
	struct total total = { 0 };
	double began;
	int ret = read_options(sim, argc, argv, &o);

	if (ret)
		return ret;
	if ((o.way && !sim->host_faults) || (o.storm && !sim->storm_work)) {
		fprintf(stderr, "%s: it has no %s\n", sim->name, o.way ? "--way" : "--storm");
		return 2;
	}
	run_prepare(argv);
	began = now_s();
	sim_talks = o.one && !o.shrink;
	for (uint64_t seed = o.from; goes_on(&o, &total, began) && !total.failed; seed++)
		run_seed(sim, seed, &o, &total);
	total.seconds = now_s() - began;
	write_counts(sim, &total, stdout, "\n");
	if (o.json) {
		FILE *file = fopen(o.json, "w");

		if (!file) {
			perror(o.json);
			return 2;
		}
		write_counts(sim, &total, file, "\n");
		fclose(file);
	}
	return total.failed ? 1 : 0;
}
