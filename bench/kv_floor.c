/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_floor.c -- what a block write over shared memory costs, against the barest loop that does the
 * same
 *
 *   kv_floor [--quick] [--cpu] [--path pool|cma] [--sizes 1K,4K,...] [--pairs N] [-J FILE]
 *
 * Two processes, one submitting thread, one batch in flight. A batch is 1538 blocks with shuffled
 * ids on both sides; 64 different batches take turns in pools of 1 GiB a side, so source and
 * destination are cold. Floor and kvrail are measured in turns, first one then the other first, and
 * the ratio is the median of the pairs' ratios.
 *
 *   pool   floor: the loops of floor_loops.c into a memfd; kvrail: tr_op_add .. TR_WRITTEN into a
 *          memfd pool + read: until the receiver has read every byte of the batch once, each batch
 *          on its own
 *   cma    floor: process_vm_writev of 256 spans a call into the peer; kvrail: the same path
 *
 * --cpu divides by the writer's CPU time instead of the time that passed, for a machine that others
 * keep busy; what two processes do together cannot be measured so, and is left out.
 *
 * The last batch of each row is compared with the source by the receiver: a wrong byte fails the
 * run.
 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <jansson.h>

#include "floor.h"

struct floor_config cfg = {
	.pool = (size_t)1 << 30,
	.batch = 1538,
	.batches = 64,
	.pairs = 15,
	.measure_bytes = (size_t)400 << 20,
	.sizes = { 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10 },
	.n_sizes = 5,
};

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

static int64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(cfg.cpu ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
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
	t = clock_ns();
	for (size_t i = 0; i < n; i++) {
		one_batch(b, way);
		if (read)
			ask(b, way == KVRAIL ? CMD_READ : CMD_READ_FLOOR, 0);
		b->next++;
	}
	return (double)(n * batch_bytes) / (double)(clock_ns() - t);
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(const double *v, uint32_t n)
{
	double sorted[PAIRS_MAX];

	memcpy(sorted, v, n * sizeof(*v));
	qsort(sorted, n, sizeof(*sorted), compare_doubles);
	return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

struct row {
	double gbs[WAYS], ratio[WAYS]; /* ratio: kvrail / that way */
};

/* All `ways` of this mask in turns. */
static struct row compare(struct bench *b, unsigned int ways, bool read)
{
	double gbs[WAYS][PAIRS_MAX], ratio[PAIRS_MAX];
	struct row row = { 0 };

	if (read && cfg.cpu)
		return row;
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
		row.gbs[way] = median(gbs[way], cfg.pairs);
		for (uint32_t pair = 0; pair < cfg.pairs; pair++)
			ratio[pair] = gbs[KVRAIL][pair] / gbs[way][pair];
		row.ratio[way] = median(ratio, cfg.pairs);
	}
	return row;
}

/* ---------------------------------------------------------------- writer, table, JSON */

static json_t *rows_json;

static const char *size_text(size_t size, char buf[24])
{
	if (size % 1024)
		snprintf(buf, 24, "%zu", size);
	else
		snprintf(buf, 24, "%zuK", size / 1024);
	return buf;
}

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
	fill_words(s->base, s->config->region);
	b->peer_base = pair_hear(s);
	touch_all(s);
	printf("# path: %s\n", tr_conn_path(s->conn));
}

static void add_row(const char *path, size_t size, const char *kind, const struct row *row,
		    enum way floor)
{
	json_t *o = json_pack("{s:s, s:I, s:s, s:f, s:f, s:f}", "path", path, "block_bytes",
			      (json_int_t)size, "kind", kind, "floor_gbs", row->gbs[floor],
			      "kvrail_gbs", row->gbs[KVRAIL], "ratio", row->ratio[floor]);

	if (row->gbs[FLOOR_PLAIN] > 0)
		json_object_set_new(o, "floor_plain_gbs", json_real(row->gbs[FLOOR_PLAIN]));
	json_array_append_new(rows_json, o);
}

static void finish(struct bench *b)
{
	ask(b, CMD_QUIT, 0);
	free(b->plan.from);
	free(b->plan.to);
	pair_down(b->s);
	fflush(stdout);
}

static void print_pool_head(const char *what)
{
	printf("# %s: floor nt, floor plain, kvrail, kvrail / floor nt\n", what);
}

static void print_pool_row(const struct row *row)
{
	printf(" | %7.2f %7.2f %7.2f %6.2f", row->gbs[FLOOR_NT], row->gbs[FLOOR_PLAIN],
	       row->gbs[KVRAIL], row->ratio[FLOOR_NT]);
}

