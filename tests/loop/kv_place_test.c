/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_place_test.c -- where the receiver moves the bytes: a peer that says anything it likes writes
 * into open blocks only, and a revocation holds at once, whatever the writer does
 *
 * usage: kv_place_test ring|tcp
 */
#include "kv_rig.h"

#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "kv_api.h"
#include "shm/shm.h"
#include "tcp/tcp.h"

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

static bool on_tcp;

/* Where a lie goes: what both ways say of it. */
struct aim {
	uint32_t mem;
	uint64_t offset, grant;
	const uint8_t *payload;
};

static void lie_in_ring(struct shm_conn *sc, const struct lie *lie, const struct aim *aim)
{
	struct ring_record record = { .type = RING_DATA,
				      .len = (uint32_t)lie->len,
				      .a = aim->offset,
				      .b = aim->grant,
				      .mem = aim->mem };

	if (lie->read)
		record = (struct ring_record){
			.type = RING_READ, .a = aim->offset, .b = lie->len, .mem = aim->mem
		};
	assert_true(ring_fit(&sc->out, record.len, record.len, 0) >= 0);
	ring_put(&sc->out, &record, aim->payload);
	ring_publish(&sc->out);
	send(sc->sock, &(struct link_message){ .kind = LINK_DOORBELL }, sizeof(struct link_message),
	     0);
}

static void send_all(int sock, const void *p, size_t n)
{
	assert_int_equal(send(sock, p, n, MSG_NOSIGNAL), (ssize_t)n);
}

static void send_header(struct tcp_conn *tc, const struct stream_frame *frame,
			const struct stream_span *span)
{
	uint8_t header[STREAM_HEADER_MAX];
	struct wire_writer w = wire_writer_of(header, sizeof(header));

	stream_put(&w, frame, span);
	send_all(tc->data->stream[0].sock, header, w.len);
}

static void lie_on_tcp(struct tcp_conn *tc, const struct lie *lie, const struct aim *aim)
{
	struct stream_span span = { aim->offset, (uint32_t)lie->len };
	struct stream_frame frame = { .type = lie->read ? STREAM_READ : STREAM_DATA,
				      .spans = 1,
				      .payload = lie->read ? 0 : (uint32_t)lie->len,
				      .number = aim->mem,
				      .value = lie->read ? 0 : aim->grant };

	send_header(tc, &frame, &span);
	if (!lie->read) /* the header may have ended the connection */
		send(tc->data->stream[0].sock, aim->payload, lie->len, MSG_NOSIGNAL);
}

static struct aim aim_at(struct node *a, const struct lie *lie, const uint8_t *payload)
{
	const struct kv_map *map = a->peer->link->map[0];
	const struct kv_rslab *slab = &map->slab[lie->layer * RIG_TENSORS + lie->tensor];

	return (struct aim){
		.mem = slab->rmem->id,
		.offset =
			slab->offset + (uint64_t)lie->block * map->stride[lie->tensor] + lie->skip,
		.payload = payload,
	};
}

/* A writer whose application puts one record of its own among the engine's. */
static int liar(int fd, const void *arg)
{
	const struct lie *lie = arg;
	static uint8_t payload[4096];
	struct node a;
	uint64_t lease;
	struct aim aim;
	char byte;

	node_open(&a, 1, NULL, NULL);
	child_connects(fd, &a);
	child_receive(fd, &lease, sizeof(lease));
	memset(payload, 0xee, sizeof(payload));
	aim = aim_at(&a, lie, payload);
	aim.grant = lie->with_lease ? lease : 0;
	if (!kv_claim_until(&a.peer->claim, kv_deadline_ns(RIG_TIMEOUT_MS)))
		return 1;
	if (on_tcp)
		lie_on_tcp(tr_conn_priv(a.peer->conn), lie, &aim);
	else
		lie_in_ring(tr_conn_priv(a.peer->conn), lie, &aim);
	kv_claim_release(&a.peer->claim);
	child_send(fd, "", 1);
	child_receive(fd, &byte, 1);
	return 0;
}

/* Bytes are placed under it: with it the memory can be looked at. */
static void claim(struct node *b)
{
	assert_true(kv_claim_until(&b->peer->claim, kv_deadline_ns(RIG_TIMEOUT_MS)));
}

