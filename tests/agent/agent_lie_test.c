/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent_lie_test.c -- a peer that has the secret, and says what no agent says: its connection ends,
 * and the agent serves others as before
 */
#include "agent_rig.h"

#include <poll.h>
#include <string.h>

#include "ag.h"
#include "base/wire.h"

enum { LEN = 4096 };

struct liar {
	struct kv_option_set *options;
	struct tr *tr;
	struct tr_conn *conn;
	uint8_t hello[64];
	size_t hello_len;
	bool lost;
	unsigned int answers;
};

static int put_lie(void *arg, struct tr_conn *conn, void *buf, size_t cap)
{
	struct liar *l = arg;

	assert_true(cap >= l->hello_len);
	memcpy(buf, l->hello, l->hello_len);
	return (int)l->hello_len;
}

static int get_any(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		   struct kv_error *err)
{
	return 0;
}

static const struct tr_upper_ops lying_ops = {
	.id = TR_UPPER_AGENT,
	.version = 1,
	.hello_put = put_lie,
	.hello_get = get_any,
};

static int lie_connect(struct liar *l, const struct rig_end *to, struct kv_error *err)
{
	static const char *const options[] = { "KVCACHE_TRANSPORT=shm", NULL };
	struct tr_conn_config config = { .ops = &lying_ops, .arg = l };
	int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);
	struct ag_place place;
	size_t len;
	const void *info = ag_info(to->agent, &len);
	int ret;

	assert_int_equal(ag_place_get(&place, info, len, err), 0);
	if (!l->hello_len) {
		memcpy(l->hello, place.secret, AG_SECRET);
		memcpy(l->hello + AG_SECRET, "liar", 4);
		l->hello_len = AG_SECRET + 4;
	}
	assert_int_equal(kv_option_read(options, &l->options, err), 0);
	assert_int_equal(tr_open(&(struct tr_config){ .options = l->options }, &l->tr, err), 0);
	assert_int_equal(tr_connect(l->tr, "127.0.0.1", place.port, &config, &l->conn, err), 0);
	while ((ret = tr_conn_step(l->conn, err)) == TR_AGAIN) {
		assert_true(kv_now_ns() < deadline);
		poll(NULL, 0, 1);
	}
	return ret;
}

static void lie_close(struct liar *l)
{
	tr_conn_close(l->conn);
	tr_close(l->tr);
	kv_option_free(l->options);
}

static void lie_hear(struct liar *l)
{
	struct tr_event event[16];
	int n = tr_poll(l->conn, event, 16);

	for (int i = 0; i < n; i++) {
		l->lost |= event[i].kind == TR_PEER_LOST;
		l->answers += event[i].kind == TR_MSG;
	}
}

static void await_end(struct liar *l)
{
	int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);

	while (!l->lost) {
		lie_hear(l);
		assert_true(kv_now_ns() < deadline);
		poll(NULL, 0, 1);
	}
}

CASE(hellos_that_are_not_ours_are_refused)
{
	static const size_t lengths[] = { 1, AG_SECRET - 1, AG_SECRET, AG_SECRET + 4 };
	struct rig_end b;

	rig_open(&b, "b", LEN);
	for (unsigned int i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		struct liar l = { .hello = "liarliarliarliarliar", .hello_len = lengths[i] };
		struct kv_error err;
		int ret = lie_connect(&l, &b, &err);

		assert_int_equal(ret, lengths[i] > AG_SECRET ? KV_ERR_AUTH : KV_ERR_PROTOCOL);
		lie_close(&l);
	}
	rig_close(&b);
}

struct lie {
	const char *what;
	size_t len;
	uint8_t bytes[16];
};

