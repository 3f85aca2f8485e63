/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_shm_trust.c -- who may reach memory directly, and what a peer of the host can make this
 * process map, hold and do
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "lib/process.h"
#include "lib/test.h"
#include "conn.h"
#include "shm/shm.h"
#include "tr_pair.h"

enum { REGION = 1 << 18, STRANGER = 54321, CANNOT = 76 };

struct case_arg {
	const char *parent_uids, *child_uids;	/* KVCACHE_SHM_ALLOW_UIDS */
	const char *parent_path, *child_path;	/* in tr_conn_path */
	unsigned int parent_pools, child_pools; /* that the side has passed */
	bool stranger;				/* the child is one */
};

/* Both sides write the other's second half. */
static void exchange(struct pair_side *s)
{
	const struct case_arg *arg = s->config->arg;
	const char *uids = s->child ? arg->child_uids : arg->parent_uids;
	const struct shm_conn *sc;

	if (s->child && arg->stranger)
		PAIR_CHECK(!setgid(STRANGER) && !setuid(STRANGER));
	if (uids)
		setenv("KVCACHE_SHM_ALLOW_UIDS", uids, 1);
	pair_swap(s, s->child ? arg->child_path : arg->parent_path);
	sc = tr_conn_priv(s->conn);
	PAIR_CHECK(sc->sent_pools == (s->child ? arg->child_pools : arg->parent_pools));
	pair_down(s);
}

static void run_apart(struct case_arg *arg, bool relayed)
{
	struct pair_config config = { .region = REGION,
				      .parent_pool = true,
				      .child_pool = true,
				      .relayed = relayed,
				      .arg = arg };

	if (arg->stranger && geteuid()) {
		print_message("skipped: only root can act as another user\n");
		skip();
	}
	assert_int_equal(pair_run_apart(&config, exchange, exchange), 0);
}

static const char another_user[] = "ring (the peer is another user's process)";

CASE(another_user_is_given_no_pool)
{
	struct case_arg arg = { NULL, NULL, another_user, another_user, 0, 0, true };

	run_apart(&arg, false);
}

CASE(an_allowed_user_is_written_by_its_pool)
{
	struct case_arg arg = { "77,54321", "0", "memfd pool", "memfd pool", 1, 1, true };

	run_apart(&arg, false);
}

/* The parent allows the child, and would write into its memory, but the child gives nothing. */
CASE(it_takes_both_to_agree)
{
	struct case_arg arg = { "54321",      NULL, "ring (the peer allows no direct writes)",
				another_user, 1,    0,
				true };

	run_apart(&arg, false);
}

/* A process between two processes of one user could name addresses of either. */
CASE(behind_a_relay_the_ring_is_used)
{
	static const char relayed[] = "ring (the control connection is relayed";
	struct case_arg arg = { NULL, NULL, relayed, relayed, 1, 1, false };

	run_apart(&arg, true);
}

CASE(a_list_of_users_that_is_none_is_refused)
{
	static const char *const bad[] = { "root", "1,",   "1,,2",	 " 1",
					   "-1",   "0x10", "4294967295", "99999999999" };
	struct kv_option_set *options;
	struct kv_error err;
	struct tr *tr;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		char text[64];
		const char *list[] = { "KVCACHE_TRANSPORT=shm", text, NULL };
		int ret;

		snprintf(text, sizeof(text), "KVCACHE_SHM_ALLOW_UIDS=%s", bad[i]);
		assert_int_equal(kv_option_read(list, &options, &err), 0);
		ret = tr_open(&(struct tr_config){ .options = options }, &tr, &err);
		if (!i || strcmp(bad[i], "1,")) /* a comma at the end is let pass */
			assert_int_equal(ret, KV_ERR_ARG);
		else
			assert_int_equal(ret, 0);
		if (!ret)
			tr_close(tr);
		kv_option_free(options);
	}
}

/* ---------------------------------------------------------------- what a peer can make us map */

enum { POOLS = 40 };
/* As SECURITY.md says. */
_Static_assert(SHM_POOLS_MAX == 64 && SHM_LINK_MESSAGES == 128, "figures of what a peer can cost");
_Static_assert(SHM_MAP_PEER_BYTES >> 40 == 4 && SHM_MAP_ALL_BYTES >> 40 == 32, "and these");

