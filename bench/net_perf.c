/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_perf.c -- latency, bandwidth and message rate of any NCCL network plugin, between two
 * processes of this host
 *
 * Several plugins may be named: they are measured in turn, size by size, so that what else the
 * machine does meets all alike. The first and the last message of each row are checked byte by
 * byte.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "net_side.h"
#include "results.h"

enum { PLUGINS_MAX = 4, WINDOW = 8, ROW_MS = 150, ROUNDS_MAX = 1 << 17, LATENCY_MAX = 65536 };

struct options {
	struct net_source plugin[PLUGINS_MAX];
	int plugins;
	size_t min, max;
	const char *json;
};

struct row {
	int verdict;
	char reason[160];
	double latency_us; /* half a round trip; 0 where not measured */
	double gb_per_s;
	double messages_per_s;
};

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

struct bench {
	struct side s;
	void *there, *back; /* to the receiver of the bandwidth rows, and from it */
	struct buffer a, b; /* of `there` and `back` */
};

/* ---------------------------------------------------------------- rows */

static int ping(struct bench *t, size_t size, int rounds)
{
	struct side *s = &t->s;
	void *in, *out;

	for (int i = 0; i < rounds; i++) {
		if (s->sender) {
			TRY(side_irecv1(s, t->back, &t->b, size, 0, &in));
			TRY(side_isend(s, t->there, t->a.bytes, size, 0, t->a.mhandle, &out));
			TRY(side_wait(s, out, NULL));
			TRY(side_wait(s, in, NULL));
		} else {
			TRY(side_irecv1(s, t->there, &t->a, size, 0, &in));
			TRY(side_wait(s, in, NULL));
			TRY(side_isend(s, t->back, t->b.bytes, size, 0, t->b.mhandle, &out));
			TRY(side_wait(s, out, NULL));
		}
	}
	return PASS;
}

static int stream(struct bench *t, size_t size, int messages)
{
	struct side *s = &t->s;
	void *request[WINDOW];

	for (int i = 0; i < messages + WINDOW; i++) {
		void **slot = &request[i % WINDOW];

		if (i >= WINDOW && i - WINDOW < messages)
			TRY(side_wait(s, *slot, NULL));
		if (i >= messages)
			continue;
		if (s->sender)
			TRY(side_isend(s, t->there, t->a.bytes, size, 0, t->a.mhandle, slot));
		else
			TRY(side_irecv1(s, t->there, &t->a, size, 0, slot));
	}
	return PASS;
}

/*
 * Runs twice as many rounds each time until they take ROW_MS: how many the last run had, and its
 * time. A guess from a few rounds is wrong by orders of magnitude where the processes wait for a
 * core.
 */
static int measure_run(struct bench *t, int (*run)(struct bench *, size_t, int), size_t size,
		       int *rounds, int64_t *ns)
{
	bool again = true;

	for (*rounds = WINDOW; again; *rounds *= again ? 2 : 1) {
		TRY(side_barrier(&t->s));
		*ns = now_ns();
		TRY(run(t, size, *rounds));
		TRY(side_barrier(&t->s)); /* until the receiver has all */
		*ns = now_ns() - *ns;
		again = *ns < ROW_MS * (int64_t)1000000 && *rounds < ROUNDS_MAX;
		/* The sender decides. */
		TRY(t->s.sender ? side_put(&t->s, &again, sizeof(again))
				: side_get(&t->s, &again, sizeof(again)));
	}
	return PASS;
}

static int check(struct bench *t, size_t size, uint64_t seed)
{
	struct side *s = &t->s;

	if (s->sender)
		side_fill(t->a.bytes, size, seed);
	else
		memset(t->a.bytes, SIDE_POISON, size);
	TRY(stream(t, size, 1));
	return s->sender ? PASS : side_check_at(s, t->a.bytes, size, seed);
}

