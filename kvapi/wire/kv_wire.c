/* SPDX-License-Identifier: Apache-2.0 */
/* kv_wire.c -- the bytes of kv_wire.h's messages; pure, the only file that knows them */
#include "kv_wire.h"

#include <string.h>

#include "base/wire.h"

_Static_assert(2 + KV_ACKS_MAX * 12 <= TR_MSG_MAX, "an ACK message must fit");
_Static_assert(14 + KV_RUNS_MAX * 6 <= TR_MSG_MAX, "an IDS message must fit");
_Static_assert(10 + KV_DIGESTS_MAX * 8 <= TR_MSG_MAX, "a DIGESTS message must fit");
_Static_assert(KV_LAYERS_MAX <= UINT16_MAX && KV_CACHES_MAX <= UINT8_MAX, "field widths");

/*
 * The fields of a message in their order, with their bytes. What writes it and what reads it are
 * made of this one list.
 */
#define BEGIN(F) \
	F(8, op) F(1, cache) F(2, first) F(2, count) F(4, blocks) F(8, bytes) F(8, lease) F(8, tag)
#define ACK(F) F(1, count)
#define ACK_EACH(F) F(8, ack[i].op) F(4, ack[i].status)
#define ABORT(F) F(8, op) F(8, lease) F(4, status)
#define LEASE(F) F(8, lease) F(8, tag) F(1, cache) F(1, flags) F(2, first) F(2, count) F(4, blocks)
#define IDS(F) F(8, lease) F(4, at) F(1, runs)
#define IDS_EACH(F) F(4, run[i].first) F(2, run[i].count)
#define ID(F) F(8, lease)
#define DIGESTS(F) F(8, op) F(1, count)
#define DIGESTS_EACH(F) F(4, block[i].block) F(4, block[i].digest)
#define WRONG(F) F(8, op) F(2, layer) F(1, tensor) F(4, block) F(4, index)
#define SHAPE(F) F(1, cache_id) F(2, layers) F(4, blocks) F(4, tp_size) F(4, tp_rank)
#define GEOMETRY(F) SHAPE(F) F(4, block_tokens) F(4, dtype) F(4, flags) F(4, kv_heads) F(1, tensors)
#define TENSOR(F) F(8, tensor[i].block_bytes) F(1, tensor[i].flags) F(1, tensor[i].order)
#define HELLO(F) F(8, comm) F(4, comm_rank) F(1, caches)

#define PUT(bytes, field) wire_put_uint(w, (uint64_t)m->field, bytes);
#define GET(bytes, field) m->field = (__typeof__(m->field))wire_get_uint(r, bytes);

#define MESSAGE(name, FIELDS, good)                                                  \
	static void put_##name(struct wire_writer *w, const struct kv_msg_##name *m) \
	{                                                                            \
		FIELDS(PUT)                                                          \
	}                                                                            \
	static void get_##name(struct wire_reader *r, struct kv_msg_##name *m)       \
	{                                                                            \
		FIELDS(GET)                                                          \
		if (!(good))                                                         \
			r->bad = true;                                               \
	}
/* One that ends in 1 to `most` of something; `good` is asked of each. */
#define MESSAGE_OF_MANY(name, FIELDS, number, most, EACH, good)                      \
	static void put_##name(struct wire_writer *w, const struct kv_msg_##name *m) \
	{                                                                            \
		FIELDS(PUT)                                                          \
		for (int i = 0; i < m->number; i++) {                                \
			EACH(PUT)                                                    \
		}                                                                    \
	}                                                                            \
	static void get_##name(struct wire_reader *r, struct kv_msg_##name *m)       \
	{                                                                            \
		FIELDS(GET)                                                          \
		if (!m->number || m->number > (most))                                \
			r->bad = true;                                               \
		for (int i = 0; i < m->number && !r->bad; i++) {                     \
			EACH(GET)                                                    \
			if (!(good))                                                 \
				r->bad = true;                                       \
		}                                                                    \
	}

static bool layers_ok(uint16_t first, uint16_t count)
{
	return count && first + count <= KV_LAYERS_MAX;
}

MESSAGE(begin, BEGIN,
	m->cache < KV_CACHES_MAX && layers_ok(m->first, m->count) && m->blocks &&
		m->blocks <= KV_CALL_BLOCKS_MAX)
