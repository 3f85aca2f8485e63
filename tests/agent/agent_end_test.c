/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent_end_test.c -- regions that are withdrawn, transfers that are released, peers that die,
 * names that come back
 */
#include "agent_rig.h"

#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../lib/bar.h"
#include "../lib/check.h"
#include "../lib/process.h"

enum { LEN = 1 << 20, WITHDRAW_MS = 1000, NEWS_MS = 1000 /* no deadline is that short */ };

static const char *path;
static size_t big; /* takes a while to move: a device in software is slow */

static struct ag_pair whole(const struct rig_two *t)
{
	return (struct ag_pair){ t->a.mem, t->rmem, (uintptr_t)t->a.buf, (uintptr_t)t->b.buf,
				 t->a.len };
}

static struct ag_xfer *prepare(struct rig_end *from, const char *to, int kind,
			       const struct ag_pair *pair, size_t n)
{
	struct ag_xfer *xfer;
	struct kv_error err;

	assert_int_equal(ag_xfer_prepare(from->agent, to, kind, pair, n, &xfer, &err), 0);
	return xfer;
}

static int post_to_end(struct ag_xfer *xfer)
{
	struct kv_error err;
	int ret = ag_xfer_post(xfer, NULL, 0, &err);

	return ret == AG_AGAIN ? rig_end_of(xfer, &err) : ret;
}

static bool is_all(const uint8_t *p, uint8_t byte, size_t n)
{
	return *p == byte && !memcmp(p, p + 1, n - 1);
}

/* ---------------------------------------------------------------- regions */

static void a_late_region_is_found_and_a_withdrawn_one_refuses(void **state)
{
	uint8_t *late = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct ag_pair p, old;
	struct ag_xfer *xfer, *unposted;
	struct ag_rmem *rmem;
	struct ag_mem *mem;
	struct kv_error err;
	struct rig_two t;

	rig_up(&t, LEN);
	old = whole(&t);
	rig_move(&t.a, "b", AG_WRITE, &old, 1, NULL, 0);
	assert_int_equal(ag_mem_reg(t.b.agent, late, LEN, AG_HOST, &mem, &err), 0);
	rmem = rig_see(&t.a, &t.b, mem);
	p = (struct ag_pair){ t.a.mem, rmem, (uintptr_t)t.a.buf, (uintptr_t)late, LEN };
	rig_fill(t.a.buf, 5, LEN);
	xfer = prepare(&t.a, "b", AG_WRITE, &p, 1);
	unposted = prepare(&t.a, "b", AG_READ, &p, 1);
	assert_int_equal(post_to_end(xfer), 0);
	assert_true(rig_is(late, 5, LEN));
	assert_int_equal(ag_mem_dereg(mem, &err), 0);
	rig_fill(late, 6, LEN);
	assert_int_equal(post_to_end(xfer), KV_ERR_REVOKED);
	assert_int_equal(post_to_end(unposted), KV_ERR_REVOKED);
	assert_true(rig_is(late, 6, LEN));
	rig_release(xfer);
	rig_release(unposted);
	rig_move(&t.a, "b", AG_WRITE, &old, 1, NULL, 0); /* the connection is well */
	/* One that is loaded when it is gone already. */
	ag_rmem_unload(rmem);
	assert_int_equal(ag_mem_reg(t.b.agent, late, LEN, AG_HOST, &mem, &err), 0);
	rmem = rig_see(&t.a, &t.b, mem);
	ag_rmem_unload(rmem);
	rmem = rig_see(&t.a, &t.b, mem);
	assert_int_equal(ag_mem_dereg(mem, &err), 0);
	p.rmem = rmem;
	xfer = prepare(&t.a, "b", AG_WRITE, &p, 1);
	assert_int_equal(post_to_end(xfer), KV_ERR_REVOKED);
	rig_release(xfer);
	ag_rmem_unload(rmem);
	rig_move(&t.a, "b", AG_WRITE, &old, 1, NULL, 0);
	rig_down(&t);
	munmap(late, LEN);
}

