/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_floor.c -- what a block write over shared memory or TCP costs, against the barest loop that
 * does the same
 *
 *   kv_floor [--quick] [--cpu] [--path pool|cma|tcp] [--sizes 1K,4K,...] [--pairs N] [-J FILE]
 *
 * Two processes, one submitting thread, one batch in flight. A batch is 1538 blocks with shuffled
 * ids on both sides; 64 different batches take turns in pools of 1 GiB a side, so source and
 * destination are cold. Floor and kvrail are measured in turns, first one then the other first, and
 * the ratio is the median of the pairs' ratios.
 *
 *   pool   floor: the loops of copy.c into shared memory; kvrail: tr_op_add .. TR_WRITTEN into a
 *          memfd pool; read: until the receiver has read every byte of the batch once, each batch
 *          on its own
 *   cma    floor: process_vm_writev of 256 spans a call into the peer; kvrail: the same path
 *   tcp    floor: one socket over loopback, one header a batch, a byte back; kvrail: one stream
 *
 * --cpu divides by the writer's CPU time instead of the time that passed, for a machine that others
 * keep busy; what two processes do together cannot be measured so, and is left out. Over TCP it is
 * the CPU time of both ends: the kernel does for one what the other, or a timer, has set off.
 *
 * The last batch of each row is compared with the source by the receiver: a wrong byte fails the
 * run.
 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "copy.h"
#include "floor.h"
#include "pattern.h"
#include "results.h"
#include "util.h"

struct floor_config cfg = {
	.pool = (size_t)1 << 30,
	.batch = 1538,
	.batches = 64,
	.pairs = 15,
	.measure_bytes = (size_t)400 << 20,
	.sizes = { 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10 },
	.n_sizes = 5,
};

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

enum { HUGE_PAGE = 2 << 20 };

uint8_t *shared_floor;

/*
 * The transport as the KV layer uses it: spans made from ids, 256 at a time, one notify, until it
 * is proven to be there.
 */
static void kvrail_batch(struct bench *b)
{
	const struct plan *p = &b->plan;
	struct tr_op *op = pair_begin(b->s, TR_WRITE, b->next);
	struct tr_span spans[TR_SPANS_GOOD];
	unsigned int ended = b->s->ended;

	for (uint32_t i = 0; i < cfg.batch;) {
		uint32_t n = cfg.batch - i < TR_SPANS_GOOD ? cfg.batch - i : TR_SPANS_GOOD;

		for (uint32_t j = 0; j < n; j++, i++) {
			uint32_t k = plan_slot(p, b->next, i);

			spans[j] = (struct tr_span){ .local = (uint64_t)p->from[k] * p->size,
						     .remote = (uint64_t)p->to[k] * p->size,
						     .len = p->size };
		}
		pair_add(b->s, op, spans, n);
	}
	pair_commit(b->s, op, TR_NOTIFY | TR_PROVEN, b->next);
	pair_wait_ended(b->s, ended + 1);
	PAIR_CHECK(b->s->last_end == TR_WRITTEN);
}

static void one_batch(struct bench *b, enum way way)
{
	if (way == KVRAIL)
		kvrail_batch(b);
	else
		floor_batch(b, way);
}

/* ---------------------------------------------------------------- commands */

static struct command ask(struct bench *b, uint32_t kind, uint64_t value)
{
	struct command c = { .kind = kind, .batch = b->next, .value = value };

	pair_send(b->s, &c, sizeof(c));
	pair_wait_msgs(b->s, ++b->acks);
	memcpy(&c, b->s->msg[(b->acks - 1) % PAIR_EVENTS_MAX], sizeof(c));
	return c;
}

