/* SPDX-License-Identifier: Apache-2.0 */
/*
 * proof_kv_lease.c -- tr.h is enough for kv's acknowledgements, leases and revocation
 *
 * The receiver opens a lease of blocks with a message; the writer fills them and commits with the
 * lease in the notify; the receiver acknowledges with a message. A revoked lease is closed when the
 * writer has answered: it cancels what it was writing and answers after TR_CANCELLED. From then on
 * no byte of the lease may change, while other leases go on.
 *
 * usage: proof_kv_lease ib|shm
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "lib/slow.h"
#include "lib/test.h"
#include "rig.h"

enum { BLOCK = 4096, LEASE_BLOCKS = 24, LEASES = 8, BLOCKS = LEASES * LEASE_BLOCKS };
enum { ROUNDS = 40, BUDGET = 400000 };

enum what { OPEN = 1, ACK, REVOKE, REVOKED };

struct msg {
	uint32_t what, lease;
	uint16_t block[LEASE_BLOCKS];
};

enum stage { IDLE = 0, OPENED, COMMITTED, CLOSING, CLOSED };

/* One lease as each end sees it. */
struct lease {
	enum stage stage;
	struct msg open;
	struct tr_op *op; /* the writer's, NULL when it has ended */
	size_t added;
	uint8_t *copy; /* of the blocks when it was closed */
};

static struct rig rig;
static const char *transport;
static uint8_t *pool[2];
static struct tr_mem *mem[2];
static struct tr_rmem *seen;
static struct lease receiver[LEASES], writer[LEASES];
static uint32_t round_number, acked, revoked, late_commits;

static void say(int side, enum what what, uint32_t lease, const struct msg *open)
{
	struct msg msg = open ? *open : (struct msg){ 0 };
	int ret;

	msg.what = what;
	msg.lease = lease;
	while ((ret = tr_msg(rig.side[side].conn, &msg, sizeof(msg), NULL)) == TR_AGAIN)
		rig_pump(&rig);
	assert_int_equal(ret, 0);
}

static uint8_t want(uint32_t lease, size_t block, size_t at)
{
	return rig_byte((uint64_t)round_number << 8 | lease, block * BLOCK + at);
}

/* ---------------------------------------------------------------- writer */

static void writer_add(struct lease *l, uint32_t id)
{
	struct tr_span spans[LEASE_BLOCKS];
	long added;

	for (size_t i = 0; i < LEASE_BLOCKS; i++)
		spans[i] = (struct tr_span){ ((uint64_t)id * LEASE_BLOCKS + i) * BLOCK,
					     (uint64_t)l->open.block[i] * BLOCK, BLOCK };
	added = tr_op_add(l->op, mem[0], seen, spans + l->added,
			  l->added + 5 < LEASE_BLOCKS ? 5 : LEASE_BLOCKS - l->added, NULL);
	assert_true(added >= 0);
	l->added += (size_t)added;
}

/* A piece of each lease in turn; what is whole is committed. */
static void writer_step(void)
{
	struct rig_event *event;

	while ((event = rig_find(&rig, 0, TR_MSG))) {
		const struct msg *msg = (const void *)event->msg;
		struct lease *l = &writer[msg->lease];

		if (msg->what == OPEN) {
			*l = (struct lease){ .stage = OPENED, .open = *msg };
			assert_int_equal(
				tr_op_begin(rig.side[0].conn, TR_WRITE, msg->lease, &l->op, NULL),
				0);
		} else if (msg->what == ACK) {
			acked++;
		} else if (l->op) {
			assert_int_equal(tr_op_cancel(l->op, kv_deadline_ns(slow_ms(10000)), NULL),
					 0);
			l->stage = CLOSING;
		} else {
			say(0, REVOKED, msg->lease, NULL);
		}
	}
	for (uint32_t i = 0; i < LEASES; i++) {
		struct lease *l = &writer[i];

		if (l->stage != OPENED || !l->op)
			continue;
		if (l->added < LEASE_BLOCKS)
			writer_add(l, i);
		else if (!tr_op_commit(l->op, TR_NOTIFY, i, NULL))
			l->stage = COMMITTED;
	}
}

static void writer_ends(void)
{
	struct rig_event *event;

	while ((event = rig_find(&rig, 0, TR_WRITTEN)) ||
	       (event = rig_find(&rig, 0, TR_CANCELLED))) {
		struct lease *l = &writer[event->user];

		l->op = NULL;
		if (l->stage == CLOSING)
			say(0, REVOKED, (uint32_t)event->user, NULL);
	}
}

/* ---------------------------------------------------------------- receiver */

static void check_lease(uint32_t id, const struct lease *l)
{
	for (size_t i = 0; i < LEASE_BLOCKS; i++)
		for (size_t at = 0; at < BLOCK; at++)
			assert_int_equal(pool[1][(size_t)l->open.block[i] * BLOCK + at],
					 want(id, i, at));
}

