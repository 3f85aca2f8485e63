/* SPDX-License-Identifier: Apache-2.0 */
/* top.c -- kvrail top: running processes, a row for each engine, again and again */
#include "tool.h"

#include <getopt.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "look.h"

enum { ENGINES_MAX = 256, PIDS_MAX = 64, BUCKETS = 26, COLUMNS = 9, CELL = 96 };

struct engine {
	int pid;
	unsigned int place; /* among those of its process */
	char name[64], error[CELL];
	double at_s;
	long long peers, in_flight, oldest_ms, out, in;
	unsigned long long bucket[BUCKETS];
};

struct view {
	struct engine engine[ENGINES_MAX];
	size_t n;
};

static double now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* ---------------------------------------------------------------- a look */

static long long number_of(const json_t *engine, const char *key)
{
	return json_integer_value(json_object_get(engine, key));
}

static const char *text_of(const json_t *engine, const char *key)
{
	const char *text = json_string_value(json_object_get(engine, key));

	return text ? text : "";
}

static void read_engine(const json_t *said, struct engine *e)
{
	const char *at = text_of(said, "times");
	char *end;

	snprintf(e->name, sizeof(e->name), "%s", text_of(said, "name"));
	e->at_s = now_s();
	e->peers = number_of(said, "peers_up");
	e->in_flight = number_of(said, "operations_in_flight");
	e->oldest_ms = number_of(said, "oldest_ms");
	e->out = number_of(said, "bytes_out");
	e->in = number_of(said, "bytes_in") + number_of(said, "bytes_read");
	for (int i = 0; i < BUCKETS && *at; i++, at = end)
		e->bucket[i] = strtoull(at, &end, 10);
	if (*text_of(said, "lock"))
		snprintf(e->error, sizeof(e->error), "a thread keeps the engine's lock");
	else if (*text_of(said, "last_error"))
		snprintf(e->error, sizeof(e->error), "%s %llds ago: %s",
			 text_of(said, "last_error") + strlen("KV_ERR_"),
			 number_of(said, "last_error_ms_ago") / 1000,
			 text_of(said, "last_error_cause"));
}

static void look_at(const struct look_socket *socket, struct view *view)
{
	const char *why;
	int pid = 0;
	char *text = look_ask(socket, "top\n", &pid, &why);
	json_t *said = text ? json_loads(text, 0, NULL) : NULL;
	json_t *engines = json_object_get(said, "engines"), *engine;
	unsigned int place = 0;
	size_t i;

	for (i = 0; i < view->n; i++)
		place += view->engine[i].pid == pid;
	json_array_foreach(engines, i, engine)
	{
		struct engine *e = &view->engine[view->n];

		if (view->n == ENGINES_MAX)
			break;
		*e = (struct engine){ .pid = pid, .place = place };
		read_engine(engine, e);
		place++;
		view->n++;
	}
	json_decref(said);
	free(text);
}

static void look_at_all(const int *pids, size_t n, struct view *view)
{
	static struct look_socket sockets[LOOK_SOCKETS_MAX];
	size_t asked = n ? n : 1;

	view->n = 0;
	for (size_t i = 0; i < asked; i++) {
		int found = look_find(n ? pids[i] : 0, sockets, LOOK_SOCKETS_MAX);

		for (int k = 0; k < found; k++)
			look_at(&sockets[k], view);
	}
}

/* ---------------------------------------------------------------- two looks */

static const struct engine *earlier(const struct view *before, const struct engine *e)
{
	static const struct engine none;

	for (size_t i = 0; i < before->n; i++)
		if (before->engine[i].pid == e->pid && before->engine[i].place == e->place &&
		    before->engine[i].out <= e->out && before->engine[i].in <= e->in)
			return &before->engine[i];
	return &none;
}

/* The operations that ended between the looks took less than so many us, 99 of 100; 0: none. */
static double p99_us(const struct engine *e, const struct engine *old)
{
	unsigned long long all = 0, n = 0;

	for (int i = 0; i < BUCKETS; i++)
		all += e->bucket[i] - old->bucket[i];
	for (int i = 0; all && i < BUCKETS; i++) {
		n += e->bucket[i] - old->bucket[i];
		if (n * 100 >= all * 99)
			return (double)(1ULL << i);
	}
	return 0;
}

static double gbytes_s(long long bytes, const struct engine *e, const struct engine *old)
{
	return old->at_s > 0 ? (double)bytes / 1e9 / (e->at_s - old->at_s) : 0;
}

