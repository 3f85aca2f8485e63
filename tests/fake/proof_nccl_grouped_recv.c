/* SPDX-License-Identifier: Apache-2.0 */
/*
 * proof_nccl_grouped_recv.c -- tr.h is enough for NCCL's isend and irecv
 *
 * The receiver opens groups of up to 8 receives, 32 groups at one time, each with one clear-to-send
 * message: slot, and per row tag, offset, room. The sender's isend takes the row of its tag in the
 * oldest group that is not full and writes there; the notify carries slot, row and size. A group is
 * done when all of its rows were notified. Sizes may be 0, and larger than the room (the send is
 * clamped).
 *
 * usage: proof_nccl_grouped_recv ib|shm
 */
#include <stdlib.h>
#include <string.h>

#include "lib/test.h"
#include "rig.h"

enum { ROWS = 8, OPEN = 32, ROOM = 12000, PITCH = 12288, GROUPS = 700, BUDGET = 400000 };

struct row {
	uint32_t tag, room;
	uint64_t offset;
};

struct cts { /* a message: 8 + 8 x 16 bytes */
	uint32_t slot, n;
	struct row row[ROWS];
};

struct group {
	struct cts cts;
	uint32_t filled, size[ROWS];
	bool taken[ROWS];
};

static struct rig rig;
static const char *transport;
static uint64_t chance = 88172645463325252;

static uint32_t roll(uint32_t below)
{
	chance ^= chance << 13;
	chance ^= chance >> 7;
	chance ^= chance << 17;
	return (uint32_t)(chance >> 20) % below;
}

/*
 * What the test knows of both sides: the size that is to be sent under a tag, and the byte at an
 * offset of it.
 */
static uint32_t size_of(uint32_t tag)
{
	return tag % 5 == 0 ? 0 : tag % 7 == 0 ? ROOM + 500 : (tag * 2654435761u >> 8) % ROOM;
}

static uint32_t arriving(uint32_t tag)
{
	return size_of(tag) < ROOM ? size_of(tag) : ROOM;
}

/* ---------------------------------------------------------------- receiver */

static uint8_t *in;
static struct group posted[OPEN];
static uint32_t opened, finished;

static int irecv(void)
{
	struct group *g = &posted[opened % OPEN];
	int ret;

	*g = (struct group){ .cts = { .slot = opened % OPEN, .n = 1 + roll(ROWS) } };
	for (uint32_t i = 0; i < g->cts.n; i++)
		g->cts.row[i] = (struct row){
			.tag = opened * ROWS + i,
			.room = ROOM,
			.offset = ((uint64_t)g->cts.slot * ROWS + i) * PITCH,
		};
	for (uint32_t i = 0; i < ROWS; i++)
		memset(in + ((size_t)g->cts.slot * ROWS + i) * PITCH, 0xee, PITCH);
	ret = tr_msg(rig.side[1].conn, &g->cts, 8 + g->cts.n * sizeof(struct row), NULL);
	assert_true(ret >= 0);
	opened += !ret;
	return ret;
}

static void check_group(const struct group *g)
{
	for (uint32_t i = 0; i < g->cts.n; i++) {
		const uint8_t *at = in + g->cts.row[i].offset;
		uint32_t tag = g->cts.row[i].tag;

		assert_int_equal(g->size[i], arriving(tag));
		for (uint32_t k = 0; k < PITCH; k++)
			assert_int_equal(at[k], k < g->size[i] ? rig_byte(tag, k) : 0xee);
	}
}

static void receive(void)
{
	struct rig_event *event;

	while ((event = rig_find(&rig, 1, TR_NOTIFIED))) {
		struct group *g = &posted[event->value >> 40 & 0xff];
		uint32_t i = event->value >> 32 & 0xff;

		assert_true(i < g->cts.n && !g->taken[i]);
		g->taken[i] = true;
		g->size[i] = (uint32_t)event->value;
		g->filled++;
	}
	/* Groups are done in order, as NCCL tests its requests. */
	while (finished < opened && posted[finished % OPEN].filled == posted[finished % OPEN].cts.n)
		check_group(&posted[finished++ % OPEN]);
}