static void nothing_lands_in_a_region_after_it_was_deregistered(void **state)
{
	int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);
	struct kv_error err;
	struct rig_two t;

	for (int round = 0; round < 4; round++) {
		struct ag_xfer *xfer;
		struct ag_pair p;
		int64_t begun;
		bool cut; /* a writer that gets no processor for so long is cut off */
		int ret;

		rig_up(&t, big);
		p = whole(&t);
		memset(t.a.buf, 0x11, big);
		xfer = prepare(&t.a, "b", AG_WRITE, &p, 1);
		p.len = 1;
		rig_move(&t.a, "b", AG_WRITE, &p, 1, NULL, 0); /* the region is known there */
		assert_true(ag_xfer_post(xfer, "late", 4, &err) >= 0);
		poll(NULL, 0, round); /* somewhere in the middle */
		begun = kv_now_ns();
		ret = ag_mem_dereg(t.b.mem, &err);
		cut = kv_now_ns() - begun >= WITHDRAW_MS * KV_NS_PER_MS;
		while (cut && ret == KV_ERR_BUSY && kv_now_ns() < deadline)
			ret = ag_mem_dereg(t.b.mem, &err); /* it may write by itself */
		assert_int_equal(ret, 0);
		memset(t.b.buf, 0x22, big);
		ret = rig_end_of(xfer, &err);
		assert_true(ret == 0 || ret == KV_ERR_REVOKED ||
			    (cut && kv_error_scope(ret) == KV_SCOPE_PEER));
		rig_release(xfer);
		assert_true(is_all(t.b.buf, 0x22, big));
		assert_true(cut || !ag_peer_check(t.a.agent, "b", &err));
		rig_down(&t);
	}
}

static void a_local_region_is_not_given_back_under_a_transfer(void **state)
{
	struct ag_xfer *xfer;
	struct kv_error err;
	struct ag_pair p;
	struct rig_two t;
	int ret;

	rig_up(&t, big);
	p = whole(&t);
	rig_fill(t.b.buf, 1, big);
	xfer = prepare(&t.a, "b", AG_READ, &p, 1);
	assert_true(ag_xfer_post(xfer, NULL, 0, &err) >= 0);
	ret = ag_mem_dereg(t.a.mem, &err);
	assert_true(ret == 0 || ret == KV_ERR_BUSY);
	if (!ret) { /* then it is over, or will not begin */
		memset(t.a.buf, 0, big);
		ret = rig_end_of(xfer, &err);
		assert_true(ret == 0 || ret == KV_ERR_CLOSED);
		assert_true(is_all(t.a.buf, 0, big));
	}
	rig_end_of(xfer, &err);
	assert_int_equal(post_to_end(xfer), KV_ERR_CLOSED);
	rig_release(xfer);
	rig_down(&t);
}

/* ---------------------------------------------------------------- release */

static void after_a_release_nothing_lands(void **state)
{
	struct kv_error err;
	struct rig_two t;

	rig_up(&t, big);
	for (int round = 0; round < 8; round++) {
		int kind = round & 1 ? AG_READ : AG_WRITE;
		uint8_t *to = kind == AG_WRITE ? t.b.buf : t.a.buf;
		struct ag_pair p = whole(&t);
		struct ag_xfer *xfer = prepare(&t.a, "b", kind, &p, 1);

		memset(kind == AG_WRITE ? t.a.buf : t.b.buf, 0x33, big);
		assert_true(ag_xfer_post(xfer, "never", 5, &err) >= 0);
		poll(NULL, 0, round / 2);
		rig_release(xfer);
		memset(to, 0x44, big);
		/* What comes behind it is there, and nothing of the first. */
		p.len = 1;
		p.local += big - 1;
		p.remote += big - 1;
		rig_move(&t.a, "b", kind, &p, 1, NULL, 0);
		assert_true(is_all(to, 0x44, big - 1));
		assert_int_equal(ag_peer_check(t.a.agent, "b", &err), 0);
	}
	rig_down(&t);
}

static void those_that_wait_are_released_at_once(void **state)
{
	enum { N = 500 };
	struct ag_xfer *xfer[N];
	struct kv_error err;
	struct ag_pair p;
	struct rig_two t;

	rig_up(&t, LEN);
	p = whole(&t);
	for (int i = 0; i < N; i++) { /* before the two are connected */
		xfer[i] = prepare(&t.a, "b", AG_WRITE, &p, 1);
		assert_true(ag_xfer_post(xfer[i], "n", 1, &err) >= 0);
		assert_int_equal(ag_xfer_post(xfer[i], "n", 1, &err) == KV_ERR_BUSY ||
					 !ag_xfer_check(xfer[i], &err),
				 1);
	}
	for (int i = N - 1; i >= 0; i--)
		rig_release(xfer[i]);
	rig_move(&t.a, "b", AG_WRITE, &p, 1, NULL, 0);
	rig_down(&t);
}

/* ---------------------------------------------------------------- names */