static const struct lie lies[] = {
	{ "no bytes", 0, { 0 } },
	{ "an unknown kind", 6, { 77, 1, 0, 0, 0, 1 } },
	{ "more of nothing", 2, { 0x80, 1 } },
	{ "too long a notification", 6, { AG_NOTE, 0, 0, 0, 0x80, 1 } },
	{ "too short a header", 3, { AG_NOTE, 1, 0 } },
	{ "more bytes than announced", 8, { AG_NOTE, 1, 0, 0, 0, 1, 2, 3 } },
	{ "a short number", 7, { AG_WANT, 2, 0, 0, 0, 1, 2 } },
	{ "what the other side says", 13, { AG_WITHDRAW, 8, 0, 0, 0, 1 } },
	{ "a description unasked", 8, { AG_PACK, 3, 0, 0, 0, 1, 2, 3 } },
};

CASE(each_lie_ends_its_connection_and_nothing_else)
{
	struct rig_end a, b;
	struct ag_rmem *rmem;
	struct ag_pair p;

	rig_open(&a, "a", LEN);
	rig_open(&b, "b", LEN);
	rig_load(&a, &b);
	rmem = rig_see(&a, &b, b.mem);
	p = (struct ag_pair){ a.mem, rmem, (uintptr_t)a.buf, (uintptr_t)b.buf, LEN };
	for (unsigned int i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		struct liar l = { 0 };
		struct kv_error err;

		assert_int_equal(lie_connect(&l, &b, &err), 0);
		assert_int_equal(tr_msg(l.conn, lies[i].bytes, lies[i].len, &err), 0);
		await_end(&l);
		lie_close(&l);
		rig_fill(a.buf, i, LEN);
		rig_move(&a, "b", AG_WRITE, &p, 1, "well", 4);
		assert_true(rig_is(b.buf, i, LEN));
		assert_int_equal(rig_note(&b, NULL, NULL, 0), 4);
	}
	ag_rmem_unload(rmem);
	rig_close(&a);
	rig_close(&b);
}

/* Regions that are not there are answered; one that leaves what it never had is not heard. */
CASE(odd_questions_are_answered)
{
	struct liar l = { 0 };
	struct kv_error err;
	struct rig_end b;
	int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);

	rig_open(&b, "b", LEN);
	assert_int_equal(lie_connect(&l, &b, &err), 0);
	for (uint64_t id = 0; id < 5; id++) {
		uint8_t msg[13];
		struct wire_writer w = wire_writer_of(msg, sizeof(msg));

		wire_put_u8(&w, AG_LEFT);
		wire_put_u32(&w, 8);
		wire_put_u64(&w, id);
		assert_int_equal(tr_msg(l.conn, msg, w.len, &err), 0);
		msg[0] = AG_WANT;
		assert_int_equal(tr_msg(l.conn, msg, w.len, &err), 0);
	}
	while (l.answers < 5) {
		lie_hear(&l);
		assert_false(l.lost);
		assert_true(kv_now_ns() < deadline);
	}
	lie_close(&l);
	rig_close(&b);
}

static void watch_log(void *arg, int level, const char *line)
{
	if (strstr(line, "before it reads the answers"))
		atomic_store((atomic_bool *)arg, true);
}

CASE(a_peer_that_asks_and_never_reads_is_lost)
{
	static const uint8_t want[13] = { AG_WANT, 8, 0, 0, 0, 1 };
	int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);
	atomic_bool ended = false;
	struct rig_end b = { 0 };
	struct ag_config config = { .name = "b", .log = watch_log, .log_arg = &ended };
	struct liar l = { 0 };
	struct kv_error err;

	assert_int_equal(ag_open(&config, &b.agent, &err), 0);
	assert_int_equal(lie_connect(&l, &b, &err), 0);
	while (!atomic_load(&ended)) {
		if (tr_msg(l.conn, want, sizeof(want), &err))
			poll(NULL, 0, 1);
		assert_true(kv_now_ns() < deadline);
	}
	await_end(&l);
	lie_close(&l);
	ag_close(b.agent);
}

int main(void)
{
	rig_path("auto");
	return run_cases(NULL, NULL);
}