static int print_json(const struct view *before, const struct view *now)
{
	json_t *rows = json_array();
	int ret;

	for (size_t i = 0; i < now->n; i++) {
		const struct engine *e = &now->engine[i], *old = earlier(before, e);

		json_array_append_new(rows,
				      json_pack("{si ss sI sf sf sI sI sf ss sI sI}", "pid", e->pid,
						"engine", e->name, "peers", (json_int_t)e->peers,
						"gbytes_out_s", gbytes_s(e->out - old->out, e, old),
						"gbytes_in_s", gbytes_s(e->in - old->in, e, old),
						"in_flight", (json_int_t)e->in_flight, "oldest_ms",
						(json_int_t)e->oldest_ms, "p99_us", p99_us(e, old),
						"last_error", e->error, "bytes_out",
						(json_int_t)e->out, "bytes_in", (json_int_t)e->in));
	}
	ret = json_dumpf(rows, stdout, 0);
	printf("\n");
	json_decref(rows);
	return ret || fflush(stdout);
}

static int print_table(const struct view *before, const struct view *now)
{
	static const char *const head[COLUMNS] = { "pid",	"engine",    "peers",
						   "GB/s out",	"GB/s in",   "in flight",
						   "oldest ms", "p99 us <=", "last error" };
	static char text[ENGINES_MAX][COLUMNS][CELL];
	static const char *cells[ENGINES_MAX][COLUMNS];

	for (size_t i = 0; i < now->n; i++) {
		const struct engine *e = &now->engine[i], *old = earlier(before, e);
		double p99 = p99_us(e, old);

		snprintf(text[i][0], CELL, "%d", e->pid);
		snprintf(text[i][1], CELL, "%s", e->name);
		snprintf(text[i][2], CELL, "%lld", e->peers);
		snprintf(text[i][3], CELL, "%.3f", gbytes_s(e->out - old->out, e, old));
		snprintf(text[i][4], CELL, "%.3f", gbytes_s(e->in - old->in, e, old));
		snprintf(text[i][5], CELL, "%lld", e->in_flight);
		snprintf(text[i][6], CELL, "%lld", e->oldest_ms);
		snprintf(text[i][7], CELL, p99 > 0 ? "%.0f" : "-", p99);
		snprintf(text[i][8], CELL, "%s", *e->error ? e->error : "-");
		for (int k = 0; k < COLUMNS; k++)
			cells[i][k] = text[i][k];
	}
	table_print(head, cells[0], COLUMNS, now->n);
	if (!now->n)
		printf("no process with an engine of kvrail was found\n");
	return fflush(stdout);
}

/* ---------------------------------------------------------------- the command */

static void usage(FILE *out)
{
	fputs("usage: kvrail top [PID]... [--once] [--json] [--interval SECONDS]\n"
	      "\n"
	      "A row for each engine of these processes, or of every process of this user (as root: of every\n"
	      "process) in this network, again each second: peers, gigabytes a second in and out, operations in\n"
	      "flight, the oldest of them, p99 of those that ended since the last look, the last error.\n"
	      "  --once      look twice, print once\n"
	      "  --json      an array in a line for each look\n"
	      "  --interval  1 to 3600 seconds between two looks; 1\n"
	      "The clock of an engine's operations starts with the first look, and costs one that moves a block of\n"
	      "1 KiB under 2 % (docs/operate.md). Exit status: 0, or 1 if nothing was found.\n",
	      out);
}

struct options {
	int pids[PIDS_MAX];
	size_t n;
	bool once, json;
	int interval_s;
};

static int read_options(int argc, char **argv, struct options *o)
{
	static const struct option flags[] = { { "once", no_argument, NULL, 'o' },
					       { "json", no_argument, NULL, 'j' },
					       { "interval", required_argument, NULL, 'i' },
					       { "help", no_argument, NULL, 'h' },
					       { 0 } };
	int flag;

	while ((flag = getopt_long(argc, argv, "oji:h", flags, NULL)) != -1) {
		if (flag == 'h')
			return 0;
		o->once |= flag == 'o';
		o->json |= flag == 'j';
		if (flag == 'i')
			o->interval_s = look_pid(optarg);
		if (flag == '?' || o->interval_s < 1 || o->interval_s > 3600)
			return -1;
	}
	for (; optind < argc; optind++) {
		if (o->n == PIDS_MAX || !look_pid(argv[optind]))
			return -1;
		o->pids[o->n++] = look_pid(argv[optind]);
	}
	return 1;
}

int top_main(int argc, char **argv)
{
	static struct view views[2];
	struct options o = { .interval_s = 1 };
	int ret = read_options(argc, argv, &o), found;

	if (ret <= 0) {
		usage(ret ? stderr : stdout);
		return ret ? EXIT_USAGE : 0;
	}
	look_at_all(o.pids, o.n, &views[0]);
	for (int i = 1;; i = !i) {
		poll(NULL, 0, o.interval_s * 1000);
		look_at_all(o.pids, o.n, &views[i]);
		found = views[i].n > 0;
		if (!o.json && !o.once && isatty(STDOUT_FILENO))
			printf("\033[H\033[J"); /* home, and clear to the end */
		ret = o.json ? print_json(&views[!i], &views[i])
			     : print_table(&views[!i], &views[i]);
		if (o.once || ret)
			return !found || ret;
	}
}
