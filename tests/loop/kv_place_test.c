/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_place_test.c -- the ring, where the receiver moves the bytes: a peer that says anything it
 * likes writes into open blocks only, and a revocation holds at once, whatever the writer does
 */
#include "kv_rig.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "kv_api.h"
#include "shm/shm.h"

enum { N = 3, BYTES = 64, LATE_MS = 30 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t to[N] = { 10, 11, 95 };

/* ---------------------------------------------------------------- records that say anything */

struct lie {
	uint32_t layer, tensor;
	int64_t block;
	uint64_t skip; /* in the block */
	uint64_t len;
	bool with_lease; /* of blocks 10, 11 and 95 in every layer */
	bool read;
	bool lands, lost; /* what is to come of it */
};

/* A writer whose application puts one record of its own into the ring. */
static int liar(int fd, const void *arg)
{
	const struct lie *lie = arg;
	struct ring_record record = { .type = RING_DATA, .len = (uint32_t)lie->len };
	static uint8_t payload[4096];
	const struct kv_map *map;
	struct shm_conn *sc;
	struct node a;
	uint32_t port;

	child_receive(fd, &port, sizeof(port));
	node_open(&a, 1, NULL, NULL);
	node_connect(&a, port);
	child_receive(fd, &record.b, sizeof(record.b));
	if (!lie->with_lease)
		record.b = 0;
	map = &a.peer->link->map[0];
	record.a = map->slab[lie->layer * RIG_TENSORS + lie->tensor].offset +
		   (uint64_t)lie->block * map->stride[lie->tensor] + lie->skip;
	record.mem = map->slab[lie->layer * RIG_TENSORS + lie->tensor].rmem->id;
	memset(payload, 0xee, sizeof(payload));
	if (lie->read) {
		record = (struct ring_record){
			.type = RING_READ, .a = record.a, .b = lie->len, .mem = record.mem
		};
	}
	if (!kv_claim_until(&a.peer->claim, kv_deadline_ns(RIG_TIMEOUT_MS)))
		return 1;
	sc = tr_conn_priv(a.peer->conn);
	if (ring_fit(&sc->out, record.len, record.len, 0) < 0)
		return 1;
	ring_put(&sc->out, &record, payload);
	ring_publish(&sc->out);
	send(sc->sock, &(struct link_message){ .kind = LINK_DOORBELL }, sizeof(struct link_message),
	     0);
	kv_claim_release(&a.peer->claim);
	child_send(fd, "", 1);
	child_receive(fd, &port, 1);
	return 0;
}

static bool landed(const struct node *b)
{
	for (size_t i = 0; i < b->len; i++)
		if (b->mem[i] == 0xee && i + 1 < b->len && b->mem[i + 1] == 0xee &&
		    i + 2 < b->len && b->mem[i + 2] == 0xee && i + 3 < b->len &&
		    b->mem[i + 3] == 0xee)
			return true;
	return false;
}

static void try_lie(const struct lie *lie, uint32_t flags)
{
	struct shape shape = rig_shape;
	struct kv_arrival arrival;
	struct kv_lease *lease;
	struct kv_error err;
	struct child child;
	struct node b;
	uint64_t id;
	char byte;

	shape.flags = flags;
	child_start(&child, liar, lie);
	node_open(&b, 2, &shape, NULL);
	node_listen(&b);
	child_send(child.fd, &b.port, sizeof(b.port));
	node_await_peer(&b);
	ok(kv_blocks_open(b.peer, b.cache, to, N, 1, RIG_TIMEOUT_MS, &lease, &err), &err);
	id = kv_lease_id(lease);
	child_send(child.fd, &id, sizeof(id));
	child_receive(child.fd, &byte, 1);
	if (lie->lost)
		assert_true(await_kind(&b, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
	for (int64_t end = kv_deadline_ns(lie->lands ? RIG_TIMEOUT_MS : LATE_MS);
	     !landed(&b) && kv_now_ns() < end;)
		poll(NULL, 0, 1);
	assert_int_equal(landed(&b), lie->lands);
	if (!lie->lands)
		assert_true(memory_is(&b, all_layers, 1, NULL, NULL, 0, 0));
	child_send(child.fd, "", 1);
	assert_int_equal(child_join(&child), 0);
	node_close(&b);
}

static void a_record_is_placed_in_open_blocks_only(void **state)
{
	static const struct lie lies[] = {
		{ 0, 0, 10, 0, 512, true, false, .lands = true },
		{ 3, 0, 10, 100, 512 + 412, true, false, .lands = true }, /* 10 and 11 touch */
		{ 3, 1, 95, 8, 312, true, false, .lands = true },
		{ 0, 0, 11, 0, 1024, true, false, .lost = true }, /* and block 12 */
		{ 0, 0, 9, 0, BYTES, true, false, .lost = true },
		{ 0, 1, 95, 0, 330, true, false, .lost = true },    /* into the gap */
		{ 0, 0, 10, 0, 512, false, false, .lands = false }, /* names no lease */
		{ 0, 0, 10, 0, BYTES, true, true, .lost = true },   /* not READABLE */
	};

	(void)state;
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++)
		try_lie(&lies[i], 0);
}

static void an_open_cache_is_written_anywhere_but_between_its_blocks(void **state)
{
	static const struct lie lies[] = {
		{ 2, 0, 40, 0, 4096, false, false, .lands = true },
		{ 2, 1, 40, 0, 330, false, false, .lost = true },
		{ 2, 1, 40, 320, 8, false, false, .lost = true },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++)
		try_lie(&lies[i], KV_CACHE_OPEN | KV_CACHE_READABLE);
}

/* ---------------------------------------------------------------- revocation */

/* Writes under the lease until it is stopped from outside, and goes on after. */
static int writer(int fd, const void *arg)
{
	static const int64_t from[N] = { 5, 6, 7 };
	struct kv_error err;
	struct node a;
	uint64_t lease;
	uint32_t port;

	(void)arg;
	child_receive(fd, &port, sizeof(port));
	node_open(&a, 1, NULL, NULL);
	node_connect(&a, port);
	for (;;) {
		struct kv_options opts = KV_INIT(kv_options);
		int ret;

		child_receive(fd, &lease, sizeof(lease));
		if (!lease)
			break;
		opts.lease = lease;
		do {
			ret = kv_write_blocks(a.peer, a.cache, all_layers, from, to, N, &opts,
					      &err);
			child_send(fd, &ret, sizeof(ret));
		} while (!ret);
	}
	node_close(&a);
	return 0;
}

static int next_result(struct child *child)
{
	int ret;

	child_receive(child->fd, &ret, sizeof(ret));
	return ret;
}

static uint64_t open_to(struct node *b, struct child *child, struct kv_lease **lease_p)
{
	struct kv_error err;
	uint64_t id;

	ok(kv_blocks_open(b->peer, b->cache, to, N, 1, RIG_TIMEOUT_MS, lease_p, &err), &err);
	id = kv_lease_id(*lease_p);
	child_send(child->fd, &id, sizeof(id));
	return id;
}

/* The writer is stopped in the middle; its blocks are free at once, for it too, and it lives on. */
static void a_revocation_waits_for_nobody(void **state)
{
	struct shape shape = rig_shape;
	struct kv_lease *lease;
	struct kv_error err;
	struct child child;
	uint64_t none = 0;
	struct node b;

	(void)state;
	shape.flags = 0;
	child_start(&child, writer, NULL);
	node_open(&b, 2, &shape, NULL);
	node_listen(&b);
	child_send(child.fd, &b.port, sizeof(b.port));
	node_await_peer(&b);
	for (int round = 0; round < 8; round++) {
		int64_t begun;
		int ret;

		open_to(&b, &child, &lease);
		assert_int_equal(next_result(&child), 0);
		child_kill(&child, SIGSTOP);
		begun = kv_now_ns();
		ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
		assert_true(kv_now_ns() - begun < RIG_TIMEOUT_MS / 4 * KV_NS_PER_MS);
		fill_side(&b, 2, 0);
		if (round & 1) /* the same blocks again, before the writer has heard of it */
			open_to(&b, &child, &lease);
		child_kill(&child, SIGCONT);
		do
			ret = next_result(&child);
		while (!ret);
		assert_true(ret == KV_ERR_REVOKED || ret == KV_ERR_LEASE);
		if (!(round & 1)) {
			assert_true(memory_is(&b, all_layers, 1, NULL, NULL, 0, 0));
			continue;
		}
		assert_int_equal(next_result(&child), 0);
		ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
		do
			ret = next_result(&child);
		while (!ret);
		assert_true(ret == KV_ERR_REVOKED || ret == KV_ERR_LEASE);
	}
	await_stat(&b, leases_open, 0);
	child_send(child.fd, &none, sizeof(none));
	assert_int_equal(child_join(&child), 0);
	node_close(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_record_is_placed_in_open_blocks_only),
		cmocka_unit_test(an_open_cache_is_written_anywhere_but_between_its_blocks),
		cmocka_unit_test(a_revocation_waits_for_nobody),
	};

	setenv("KVCACHE_SHM_PATH", "ring", 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
