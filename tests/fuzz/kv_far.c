/* SPDX-License-Identifier: Apache-2.0 */
/* kv_far.c -- the peer of kv_fuzz: its hello and setup, its messages, commits and bytes */
#include <string.h>

#include "kv_digest.h"
#include "kv_world.h"

/* ---------------------------------------------------------------- the handshake */

static void far_geometry(const struct step *s)
{
	struct kv_geometry *g = &w.far;

	*g = (struct kv_geometry){
		.layers = LAYERS,
		.tensors = TENSORS,
		.blocks = BLOCKS + s->b % 3,
		.tp_size = 1,
		.flags = s->a & 3,
		.tensor = { { .name = "k", .block_bytes = block_bytes[0] },
			    { .name = "v", .block_bytes = block_bytes[1] } },
	};
	if (s->b & 0x10) { /* a rank of two, whose blocks are half as large */
		g->tp_size = 2;
		g->tp_rank = s->b >> 7;
		for (int t = 0; t < TENSORS; t++) {
			g->tensor[t].block_bytes /= 2;
			g->tensor[t].order = KV_ORDER_HND;
		}
	}
}

void far_words(const struct step *s)
{
	struct kv_hello hello = { .name = "far", .comm = w.comm, .caches = !(s->b & 0x20) };
	struct wire_writer out = wire_writer_of(w.setup, sizeof(w.setup));
	uint8_t region[TR_MEM_PACK_MAX];
	uint64_t at = 0, len = 0;
	size_t packed;

	far.features = s->a >> 5 & (KV_CAN_CHECK | KV_WANTS_CHECK | KV_SENDS_PONG);
	far_geometry(s);
	hello.cache[0] = w.far;
	w.hello_len = kv_wire_put_hello(&hello, w.hello, sizeof(w.hello));
	for (int t = 0; t < TENSORS; t++)
		len += LAYERS * w.far.blocks * w.far.tensor[t].block_bytes;
	packed = far_region(region, 5, TR_REMOTE_READ | TR_REMOTE_WRITE, len);
	wire_put_u8(&out, 0);
	wire_put_u16(&out, 1);
	wire_put_u16(&out, (uint16_t)packed);
	wire_put_bytes(&out, region, packed);
	for (int t = 0; t < TENSORS; t++)
		wire_put_u64(&out, w.far.tensor[t].block_bytes);
	for (int i = 0; i < SLABS; i++) {
		wire_put_u16(&out, 0);
		wire_put_u64(&out, at);
		at += w.far.blocks * w.far.tensor[i % TENSORS].block_bytes;
	}
	w.setup_len = hello.caches ? out.len : 0;
	if (s->how & 1 && w.hello_len)
		w.hello[s->c % w.hello_len] ^= (uint8_t)s->d;
	if (s->how & 2 && w.setup_len)
		w.setup[s->c % w.setup_len] ^= (uint8_t)s->d;
	if (s->how & 4 && w.setup_len)
		w.setup_len -= s->d % w.setup_len;
}

bool far_moves(void)
{
	switch (w.moves) {
	case 0:
		if (!far.connecting && !far_hear())
			return false;
		far_hello(TR_UPPER_KV, KV_WIRE_VERSION, w.hello, w.hello_len);
		break;
	case 1:
		if (!far_hear())
			return false;
		far_setup(w.setup, w.setup_len);
		break;
	case 2:
		if (!far.connecting || !far_hear())
			return false;
		far_send(FRAME_READY, NULL, 0);
		break;
	default:
		return false;
	}
	w.moves++;
	return true;
}

/* ---------------------------------------------------------------- the peer's words */

static void say(const struct kv_msg *msg)
{
	uint8_t buf[TR_MSG_MAX];

	w.words++;
	rig_say(buf, kv_wire_put(msg, buf, sizeof(buf)));
}

/* A lease of ours, open or not; none; or a number. */
static uint64_t some_lease(const struct step *s)
{
	unsigned int i = s->a % 8;

	if (!i)
		return 0;
	return i <= LEASES ? w.lease[i - 1].id : (uint64_t)s->f << 16 | (s->a >> 3);
}

/* An operation of the peer: the slot's last, the one after it, one before. */
static uint64_t some_op(const struct step *s)
{
	unsigned int slot = s->b % SLOTS;
	uint32_t generation = w.generation[slot];

	switch (s->how % 4) {
	case 1:
		generation = ++w.generation[slot];
		break;
	case 2:
		generation--;
		break;
	case 3:
		return (uint64_t)s->f << 16 | s->b;
	default:
		break;
	}
	return (uint64_t)generation << 16 | slot;
}

static uint64_t bytes_of(const struct kv_msg_begin *begin)
{
	uint64_t sum = 0;

	for (int t = 0; t < TENSORS; t++)
		sum += w.far.tensor[t].block_bytes < block_bytes[t] ? w.far.tensor[t].block_bytes
								    : block_bytes[t];
	return sum * begin->blocks * begin->count;
}

