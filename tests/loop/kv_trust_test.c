/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_trust_test.c -- what a peer learns and is given: of the caches that it named, and as another
 * user only through the receiver
 */
#include "lib/process.h"
#include "kv_rig.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "frame.h"
#include "kv_api.h"

enum { STRANGER = 65534, N = 3 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[N] = { 5, 6, 0 }, to[N] = { 10, 11, 95 };

/* ---------------------------------------------------------------- a hello that names no cache */

static int connect_raw(uint32_t port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct timeval patience = { .tv_sec = RIG_TIMEOUT_MS / 1000 };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	assert_true(fd >= 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	return fd;
}

/* Says hello with these caches and returns what the engine names in its own. */
static void hello_of(uint32_t port, const struct kv_hello *ours, struct kv_hello *theirs)
{
	uint8_t upper[TR_HELLO_MAX], buf[FRAME_HEADER + FRAME_HELLO_MAX];
	struct frame_hello hello = { .upper_id = TR_UPPER_KV, .upper_version = KV_WIRE_VERSION };
	struct wire_writer w = wire_writer_of(buf + FRAME_HEADER, FRAME_HELLO_MAX);
	struct frame_header header;
	int fd = connect_raw(port);

	hello.upper = (struct frame_bytes){ upper, kv_wire_put_hello(ours, upper, sizeof(upper)) };
	assert_true(hello.upper.len);
	frame_put_hello(&w, &hello);
	frame_put_header(buf, FRAME_HELLO, (uint32_t)w.len);
	assert_int_equal(send(fd, buf, FRAME_HEADER + w.len, MSG_NOSIGNAL), FRAME_HEADER + w.len);
	assert_int_equal(recv(fd, buf, FRAME_HEADER, MSG_WAITALL), FRAME_HEADER);
	assert_int_equal(frame_get_header(buf, &header), 0);
	assert_int_equal(header.type, FRAME_HELLO);
	assert_int_equal(recv(fd, buf, header.len, MSG_WAITALL), header.len);
	assert_int_equal(frame_get_hello(buf, header.len, &hello), 0);
	assert_true(kv_wire_get_hello(hello.upper.p, hello.upper.len, theirs));
	close(fd);
}

CASE(an_engine_tells_only_of_caches_that_the_peer_named)
{
	struct kv_hello ours = { .name = "stranger" }, theirs;
	struct node b;

	node_open(&b, 2, NULL, NULL);
	node_listen(&b);
	hello_of(b.port, &ours, &theirs);
	assert_int_equal(theirs.caches, 0);
	ours.caches = 1;
	ours.cache[0] = (struct kv_geometry){ .cache_id = 3,
					      .layers = 1,
					      .blocks = 1,
					      .tensors = 1,
					      .tp_size = 1,
					      .tensor = { { .name = "x", .block_bytes = 64 } } };
	hello_of(b.port, &ours, &theirs);
	assert_int_equal(theirs.caches, 0);
	node_close(&b);
}

/* A cache that the peer does not have is not counted as known to it. */
CASE(a_cache_that_the_peer_does_not_have_can_be_unregistered)
{
	struct kv_engine *bare;
	struct kv_peer *peer;
	struct kv_error err;
	struct node b;

	node_open(&b, 2, NULL, NULL);
	node_listen(&b);
	ok(kv_engine_open(NULL, &bare, &err), &err);
	ok(kv_connect(bare, NULL, b.port, RIG_TIMEOUT_MS, &peer, &err), &err);
	node_await_peer(&b);
	ok(kv_cache_unregister(b.cache, &err), &err);
	ok(kv_peer_close(peer, RIG_TIMEOUT_MS, &err), &err);
	kv_engine_close(bare);
	node_close(&b);
}

/* ---------------------------------------------------------------- another user */

struct attempt {
	int without, with; /* what a write without and with the lease returned */
	char path[96];
};

static int stranger(int fd, const void *arg)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_options opts = KV_INIT(kv_options);
	struct attempt attempt = { 0 };
	struct kv_error err;
	struct node a;
	char byte;

	if (setgid(STRANGER) || setuid(STRANGER))
		return 1;
	node_open(&a, 1, NULL, NULL);
	child_connects(fd, &a);
	child_receive(fd, &opts.lease, sizeof(opts.lease));
	attempt.without = kv_write_blocks(a.peer, a.cache, all_layers, from, to, N, NULL, &err);
	ok(kv_peer_info(a.peer, &info, &err), &err);
	snprintf(attempt.path, sizeof(attempt.path), "%s", info.path);
	child_send(fd, &attempt, sizeof(attempt));
	child_receive(fd, &byte, 1); /* the receiver has looked */
	attempt.with = kv_write_blocks(a.peer, a.cache, all_layers, from, to, N, &opts, &err);
	child_send(fd, &attempt, sizeof(attempt));
	child_receive(fd, &byte, 1);
	node_close(&a);
	return 0;
}

CASE(another_user_reaches_open_blocks_only_and_through_the_receiver)
{
	for (int malloced = 0; malloced < 2; malloced++) {
		struct shape shape = rig_shape;
		struct attempt attempt;
		struct kv_lease *lease;
		struct kv_error err;
		struct child child;
		struct node b;
		uint64_t id;

		if (geteuid()) {
			print_message("skipped: only root can act as another user\n");
			skip();
		}
		shape.flags = 0;
		shape.malloced = malloced;
		child_start(&child, stranger, NULL);
		node_open(&b, 2, &shape, NULL);
		node_listen(&b);
		child_send(child.fd, &b.port, sizeof(b.port));
		node_await_peer(&b);
		ok(kv_blocks_open(b.peer, b.cache, to, N, 1, RIG_TIMEOUT_MS, &lease, &err), &err);
		id = kv_lease_id(lease);
		child_send(child.fd, &id, sizeof(id));
		child_receive(child.fd, &attempt, sizeof(attempt));
		assert_non_null(strstr(attempt.path, "ring (the peer is another user's process)"));
		assert_int_not_equal(attempt.without, 0);
		assert_true(memory_is(&b, all_layers, 1, NULL, NULL, 0, 0));
		child_send(child.fd, "", 1);
		child_receive(child.fd, &attempt, sizeof(attempt));
		assert_int_equal(attempt.with, 0);
		assert_true(memory_is(&b, all_layers, 1, from, to, N, 0));
		child_send(child.fd, "", 1);
		assert_int_equal(child_join(&child), 0);
		node_close(&b);
	}
}

/* ---------------------------------------------------------------- memory on a peer's word */

enum { HUGE_BLOCKS = 4 << 20, HUGE_BLOCK = 64, RSS_MAX_KIB = 48 << 10 };

static void open_flat(struct node *node, uint32_t blocks)
{
	static const char *const lazy[] = { "KVCACHE_POOL_PAGES=lazy", NULL }; /* not counted */
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_tensor tensor = { .name = "k", .block_bytes = HUGE_BLOCK };
	struct kv_error err;
	void *memory;

	memset(node, 0, sizeof(*node));
	config.options = lazy;
	ok(kv_engine_open(&config, &node->engine, &err), &err);
	ok(kv_alloc(node->engine, (size_t)blocks * HUGE_BLOCK, &memory, &err), &err);
	tensor.base = memory;
	layout.layers = layout.tensors = 1;
	layout.blocks = blocks;
	layout.tensor = &tensor;
	ok(kv_cache_register(node->engine, &layout, &node->cache, &err), &err);
}

/* false: the peer is lost. */
static bool send_raw(struct kv_peer *peer, const struct kv_msg *msg)
{
	int ret;

	do {
		assert_true(kv_claim_until(&peer->claim, kv_deadline_ns(RIG_TIMEOUT_MS)));
		ret = peer->state == KV_PEER_UP ? kv_peer_send(peer, msg) : KV_ERR_PEER_LOST;
		kv_peer_release(peer);
	} while (ret == TR_AGAIN);
	return !ret;
}

/* A lease of `blocks` from `first` on: every step-th, each a run of its own, or all in few runs. */
static bool lend(struct kv_peer *peer, uint32_t serial, uint32_t first, uint32_t step)
{
	struct kv_msg msg = { .type = KV_MSG_LEASE };
	uint64_t id = (uint64_t)serial << 16 | serial % KV_LEASES_MAX;
	uint32_t at = 0;

	msg.lease.lease = id;
	msg.lease.count = 1;
	msg.lease.blocks = step > 1 ? 4000 : KV_LEASE_BLOCKS_MAX;
	if (!send_raw(peer, &msg))
		return false;
	while (at < (step > 1 ? 4000u : KV_LEASE_BLOCKS_MAX)) {
		memset(&msg, 0, sizeof(msg));
		msg.type = KV_MSG_IDS;
		msg.ids.lease = id;
		msg.ids.at = at;
		msg.ids.runs = step > 1 ? KV_RUNS_MAX : 2;
		for (int r = 0; r < msg.ids.runs; r++) {
			msg.ids.run[r].first = (first + at * step) % HUGE_BLOCKS;
			msg.ids.run[r].count = step > 1 ? 1 : 1 << 15;
			at += msg.ids.run[r].count;
		}
		if (!send_raw(peer, &msg))
			return false;
	}
	return true;
}

/* What 100 kB of messages say may not cost 100 MB: dense leases, and one block in each page. */
CASE(leases_cost_the_writer_no_more_than_its_budget)
{
	for (uint32_t step = 1; step < 2000; step += 1023) {
		struct kv_arrival arrival;
		struct node writer, hostile;
		uint32_t i;
		long before;

		open_flat(&writer, 8);
		open_flat(&hostile, HUGE_BLOCKS);
		node_listen(&writer);
		node_connect(&hostile, writer.port);
		before = resident_kib(getpid());
		for (i = 1; i < 200; i++)
			if (!lend(hostile.peer, i,
				  step > 1 ? i : (i - 1) * KV_LEASE_BLOCKS_MAX % HUGE_BLOCKS, step))
				break;
		/* The rest may have been sent before the writer looked at it. */
		assert_true(await_kind(&writer, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
		assert_int_equal(arrival.peer->error.code, KV_ERR_PROTOCOL);
		assert_non_null(strstr(arrival.peer->error.message, "its leases name more blocks"));
		printf("step %u: sent up to lease %u, memory grew by %ld KiB\n", step, i,
		       resident_kib(getpid()) - before);
		assert_true(resident_kib(getpid()) - before < RSS_MAX_KIB * RESIDENT_FACTOR);
		kv_engine_close(hostile.engine);
		kv_engine_close(writer.engine);
	}
}

enum { PEERS_RSS_MAX_KIB = 96 << 10 };

/* Waits until the writer has all blocks of that lease; false: it has dropped the peer. */
static bool has_lease(struct kv_peer *peer, uint32_t serial)
{
	int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS);
	bool has = false, lost = false;

	while (!has && !lost) {
		const struct kv_grant *grant;

		assert_true(kv_claim_until(&peer->claim, end));
		grant = serial % KV_LEASES_MAX < peer->link->grants
				? peer->link->grant[serial % KV_LEASES_MAX]
				: NULL;
		has = grant && grant->live && grant->got == KV_LEASE_BLOCKS_MAX;
		lost = peer->error.code;
		kv_peer_release(peer);
		assert_true(kv_now_ns() < end);
	}
	return has;
}

/* Lends as much as one peer may, nearly; false: it was lost. */
static bool lend_much(struct node *writer, struct kv_peer *peer)
{
	uint64_t begun = atomic_load(&writer->engine->charged), all = 0, each = 0;

	for (uint32_t i = 1; all + each <= KV_CHARGE_PEER; i++) {
		if (!lend(peer, i, (i - 1) * KV_LEASE_BLOCKS_MAX % HUGE_BLOCKS, 1) ||
		    !has_lease(writer->peer, i))
			return false;
		each = atomic_load(&writer->engine->charged) - begun - all;
		all += each;
	}
	return true;
}

/* Each within its own budget, and all of them not; those of one address leave some to others. */
CASE(leases_of_all_peers_cost_no_more_than_those_of_four)
{
	static const char *const hosts[] = { "127.0.0.1", "::1" };
	struct kv_arrival arrival;
	struct node writer, hostile;
	struct kv_peer *peer;
	struct kv_error err;
	int peers = 0, addresses = 2;
	long before;

	open_flat(&writer, 8);
	open_flat(&hostile, HUGE_BLOCKS);
	if (kv_listen(writer.engine, "::", 0, &writer.port, &err)) { /* no IPv6 here */
		node_listen(&writer);
		addresses = 1;
	}
	before = resident_kib(getpid());
	for (int i = 0; i < addresses; i++) {
		do {
			ok(kv_connect(hostile.engine, hosts[i], writer.port, RIG_TIMEOUT_MS, &peer,
				      &err),
			   &err);
			node_await_peer(&writer);
		} while (lend_much(&writer, peer) && ++peers < 6);
		assert_true(await_kind(&writer, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
		assert_int_equal(peers, i ? 4 : 3);
		assert_int_equal(arrival.peer->error.code, KV_ERR_NOMEM);
		assert_non_null(strstr(arrival.peer->error.message,
				       "for all its peers, or those of one address"));
	}
	printf("%d peers within their budgets: memory grew by %ld KiB\n", peers,
	       resident_kib(getpid()) - before);
	assert_true(resident_kib(getpid()) - before < PEERS_RSS_MAX_KIB * RESIDENT_FACTOR);
	kv_engine_close(hostile.engine);
	kv_engine_close(writer.engine);
}

enum { FDS_OF_A_PEER = 3 };

CASE(a_peer_costs_few_descriptors)
{
	struct shape shape = rig_shape;
	struct node a, b;
	struct kv_arrival arrival;
	int before;

	shape.malloced = true; /* process_vm, which has most */
	node_open(&a, 1, &shape, NULL);
	node_open(&b, 2, &shape, NULL);
	node_listen(&b);
	before = count_descriptors();
	node_connect(&a, b.port);
	assert_true(await_kind(&b, KV_ARRIVAL_PEER_UP, &arrival, RIG_TIMEOUT_MS));
	/* The control socket goes a moment after the handshake. */
	assert_true(descriptors_have_gone(before + 2 * FDS_OF_A_PEER));
	printf("%d descriptors at the two ends of a connection\n", count_descriptors() - before);
	node_close(&a);
	node_close(&b);
}