MESSAGE_OF_MANY(ack, ACK, count, KV_ACKS_MAX, ACK_EACH, true)
MESSAGE(abort, ABORT, true)
MESSAGE(lease, LEASE,
	m->cache < KV_CACHES_MAX && !(m->flags & ~KV_LEASE_ONCE) && layers_ok(m->first, m->count) &&
		m->blocks && m->blocks <= KV_LEASE_BLOCKS_MAX)
MESSAGE_OF_MANY(ids, IDS, runs, KV_RUNS_MAX, IDS_EACH, m->run[i].count)
MESSAGE(id, ID, true)
MESSAGE_OF_MANY(digests, DIGESTS, count, KV_DIGESTS_MAX, DIGESTS_EACH, true)
MESSAGE(wrong, WRONG, m->layer < KV_LAYERS_MAX && m->tensor < KV_TENSORS_MAX)

/* BYE, ADOPTED, PING, PONG have no fields. */
#define MESSAGES(X)     \
	X(BEGIN, begin) \
	X(PROVE, begin) \
	X(ACK, ack)     \
	X(ABORT, abort) \
	X(LEASE, lease) X(IDS, ids) X(REVOKE, id) X(REVOKED, id) X(DIGESTS, digests) X(WRONG, wrong)

size_t kv_wire_put(const struct kv_msg *msg, void *buf, size_t cap)
{
	struct wire_writer w = wire_writer_of(buf, cap);

	wire_put_u8(&w, msg->type);
	switch (msg->type) {
#define PUT_MESSAGE(type, name)             \
	case KV_MSG_##type:                 \
		put_##name(&w, &msg->name); \
		break;
		MESSAGES(PUT_MESSAGE)
	default:
		break;
	}
	return w.bad ? 0 : w.len;
}

bool kv_wire_get(const void *buf, size_t len, struct kv_msg *msg)
{
	struct wire_reader r = wire_reader_of(buf, len);

	msg->type = wire_get_u8(&r);
	switch (msg->type) {
#define GET_MESSAGE(type, name)             \
	case KV_MSG_##type:                 \
		get_##name(&r, &msg->name); \
		break;
		MESSAGES(GET_MESSAGE)
	case KV_MSG_BYE:
	case KV_MSG_ADOPTED:
	case KV_MSG_PING:
	case KV_MSG_PONG:
		break;
	default:
		return false;
	}
	return wire_done(&r);
}

static void put_geometry(struct wire_writer *w, const struct kv_geometry *m)
{
	GEOMETRY(PUT)
	for (uint32_t i = 0; i < m->tensors; i++) {
		wire_put_string(w, m->tensor[i].name);
		TENSOR(PUT)
	}
}

static void get_geometry(struct wire_reader *r, struct kv_geometry *m)
{
	memset(m, 0, sizeof(*m));
	GEOMETRY(GET)
	if (m->tensors > KV_TENSORS_MAX)
		r->bad = true;
	for (uint32_t i = 0; i < m->tensors && !r->bad; i++) {
		wire_get_string(r, m->tensor[i].name, sizeof(m->tensor[i].name));
		TENSOR(GET)
	}
	if (!r->bad && kv_geometry_check(m, "connect", NULL))
		r->bad = true;
}

size_t kv_wire_put_hello(const struct kv_hello *m, void *buf, size_t cap)
{
	struct wire_writer cursor = wire_writer_of(buf, cap), *w = &cursor;

	wire_put_string(w, m->name);
	HELLO(PUT)
	for (uint32_t i = 0; i < m->caches; i++)
		put_geometry(w, &m->cache[i]);
	return w->bad ? 0 : w->len;
}

bool kv_wire_get_hello(const void *buf, size_t len, struct kv_hello *m)
{
	struct wire_reader cursor = wire_reader_of(buf, len), *r = &cursor;
	uint32_t seen = 0;

	wire_get_string(r, m->name, sizeof(m->name));
	HELLO(GET)
	if (m->caches > KV_CACHES_MAX)
		return false;
	for (uint32_t i = 0; i < m->caches && !r->bad; i++) {
		get_geometry(r, &m->cache[i]);
		if (!r->bad && seen & 1u << m->cache[i].cache_id)
			return false; /* an id twice */
		if (!r->bad)
			seen |= 1u << m->cache[i].cache_id;
	}
	return wire_done(r);
}