static void say_begin(const struct step *s, uint8_t type)
{
	struct kv_msg msg = { .type = type };

	msg.begin.op = some_op(s);
	msg.begin.cache = s->how >> 6;
	msg.begin.first = s->c % 3;
	msg.begin.count = (uint16_t)(1 + s->c / 3 % 3);
	msg.begin.blocks = 1 + s->d % BLOCKS;
	msg.begin.bytes = bytes_of(&msg.begin) + s->e;
	msg.begin.lease = some_lease(s);
	msg.begin.tag = s->f;
	say(&msg);
}

static void say_ack(const struct step *s)
{
	static const int32_t status[] = { 0, KV_ACK_VISIBLE, KV_ERR_REVOKED, KV_ERR_LEASE, 7 };
	struct kv_msg msg = { .type = KV_MSG_ACK };

	msg.ack.count = (uint8_t)(1 + s->a % 3);
	for (int i = 0; i < msg.ack.count; i++) {
		struct kv_ack *ack = &msg.ack.ack[i];

		ack->op = s->how & 0x80 ? s->f : w.begun[(s->b + i) % OPS] - (s->how >> 4 & 1);
		ack->status = status[s->how % 5];
		if (!ack->status)
			w.acked[w.acks++ % OPS] = ack->op;
	}
	say(&msg);
}

static void say_abort(const struct step *s)
{
	static const int32_t status[] = { KV_ERR_CANCELLED, KV_ERR_TIMEOUT, KV_ERR_GEOMETRY, 0 };

	say(&(struct kv_msg){ .type = KV_MSG_ABORT,
			      .abort = { some_op(s), some_lease(s), status[s->c % 4] } });
}

static uint64_t some_grant(const struct step *s)
{
	return s->how % 4 == 3 ? (uint64_t)s->f << 16 | s->a : w.grant_id[s->a % SLOTS];
}

static void say_lease(const struct step *s)
{
	unsigned int i = s->a % SLOTS;
	struct kv_msg msg = { .type = KV_MSG_LEASE };

	w.serial += s->how % 4 == 0;
	msg.lease.lease = s->how % 4 == 3 ? some_grant(s)
					  : (uint64_t)(w.serial - (s->how % 4 == 2)) << 16 | i;
	msg.lease.tag = s->d % 4;
	msg.lease.cache = s->how >> 6;
	msg.lease.flags = s->how >> 4 & 1;
	msg.lease.first = s->c % 3;
	msg.lease.count = (uint16_t)(1 + s->c / 3 % 3);
	msg.lease.blocks = 1 + s->b % (BLOCKS + 2);
	w.grant_id[i] = msg.lease.lease;
	w.grant_blocks[i] = w.grant_got[i] = 0;
	w.grant_n[i] = msg.lease.blocks;
	say(&msg);
}

static void say_ids(const struct step *s)
{
	unsigned int i = s->a % SLOTS;
	struct kv_msg msg = { .type = KV_MSG_IDS };

	msg.ids.lease = some_grant(s);
	msg.ids.at = s->how & 0x80 ? s->f : w.grant_got[i];
	msg.ids.runs = 1 + s->b % 3;
	for (int r = 0; r < msg.ids.runs; r++) {
		struct kv_run *run = &msg.ids.run[r];

		run->first = (uint32_t)(s->c >> 4 * r) % (BLOCKS + 2);
		run->count = (uint16_t)(1 + (uint32_t)(s->d >> 4 * r) % 4);
		if (s->how & 0x40)
			run->first = s->e;
		for (uint32_t k = 0; k < run->count && run->first < 32; k++)
			w.grant_blocks[i] |= 1u << (run->first + k) % 32;
		w.grant_got[i] += run->count;
	}
	say(&msg);
}

/* What an operation of ours has written, or one of the peer's: digests that are right, or not. */
static void say_digests(const struct step *s)
{
	struct kv_msg msg = { .type = KV_MSG_DIGESTS };
	uint32_t width = TENSORS * LAYERS;

	msg.digests.op = some_op(s);
	msg.digests.count = (uint8_t)(1 + s->c % KV_DIGESTS_MAX);
	for (uint32_t i = 0; i < msg.digests.count; i++) {
		uint32_t slab = i % width, block = (s->d + i / width) % BLOCKS;
		const uint8_t *at = memory + (slab * BLOCKS + block) * STRIDE;

		msg.digests.block[i].block = block;
		msg.digests.block[i].digest =
			kv_digest(at, block_bytes[slab % TENSORS], 0, 1) ^ s->e;
	}
	say(&msg);
}

static void say_wrong(const struct step *s)
{
	struct kv_msg msg = { .type = KV_MSG_WRONG };

	msg.wrong.op = w.begun[s->b % OPS];
	msg.wrong.layer = (uint16_t)(s->c % (LAYERS + 1));
	msg.wrong.tensor = (uint8_t)(s->d % (TENSORS + 1));
	msg.wrong.block = s->e;
	msg.wrong.index = s->f;
	say(&msg);
}

