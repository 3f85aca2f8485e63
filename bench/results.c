/* SPDX-License-Identifier: Apache-2.0 */
/* results.c -- the table and the JSON file of a benchmark */
#include "results.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#if __has_include("results_commit.h")
#include "results_commit.h" /* made by each build */
#else
#define RESULTS_COMMIT "unknown"
#endif

enum { DEPTH_MAX = 8 };

struct results {
	FILE *table; /* stderr: what results_end writes goes to stdout */
	FILE *out;   /* into `text` */
	char *text;
	size_t len;
	int depth, members[DEPTH_MAX];
	char closer[DEPTH_MAX];
	const struct results_column *column;
	uint32_t columns, cells; /* of the line */
	long line;		 /* where the line began in the text */
};

extern char **environ;

/* Without quotes where a shell needs none. */
static void put_word(FILE *to, const char *word)
{
	if (*word && word[strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				       "0123456789_-+=.,:/@%")] == 0) {
		fputs(word, to);
		return;
	}
	fputc('\'', to);
	for (; *word; word++)
		if (*word == '\'')
			fputs("'\\''", to);
		else
			fputc(*word, to);
	fputc('\'', to);
}

char *results_command(int argc, char **argv)
{
	const char *slash = strrchr(argv[0], '/');
	char *text = NULL;
	size_t len = 0;
	FILE *to = open_memstream(&text, &len);

	if (!to)
		return NULL;
	for (char **e = environ; *e; e++)
		if (strncmp(*e, "KVCACHE_", 8) == 0 || strncmp(*e, "NCCL_", 5) == 0) {
			put_word(to, *e);
			fputc(' ', to);
		}
	fputs(slash ? slash + 1 : argv[0], to);
	for (int i = 1; i < argc; i++) {
		fputc(' ', to);
		put_word(to, argv[i]);
	}
	return fclose(to) ? NULL : text;
}

int results_can_write(const char *program, const char *path)
{
	int fd, made = 0;

	if (!path)
		return 0;
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT) {
		fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
		made = fd >= 0;
	}
	if (fd < 0) {
		fprintf(stderr, "%s: %s cannot be written: %s\n", program, path, strerror(errno));
		return -1;
	}
	close(fd);
	if (made)
		unlink(path);
	return 0;
}

/* ---------------------------------------------------------------- JSON */

static void put_string(FILE *to, const char *s)
{
	fputc('"', to);
	for (; *s; s++)
		if (*s == '"' || *s == '\\')
			fprintf(to, "\\%c", *s);
		else if ((unsigned char)*s < 0x20)
			fprintf(to, "\\u%04x", *s);
		else
			fputc(*s, to);
	fputc('"', to);
}

/* A row stays on one line. */
static void begin_member(struct results *r, const char *key)
{
	int flat = r->depth > 2;

	if (r->members[r->depth]++)
		fputc(',', r->out);
	if (!flat)
		fprintf(r->out, "\n%*s", 2 * r->depth, "");
	else if (r->members[r->depth] > 1)
		fputc(' ', r->out);
	if (key) {
		put_string(r->out, key);
		fputs(": ", r->out);
	}
}

void results_text(struct results *r, const char *key, const char *text)
{
	begin_member(r, key);
	if (text)
		put_string(r->out, text);
	else
		fputs("null", r->out);
}

void results_integer(struct results *r, const char *key, uint64_t v)
{
	begin_member(r, key);
	fprintf(r->out, "%llu", (unsigned long long)v);
}

void results_number(struct results *r, const char *key, double v)
{
	begin_member(r, key);
	/* Whole numbers are exact, others have more digits than any measurement. */
	fprintf(r->out, isnan(v) ? "null" : v == (double)(int64_t)v ? "%.0f" : "%.7g", v);
}

void results_open(struct results *r, const char *key, char bracket)
{
	if (r->depth)
		begin_member(r, key);
	fputc(bracket, r->out);
	r->depth++;
	r->members[r->depth] = 0;
	r->closer[r->depth] = bracket == '{' ? '}' : ']';
}

void results_close(struct results *r)
{
	int flat = r->depth > 2;
	char closer = r->closer[r->depth--];

	if (!flat)
		fprintf(r->out, "\n%*s", 2 * r->depth, "");
	fputc(closer, r->out);
}

/* ---------------------------------------------------------------- where and when */

