/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tool.h -- the parts of the kvrail command; a subcommand returns the exit status: 0, 1 failed, 2
 * wrong usage
 */
#ifndef KVRAIL_TOOL_H
#define KVRAIL_TOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include <kvrail/kv.h>

enum { EXIT_USAGE = 2 };

int info_main(int argc, char **argv);
int doctor_main(int argc, char **argv);
int bench_main(int argc, char **argv);
int dump_main(int argc, char **argv);
int top_main(int argc, char **argv);

/*
 * Reads --json and --help, which prints `usage`. -1: the command goes on, with the arguments from
 * optind on; else its exit status.
 */
int flags_json(int argc, char **argv, void (*usage)(FILE *out), bool *json);

/*
 * Ends the line with `text`, which begins at column `indent`. On a terminal that is too narrow it
 * goes on in the next lines, at the same column.
 */
void text_print(size_t indent, const char *text);

/* Prints rows of `columns` cells with a heading, each column as wide as its widest cell. */
void table_print(const char *const *head, const char *const *cells, size_t columns, size_t rows);

#endif