static void say_rest(const struct step *s)
{
	static const uint8_t bare[] = { KV_MSG_ADOPTED, KV_MSG_BYE, KV_MSG_PING, KV_MSG_PONG };

	switch (s->how % 8) {
	case 4:
		say_digests(s);
		break;
	case 5:
		say_wrong(s);
		break;
	case 6:
		say_begin(s, KV_MSG_PROVE);
		break;
	default:
		say(&(struct kv_msg){ .type = bare[s->how % 4] });
	}
}

/* A message with a byte that is wrong, or too short, or only bytes. */
static void say_broken(const struct step *s)
{
	struct kv_msg msg = { .type = (uint8_t)(KV_MSG_BEGIN + s->a % (KV_MSG_PONG + 1)) };
	uint8_t buf[TR_MSG_MAX] = { 0 };
	size_t len;

	msg.begin = (struct kv_msg_begin){ .count = 1, .blocks = 1 };
	if (msg.type == KV_MSG_ACK)
		msg.ack = (struct kv_msg_ack){ .count = 1 };
	if (msg.type == KV_MSG_IDS)
		msg.ids = (struct kv_msg_ids){ .runs = KV_RUNS_MAX };
	if (msg.type == KV_MSG_DIGESTS)
		msg.digests = (struct kv_msg_digests){ .count = KV_DIGESTS_MAX };
	if (msg.type == KV_MSG_LEASE)
		msg.lease = (struct kv_msg_lease){ .count = 1, .blocks = 1 };
	len = kv_wire_put(&msg, buf, sizeof(buf));
	buf[s->c % TR_MSG_MAX] ^= (uint8_t)s->d;
	if (s->how & 1)
		len = s->e % (TR_MSG_MAX + 1);
	w.words++;
	rig_say(buf, len);
}

/* ---------------------------------------------------------------- the peer's bytes */

/* Whether every byte of the region's part lies in a block that is open to that lease. */
static bool model_open(const uint8_t *at, uint64_t len, uint64_t id)
{
	const struct own_lease *lease = NULL;

	for (int i = 0; id && i < LEASES; i++)
		if (w.lease[i].id == id && w.lease[i].open)
			lease = &w.lease[i];
	if (id ? !lease : !(w.flags & KV_CACHE_OPEN))
		return false;
	check_local(at, len);
	for (size_t i = (size_t)(at - memory); lease && len; i++, len--)
		if (!(lease->blocks >> i / STRIDE % BLOCKS & 1) ||
		    slab_of(i) / TENSORS - lease->layers.first >= lease->layers.count)
			return false;
	return true;
}

static void place(const struct step *s, unsigned int access)
{
	const struct kv_slab *slab = &w.cache->slab[s->b % SLABS];
	uint64_t offset = slab->offset + s->c % (BLOCKS * STRIDE + 8), len = s->d % 200;
	uint64_t grant = access & TR_REMOTE_WRITE ? some_lease(s) : 0;
	uint8_t *at = slab->mem->addr + offset;
	int may;

	if (!is_alive() || w.peer->state != KV_PEER_UP || w.peer->conn->stage != CONN_READY)
		return;
	if (!len || offset > slab->mem->len || len > slab->mem->len - offset)
		return; /* the transport has looked at that */
	may = tr_conn_may(w.peer->conn, slab->mem, offset, len, access, grant);
	if (may != TR_PLACE) {
		FUZZ_CHECK(may == TR_DROP || may == KV_ERR_PROTOCOL);
		return;
	}
	if (access & TR_REMOTE_READ) {
		check_local(at, len);
		FUZZ_CHECK(w.flags & KV_CACHE_READABLE);
		return;
	}
	FUZZ_CHECK(model_open(at, len, grant));
	memset(at, s->e & 0xff, len);
	memset(shadow + (at - memory), s->e & 0xff, len);
}

void far_says(const struct step *s)
{
	switch (s->what % 12) {
	case 0:
	case 1:
		say_begin(s, KV_MSG_BEGIN);
		break;
	case 2:
		say_ack(s);
		break;
	case 3:
		say_abort(s);
		break;
	case 4:
		say_lease(s);
		break;
	case 5:
		say_ids(s);
		break;
	case 6:
		say(&(struct kv_msg){ .type = KV_MSG_REVOKE, .id = { some_grant(s) } });
		break;
	case 7:
		say(&(struct kv_msg){ .type = KV_MSG_REVOKED, .id = { some_lease(s) } });
		break;
	case 8:
		say_rest(s);
		break;
	case 9:
		say_broken(s);
		break;
	case 10:
		w.words++;
		rig_commit(some_op(s));
		break;
	default:
		place(s, s->how & 1 ? TR_REMOTE_READ : TR_REMOTE_WRITE);
	}
}