static int measure(struct bench *t, size_t size, struct row *row)
{
	int rounds;
	int64_t ns;

	TRY(check(t, size, size));
	if (size <= LATENCY_MAX) {
		TRY(measure_run(t, ping, size, &rounds, &ns));
		row->latency_us = (double)ns / rounds / 2000;
	}
	TRY(measure_run(t, stream, size, &rounds, &ns));
	row->gb_per_s = (double)size * rounds / (double)ns;
	row->messages_per_s = rounds * 1e9 / (double)ns;
	return check(t, size, size + 1);
}

/* ---------------------------------------------------------------- processes */

static int open_bench(struct bench *t, size_t max)
{
	struct side *s = &t->s;

	TRY(side_start(s));
	TRY(side_attributes(s));
	TRY(side_link(s, &t->there));
	s->sender = !s->sender;
	TRY(side_link(s, &t->back));
	s->sender = !s->sender;
	TRY(side_buffer(s, t->there, max, &t->a));
	return side_buffer(s, t->back, LATENCY_MAX, &t->b);
}

/* Runs the sizes that the parent names, one row each, until it says 0. The sender reports. */
static int serve(const struct options *o, const struct net_source *source, int sock, bool sender,
		 int control)
{
	struct bench t = { .s = { .source = *source, .sock = sock, .sender = sender } };
	int verdict = open_bench(&t, o->max);
	size_t size;

	while (read(control, &size, sizeof(size)) == sizeof(size) && size) {
		struct row row = { .verdict = verdict };

		if (!verdict)
			verdict = row.verdict = measure(&t, size, &row);
		memcpy(row.reason, t.s.reason, sizeof(row.reason));
		if (write(control, &row, sizeof(row)) != sizeof(row))
			return 1;
	}
	return 0;
}

struct plugin {
	pid_t pid[2];
	int control[2];
};

static int start(const struct options *o, const struct net_source *source, struct plugin *p)
{
	int pair[2], control[2][2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return -1;
	for (int i = 0; i < 2; i++) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, control[i]))
			return -1;
		fflush(NULL);
		p->pid[i] = fork();
		if (p->pid[i] < 0)
			return -1;
		if (!p->pid[i]) {
			close(pair[1 - i]);
			close(control[i][0]);
			signal(SIGPIPE, SIG_IGN);
			_exit(serve(o, source, pair[i], i, control[i][1]));
		}
		close(control[i][1]);
		p->control[i] = control[i][0];
	}
	close(pair[0]);
	close(pair[1]);
	return 0;
}

static struct row run_row(const struct plugin *p, size_t size)
{
	struct row row[2] = { 0 };

	for (int i = 0; i < 2; i++)
		if (write(p->control[i], &size, sizeof(size)) != sizeof(size))
			return (struct row){ .verdict = FAIL, .reason = "the process is gone" };
	for (int i = 0; i < 2; i++)
		if (read(p->control[i], &row[i], sizeof(row[i])) != sizeof(row[i]))
			return (struct row){ .verdict = FAIL, .reason = "the process is gone" };
	return row[0].verdict ? row[0] : row[1];
}

static void stop(const struct plugin *p)
{
	size_t zero = 0;

	for (int i = 0; i < 2; i++) {
		if (write(p->control[i], &zero, sizeof(zero)) < 0)
			kill(p->pid[i], SIGKILL);
		waitpid(p->pid[i], NULL, 0);
		close(p->control[i]);
	}
}

/* ---------------------------------------------------------------- table */

static const char *name_of(const struct net_source *source)
{
	const char *slash = strrchr(source->path, '/');

	return source->symbol ? source->symbol : slash ? slash + 1 : source->path;
}

static const struct results_column columns[] = {
	{ "bytes", "(B)", "bytes", 12, 0 },
	{ "plugin", "", "plugin", -26, 0 },
	{ "latency", "(us)", "latency_us", 10, 2 },
	{ "bandwidth", "(GB/s)", "gb_per_s", 10, 3 },
	{ "messages", "(1/s)", "messages_per_s", 14, 0 },
};

