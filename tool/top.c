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

enum { ROWS_MAX = 2048, PIDS_MAX = 64, BUCKETS = 26, COLUMNS = 9, PEER_COLUMNS = 7, CELL = 96 };
enum { NO_PEER = -1 };

/* An engine, or one of its peers. */
struct row {
	int pid;
	unsigned int place; /* of the engine among those of its process */
	long long peer;	    /* its index in the engine, or NO_PEER */
	char engine[64], name[64], state[32], error[CELL];
	double at_s;
	long long peers, in_flight, oldest_ms, out, in;
	bool timed; /* it could say how long operations took */
	unsigned long long bucket[BUCKETS];
};

struct view {
	struct row row[ROWS_MAX];
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

static void read_times(const json_t *said, struct row *row)
{
	const char *at = text_of(said, "times");
	char *end;

	row->timed = *at;
	for (int i = 0; i < BUCKETS && *at; i++, at = end)
		row->bucket[i] = strtoull(at, &end, 10);
}

static void read_engine(const json_t *said, struct row *e)
{
	snprintf(e->engine, sizeof(e->engine), "%s", text_of(said, "name"));
	e->at_s = now_s();
	e->peers = number_of(said, "peers_up");
	e->in_flight = number_of(said, "operations_in_flight");
	e->oldest_ms = number_of(said, "oldest_ms");
	e->out = number_of(said, "bytes_out");
	e->in = number_of(said, "bytes_in") + number_of(said, "bytes_read");
	read_times(said, e);
	if (*text_of(said, "lock"))
		snprintf(e->error, sizeof(e->error), "a thread keeps the engine's lock");
	else if (*text_of(said, "last_error"))
		snprintf(e->error, sizeof(e->error), "%s %llds ago: %s",
			 text_of(said, "last_error") + strlen("KV_ERR_"),
			 number_of(said, "last_error_ms_ago") / 1000,
			 text_of(said, "last_error_cause"));
}

static void read_peer(const json_t *said, struct row *p)
{
	p->peer = number_of(said, "index");
	p->at_s = now_s();
	snprintf(p->name, sizeof(p->name), "%s", text_of(said, "name"));
	snprintf(p->state, sizeof(p->state), "%s", text_of(said, "state"));
	read_times(said, p);
}

static struct row *next_row(struct view *view, const struct row *like)
{
	if (view->n == ROWS_MAX)
		return NULL;
	view->row[view->n] = *like;
	return &view->row[view->n++];
}

static void read_peers(json_t *said, const struct row *engine, struct view *view)
{
	json_t *peer;
	size_t i;

	json_array_foreach(json_object_get(said, "peers"), i, peer)
	{
		struct row *row =
			next_row(view, &(struct row){ .pid = engine->pid, .place = engine->place });

		if (!row)
			break;
		memcpy(row->engine, engine->engine, sizeof(row->engine));
		read_peer(peer, row);
	}
}

static void look_at(const struct look_socket *socket, bool peers, struct view *view)
{
	const char *why = "";
	int pid = 0;
	char *text = look_ask(socket, peers ? "top peers\n" : "top\n", &pid, &why);
	json_t *said = text ? json_loads(text, 0, NULL) : NULL, *engine;
	unsigned int place = 0;
	size_t i;

	if (!text && pid) {
		struct row *row = next_row(view, &(struct row){ .pid = pid, .peer = NO_PEER });

		if (row)
			snprintf(row->error, sizeof(row->error), "%s", why);
		return;
	}
	for (i = 0; i < view->n; i++)
		place += view->row[i].pid == pid && view->row[i].peer == NO_PEER;
	json_array_foreach(json_object_get(said, "engines"), i, engine)
	{
		struct row *row = next_row(
			view, &(struct row){ .pid = pid, .place = place, .peer = NO_PEER });

		if (!row)
			break;
		place++;
		read_engine(engine, row);
		read_peers(engine, row, view);
	}
	json_decref(said);
	free(text);
}

static void look_at_all(const int *pids, size_t n, bool peers, struct view *view)
{
	static struct look_socket sockets[LOOK_SOCKETS_MAX];
	size_t asked = n ? n : 1;

	view->n = 0;
	for (size_t i = 0; i < asked; i++) {
		int found = look_find(n ? pids[i] : 0, sockets, LOOK_SOCKETS_MAX);

		for (int k = 0; k < found; k++)
			look_at(&sockets[k], peers, view);
	}
}

/* ---------------------------------------------------------------- two looks */

static bool goes_on(const struct row *old, const struct row *now)
{
	if (old->pid != now->pid || old->place != now->place || old->peer != now->peer ||
	    strcmp(old->name, now->name) || old->out > now->out || old->in > now->in)
		return false;
	for (int i = 0; now->timed && i < BUCKETS; i++)
		if (old->bucket[i] > now->bucket[i])
			return false;
	return true;
}

static const struct row *earlier(const struct view *before, const struct row *now)
{
	static const struct row none = { .timed = true };

	for (size_t i = 0; i < before->n; i++)
		if (goes_on(&before->row[i], now))
			return &before->row[i];
	return &none;
}

/* Operations that ended between the looks. */
static unsigned long long ended(const struct row *now, const struct row *old)
{
	unsigned long long n = 0;

	for (int i = 0; now->timed && old->timed && i < BUCKETS; i++)
		n += now->bucket[i] - old->bucket[i];
	return n;
}

/* Of these 99 of 100 took no more than so many us; 0: there are none. */
static double p99_us(const struct row *now, const struct row *old)
{
	unsigned long long all = ended(now, old), n = 0;

	for (int i = 0; all && i < BUCKETS; i++) {
		n += now->bucket[i] - old->bucket[i];
		if (n * 100 >= all * 99)
			return (double)(1024ULL << i) / 1e3;
	}
	return 0;
}

static double gbytes_s(long long bytes, const struct row *now, const struct row *old)
{
	return old->at_s > 0 ? (double)bytes / 1e9 / (now->at_s - old->at_s) : 0;
}

/* ---------------------------------------------------------------- what is printed */

static json_t *json_of_engine(const struct row *e, const struct row *old)
{
	return json_pack("{si ss sI sf sf sI sI sf ss sI sI}", "pid", e->pid, "engine", e->engine,
			 "peers", (json_int_t)e->peers, "gbytes_out_s",
			 gbytes_s(e->out - old->out, e, old), "gbytes_in_s",
			 gbytes_s(e->in - old->in, e, old), "in_flight", (json_int_t)e->in_flight,
			 "oldest_ms", (json_int_t)e->oldest_ms, "p99_us", p99_us(e, old),
			 "last_error", e->error, "bytes_out", (json_int_t)e->out, "bytes_in",
			 (json_int_t)e->in);
}

static json_t *json_of_peer(const struct row *p, const struct row *old)
{
	return json_pack("{si ss sI ss ss sI sf}", "pid", p->pid, "engine", p->engine, "index",
			 (json_int_t)p->peer, "peer", p->name, "state", p->state, "operations",
			 (json_int_t)ended(p, old), "p99_us", p99_us(p, old));
}

static int print_json(const struct view *before, const struct view *now, bool peers)
{
	json_t *rows = json_array();
	int ret;

	for (size_t i = 0; i < now->n; i++) {
		const struct row *row = &now->row[i], *old = earlier(before, row);

		if ((row->peer != NO_PEER) == peers)
			json_array_append_new(rows, peers ? json_of_peer(row, old)
							  : json_of_engine(row, old));
	}
	ret = json_dumpf(rows, stdout, 0);
	printf("\n");
	json_decref(rows);
	return ret || fflush(stdout);
}

typedef char cell_text[CELL];

static void p99_cell(char *cell, const struct row *row, const struct row *old)
{
	double p99 = p99_us(row, old);

	snprintf(cell, CELL, p99 > 0 ? "%.0f" : "-", p99);
}

static void engine_cells(cell_text *cell, const struct row *e, const struct row *old)
{
	snprintf(cell[0], CELL, "%d", e->pid);
	snprintf(cell[1], CELL, "%s", e->engine);
	snprintf(cell[2], CELL, "%lld", e->peers);
	snprintf(cell[3], CELL, "%.3f", gbytes_s(e->out - old->out, e, old));
	snprintf(cell[4], CELL, "%.3f", gbytes_s(e->in - old->in, e, old));
	snprintf(cell[5], CELL, "%lld", e->in_flight);
	snprintf(cell[6], CELL, "%lld", e->oldest_ms);
	p99_cell(cell[7], e, old);
	snprintf(cell[8], CELL, "%s", *e->error ? e->error : "-");
}

static void peer_cells(cell_text *cell, const struct row *p, const struct row *old)
{
	snprintf(cell[0], CELL, "%d", p->pid);
	snprintf(cell[1], CELL, "%s", p->engine);
	snprintf(cell[2], CELL, "%lld", p->peer);
	snprintf(cell[3], CELL, "%s", p->name);
	snprintf(cell[4], CELL, "%s", p->state);
	snprintf(cell[5], CELL, "%llu", ended(p, old));
	p99_cell(cell[6], p, old);
}

static int print_table(const struct view *before, const struct view *now, bool peers)
{
	static const char *const head[] = { "pid",	 "engine",    "peers",
					    "GB/s out",	 "GB/s in",   "in flight",
					    "oldest ms", "p99 us <=", "last error" };
	static const char *const peer_head[] = { "pid",	  "engine",	"index",    "peer",
						 "state", "operations", "p99 us <=" };
	static cell_text text[ROWS_MAX * COLUMNS];
	static const char *cells[ROWS_MAX * COLUMNS];
	size_t columns = peers ? PEER_COLUMNS : COLUMNS, n = 0;

	for (size_t i = 0; i < now->n; i++) {
		const struct row *row = &now->row[i], *old = earlier(before, row);

		if ((row->peer != NO_PEER) != peers)
			continue;
		(peers ? peer_cells : engine_cells)(&text[n * columns], row, old);
		n++;
	}
	for (size_t i = 0; i < n * columns; i++)
		cells[i] = text[i];
	table_print(peers ? peer_head : head, cells, columns, n);
	if (!now->n)
		printf("no process with an engine of kvrail was found\n");
	return fflush(stdout);
}

/* ---------------------------------------------------------------- the command */

static void usage(FILE *out)
{
	fputs("usage: kvrail top [PID]... [--peers] [--once] [--json] [--interval SECONDS]\n"
	      "\n"
	      "A row for each engine of these processes, or of every process of this user (as root: of every\n"
	      "process) in this network, again each second: peers, gigabytes a second in and out, operations in\n"
	      "flight, the oldest of them, p99 of those that ended since the last look, the last error.\n"
	      "  --peers     a row for each peer of an engine, the first 256: how many operations ended since the\n"
	      "              last look, and their p99\n"
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
	bool peers, once, json;
	int interval_s;
};

static int read_options(int argc, char **argv, struct options *o)
{
	static const struct option flags[] = {
		{ "peers", no_argument, NULL, 'p' }, { "once", no_argument, NULL, 'o' },
		{ "json", no_argument, NULL, 'j' },  { "interval", required_argument, NULL, 'i' },
		{ "help", no_argument, NULL, 'h' },  { 0 }
	};
	int flag;

	while ((flag = getopt_long(argc, argv, "poji:h", flags, NULL)) != -1) {
		if (flag == 'h')
			return 0;
		o->peers |= flag == 'p';
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
	look_at_all(o.pids, o.n, o.peers, &views[0]);
	for (int i = 1;; i = !i) {
		poll(NULL, 0, o.interval_s * 1000);
		look_at_all(o.pids, o.n, o.peers, &views[i]);
		found = views[i].n > 0;
		if (!o.json && !o.once && isatty(STDOUT_FILENO))
			printf("\033[H\033[J"); /* home, and clear to the end */
		ret = o.json ? print_json(&views[!i], &views[i], o.peers)
			     : print_table(&views[!i], &views[i], o.peers);
		if (o.once || ret)
			return !found || ret;
	}
}