static void pool_writer(struct pair_side *s)
{
	const unsigned int ways = 1u << FLOOR_NT | 1u << FLOOR_PLAIN | 1u << KVRAIL;
	struct bench b;
	char text[24];

	start(&b, s);
	memset(shared_floor, 0, cfg.pool);
	print_pool_head("first group, write only, GB/s");
	if (!cfg.cpu)
		print_pool_head("second group, until the receiver has read it once, GB/s");
	for (unsigned int i = 0; i < cfg.n_sizes; i++) {
		struct row row;

		begin_size(&b, cfg.sizes[i]);
		printf("%7s", size_text(cfg.sizes[i], text));
		row = compare(&b, ways, false);
		print_pool_row(&row);
		add_row("pool", cfg.sizes[i], "write", &row, FLOOR_NT);
		if (!cfg.cpu) {
			row = compare(&b, ways, true);
			print_pool_row(&row);
			add_row("pool", cfg.sizes[i], "write and first read", &row, FLOOR_NT);
		}
		check(&b);
		printf("\n");
		fflush(stdout);
	}
	finish(&b);
}

static void cma_writer(struct pair_side *s)
{
	struct bench b;
	char text[24];

	start(&b, s);
	printf("%7s | %8s %8s %7s\n", "block", "bare", "kvrail", "/bare");
	for (unsigned int i = 0; i < cfg.n_sizes; i++) {
		struct row w;

		begin_size(&b, cfg.sizes[i]);
		w = compare(&b, 1u << FLOOR_CMA | 1u << KVRAIL, false);
		check(&b);
		printf("%7s | %8.2f %8.2f %7.2f\n", size_text(cfg.sizes[i], text), w.gbs[FLOOR_CMA],
		       w.gbs[KVRAIL], w.ratio[FLOOR_CMA]);
		fflush(stdout);
		add_row("cma", cfg.sizes[i], "write", &w, FLOOR_CMA);
	}
	finish(&b);
}

static bool parse_sizes(const char *text)
{
	cfg.n_sizes = 0;
	while (*text && cfg.n_sizes < SIZES_MAX) {
		char *end;
		size_t v = strtoul(text, &end, 10);

		if (*end == 'K')
			v <<= 10, end++;
		if (v < 64 || v % 64 || v > 1 << 20 || (*end && *end != ','))
			return false;
		cfg.sizes[cfg.n_sizes++] = v;
		text = *end ? end + 1 : end;
	}
	return cfg.n_sizes;
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
		} else if (c == 'P' && (!strcmp(optarg, "pool") || !strcmp(optarg, "cma"))) {
			cfg.path = optarg;
		} else if (c == 'J') {
			cfg.json = optarg;
		} else {
			fprintf(stderr,
				"usage: kv_floor [--quick] [--cpu] [--path pool|cma] [--sizes 1K,4K] [--pairs N] [-J FILE]\n");
			return 2;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct pair_config pool = { .parent_pool = true, .child_pool = true };
	struct pair_config cma = { .parent_path = "cma", .child_path = "cma" };
	const char *nt_name = floor_nt_name();
	json_t *doc;
	int ret = parse(argc, argv);

	if (ret)
		return ret;
	pool.region = cma.region = cfg.pool;
	rows_json = json_array();
	shared_floor =
		mmap(NULL, cfg.pool, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	PAIR_CHECK(rows_json && shared_floor != MAP_FAILED);
	printf("# pools of %zu MiB, batches of %u blocks, %u batches in turn, median of %u pairs, "
	       "floor stores: %s, GB per second of %s\n",
	       cfg.pool >> 20, cfg.batch, cfg.batches, cfg.pairs, nt_name,
	       cfg.cpu ? "the writer's CPU time" : "time");
	if (!cfg.path || !strcmp(cfg.path, "pool"))
		ret = pair_run(&pool, pool_writer, receiver);
	munmap(shared_floor, cfg.pool);
	if (!ret && (!cfg.path || !strcmp(cfg.path, "cma")))
		ret = pair_run(&cma, cma_writer, receiver);
	doc = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:b, s:o}", "program", "kv_floor",
			"clock", cfg.cpu ? "writer's CPU" : "wall", "pool_bytes",
			(json_int_t)cfg.pool, "batch_blocks", (json_int_t)cfg.batch, "batches",
			(json_int_t)cfg.batches, "pairs", (json_int_t)cfg.pairs, "floor_stores",
			nt_name, "quick", cfg.quick, "rows", rows_json);
	if (cfg.json && json_dump_file(doc, cfg.json, JSON_INDENT(2)))
		ret = 1;
	json_decref(doc);
	return ret ? 1 : 0;
}
