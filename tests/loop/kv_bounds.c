/* SPDX-License-Identifier: Apache-2.0 */
/* kv_bounds.c -- the table of docs/deadlines.md, the functions of kv.h, and a call of each */
#include "kv_bounds.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/bar.h"

enum { FUNCTIONS_MAX = 64, N = 2, GRACE_MS = 400 }; /* of a loaded machine */

struct bound {
	char name[40], deadline[40];
	int64_t slack_ms[2]; /* otherwise, beside a device */
	bool called;
};

static struct bound bounds[FUNCTIONS_MAX];
static size_t rows;

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t ids[N] = { 1, 2 }, other[N] = { 3, 4 };

/* ---------------------------------------------------------------- the table and the header */

static FILE *open_text(const char *path)
{
	FILE *f = fopen(path, "r");

	if (!f)
		fail_msg("cannot open %s", path);
	return f;
}

static struct bound *find(const char *name)
{
	for (size_t i = 0; i < rows; i++)
		if (!strcmp(bounds[i].name, name))
			return &bounds[i];
	return NULL;
}

static void read_table(void)
{
	FILE *f = open_text(KV_BOUNDS_MD);
	char line[512];

	while (fgets(line, sizeof(line), f)) {
		struct bound *b = &bounds[rows];
		long long slack, device;

		if (sscanf(line, "| `%39[a-z_]` | %39[^|] | %lld | %lld |", b->name, b->deadline,
			   &slack, &device) != 4)
			continue;
		b->slack_ms[0] = slack;
		b->slack_ms[1] = device;
		assert_true(++rows < FUNCTIONS_MAX);
	}
	fclose(f);
}

/* The name that a line of the header declares, or false. */
static bool declared(const char *line, char name[40])
{
	const char *at = strstr(line, "kv_"), *open = at;

	if (!isalpha((unsigned char)line[0]) || !strncmp(line, "static", 6) ||
	    !strncmp(line, "template", 8)) /* of C++ */
		return false;
	for (; (at = open ? strstr(open, "kv_") : NULL); open = at + 3) {
		size_t len = strspn(at, "abcdefghijklmnopqrstuvwxyz_");

		if (at[len] == '(' && len < 40 && (at == line || !isalnum((unsigned char)at[-1]))) {
			snprintf(name, 40, "%.*s", (int)len, at);
			return true;
		}
	}
	return false;
}

static void table_names_every_function(void)
{
	FILE *f = open_text(KV_BOUNDS_H_FILE);
	char line[512], name[40];
	size_t functions = 0;

	while (fgets(line, sizeof(line), f)) {
		if (!declared(line, name))
			continue;
		functions++;
		if (!find(name))
			fail_msg("docs/deadlines.md has no row for %s", name);
	}
	fclose(f);
	assert_true(functions > 30);
	assert_int_equal(functions, rows); /* or a row is too many */
}

void bounds_setup(void)
{
	char text[16];

	snprintf(text, sizeof(text), "%lld", (long long)slow_ms(BOUNDS_OP_MS));
	setenv("KVCACHE_OP_TIMEOUT_MS", text, 1);
	snprintf(text, sizeof(text), "%lld", (long long)slow_ms(BOUNDS_HANDSHAKE_MS));
	setenv("KVCACHE_HANDSHAKE_MS", text, 1);
	read_table();
	table_names_every_function();
}

/* ---------------------------------------------------------------- a call and its bound */

static int64_t deadline_of(const struct bound *b, int64_t timeout_ms)
{
	if (!strncmp(b->deadline, "timeout", 7))
		return timeout_ms;
	if (strstr(b->deadline, "KVCACHE_OP_TIMEOUT_MS"))
		return BOUNDS_OP_MS;
	if (strstr(b->deadline, "KVCACHE_HANDSHAKE_MS"))
		return BOUNDS_HANDSHAKE_MS;
	return 0;
}

static void check(const struct scene *s, const char *name, int64_t timeout_ms, struct bar since)
{
	struct bound *b = find(name);
	int64_t bound;

	if (!b)
		fail_msg("docs/deadlines.md has no row for %s", name);
	bound = deadline_of(b, timeout_ms) + b->slack_ms[s->device] + GRACE_MS;
	b->called = true;
	if (!bar_holds(since, bound, name))
		fail_msg("%s beside %s", name, s->name);
}