/* ---------------------------------------------------------------- sender */

static uint8_t *out;
static struct tr_mem *out_mem;
static struct tr_rmem *in_seen;
static struct group clear[OPEN];
static uint32_t clears, sends, written;
static uint32_t current, order[ROWS];

static void take_clears(void)
{
	struct rig_event *event;

	while ((event = rig_find(&rig, 0, TR_MSG))) {
		struct group *g = &clear[clears++ % OPEN];

		*g = (struct group){ 0 };
		memcpy(&g->cts, event->msg, event->len);
	}
	while ((event = rig_find(&rig, 0, TR_WRITTEN)))
		written++;
}

/* NULL of NCCL's isend: no clear-to-send for the tag yet, or no room; called again. */
static int isend(const struct group *g, uint32_t i)
{
	const struct row *row = &g->cts.row[i];
	uint32_t len = size_of(row->tag) < row->room ? size_of(row->tag) : row->room;
	uint64_t from = row->offset; /* a source of its own for each row that is open */
	struct tr_span span = { from, row->offset, len };
	uint64_t value = (uint64_t)g->cts.slot << 40 | (uint64_t)i << 32 | len;
	struct tr_op *op;

	if (sends - written >= OPEN * ROWS / 2)
		return TR_AGAIN;
	for (uint32_t k = 0; k < len; k++)
		out[from + k] = rig_byte(row->tag, k);
	assert_int_equal(rig_try_op(&rig, 0, TR_WRITE, sends, out_mem, in_seen, &span, len ? 1 : 0,
				    TR_NOTIFY, value, &op, NULL),
			 0);
	sends++;
	return 0;
}

/* The sends of the oldest group in an order of its own. */
static void send_some(void)
{
	struct group *g = &clear[current % OPEN];

	if (current == clears)
		return;
	if (!g->filled)
		for (uint32_t i = 0; i < g->cts.n; i++) {
			uint32_t k = roll(i + 1);

			order[i] = order[k];
			order[k] = i;
		}
	while (g->filled < g->cts.n && !isend(g, order[g->filled]))
		g->filled++;
	current += g->filled == g->cts.n;
}

CASE(grouped_receives_of_eight_with_32_outstanding)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=3", NULL };
	struct fake_config config = { .seed = 11, .devices = 2 };
	struct tr_mem *in_mem;
	uint32_t most = 0;

	fake_begin(&config);
	rig_make(&rig, transport, options);
	in = aligned_alloc(4096, (size_t)OPEN * ROWS * PITCH);
	out = aligned_alloc(4096, (size_t)OPEN * ROWS * PITCH);
	in_mem = rig_reg(&rig, 1, in, (size_t)OPEN * ROWS * PITCH, TR_REMOTE_WRITE);
	out_mem = rig_reg(&rig, 0, out, (size_t)OPEN * ROWS * PITCH, 0);
	in_seen = rig_see(&rig, 0, in_mem);
	for (int i = 0; i < BUDGET && finished < GROUPS; i++) {
		while (opened < GROUPS && opened - finished < OPEN && !irecv())
			;
		most = opened - finished > most ? opened - finished : most;
		take_clears();
		send_some();
		rig_pump(&rig);
		receive();
	}
	assert_int_equal(finished, GROUPS);
	assert_int_equal(most, OPEN);
	while (written < sends) {
		rig_pump(&rig);
		take_clears();
	}
	rig_disconnect(&rig);
	assert_int_equal(tr_mem_dereg(in_mem, NULL), 0);
	assert_int_equal(tr_mem_dereg(out_mem, NULL), 0);
	rig_close(&rig);
	free(in);
	free(out);
	assert_true(fake_end());
}

int main(int argc, char **argv)
{
	transport = argc > 1 ? argv[1] : "ib";
	return rig_skip(transport) ? 77 : run_cases(NULL, NULL);
}
