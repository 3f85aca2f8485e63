/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_deadline_test.c -- an operation of gigabytes beside everything that has a deadline: its own,
 * another thread's call on the same peer, a revocation; and calls that nothing can hold up
 */
#include "kv_rig.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "lib/bar.h"

enum {
	BIG = 64 << 10, /* bytes of a block, */
	BIGS = 3 << 14, /* of which this many are 3 GiB: what is not written needs no memory */
	SHORT_MS = 20,
	SLACK_MS = 500,
	LONG_MS = 60000,
	HUGE_SHIFT = 39, /* 512 GiB */
};

struct big {
	struct kv_engine *engine;
	struct kv_cache *cache;
	struct kv_peer *peer;
	void *mem;
	uint32_t port;
	bool mapped;
};

static const struct kv_layers all_layers = { 0, 0 };
static int64_t ids[BIGS];

static void big_open(struct big *side, bool pool)
{
	struct kv_tensor tensor = { .name = "k", .block_bytes = BIG };
	struct kv_layout layout = KV_INIT(kv_layout);
	size_t len = (size_t)BIG * BIGS;
	struct kv_error err;

	*side = (struct big){ .mapped = !pool };
	ok(kv_engine_open(NULL, &side->engine, &err), &err);
	if (pool)
		ok(kv_alloc(side->engine, len, &side->mem, &err), &err);
	else
		side->mem = mmap(NULL, len, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(side->mem, MAP_FAILED);
	tensor.base = side->mem;
	layout.layers = layout.tensors = 1;
	layout.blocks = BIGS;
	layout.tensor = &tensor;
	layout.flags = KV_CACHE_OPEN;
	ok(kv_cache_register(side->engine, &layout, &side->cache, &err), &err);
}

static void big_close(struct big *side)
{
	kv_engine_close(side->engine);
	if (side->mapped)
		munmap(side->mem, (size_t)BIG * BIGS);
}

/* `a` has connected to `b`; the source is memory that was never written, so it has no pages. */
static void two_open(struct big *a, struct big *b)
{
	const char *path = getenv("KVCACHE_SHM_PATH");
	struct kv_arrival up = { 0 };
	struct kv_error err;

	for (int64_t i = 0; i < BIGS; i++)
		ids[i] = i;
	big_open(a, false);
	big_open(b, !path || !strcmp(path, "pool"));
	ok(kv_listen(b->engine, NULL, 0, &b->port, &err), &err);
	ok(kv_connect(a->engine, NULL, b->port, RIG_TIMEOUT_MS, &a->peer, &err), &err);
	for (int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS); !up.peer && kv_now_ns() < end;)
		if (!kv_poll_arrivals(b->engine, &up, 1, &err))
			poll(NULL, 0, 1);
	b->peer = up.peer;
	assert_non_null(b->peer);
}

static void two_close(struct big *a, struct big *b)
{
	big_close(a);
	big_close(b);
}

static struct bar began;

/* Since `began`. */
static void within(int64_t ms, const char *what)
{
	assert_true(bar_holds(began, ms, what));
}

/* Then a call takes longer than its connection waits for it, which the test is not about. */
static bool is_looked_through(void)
{
#ifdef __SANITIZE_THREAD__
	const char *path = getenv("KVCACHE_SHM_PATH");

	return path && !strcmp(path, "cma");
#else
	return false;
#endif
}

CASE(a_write_of_gigabytes_ends_at_its_deadline)
{
	struct kv_options options = KV_INIT(kv_options);
	struct kv_error err;
	struct kv_op *op;
	struct big a, b;

	if (is_looked_through()) {
		print_message("skipped: ThreadSanitizer looks at each byte of process_vm_writev\n");
		skip();
	}
	two_open(&a, &b);
	options.timeout_ms = SHORT_MS;
	began = bar_begin();
	assert_int_equal(
		kv_write_blocks(a.peer, a.cache, all_layers, ids, ids, BIGS, &options, &err),
		KV_ERR_TIMEOUT);
	within(SHORT_MS + SLACK_MS, "a write");
	began = bar_begin();
	ok(kv_write_blocks_async(a.peer, a.cache, all_layers, ids, ids, BIGS, &options, &op, &err),
	   &err);
	within(SHORT_MS + SLACK_MS, "an asynchronous write");
	assert_int_equal(kv_wait(op, KV_ACKED, LONG_MS, &err), KV_ERR_TIMEOUT);
	within(SHORT_MS + SLACK_MS, "its end");
	ok(kv_op_free(op, &err), &err);
	two_close(&a, &b);
}

struct writer {
	struct big *side;
	uint64_t lease;
	int ret;
	pthread_t thread;
};