static bool landed(struct node *b)
{
	static const uint8_t some[4] = { 0xee, 0xee, 0xee, 0xee };
	bool are;

	claim(b);
	are = memmem(b->mem, b->len, some, sizeof(some));
	kv_claim_release(&b->peer->claim);
	return are;
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

CASE(a_record_is_placed_in_open_blocks_only)
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

	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++)
		try_lie(&lies[i], 0);
}

CASE(an_open_cache_is_written_anywhere_but_between_its_blocks)
{
	static const struct lie lies[] = {
		{ 2, 0, 40, 0, 4096, false, false, .lands = true },
		{ 2, 1, 40, 0, 330, false, false, .lost = true },
		{ 2, 1, 40, 320, 8, false, false, .lost = true },
	};

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

	node_open(&a, 1, NULL, NULL);
	child_connects(fd, &a);
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
CASE(a_revocation_waits_for_nobody)
{
	struct shape shape = rig_shape;
	struct kv_lease *lease;
	struct kv_error err;
	struct child child;
	uint64_t none = 0;
	struct node b;

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

/* ---------------------------------------------------------------- half a frame */

static const struct lie half = { .block = 10, .len = 512 };

/* Sends the first half of a block, stops until the parent says so, and sends the second. */
static int half_writer(int fd, const void *arg)
{
	static uint8_t payload[512];
	struct node a;
	struct aim aim;
	struct tcp_conn *tc;
	uint64_t lease;
	char byte;

	node_open(&a, 1, NULL, NULL);
	child_connects(fd, &a);
	child_receive(fd, &lease, sizeof(lease));
	memset(payload, 0xee, sizeof(payload));
	aim = aim_at(&a, &half, payload);
	if (!kv_claim_until(&a.peer->claim, kv_deadline_ns(RIG_TIMEOUT_MS)))
		return 1;
	tc = tr_conn_priv(a.peer->conn);
	send_header(tc,
		    &(struct stream_frame){ .type = STREAM_DATA,
					    .spans = 1,
					    .payload = (uint32_t)half.len,
					    .number = aim.mem,
					    .value = lease },
		    &(struct stream_span){ aim.offset, (uint32_t)half.len });
	send_all(tc->data->stream[0].sock, payload, half.len / 2);
	child_send(fd, "", 1);
	child_receive(fd, &byte, 1);
	send_all(tc->data->stream[0].sock, payload, half.len / 2);
	kv_claim_release(&a.peer->claim);
	ok(kv_peer_close(a.peer, RIG_TIMEOUT_MS, &a.err), &a.err);
	node_close(&a);
	child_send(fd, "", 1);
	return 0;
}

static bool half_is(struct node *b, uint8_t byte)
{
	const uint8_t *p = block_at(b, 0, 0, half.block);
	bool is;

	claim(b);
	is = p[0] == byte && p[half.len / 2 - 1] == byte;
	kv_claim_release(&b->peer->claim);
	return is;
}

CASE(the_rest_of_a_frame_does_not_land_after_a_revoke)
{
	int64_t deadline_ns;
	struct shape shape = rig_shape;
	struct kv_lease *lease;
	struct kv_error err;
	struct child child;
	struct node b;
	char byte;

	shape.flags = 0;
	child_start(&child, half_writer, NULL);
	node_open(&b, 2, &shape, NULL);
	node_listen(&b);
	child_send(child.fd, &b.port, sizeof(b.port));
	node_await_peer(&b);
	open_to(&b, &child, &lease);
	child_receive(child.fd, &byte, 1);
	deadline_ns = kv_deadline_ns(RIG_TIMEOUT_MS);
	while (!half_is(&b, 0xee) && kv_now_ns() < deadline_ns)
		poll(NULL, 0, 1);
	assert_true(half_is(&b, 0xee)); /* what was open was placed */
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
	fill_side(&b, 2, 0);
	child_send(child.fd, "", 1);
	child_receive(child.fd, &byte, 1); /* the rest was sent, and its sender is gone */
	await_stat(&b, peers_now, 0);
	assert_true(memory_is(&b, all_layers, 1, NULL, NULL, 0, 0));
	assert_int_equal(child_join(&child), 0);
	node_close(&b);
}

int main(int argc, char **argv)
{
	rig_path(argc > 1 ? argv[1] : "ring");
	on_tcp = argc > 1 && !strcmp(argv[1], "tcp");
	if (!on_tcp) /* a record of a ring is there as a whole */
		cmocka_set_skip_filter("the_rest_*");
	return run_cases(NULL, NULL);
}