#define CALL(function, timeout_ms, ...)                  \
	do {                                             \
		struct bar called = bar_begin();         \
                                                         \
		(void)(function(__VA_ARGS__));           \
		check(s, #function, timeout_ms, called); \
	} while (0)

/* The same, of the scene's peer. */
#define PEER_CALL(function, timeout_ms, ...)             \
	do {                                             \
		if (s->arrange)                          \
			s->arrange(s);                   \
		CALL(function, timeout_ms, __VA_ARGS__); \
		if (s->relax)                            \
			s->relax(s);                     \
	} while (0)

static struct kv_peer *spare(const struct scene *s, int i)
{
	return s->arrange ? s->node.peer : s->spare[i];
}

static void finish(struct kv_op *op)
{
	if (!op)
		return;
	kv_cancel(op, 2000, NULL);
	kv_wait(op, KV_ACKED, 5000, NULL);
	kv_op_free(op, NULL);
}

/* ---------------------------------------------------------------- the calls */

static void blocking(struct scene *s)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct node *n = &s->node;
	struct kv_error err;

	opts.timeout_ms = BOUNDS_MS;
	PEER_CALL(kv_write_blocks, BOUNDS_MS, n->peer, n->cache, all_layers, ids, ids, N, &opts,
		  &err);
	PEER_CALL(kv_read_blocks, BOUNDS_MS, n->peer, n->cache, all_layers, ids, ids, N, &opts,
		  &err);
	PEER_CALL(kv_recv_blocks, BOUNDS_MS, spare(s, 0), n->cache, all_layers, ids, N, 77, &opts,
		  &err);
	PEER_CALL(kv_send_blocks, BOUNDS_MS, n->peer, n->cache, all_layers, ids, N, 78, &opts,
		  &err);
}

static void asynchronous(struct scene *s)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_op *op[4] = { NULL };
	struct node *n = &s->node;
	struct kv_error err;

	opts.timeout_ms = BOUNDS_MS;
	PEER_CALL(kv_write_blocks_async, BOUNDS_MS, n->peer, n->cache, all_layers, ids, ids, N,
		  &opts, &op[0], &err);
	PEER_CALL(kv_read_blocks_async, BOUNDS_MS, n->peer, n->cache, all_layers, ids, ids, N,
		  &opts, &op[1], &err);
	PEER_CALL(kv_recv_blocks_async, BOUNDS_MS, spare(s, 1), n->cache, all_layers, ids, N, 79,
		  &opts, &op[2], &err);
	PEER_CALL(kv_send_blocks_async, BOUNDS_MS, n->peer, n->cache, all_layers, ids, N, 80, &opts,
		  &op[3], &err);
	for (int i = 0; i < 4; i++)
		finish(op[i]);
}

/* Of an operation that is far from its own deadline. */
static void of_an_operation(struct scene *s)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct node *n = &s->node;
	struct kv_error err;
	struct kv_op *op = NULL;

	if (s->arrange)
		s->arrange(s);
	opts.timeout_ms = s->device ? BOUNDS_MS : 60000;
	kv_write_blocks_async(n->peer, n->cache, all_layers, ids, ids, N, &opts, &op, &err);
	CALL(kv_test, 0, op, &err);
	CALL(kv_wait, BOUNDS_MS, op, KV_ACKED, BOUNDS_MS, &err);
	CALL(kv_cancel, BOUNDS_MS, op, BOUNDS_MS, &err);
	CALL(kv_op_free, 0, op, &err);
	if (s->relax)
		s->relax(s);
	kv_op_free(op, &err); /* BUSY before, perhaps; what is left goes with the engine */
}

static void leases_and_groups(struct scene *s)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_lease *lease = NULL;
	struct node *n = &s->node;
	struct kv_error err;
	struct kv_op *op = NULL;

	PEER_CALL(kv_blocks_open, 0, spare(s, 2), n->cache, other, N, 81, 60000, &lease, &err);
	if (!lease && s->arrange) { /* its peer was broken to get out: another one */
		s->arrange(s);
		s->relax(s);
		kv_blocks_open(n->peer, n->cache, other, N, 81, 60000, &lease, &err);
	}
	if (lease)
		CALL(kv_lease_id, 0, lease);
	PEER_CALL(kv_revoke, BOUNDS_MS, lease, BOUNDS_MS, &err);
	CALL(kv_group_start, 0, n->engine, &opts.group, &err);
	if (s->arrange)
		s->arrange(s);
	kv_write_blocks_async(n->peer, n->cache, all_layers, ids, ids, N, &opts, &op, &err);
	CALL(kv_group_end, BOUNDS_MS, opts.group, BOUNDS_MS, NULL, &err);
	if (s->relax)
		s->relax(s);
	finish(op);
}