static void *write_all(void *arg)
{
	struct writer *w = arg;
	struct kv_options options = KV_INIT(kv_options);
	struct kv_error err;

	options.timeout_ms = LONG_MS;
	options.lease = w->lease;
	w->ret = kv_write_blocks(w->side->peer, w->side->cache, all_layers, ids, ids, BIGS,
				 &options, &err);
	return NULL;
}

static void await_bytes(const struct big *side)
{
	struct kv_stats stats = KV_INIT(kv_stats);
	struct kv_error err;

	do
		ok(kv_stats(side->engine, &stats, &err), &err);
	while (!stats.spans_out);
}

/* Other calls on the peer have their turns between two pieces, and a revocation stops it there. */
CASE(others_have_the_peer_between_two_pieces)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_lease *lease, *more;
	struct kv_error err;
	struct writer w;
	struct big a, b;

	two_open(&a, &b);
	ok(kv_blocks_open(b.peer, b.cache, ids, BIGS, 7, LONG_MS, &lease, &err), &err);
	w = (struct writer){ .side = &a, .lease = kv_lease_id(lease) };
	assert_int_equal(pthread_create(&w.thread, NULL, write_all, &w), 0);
	await_bytes(&a);
	began = bar_begin();
	ok(kv_peer_info(a.peer, &info, &err), &err);
	within(SLACK_MS, "kv_peer_info");
	began = bar_begin();
	ok(kv_blocks_open(a.peer, a.cache, ids, 1, 8, LONG_MS, &more, &err), &err);
	within(SLACK_MS, "kv_blocks_open");
	began = bar_begin();
	ok(kv_revoke(lease, LONG_MS, &err), &err);
	within(SLACK_MS, "kv_revoke");
	pthread_join(w.thread, NULL);
	assert_int_equal(w.ret, KV_ERR_REVOKED);
	began = bar_begin();
	ok(kv_revoke(more, LONG_MS, &err), &err);
	within(SLACK_MS, "kv_revoke");
	two_close(&a, &b);
}

struct registrar {
	struct kv_engine *engine;
	atomic_bool done;
	int ret;
	struct kv_error err;
	pthread_t thread;
};

static void *register_huge(void *arg)
{
	struct registrar *r = arg;

	r->ret = register_untouched(r->engine, UINT64_C(1) << HUGE_SHIFT, &r->err);
	atomic_store(&r->done, true);
	return NULL;
}

/* kv_alloc and kv_free of gigabytes that have pages, beside it. */
static void *unmap_much(void *arg)
{
	static const size_t len = UINT64_C(1) << 30;
	struct registrar *r = arg;
	void *mem;

	r->ret = kv_alloc(r->engine, len, &mem, &r->err);
	for (size_t at = 0; !r->ret && at < len; at += 4096)
		((volatile uint8_t *)mem)[at] = 1;
	if (!r->ret)
		r->ret = kv_free(r->engine, mem, &r->err);
	atomic_store(&r->done, true);
	return NULL;
}

static void others_go_on_beside(void *(*work)(void *arg))
{
	struct registrar r = { .done = false };
	struct kv_error err;
	struct kv_peer *more;
	struct big a, b, c;
	int rounds = 0;

	two_open(&a, &b);
	big_open(&c, false);
	ok(kv_listen(c.engine, NULL, 0, &c.port, &err), &err);
	r.engine = b.engine; /* which has to acknowledge, and to answer a handshake */
	assert_int_equal(pthread_create(&r.thread, NULL, work, &r), 0);
	do {
		began = bar_begin();
		ok(kv_write_blocks(a.peer, a.cache, all_layers, ids, ids, 1, NULL, &err), &err);
		within(SLACK_MS, "a write");
		began = bar_begin();
		ok(kv_connect(b.engine, NULL, c.port, RIG_TIMEOUT_MS, &more, &err), &err);
		ok(kv_peer_close(more, RIG_TIMEOUT_MS, &err), &err);
		within(2 * SLACK_MS, "kv_connect");
		began = bar_begin();
		ok(kv_connect(a.engine, NULL, b.port, RIG_TIMEOUT_MS, &more, &err), &err);
		ok(kv_peer_close(more, RIG_TIMEOUT_MS, &err), &err);
		within(2 * SLACK_MS, "kv_connect to it");
		/* Nobody closes the peers of c: no more of them than it may have. */
	} while (!atomic_load(&r.done) && ++rounds < 500);
	pthread_join(r.thread, NULL);
	ok(r.ret, &r.err);
	two_close(&a, &b);
	big_close(&c);
}

CASE(others_go_on_beside_a_registration_that_takes_seconds)
{
	others_go_on_beside(register_huge);
}

CASE(others_go_on_beside_memory_that_is_freed)
{
	others_go_on_beside(unmap_much);
}

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "pool")) /* which the writer's memory is not in */
		rig_path(argv[1]);
	return run_cases(NULL, NULL);
}