static void put_cpu(struct results *r)
{
	FILE *info = fopen("/proc/cpuinfo", "re");
	char line[256], text[320], *name = NULL;
	struct utsname machine = { 0 };

	while (info && !name && fgets(line, sizeof(line), info))
		if (strncmp(line, "model name", 10) == 0 && (name = strchr(line, ':')))
			name[strcspn(name, "\n")] = 0;
	uname(&machine);
	snprintf(text, sizeof(text), "%s, %ld cores", name ? name + 2 : machine.machine,
		 sysconf(_SC_NPROCESSORS_ONLN));
	results_text(r, "cpu", text);
	if (info)
		fclose(info);
}

static void put_date(struct results *r)
{
	time_t now = time(NULL);
	char text[32];
	struct tm tm;

	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
	results_text(r, "date", text);
}

struct results *results_new(const char *program, const char *command, const char *transport,
			    const char *path, const char *wait)
{
	struct results *r = calloc(1, sizeof(*r));
	struct utsname machine = { 0 };

	if (!r || !(r->out = open_memstream(&r->text, &r->len))) {
		fprintf(stderr, "%s: out of memory\n", program);
		exit(3);
	}
	r->table = stdout;
	uname(&machine);
	results_open(r, NULL, '{');
	results_text(r, "program", program);
	results_text(r, "command", command);
	results_text(r, "commit", RESULTS_COMMIT);
	results_text(r, "host", machine.nodename);
	put_date(r);
	put_cpu(r);
	results_text(r, "transport", transport);
	results_text(r, "path", path);
	results_text(r, "wait", wait);
	return r;
}

void results_on_stdout(struct results *r)
{
	r->table = stderr;
}

int results_end(struct results *r, const char *file)
{
	FILE *to;
	int rc;

	while (r->depth)
		results_close(r);
	fputc('\n', r->out);
	rc = fclose(r->out) ? -1 : 0;
	if (file && rc == 0) {
		to = r->table == stderr ? stdout : fopen(file, "we");
		rc = !to || fwrite(r->text, 1, r->len, to) != r->len ? -1 : 0;
		if (to && (to == stdout ? fflush(to) : fclose(to)))
			rc = -1;
		if (rc)
			fprintf(stderr, "%s cannot be written: %s\n", file, strerror(errno));
	}
	free(r->text);
	free(r);
	return rc;
}

/* ---------------------------------------------------------------- the table */

static void print_titles(const struct results *r, int units)
{
	const struct results_column *c = r->column;

	for (uint32_t i = 0; i < r->columns; i++) {
		const char *text = units ? c[i].unit : c[i].title;

		if (i == 0)
			fprintf(r->table, "#%*s", c[i].width < 0 ? c[i].width + 1 : c[i].width - 1,
				text);
		else
			fprintf(r->table, " %*s", c[i].width, text);
	}
	fputc('\n', r->table);
}

void results_table(struct results *r, const struct results_column *columns, uint32_t n)
{
	r->column = columns;
	r->columns = n;
	print_titles(r, 0);
	print_titles(r, 1);
	fflush(r->table);
	results_open(r, "rows", '[');
}

static const struct results_column *begin_cell(struct results *r)
{
	if (r->cells == 0) {
		fflush(r->out);
		r->line = ftell(r->out);
		results_open(r, NULL, '{');
	} else {
		fputc(' ', r->table);
	}
	return &r->column[r->cells++];
}

static void end_cell(struct results *r)
{
	if (r->cells == r->columns) {
		fputc('\n', r->table);
		results_close(r);
		r->cells = 0;
	}
	fflush(r->table);
}

void results_cell(struct results *r, double v)
{
	const struct results_column *c = begin_cell(r);

	if (isnan(v))
		fprintf(r->table, "%*s", c->width, "-");
	else
		fprintf(r->table, "%*.*f", c->width, c->decimals, v);
	results_number(r, c->key, v);
	end_cell(r);
}

void results_cell_text(struct results *r, const char *text)
{
	const struct results_column *c = begin_cell(r);

	fprintf(r->table, "%*s", c->width, text);
	results_text(r, c->key, text);
	end_cell(r);
}

void results_no_line(struct results *r, const char *why)
{
	fprintf(r->table, "%s%s\n", r->cells ? " " : "", why);
	fflush(r->table);
	if (!r->cells)
		return;
	r->depth--;
	r->members[r->depth]--;
	r->cells = 0;
	fseek(r->out, r->line, SEEK_SET);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

double results_median(double *v, uint32_t n)
{
	qsort(v, n, sizeof(*v), by_value);
	return v[n / 2];
}