static void looking(struct scene *s)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_option_info option = KV_INIT(kv_option_info);
	struct kv_device_info device = KV_INIT(kv_device_info);
	struct kv_stats stats = KV_INIT(kv_stats);
	static char text[1 << 16];
	struct kv_arrival arrivals[8];
	struct node *n = &s->node;
	struct kv_error err;
	struct bar since;

	CALL(kv_version, 0);
	since = bar_begin();
	kv_engine_set_interrupt(n->engine, NULL, NULL);
	check(s, "kv_engine_set_interrupt", 0, since);
	PEER_CALL(kv_peer_info, 0, n->peer, &info, &err);
	if (s->arrange)
		s->arrange(s);
	since = bar_begin();
	kv_peer_set_user(n->peer, 5);
	check(s, "kv_peer_set_user", 0, since);
	if (s->relax)
		s->relax(s);
	PEER_CALL(kv_stats, 0, n->engine, &stats, &err);
	PEER_CALL(kv_dump, 0, n->engine, text, sizeof(text));
	PEER_CALL(kv_progress, BOUNDS_MS, n->engine, BOUNDS_MS, &err);
	CALL(kv_option_get, 0, n->engine, 0, &option, &err);
	CALL(kv_device_get, 0, n->engine, 0, &device, &err);
	CALL(kv_poll_arrivals, 0, n->engine, arrivals, 8, &err);
	CALL(kv_arrivals_fd, 0, n->engine);
}

static void memory(struct scene *s)
{
	struct kv_tensor tensor = { .name = "k", .block_bytes = 256 };
	struct kv_layout layout = KV_INIT(kv_layout);
	struct node *n = &s->node;
	struct kv_cache *cache;
	struct kv_error err;
	void *mem;

	CALL(kv_alloc, 0, n->engine, 1 << 16, &mem, &err);
	tensor.base = mem;
	layout.cache_id = 2;
	layout.layers = layout.tensors = 1;
	layout.blocks = 16;
	layout.tensor = &tensor;
	CALL(kv_cache_register, 0, n->engine, &layout, &cache, &err);
	CALL(kv_cache_unregister, 0, cache, &err);
	CALL(kv_free, 0, n->engine, mem, &err);
}

/* ---------------------------------------------------------------- connecting */

static const struct scene *gathering;

static void put(uint8_t *at, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

/* Rank 1 says what this one does, and that it listens where the scene's peer does. */
static int gather(void *arg, const void *mine, void *all, size_t len)
{
	enum { RANK_AT = 16, PORT_AT = 28 };
	uint32_t nranks = *(const uint32_t *)arg;

	for (uint32_t r = 0; r < nranks; r++) {
		memcpy((uint8_t *)all + r * len, mine, len);
		put((uint8_t *)all + r * len + RANK_AT, r);
		if (r)
			put((uint8_t *)all + r * len + PORT_AT, gathering->port);
	}
	return 0;
}

static void connecting(struct scene *s)
{
	struct kv_comm_config config = KV_INIT(kv_comm_config);
	struct kv_comm *comm = NULL;
	struct kv_peer *more = NULL;
	struct node *n = &s->node;
	struct kv_error err;
	uint32_t nranks;

	CALL(kv_listen, 0, n->engine, s->host, 0, NULL, &err);
	CALL(kv_connect, BOUNDS_MS, n->engine, s->host, s->port, BOUNDS_MS, &more, &err);
	if (more)
		kv_peer_close(more, 2000, &err);
	gathering = s;
	config.group = KV_COMM_ALL;
	config.allgather = gather;
	config.arg = &nranks;
	config.timeout_ms = BOUNDS_MS;
	config.host = s->host;
	for (nranks = 2; nranks; nranks--) { /* two, and then one, which surely works */
		config.nranks = nranks;
		if (nranks == 1)
			config.host = NULL;
		comm = NULL;
		CALL(kv_comm_init, BOUNDS_MS, n->engine, &config, &comm, &err);
		CALL(kv_comm_peer, 0, comm, 0);
		CALL(kv_comm_free, BOUNDS_MS, comm, BOUNDS_MS, &err);
	}
}

static void opening_and_closing(struct scene *s)
{
	struct kv_engine *engine = NULL;
	struct node *n = &s->node;
	struct kv_error err;
	struct bar since;

	CALL(kv_engine_open, 0, NULL, &engine, &err);
	kv_engine_close(engine);
	PEER_CALL(kv_peer_close, BOUNDS_MS, n->peer, BOUNDS_MS, &err);
	if (s->device && s->arrange)
		s->arrange(s);
	if (s->before_close)
		s->before_close(s);
	since = bar_begin();
	node_close(n);
	check(s, "kv_engine_close", 0, since);
}

void bounds_run(struct scene *s)
{
	for (size_t i = 0; i < rows; i++)
		bounds[i].called = false;
	looking(s);
	connecting(s);
	blocking(s);
	asynchronous(s);
	of_an_operation(s);
	leases_and_groups(s);
	memory(s);
	opening_and_closing(s);
	for (size_t i = 0; i < rows; i++)
		if (!bounds[i].called)
			fail_msg("no case calls %s", bounds[i].name);
}
