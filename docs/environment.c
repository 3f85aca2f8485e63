/* SPDX-License-Identifier: Apache-2.0 */
/*
 * environment.c -- prints docs/environment.md from the option table
 *
 * With a file name it compares instead: 0 if the file is what would be printed, else 1. `./dev
 * docs` writes the file.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/option.h"

static const char head[] =
	"# Options\n"
	"\n"
	"Made by `./dev docs` from `transport/base/option.def`; do not edit. Every option is an environment variable and\n"
	"can also be given in `kv_engine_config.options` as `\"NAME=value\"`, which beats the environment. A variable that is set\n"
	"to nothing counts as unset. A value outside its range is an error that names the range. `kvrail info` shows the value in force and where it came from.\n"
	"\n"
	"| option | takes | default | what it does |\n"
	"| --- | --- | --- | --- |\n";

/* A cell of a table: "|" separates columns, so it must be escaped. */
static void print_cell(FILE *out, const char *text)
{
	for (; *text; text++) {
		if (*text == '|')
			fputc('\\', out);
		fputc(*text, out);
	}
}

static void print_table(FILE *out, const struct kv_option_set *set)
{
	fputs(head, out);
	for (int id = 0; id < KV_OPTIONS; id++) {
		struct kv_option_row row;

		kv_option_row(set, (enum kv_option_id)id, &row);
		fprintf(out, "| `%s` | %s ", row.name, row.type);
		print_cell(out, row.range);
		fprintf(out, " | %s%s%s | ", *row.def ? "`" : "", *row.def ? row.def : "(empty)",
			*row.def ? "`" : "");
		print_cell(out, row.help);
		fputs(" |\n", out);
	}
}

static int compare(const char *path, const char *want, size_t want_len)
{
	char *have = malloc(want_len + 1);
	FILE *file = fopen(path, "r");
	size_t have_len = 0;

	if (have && file)
		have_len = fread(have, 1, want_len + 1, file);
	if (file)
		fclose(file);
	if (have_len == want_len && !memcmp(have, want, want_len)) {
		free(have);
		return 0;
	}
	free(have);
	fprintf(stderr, "%s differs from the option table: run ./dev docs\n", path);
	return 1;
}

int main(int argc, char **argv)
{
	struct kv_option_set *set;
	struct kv_error err;
	char *text = NULL;
	size_t len = 0;
	FILE *out = open_memstream(&text, &len);
	int ret = 0;

	if (!out || kv_option_read(NULL, &set, &err)) {
		fprintf(stderr, "%s\n", out ? err.message : "open_memstream failed");
		return 1;
	}
	print_table(out, set);
	fclose(out);
	if (argc > 1)
		ret = compare(argv[1], text, len);
	else
		fputs(text, stdout);
	kv_option_free(set);
	free(text);
	return ret;
}