static void a_name_comes_back_with_another_agent(void **state)
{
	struct ag_pair p;
	struct ag_xfer *xfer;
	struct ag_rmem *old;
	struct rig_two t;
	int ret;

	rig_up(&t, LEN);
	p = whole(&t);
	xfer = prepare(&t.a, "b", AG_WRITE, &p, 1);
	assert_int_equal(post_to_end(xfer), 0);
	rig_close(&t.b);
	while (!(ret = post_to_end(xfer)))
		;
	assert_int_equal(kv_error_scope(ret), KV_SCOPE_PEER);
	old = t.rmem;
	rig_open(&t.b, "b", LEN);
	rig_load(&t.a, &t.b);
	t.rmem = rig_see(&t.a, &t.b, t.b.mem);
	assert_int_equal(kv_error_scope(post_to_end(xfer)), KV_SCOPE_PEER); /* of the old one */
	rig_release(xfer);
	ag_rmem_unload(old);
	p = whole(&t);
	rig_fill(t.a.buf, 9, LEN);
	rig_move(&t.a, "b", AG_WRITE, &p, 1, "again", 5);
	assert_true(rig_is(t.b.buf, 9, LEN));
	rig_down(&t);
}

static void a_dropped_peer_gets_what_was_said_before(void **state)
{
	struct kv_error err;
	struct ag_pair p;
	struct rig_two t;

	rig_up(&t, LEN);
	for (int i = 0; i < 100; i++)
		assert_int_equal(ag_notify(t.a.agent, "b", "last", 4, &err), 0);
	while (ag_peer_check(t.a.agent, "b", &err) == AG_AGAIN)
		poll(NULL, 0, 1);
	ag_peer_drop(t.a.agent, "b");
	assert_int_equal(ag_notify(t.a.agent, "b", "never", 5, &err), KV_ERR_ARG);
	for (int i = 0; i < 100; i++)
		assert_int_equal(rig_note(&t.b, NULL, NULL, 0), 4);
	ag_rmem_unload(t.rmem);
	rig_load(&t.a, &t.b);
	t.rmem = rig_see(&t.a, &t.b, t.b.mem);
	p = whole(&t);
	rig_move(&t.a, "b", AG_WRITE, &p, 1, NULL, 0);
	rig_down(&t);
}

static int await_loss(struct rig_end *end, const char *name, struct kv_error *err)
{
	int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);
	int ret;

	while ((ret = ag_peer_check(end->agent, name, err)) == AG_AGAIN) {
		assert_true(kv_now_ns() < deadline);
		poll(NULL, 0, 1);
	}
	return ret;
}