static int64_t read_clock(clockid_t clock)
{
	struct timespec ts;

	PAIR_CHECK(!clock_gettime(clock, &ts));
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int64_t clock_ns(const struct bench *b)
{
	clockid_t receiver;

	if (!cfg.cpu)
		return read_clock(CLOCK_MONOTONIC);
	if (!b->both_ends)
		return read_clock(CLOCK_PROCESS_CPUTIME_ID);
	PAIR_CHECK(!clock_getcpuclockid(b->s->other, &receiver));
	return read_clock(CLOCK_PROCESS_CPUTIME_ID) + read_clock(receiver);
}

/* GB/s of enough batches; `read`: each with the receiver's first read. */
static double measure(struct bench *b, enum way way, bool read)
{
	size_t batch_bytes = cfg.batch * b->plan.size;
	size_t n = cfg.measure_bytes / batch_bytes;
	int64_t t;

	if (n < 2)
		n = 2;
	if (n > cfg.batches)
		n = cfg.batches;
	t = clock_ns(b);
	for (size_t i = 0; i < n; i++) {
		one_batch(b, way);
		if (read)
			ask(b, way == KVRAIL ? CMD_READ : CMD_READ_FLOOR, 0);
		b->next++;
	}
	return (double)(n * batch_bytes) / (double)(clock_ns(b) - t);
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

/* The value that per_cent of the n values do not exceed; 50 is the median. */
static double percentile(const double *v, uint32_t n, uint32_t per_cent)
{
	double sorted[PAIRS_MAX];
	uint32_t rank = (n * per_cent + 99) / 100;

	memcpy(sorted, v, n * sizeof(*v));
	qsort(sorted, n, sizeof(*sorted), compare_doubles);
	if (per_cent == 50 && n % 2 == 0)
		return (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
	return sorted[rank ? rank - 1 : 0];
}

struct row {
	double gbs[WAYS], ratio[WAYS]; /* medians; ratio: kvrail / that way */
	double p1, p99;		       /* of kvrail */
};

/* All `ways` of this mask in turns. */
static struct row compare(struct bench *b, unsigned int ways, bool read)
{
	double gbs[WAYS][PAIRS_MAX], ratio[PAIRS_MAX];
	struct row row = { 0 };

	/* pair 0 warms up: page tables, caches, clocks */
	for (uint32_t pair = 0; pair <= cfg.pairs; pair++)
		for (unsigned int i = 0; i < WAYS; i++) {
			unsigned int way = pair % 2 ? i : WAYS - 1 - i;

			if (ways & 1u << way) {
				double v = measure(b, (enum way)way, read);

				gbs[way][pair ? pair - 1 : 0] = v;
			}
		}
	for (unsigned int way = 0; way < WAYS; way++) {
		if (!(ways & 1u << way))
			continue;
		row.gbs[way] = percentile(gbs[way], cfg.pairs, 50);
		for (uint32_t pair = 0; pair < cfg.pairs; pair++)
			ratio[pair] = gbs[KVRAIL][pair] / gbs[way][pair];
		row.ratio[way] = percentile(ratio, cfg.pairs, 50);
	}
	row.p1 = percentile(gbs[KVRAIL], cfg.pairs, 1);
	row.p99 = percentile(gbs[KVRAIL], cfg.pairs, 99);
	return row;
}

/* ---------------------------------------------------------------- writer, table, JSON */

static struct results *results;

static const struct results_column columns[] = {
	{ "path", "", "path", -6, 0 },
	{ "until", "", "until", -6, 0 },
	{ "block", "(B)", "block_bytes", 8, 0 },
	{ "floor", "(GB/s)", "floor_gb_per_s", 8, 2 },
	{ "plain", "(GB/s)", "plain_gb_per_s", 8, 2 },
	{ "kvrail", "(GB/s)", "gb_per_s", 8, 2 },
	{ "ratio", "", "ratio", 6, 2 },
	{ "p1", "(GB/s)", "p1_gb_per_s", 8, 2 },
	{ "p99", "(GB/s)", "p99_gb_per_s", 8, 2 },
};

static void begin_size(struct bench *b, size_t size)
{
	plan_make(&b->plan, size);
	ask(b, CMD_PLAN, size);
}

static void check(struct bench *b)
{
	struct command c;

	one_batch(b, KVRAIL);
	c = ask(b, CMD_CHECK, 0);
	b->next++;
	if (c.value) {
		fprintf(stderr, "%llu of %u blocks are wrong\n", (unsigned long long)c.value,
			cfg.batch);
		exit(1);
	}
}

/*
 * The first touch of each page of a mapping costs a fault, once in its life: not what is compared.
 */
static void touch_all(struct pair_side *s)
{
	struct tr_op *op = pair_begin(s, TR_WRITE, 0);

	for (size_t at = 0; at < cfg.pool; at += 1 << 20) {
		struct tr_span span = { .local = at, .remote = at, .len = 1 << 20 };

		pair_add(s, op, &span, 1);
	}
	pair_commit(s, op, 0, 0);
	pair_wait_ended(s, 1);
}

static void start(struct bench *b, struct pair_side *s)
{
	*b = (struct bench){ .s = s, .floor_dst = shared_floor };
	pair_up(s);
	pattern_fill(s->base, s->config->region, POOL_KEY);
	b->peer_base = pair_hear(s);
	touch_all(s);
	printf("# path: %s\n", tr_conn_path(s->conn));
}

static void finish(struct bench *b)
{
	ask(b, CMD_QUIT, 0);
	free(b->plan.from);
	free(b->plan.to);
	pair_down(b->s);
	fflush(stdout);
}

static void print_row(const char *path, bool read, size_t size, const struct row *row,
		      enum way floor)
{
	results_cell_text(results, path);
	results_cell_text(results, read ? "read" : "write");
	results_cell(results, (double)size);
	results_cell(results, row->gbs[floor]);
	results_cell(results, floor == FLOOR_NT ? row->gbs[FLOOR_PLAIN] : NAN);
	results_cell(results, row->gbs[KVRAIL]);
	results_cell(results, row->ratio[floor]);
	results_cell(results, row->p1);
	results_cell(results, row->p99);
}

static void pool_writer(struct pair_side *s)
{
	const unsigned int ways = 1u << FLOOR_NT | 1u << FLOOR_PLAIN | 1u << KVRAIL;
	struct bench b;

	start(&b, s);
	memset(shared_floor, 0, cfg.pool);
	/* The pages that kvrail's pools have, where the kernel makes them. */
	madvise(shared_floor, cfg.pool, MADV_COLLAPSE);
	for (unsigned int i = 0; i < cfg.n_sizes; i++) {
		begin_size(&b, cfg.sizes[i]);
		for (int read = 0; read < (cfg.cpu ? 1 : 2); read++) {
			struct row row = compare(&b, ways, read);

			print_row("pool", read, cfg.sizes[i], &row, FLOOR_NT);
		}
		check(&b);
	}
	finish(&b);
}

static void cma_writer(struct pair_side *s)
{
	struct bench b;

	start(&b, s);
	for (unsigned int i = 0; i < cfg.n_sizes; i++) {
		struct row row;

		begin_size(&b, cfg.sizes[i]);
		row = compare(&b, 1u << FLOOR_CMA | 1u << KVRAIL, false);
		print_row("cma", false, cfg.sizes[i], &row, FLOOR_CMA);
		check(&b);
	}
	finish(&b);
}

static void tcp_writer(struct pair_side *s)
{
	struct bench b;

	start(&b, s);
	b.both_ends = true;
	for (unsigned int i = 0; i < cfg.n_sizes; i++) {
		struct row row;

		begin_size(&b, cfg.sizes[i]);
		row = compare(&b, 1u << FLOOR_TCP | 1u << KVRAIL, false);
		print_row("tcp", false, cfg.sizes[i], &row, FLOOR_TCP);
		check(&b);
	}
	floor_tcp_end();
	finish(&b);
}

static bool parse_sizes(char *text)
{
	char *rest = text, *word;
	uint64_t v;

	for (cfg.n_sizes = 0; (word = strsep(&rest, ",")); cfg.n_sizes++) {
		if (cfg.n_sizes == SIZES_MAX || size_parse(word, &v) || v < 64 || v % 64 ||
		    v > 1 << 20)
			return false;
		cfg.sizes[cfg.n_sizes] = v;
	}
	return true;
}

static int parse(int argc, char **argv)
{
	static const struct option options[] = { { "quick", no_argument, NULL, 'q' },
						 { "sizes", required_argument, NULL, 's' },
						 { "cpu", no_argument, NULL, 'c' },
						 { "path", required_argument, NULL, 'P' },
						 { "pairs", required_argument, NULL, 'p' },
						 { NULL, 0, NULL, 0 } };
	int c;

	while ((c = getopt_long(argc, argv, "J:", options, NULL)) != -1) {
		if (c == 'q') {
			cfg.quick = true;
			cfg.pool = (size_t)16 << 20;
			cfg.batch = 200;
			cfg.pairs = 1;
			cfg.measure_bytes = (size_t)4 << 20;
			cfg.n_sizes = 4;
		} else if (c == 's' && parse_sizes(optarg)) {
			continue;
		} else if (c == 'p' && strtoul(optarg, NULL, 10) - 1 < PAIRS_MAX) {
			cfg.pairs = (uint32_t)strtoul(optarg, NULL, 10);
		} else if (c == 'c') {
			cfg.cpu = true;
		} else if (c == 'P' && (!strcmp(optarg, "pool") || !strcmp(optarg, "cma") ||
					!strcmp(optarg, "tcp"))) {
			cfg.path = optarg;
		} else if (c == 'J') {
			cfg.json = optarg;
		} else {
			fprintf(stderr,
				"usage: kv_floor [--quick] [--cpu] [--path pool|cma|tcp] [--sizes 1K,4K] [--pairs N] [-J FILE]\n");
			return 2;
		}
	}
	return 0;
}

static struct results *begin_results(const char *command)
{
	const char *stores;
	struct results *r =
		results_new("kv_floor", command, "shm", NULL, "sleep, without spinning");

	copy_stream(64, &stores);
	results_open(r, "settings", '{');
	results_text(r, "clock",
		     cfg.cpu ? "processor time of the writer; over TCP, of both ends" : "time");
	results_text(r, "stores", stores);
	results_integer(r, "pool_bytes", cfg.pool);
	results_integer(r, "batch_blocks", cfg.batch);
	results_integer(r, "batches", cfg.batches);
	results_integer(r, "pairs", cfg.pairs);
	results_close(r);
	printf("# pools of %zu MiB, batches of %u blocks, %u batches in turn, median of %u pairs, "
	       "p1 and p99 of kvrail's; GB per second of %s\n"
	       "# floor, pool: one thread that copies with non-temporal stores (%s) and prefetches; "
	       "plain: with memcpy\n"
	       "# floor, cma: process_vm_writev, 256 spans a call; until: written, or read by the "
	       "receiver as well\n"
	       "# floor, tcp: one loopback socket, one header a batch, a byte back\n",
	       cfg.pool >> 20, cfg.batch, cfg.batches, cfg.pairs,
	       cfg.cpu ? "the writer's processor time (tcp: of both ends')" : "time", stores);
	results_table(r, columns, sizeof(columns) / sizeof(*columns));
	return r;
}

int main(int argc, char **argv)
{
	struct pair_config pool = { .parent_pool = true, .child_pool = true };
	struct pair_config cma = { .parent_path = "cma", .child_path = "cma" };
	struct pair_config tcp = { .parent_path = "tcp", .child_path = "tcp" };
	char *command = results_command(argc, argv);
	int ret = parse(argc, argv);

	if (ret || results_can_write("kv_floor", cfg.json))
		return 2;
	pool.region = cma.region = tcp.region = cfg.pool;
	shared_floor = mmap(NULL, cfg.pool + HUGE_PAGE, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	PAIR_CHECK(shared_floor != MAP_FAILED);
	shared_floor += -(uintptr_t)shared_floor & (HUGE_PAGE - 1);
	results = begin_results(command);
	if (!cfg.path || !strcmp(cfg.path, "pool"))
		ret = pair_run(&pool, pool_writer, receiver);
	if (!ret && (!cfg.path || !strcmp(cfg.path, "cma")))
		ret = pair_run(&cma, cma_writer, receiver);
	if (!ret && (!cfg.path || !strcmp(cfg.path, "tcp"))) {
		floor_tcp_open();
		ret = pair_run(&tcp, tcp_writer, receiver);
	}
	free(command);
	return results_end(results, cfg.json) || ret;
}
