/* SPDX-License-Identifier: Apache-2.0 */
/*
 * results.h -- what a benchmark says: a table for people, and a JSON file with the same numbers
 *
 * bench/README.md describes the file: what was measured where, the program's settings, rows. It is
 * written without jansson, because net_perf is built on GPU machines that have no such package.
 */
#ifndef BENCH_RESULTS_H
#define BENCH_RESULTS_H

#include <math.h>
#include <stdint.h>

struct results;

/*
 * The command line with the KVCACHE_* and NCCL_* variables before it, as one would type it; call it
 * before the arguments are parsed, because getopt and argp sort them. Must be freed.
 */
char *results_command(int argc, char **argv);

/*
 * Whether a file can be written: 0, or -1 after a sentence on stderr that begins with `program`. To
 * be asked before anything is measured; the file stays as it is. NULL: 0.
 */
int results_can_write(const char *program, const char *path);

/* NULL for what the program cannot see. */
struct results *results_new(const char *program, const char *command, const char *transport,
			    const char *path, const char *wait);
/* The table goes to stderr, and what results_end writes to stdout. */
void results_on_stdout(struct results *r);
/* Writes the file, unless file is NULL: 0, or -1 after a sentence on stderr. Frees r. */
int results_end(struct results *r, const char *file);

/* Members of the object that is open; `key` is NULL in an array. A number that is NAN is null. */
void results_text(struct results *r, const char *key, const char *text);
void results_integer(struct results *r, const char *key, uint64_t v);
void results_number(struct results *r, const char *key, double v);
void results_open(struct results *r, const char *key, char bracket); /* '{' or '[' */
void results_close(struct results *r);

/* ---------------------------------------------------------------- the table, which is the rows */

/* Of n > 0 values, which it sorts. */
double results_median(double *v, uint32_t n);

struct results_column {
	const char *title, *unit;
	const char *key; /* in the file */
	int width;	 /* negative: to the left */
	int decimals;
};

/* Prints the head. From here on members go into rows. */
void results_table(struct results *r, const struct results_column *columns, uint32_t n);
/* The next cell of the line; the last one ends it. NAN was not measured: "-", and null. */
void results_cell(struct results *r, double v);
void results_cell_text(struct results *r, const char *text);
/* Instead of the rest of a line: why there is none. Nothing of the line gets into the file. */
void results_no_line(struct results *r, const char *why);

#endif