static void print_row(struct results *r, const struct net_source *source, size_t size,
		      const struct row *row)
{
	char why[sizeof(row->reason) + 16];

	results_cell(r, (double)size);
	results_cell_text(r, name_of(source));
	if (row->verdict) {
		snprintf(why, sizeof(why), "%s: %s", row->verdict == SKIP ? "skipped" : "FAILED",
			 row->reason);
		results_no_line(r, why);
		return;
	}
	results_cell(r, row->latency_us > 0 ? row->latency_us : NAN);
	results_cell(r, row->gb_per_s);
	results_cell(r, row->messages_per_s);
}

static int run(const struct options *o, const char *command)
{
	struct plugin p[PLUGINS_MAX];
	struct results *r;
	int failed = 0;

	if (results_can_write("net_perf", o->json))
		return 2;
	for (int i = 0; i < o->plugins; i++)
		if (start(o, &o->plugin[i], &p[i])) {
			fprintf(stderr, "net_perf: cannot start: %s\n", strerror(errno));
			return 2;
		}
	printf("# two processes of this host, host memory, %d messages under way, polling\n",
	       WINDOW);
	r = results_new("net_perf", command, NULL, NULL, "polling");
	results_open(r, "settings", '{');
	results_integer(r, "messages_under_way", WINDOW);
	results_close(r);
	results_table(r, columns, sizeof(columns) / sizeof(*columns));
	for (size_t size = o->min; size <= o->max; size *= 4)
		for (int i = 0; i < o->plugins; i++) {
			struct row row = run_row(&p[i], size);

			print_row(r, &o->plugin[i], size, &row);
			failed += row.verdict == FAIL;
		}
	for (int i = 0; i < o->plugins; i++)
		stop(&p[i]);
	return results_end(r, o->json) || failed;
}

static void usage(FILE *to)
{
	fputs("usage: net_perf [options] PLUGIN.so[@TABLE] ...\n"
	      "  -b, --min BYTES   smallest message (8); times 4 each row\n"
	      "  -e, --max BYTES   largest message (1073741824 with --long, else 67108864)\n"
	      "      --long        up to 1 GiB\n"
	      "  -J, --json FILE   rows as JSON\n"
	      "@TABLE names a v12 table that the library does not export: libnccl.so.2@ncclNetIb\n",
	      to);
}

static size_t bytes_of(const char *text)
{
	char *end;
	size_t bytes = strtoull(text, &end, 10);

	if (*text >= '0' && *text <= '9' && !*end)
		return bytes;
	fprintf(stderr, "net_perf: \"%s\" is not a number of bytes\n", text);
	exit(2);
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "min", required_argument, NULL, 'b' }, { "max", required_argument, NULL, 'e' },
		{ "long", no_argument, NULL, 'L' },	 { "json", required_argument, NULL, 'J' },
		{ "help", no_argument, NULL, 'h' },	 { 0 },
	};
	struct options o = { .min = 8, .max = 64 << 20 };
	char *command = results_command(argc, argv);
	int opt, failed;

	while ((opt = getopt_long(argc, argv, "b:e:J:h", longs, NULL)) != -1)
		switch (opt) {
		case 'b':
			o.min = bytes_of(optarg);
			break;
		case 'e':
			o.max = bytes_of(optarg);
			break;
		case 'L':
			o.max = 1 << 30;
			break;
		case 'J':
			o.json = optarg;
			break;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	for (; optind < argc && o.plugins < PLUGINS_MAX; optind++) {
		char *at = strchr(argv[optind], '@');

		if (at)
			*at++ = 0;
		o.plugin[o.plugins++] = (struct net_source){ .path = argv[optind], .symbol = at };
	}
	if (!o.plugins || !o.min || o.min > o.max) {
		usage(stderr);
		return 2;
	}
	failed = run(&o, command);
	free(command);
	return failed;
}