static void close_lease(struct lease *l)
{
	l->stage = CLOSED;
	for (size_t i = 0; i < LEASE_BLOCKS; i++)
		memcpy(l->copy + i * BLOCK, pool[1] + (size_t)l->open.block[i] * BLOCK, BLOCK);
	revoked++;
}

static void receiver_step(void)
{
	struct rig_event *event;

	while ((event = rig_find(&rig, 1, TR_NOTIFIED))) {
		struct lease *l = &receiver[event->value];

		check_lease((uint32_t)event->value, l);
		late_commits +=
			l->stage == CLOSING; /* it overtook the revocation; its bytes are whole */
		if (l->stage == OPENED)
			l->stage = COMMITTED;
		say(1, ACK, (uint32_t)event->value, NULL);
	}
	while ((event = rig_find(&rig, 1, TR_MSG))) {
		const struct msg *msg = (const void *)event->msg;

		assert_int_equal(msg->what, REVOKED);
		assert_int_equal(receiver[msg->lease].stage, CLOSING);
		close_lease(&receiver[msg->lease]);
	}
}

static void open_leases(void)
{
	uint16_t shuffled[BLOCKS];

	for (uint32_t i = 0; i < BLOCKS; i++)
		shuffled[i] =
			(uint16_t)((i * 5 + round_number) % BLOCKS); /* 5 does not divide BLOCKS */
	for (uint32_t id = 0; id < LEASES; id++) {
		struct lease *l = &receiver[id];

		l->stage = OPENED;
		memcpy(l->open.block, shuffled + id * LEASE_BLOCKS, sizeof(l->open.block));
		for (size_t k = 0; k < (size_t)LEASE_BLOCKS * BLOCK; k++)
			pool[0][(size_t)id * LEASE_BLOCKS * BLOCK + k] =
				want(id, k / BLOCK, k % BLOCK);
		say(1, OPEN, id, &l->open);
	}
}

static bool all_over(void)
{
	for (uint32_t i = 0; i < LEASES; i++)
		if (receiver[i].stage == OPENED || receiver[i].stage == CLOSING || writer[i].op)
			return false;
	return true;
}

/* Every third lease is revoked, a little later in each round. */
static void one_round(void)
{
	uint32_t before = acked, commits = 0;

	memset(pool[1], 0xee, (size_t)BLOCKS * BLOCK);
	open_leases();
	for (uint32_t i = 0; i < BUDGET; i++) {
		for (uint32_t id = 0; id < LEASES; id += 3)
			if (i == round_number % 25 && receiver[id].stage == OPENED) {
				receiver[id].stage = CLOSING;
				say(1, REVOKE, id, NULL);
			}
		writer_step();
		rig_pump(&rig);
		writer_ends();
		receiver_step();
		if (i > 25 && all_over())
			break;
	}
	assert_true(all_over());
	fake_settle();
	for (uint32_t id = 0; id < LEASES; id++) {
		const struct lease *l = &receiver[id];

		commits += l->stage == COMMITTED;
		for (size_t i = 0; l->stage == CLOSED && i < LEASE_BLOCKS; i++)
			assert_memory_equal(l->copy + i * BLOCK,
					    pool[1] + (size_t)l->open.block[i] * BLOCK, BLOCK);
		if (l->stage == COMMITTED)
			check_lease(id, l);
	}
	for (int i = 0; i < BUDGET && acked - before < commits; i++) {
		rig_pump(&rig);
		writer_step();
	}
	assert_true(acked - before >= commits);
}

CASE(leases_are_acknowledged_or_revoked_and_then_nothing_changes)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=4", NULL };
	struct fake_config config = { .seed = 5 };

	fake_begin(&config);
	rig_make(&rig, transport, options);
	for (int i = 0; i < 2; i++) {
		pool[i] = aligned_alloc(4096, (size_t)BLOCKS * BLOCK);
		mem[i] = rig_reg(&rig, i, pool[i], (size_t)BLOCKS * BLOCK, TR_REMOTE_WRITE);
	}
	for (uint32_t i = 0; i < LEASES; i++)
		receiver[i].copy = malloc((size_t)LEASE_BLOCKS * BLOCK);
	seen = rig_see(&rig, 0, mem[1]);
	for (round_number = 0; round_number < ROUNDS; round_number++)
		one_round();
	assert_true(revoked > 0 && acked > 0);
	rig_disconnect(&rig);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(tr_mem_dereg(mem[i], NULL), 0);
		free(pool[i]);
	}
	for (uint32_t i = 0; i < LEASES; i++)
		free(receiver[i].copy);
	rig_close(&rig);
	assert_true(fake_end());
}

int main(int argc, char **argv)
{
	transport = argc > 1 ? argv[1] : "ib";
	return rig_skip(transport) ? 77 : run_cases(NULL, NULL);
}