/* The cause of then is reported, and the first transfer makes an attempt of its own. */
static void a_peer_that_was_not_reached_is_tried_again(void **state)
{
	struct rlimit limit, none;
	struct kv_error err;
	struct rig_two t;
	struct ag_pair p;

	(void)state;
	rig_open(&t.a, "a", LEN);
	rig_open(&t.b, "b", LEN);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	none = (struct rlimit){ 0, limit.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	rig_load(&t.a, &t.b);
	t.rmem = rig_see(&t.a, &t.b, t.b.mem);
	for (int i = 0; i < 3; i++)
		assert_int_equal(kv_error_scope(await_loss(&t.a, "b", &err)), KV_SCOPE_PEER);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	rig_fill(t.a.buf, 3, LEN);
	p = whole(&t);
	rig_move(&t.a, "b", AG_WRITE, &p, 1, "first", 5);
	assert_true(rig_is(t.b.buf, 3, LEN));
	assert_int_equal(ag_peer_check(t.a.agent, "b", &err), 0);
	rig_down(&t);
}

/* Nobody answers there any more: what is posted ends, and the name may be loaded anew at once. */
static void a_peer_that_is_gone_when_it_is_loaded_ends_what_is_posted(void **state)
{
	struct kv_error err;
	struct rig_two t;
	struct ag_pair p;
	uint8_t info[AG_INFO_MAX], mem[AG_MEM_INFO_MAX];
	struct ag_xfer *xfer;
	size_t len, mem_len;

	(void)state;
	rig_open(&t.a, "a", LEN);
	rig_open(&t.b, "b", LEN);
	memcpy(info, ag_info(t.b.agent, &len), AG_INFO_MAX);
	mem_len = ag_mem_info(t.b.mem, mem);
	rig_close(&t.b);
	assert_int_equal(ag_peer_load(t.a.agent, "b", info, len, &err), 0);
	assert_int_equal(ag_rmem_load(t.a.agent, "b", mem, mem_len, &t.rmem, &err), 0);
	assert_int_equal(kv_error_scope(await_loss(&t.a, "b", &err)), KV_SCOPE_PEER);
	p = whole(&t);
	xfer = prepare(&t.a, "b", AG_WRITE, &p, 1);
	assert_int_equal(kv_error_scope(post_to_end(xfer)), KV_SCOPE_PEER);
	rig_release(xfer);
	ag_rmem_unload(t.rmem);
	rig_open(&t.b, "b", LEN);
	rig_load(&t.a, &t.b);
	t.rmem = rig_see(&t.a, &t.b, t.b.mem);
	p = whole(&t);
	rig_fill(t.a.buf, 4, LEN);
	rig_move(&t.a, "b", AG_WRITE, &p, 1, NULL, 0);
	assert_true(rig_is(t.b.buf, 4, LEN));
	rig_down(&t);
}

static void other_secrets_and_other_lives_are_refused(void **state)
{
	uint8_t info[AG_INFO_MAX];
	struct kv_error err;
	struct rig_two t;
	size_t len;

	rig_up(&t, LEN);
	memcpy(info, ag_info(t.b.agent, &len), AG_INFO_MAX);
	info[8 + 16] ^= 1; /* of the secret */
	assert_int_equal(ag_peer_load(t.a.agent, "b", info, len, &err), KV_ERR_BUSY);
	assert_int_equal(ag_peer_load(t.a.agent, "thief", info, len, &err), 0);
	assert_int_equal(await_loss(&t.a, "thief", &err), KV_ERR_AUTH);
	info[8 + 16] ^= 1;
	info[8] ^= 1; /* of the incarnation */
	assert_int_equal(ag_peer_load(t.a.agent, "late", info, len, &err), 0);
	assert_int_equal(await_loss(&t.a, "late", &err), KV_ERR_STALE_PEER);
	assert_int_equal(await_loss(&t.a, "b", &err), 0);
	rig_down(&t);
}

/* ---------------------------------------------------------------- death */

/* Where an agent is and what its region is, as it goes through a pipe. */
struct card {
	uint8_t *buf;
	size_t mem_len, len;
	uint8_t mem[AG_MEM_INFO_MAX], info[AG_INFO_MAX];
};

static struct card card_of(const struct rig_end *end)
{
	struct card c = { .buf = end->buf };
	const void *info = ag_info(end->agent, &c.len);

	memcpy(c.info, info, c.len);
	c.mem_len = ag_mem_info(end->mem, c.mem);
	return c;
}

static struct ag_pair load_card(struct rig_end *end, const char *name, const struct card *c)
{
	struct ag_pair pair = { end->mem, NULL, (uintptr_t)end->buf, (uintptr_t)c->buf, big };
	struct kv_error err;

	CHECK(!ag_peer_load(end->agent, name, c->info, c->len, &err));
	CHECK(!ag_rmem_load(end->agent, name, c->mem, c->mem_len, &pair.rmem, &err));
	return pair;
}

/* The process of the agent "b". It writes a byte to the agent "a" if it gets the card of that. */
static void run_b(int out, int in)
{
	struct ag_pair pair;
	struct rig_end b;
	struct card c;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	rig_open(&b, "b", big);
	c = card_of(&b);
	CHECK(write(out, &c, sizeof(c)) == sizeof(c));
	if (read(in, &c, sizeof(c)) == sizeof(c)) {
		pair = load_card(&b, "a", &c);
		pair.len = 1;
		rig_move(&b, "a", AG_WRITE, &pair, 1, NULL, 0);
		CHECK(write(out, "k", 1) == 1);
	}
	for (;;)
		pause();
}

struct dead {
	struct rig_end a;
	struct ag_rmem *rmem;
	struct ag_pair pair;
	pid_t pid;
	int up[2], down[2];
};

static void start_dead(struct dead *d)
{
	struct card c;

	assert_true(!pipe(d->up) && !pipe(d->down));
	d->pid = fork();
	assert_true(d->pid >= 0);
	if (!d->pid)
		run_b(d->up[1], d->down[0]);
	rig_open(&d->a, "a", big);
	assert_true(read(d->up[0], &c, sizeof(c)) == sizeof(c));
	d->pair = load_card(&d->a, "b", &c);
	d->rmem = d->pair.rmem;
}

static void end_dead(struct dead *d)
{
	ag_rmem_unload(d->rmem);
	rig_close(&d->a);
	for (int i = 0; i < 2; i++) {
		close(d->up[i]);
		close(d->down[i]);
	}
}

static void kill_b(struct dead *d)
{
	kill(d->pid, SIGKILL);
	assert_int_equal(waitpid(d->pid, NULL, 0), d->pid);
}

static void a_killed_peer_ends_what_is_under_way(void **state)
{
	for (int stage = 0; stage < 4; stage++) { /* connecting, connected, in the middle, done */
		struct ag_xfer *xfer;
		struct kv_error err;
		struct dead d;
		struct bar since;
		int ret;

		start_dead(&d);
		xfer = prepare(&d.a, "b", stage & 1 ? AG_READ : AG_WRITE, &d.pair, 1);
		if (stage >= 1)
			while (ag_peer_check(d.a.agent, "b", &err) == AG_AGAIN)
				poll(NULL, 0, 1);
		if (stage == 3)
			assert_int_equal(post_to_end(xfer), 0);
		ret = ag_xfer_post(xfer, "n", 1, &err);
		assert_true(ret >= 0);
		kill_b(&d);
		since = bar_begin();
		do
			ret = post_to_end(xfer);
		while (!ret || ret == KV_ERR_BUSY); /* it may have been done before */
		assert_int_equal(kv_error_scope(ret), KV_SCOPE_PEER);
		assert_true(bar_holds(since, NEWS_MS, "the news of a death"));
		assert_int_equal(kv_error_scope(ag_notify(d.a.agent, "b", "x", 1, &err)),
				 KV_SCOPE_PEER);
		rig_release(xfer);
		assert_int_equal(ag_mem_dereg(d.a.mem, &err), 0);
		end_dead(&d);
	}
}

/*
 * It cannot say that it has left the region: its connection is ended, and where it may write by
 * itself all the same the region is not given back before it is gone.
 */
static void a_stopped_peer_does_not_hold_a_caller(void **state)
{
	bool direct = !strcmp(path, "cma");
	struct kv_error err;
	struct bar since;
	struct dead d;
	struct card c;
	char word;

	start_dead(&d);
	c = card_of(&d.a);
	assert_true(write(d.down[1], &c, sizeof(c)) == sizeof(c));
	assert_true(read(d.up[0], &word, 1) == 1);
	assert_true(stop_process(d.pid));
	since = bar_begin();
	assert_int_equal(ag_mem_dereg(d.a.mem, &err), direct ? KV_ERR_BUSY : 0);
	assert_true(bar_holds(since, 4000, "deregistering beside a stopped peer"));
	kill_b(&d);
	end_dead(&d);
}

static void what_an_agent_took_is_given_back(void **state)
{
	int fds = 0, threads = 0;

	for (int round = 0; round < 3; round++) {
		struct rig_two t;
		struct ag_pair p;

		rig_up(&t, LEN);
		p = whole(&t);
		rig_move(&t.a, "b", AG_WRITE, &p, 1, "n", 1);
		rig_down(&t);
		if (round == 1) {
			fds = count_descriptors();
			threads = count_threads();
		}
	}
	assert_true(descriptors_have_gone(fds));
	assert_true(threads_have_gone(threads));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_late_region_is_found_and_a_withdrawn_one_refuses),
		cmocka_unit_test(nothing_lands_in_a_region_after_it_was_deregistered),
		cmocka_unit_test(a_local_region_is_not_given_back_under_a_transfer),
		cmocka_unit_test(after_a_release_nothing_lands),
		cmocka_unit_test(those_that_wait_are_released_at_once),
		cmocka_unit_test(a_name_comes_back_with_another_agent),
		cmocka_unit_test(a_dropped_peer_gets_what_was_said_before),
		cmocka_unit_test(a_peer_that_was_not_reached_is_tried_again),
		cmocka_unit_test(a_peer_that_is_gone_when_it_is_loaded_ends_what_is_posted),
		cmocka_unit_test(other_secrets_and_other_lives_are_refused),
		cmocka_unit_test(what_an_agent_took_is_given_back),
	};
	/* The fake device reaches no other process. */
	const struct CMUnitTest processes[] = {
		cmocka_unit_test(a_killed_peer_ends_what_is_under_way),
		cmocka_unit_test(a_stopped_peer_does_not_hold_a_caller),
	};
	int failed;

	path = argc > 1 ? argv[1] : NULL;
	big = path && strcmp(path, "ib") ? 48 << 20 : 2 << 20;
	rig_path(path);
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	failed = path ? cmocka_run_group_tests(processes, NULL, NULL) : 0;
	return failed + cmocka_run_group_tests(tests, NULL, NULL);
}
