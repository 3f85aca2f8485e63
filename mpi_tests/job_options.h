/* SPDX-License-Identifier: Apache-2.0 */
/* job_options.h -- what the command lines of the two programs share: a child parser of argp */
#ifndef MPI_TESTS_JOB_OPTIONS_H
#define MPI_TESTS_JOB_OPTIONS_H

#include <argp.h>
#include <stdint.h>

struct job_options {
	uint32_t prefills, decodes;
	int local;
	char address[16]; /* that the ranks of this host listen at; "": this host alone */
	int gpu; /* where the pools lie: on this one of each rank; -1: in host memory */
	uint64_t seed;
	int64_t timeout_ms;
	const char *program;
	char *command; /* as it was typed */
	const char *json_path, *plot_path;
	char *plot_json; /* the JSON file of a plot that was asked for alone */
};

/* Groups of --help; what is moved (2) is the program's own. */
enum { JOB_GROUP_RANKS = 1, JOB_GROUP_WHAT, JOB_GROUP_HOW, JOB_GROUP_OUTPUT };
enum { JOB_KEY_FIRST = 256, JOB_KEY_PROGRAM = 512 }; /* long options without a letter */

/* Its input is the struct job_options; the program's parser hands it on at ARGP_KEY_INIT. */
extern const struct argp_child job_argp[];
/* Before the arguments are parsed, which sorts them. */
struct job_options job_defaults(const char *program, int argc, char **argv);
void job_options_free(struct job_options *o);

/* What an option's text says, or the end of the program with a sentence. */
uint64_t job_number(const char *text, uint64_t min, uint64_t max, const char *name,
		    struct argp_state *state);
uint32_t job_number32(const char *text, uint32_t min, uint32_t max, const char *name,
		      struct argp_state *state);
/* Two numbers with `sep` between them. */
void job_pair(const char *text, char sep, uint32_t max, uint32_t *a, uint32_t *b, const char *name,
	      struct argp_state *state);

/*
 * job_output.c: in one process of the job, before anything is measured: 0, or -1 after a sentence
 * that says which file cannot be written, and why.
 */
int job_output_ready(const struct job_options *o);
/* After a run without a failure, whose JSON file is there: draws it, if a plot was asked for. */
void job_output_plot(const struct job_options *o);

#endif