static int sparse_memfd(uint64_t len)
{
	int fd = memfd_create("sparse", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	PAIR_CHECK(fd >= 0 && !ftruncate(fd, (off_t)len) &&
		   !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
	return fd;
}

/* The message is sent after the pools, by the ring; they are on the socket by then. */
static void await_pools(struct pair_side *s, unsigned int msgs)
{
	struct kv_error err;

	pair_wait_msgs(s, msgs);
	PAIR_CHECK(!link_drain(tr_conn_priv(s->conn), &err));
}

static void mapped_victim(struct pair_side *s)
{
	struct kv_error err;
	const struct shm_conn *sc;
	int before;
	void *more;

	pair_up(s);
	pair_meet(s);
	before = count_descriptors();
	pair_say(s, 1);
	await_pools(s, 1);
	sc = tr_conn_priv(s->conn);
	PAIR_CHECK(!s->lost && sc->pools == POOLS);
	PAIR_CHECK(sc->mapped <= SHM_MAP_PEER_BYTES && sc->mapped == sc->ctx->mapped);
	PAIR_CHECK(count_descriptors() == before);
	PAIR_CHECK(!tr_alloc(s->tr, (size_t)1 << 40, &more, &err));
	PAIR_CHECK(!tr_free(s->tr, more, &err));
	pair_meet(s);
	tr_conn_close(s->conn);
	s->conn = NULL;
	pair_down(s);
}

static void mapping_attacker(struct pair_side *s)
{
	struct shm_conn *sc;
	struct kv_error err;

	pair_up(s);
	pair_meet(s);
	sc = tr_conn_priv(s->conn);
	PAIR_CHECK(pair_hear(s) == 1);
	for (uint64_t i = 0; i < POOLS; i++) {
		struct link_message message = { .kind = LINK_POOL,
						.id = 1000 + i,
						.len = UINT64_C(1) << (i % 2 ? 47 : 41) };
		int fd = sparse_memfd(message.len);

		PAIR_CHECK(!link_send(sc, &message, &(struct link_fds){ 1, { fd } }, &err));
		close(fd);
	}
	pair_send(s, "done", 4);
	pair_meet(s);
	pair_down(s);
}

CASE(sparse_pools_do_not_fill_the_address_space_and_keep_no_descriptor)
{
	struct pair_config config = { .region = REGION };

	assert_int_equal(pair_run(&config, mapped_victim, mapping_attacker), 0);
}

enum { FULL = 8, CONNS = FULL + 2 };

/* Each connection of the same peer passes all that one may; the last two find nothing left. */
static void crowded_victim(struct pair_side *s)
{
	struct tr_conn *conn[CONNS];
	const struct shm_conn *sc;
	struct kv_error err;
	void *more;

	pair_open(s);
	for (int i = 0; i < CONNS; i++) {
		PAIR_CHECK(!pair_connect(s, &err));
		pair_say(s, 1);
		await_pools(s, (unsigned int)i + 1);
		conn[i] = s->conn;
		sc = tr_conn_priv(s->conn);
		PAIR_CHECK(!s->lost && sc->pools == 2);
		PAIR_CHECK(sc->mapped == (i < FULL ? SHM_MAP_PEER_BYTES : 0));
		PAIR_CHECK(sc->ctx->mapped <= SHM_MAP_ALL_BYTES);
	}
	PAIR_CHECK(sc->ctx->mapped == SHM_MAP_ALL_BYTES);
	PAIR_CHECK(!tr_alloc(s->tr, (size_t)1 << 40, &more, &err) && !tr_free(s->tr, more, &err));
	for (int i = 0; i < CONNS; i++)
		tr_conn_close(conn[i]);
	s->conn = NULL;
	/* All of it is given back. */
	PAIR_CHECK(!pair_connect(s, &err));
	pair_say(s, 1);
	await_pools(s, CONNS + 1);
	sc = tr_conn_priv(s->conn);
	PAIR_CHECK(sc->mapped == SHM_MAP_PEER_BYTES && sc->ctx->mapped == SHM_MAP_PEER_BYTES);
	pair_say(s, 2);
	pair_down(s);
}

static void crowding_attacker(struct pair_side *s)
{
	struct tr_conn *conn[CONNS + 1];
	struct kv_error err;

	pair_open(s);
	for (uint64_t i = 0; i <= CONNS; i++) {
		PAIR_CHECK(!pair_connect(s, &err));
		PAIR_CHECK(pair_hear(s) == 1);
		for (uint64_t k = 0; k < 2; k++) {
			struct link_message message = { .kind = LINK_POOL,
							.id = 1000 + 2 * i + k,
							.len = SHM_MAP_PEER_BYTES / 2 };
			int fd = sparse_memfd(message.len);

			PAIR_CHECK(!link_send(tr_conn_priv(s->conn), &message,
					      &(struct link_fds){ 1, { fd } }, &err));
			close(fd);
		}
		pair_send(s, "done", 4);
		conn[i] = s->conn;
	}
	PAIR_CHECK(pair_hear(s) == 2);
	for (int i = 0; i <= CONNS; i++)
		tr_conn_close(conn[i]);
	s->conn = NULL;
	pair_down(s);
}

CASE(pools_of_all_peers_leave_most_of_the_address_space_free)
{
	struct pair_config config = { .region = REGION };

#ifdef __SANITIZE_THREAD__
	print_message("skipped: ThreadSanitizer gives no address space for the pools\n");
	skip();
#endif
	assert_int_equal(pair_run(&config, crowded_victim, crowding_attacker), 0);
}

/* A region in a pool that was not mapped takes the next path. */
static void too_large(struct pair_side *s)
{
	struct kv_error err;
	void *big;

	pair_open(s);
	PAIR_CHECK(!tr_alloc(s->tr, (size_t)SHM_MAP_PEER_BYTES + 4096, &big, &err));
	PAIR_CHECK(!tr_mem_reg(s->tr, big, REGION, TR_MEM_HOST, TR_REMOTE_READ | TR_REMOTE_WRITE,
			       &s->mem, &err));
	PAIR_CHECK(!pair_connect(s, &err));
	if (!strstr(tr_conn_path(s->conn), "too large to map"))
		fprintf(stderr, "path: %s\n", tr_conn_path(s->conn));
	PAIR_CHECK(strstr(tr_conn_path(s->conn), "too large to map"));
	pair_meet(s);
	tr_conn_close(s->conn);
	s->conn = NULL;
	PAIR_CHECK(!tr_mem_dereg(s->mem, &err) && !tr_free(s->tr, big, &err));
	s->mem = NULL;
	pair_down(s);
}

CASE(a_pool_beyond_the_budget_is_reached_by_another_path)
{
	struct pair_config config = { 0 };

#ifdef __SANITIZE_THREAD__
	print_message("skipped: ThreadSanitizer gives no address space for the pool\n");
	skip();
#endif
	assert_int_equal(pair_run(&config, too_large, too_large), 0);
}

/* ---------------------------------------------------------------- and do */

static void rung_victim(struct pair_side *s)
{
	struct tr_counters before, after;

	pair_up(s);
	pair_meet(s);
	while (!tr_conn_arm(s->conn) && pair_poll(s, 0))
		;
	PAIR_CHECK(!tr_conn_arm(s->conn));
	pair_say(s, 1);
	PAIR_CHECK(pair_hear(s) >
		   SHM_LINK_MESSAGES + 16);   /* doorbells, the socket is full of them */
	s->conn->silence.look_ns = INT64_MAX; /* the clock's look comes besides */
	tr_conn_counters(s->conn, &before);
	for (int i = 0; i < SHM_UNLOOKED; i++) { /* one of so many polls looks at the socket */
		tr_conn_arm(s->conn);
		pair_poll(s, 0);
	}
	tr_conn_counters(s->conn, &after);
	PAIR_CHECK(after.syscalls - before.syscalls == SHM_LINK_MESSAGES);
	pair_meet(s);
	pair_down(s);
}

static void ringer(struct pair_side *s)
{
	struct link_message bell = { .kind = LINK_DOORBELL };
	int room = 8 << 20;
	struct shm_conn *sc;
	uint64_t rings = 0;

	pair_up(s);
	pair_meet(s);
	sc = tr_conn_priv(s->conn);
	/* As much as the system gives anybody: by default it holds more than the limit. */
	setsockopt(sc->sock, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	PAIR_CHECK(pair_hear(s) == 1);
	while (send(sc->sock, &bell, sizeof(bell), MSG_DONTWAIT) > 0)
		rings++;
	PAIR_CHECK(errno == EAGAIN);
	pair_say(s, rings);
	pair_meet(s);
	pair_down(s);
}

CASE(one_poll_takes_a_bounded_number_of_doorbells)
{
	struct pair_config config = { .region = REGION };

	assert_int_equal(pair_run(&config, rung_victim, ringer), 0);
}

static void ring_of_64_kib(struct pair_side *s)
{
	struct pair_config mine = *s->config;
	const struct shm_conn *sc;

	mine.ring = s->child == *(bool *)mine.arg ? 1 << 16 : 1 << 20;
	s->config = &mine;
	pair_up(s);
	sc = tr_conn_priv(s->conn);
	PAIR_CHECK(sc->seg.ring_bytes == 1 << 16);
	pair_meet(s);
	pair_down(s);
}

CASE(neither_side_gets_a_larger_ring_than_the_other_allows)
{
	for (int i = 0; i < 2; i++) {
		bool child_is_small = i;
		struct pair_config config = { .region = REGION, .arg = &child_is_small };

		assert_int_equal(pair_run(&config, ring_of_64_kib, ring_of_64_kib), 0);
	}
}
