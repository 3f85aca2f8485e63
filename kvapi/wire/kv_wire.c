/* SPDX-License-Identifier: Apache-2.0 */
/* kv_wire.c -- the bytes of kv_wire.h's messages; pure, the only file that knows them */
#include "kv_wire.h"

#include <string.h>

#include "base/wire.h"

_Static_assert(2 + KV_ACKS_MAX * 12 <= TR_MSG_MAX, "an ACK message must fit");
_Static_assert(14 + KV_RUNS_MAX * 6 <= TR_MSG_MAX, "an IDS message must fit");
_Static_assert(10 + KV_DIGESTS_MAX * 8 <= TR_MSG_MAX, "a DIGESTS message must fit");
_Static_assert(KV_LAYERS_MAX <= UINT16_MAX && KV_CACHES_MAX <= UINT8_MAX, "field widths");

static void put_ack(struct wire_writer *w, const struct kv_msg_ack *m)
{
	wire_put_u8(w, m->count);
	for (int i = 0; i < m->count; i++) {
		wire_put_u64(w, m->ack[i].op);
		wire_put_u32(w, (uint32_t)m->ack[i].status);
	}
}

static void get_ack(struct wire_reader *r, struct kv_msg_ack *m)
{
	m->count = wire_get_u8(r);
	if (!m->count || m->count > KV_ACKS_MAX)
		r->bad = true;
	for (int i = 0; i < m->count && !r->bad; i++) {
		m->ack[i].op = wire_get_u64(r);
		m->ack[i].status = (int32_t)wire_get_u32(r);
	}
}

static void put_begin(struct wire_writer *w, const struct kv_msg_begin *m)
{
	wire_put_u64(w, m->op);
	wire_put_u8(w, m->cache);
	wire_put_u16(w, m->first);
	wire_put_u16(w, m->count);
	wire_put_u32(w, m->blocks);
	wire_put_u64(w, m->bytes);
	wire_put_u64(w, m->lease);
	wire_put_u64(w, m->tag);
}

static bool layers_ok(uint16_t first, uint16_t count)
{
	return count && first + count <= KV_LAYERS_MAX;
}

static void get_begin(struct wire_reader *r, struct kv_msg_begin *m)
{
	m->op = wire_get_u64(r);
	m->cache = wire_get_u8(r);
	m->first = wire_get_u16(r);
	m->count = wire_get_u16(r);
	m->blocks = wire_get_u32(r);
	m->bytes = wire_get_u64(r);
	m->lease = wire_get_u64(r);
	m->tag = wire_get_u64(r);
	if (m->cache >= KV_CACHES_MAX || !layers_ok(m->first, m->count) || !m->blocks ||
	    m->blocks > KV_CALL_BLOCKS_MAX)
		r->bad = true;
}

static void put_lease(struct wire_writer *w, const struct kv_msg_lease *m)
{
	wire_put_u64(w, m->lease);
	wire_put_u64(w, m->tag);
	wire_put_u8(w, m->cache);
	wire_put_u8(w, m->flags);
	wire_put_u16(w, m->first);
	wire_put_u16(w, m->count);
	wire_put_u32(w, m->blocks);
}

static void get_lease(struct wire_reader *r, struct kv_msg_lease *m)
{
	m->lease = wire_get_u64(r);
	m->tag = wire_get_u64(r);
	m->cache = wire_get_u8(r);
	m->flags = wire_get_u8(r);
	m->first = wire_get_u16(r);
	m->count = wire_get_u16(r);
	m->blocks = wire_get_u32(r);
	if (m->cache >= KV_CACHES_MAX || m->flags & ~KV_LEASE_ONCE ||
	    !layers_ok(m->first, m->count) || !m->blocks || m->blocks > KV_LEASE_BLOCKS_MAX)
		r->bad = true;
}

static void put_ids(struct wire_writer *w, const struct kv_msg_ids *m)
{
	wire_put_u64(w, m->lease);
	wire_put_u32(w, m->at);
	wire_put_u8(w, m->runs);
	for (int i = 0; i < m->runs; i++) {
		wire_put_u32(w, m->run[i].first);
		wire_put_u16(w, m->run[i].count);
	}
}

static void get_ids(struct wire_reader *r, struct kv_msg_ids *m)
{
	m->lease = wire_get_u64(r);
	m->at = wire_get_u32(r);
	m->runs = wire_get_u8(r);
	if (!m->runs || m->runs > KV_RUNS_MAX)
		r->bad = true;
	for (int i = 0; i < m->runs && !r->bad; i++) {
		m->run[i].first = wire_get_u32(r);
		m->run[i].count = wire_get_u16(r);
		if (!m->run[i].count)
			r->bad = true;
	}
}

static void put_abort(struct wire_writer *w, const struct kv_msg_abort *m)
{
	wire_put_u64(w, m->op);
	wire_put_u64(w, m->lease);
	wire_put_u32(w, (uint32_t)m->status);
}

static void get_abort(struct wire_reader *r, struct kv_msg_abort *m)
{
	m->op = wire_get_u64(r);
	m->lease = wire_get_u64(r);
	m->status = (int32_t)wire_get_u32(r);
}

static void put_digests(struct wire_writer *w, const struct kv_msg_digests *m)
{
	wire_put_u64(w, m->op);
	wire_put_u8(w, m->count);
	for (int i = 0; i < m->count; i++) {
		wire_put_u32(w, m->block[i].block);
		wire_put_u32(w, m->block[i].digest);
	}
}

static void get_digests(struct wire_reader *r, struct kv_msg_digests *m)
{
	m->op = wire_get_u64(r);
	m->count = wire_get_u8(r);
	if (!m->count || m->count > KV_DIGESTS_MAX)
		r->bad = true;
	for (int i = 0; i < m->count && !r->bad; i++) {
		m->block[i].block = wire_get_u32(r);
		m->block[i].digest = wire_get_u32(r);
	}
}

static void put_wrong(struct wire_writer *w, const struct kv_msg_wrong *m)
{
	wire_put_u64(w, m->op);
	wire_put_u16(w, m->layer);
	wire_put_u8(w, m->tensor);
	wire_put_u32(w, m->block);
	wire_put_u32(w, m->index);
}

static void get_wrong(struct wire_reader *r, struct kv_msg_wrong *m)
{
	m->op = wire_get_u64(r);
	m->layer = wire_get_u16(r);
	m->tensor = wire_get_u8(r);
	m->block = wire_get_u32(r);
	m->index = wire_get_u32(r);
	if (m->layer >= KV_LAYERS_MAX || m->tensor >= KV_TENSORS_MAX)
		r->bad = true;
}

size_t kv_wire_put(const struct kv_msg *msg, void *buf, size_t cap)
{
	struct wire_writer w = wire_writer_of(buf, cap);

	wire_put_u8(&w, msg->type);
	switch (msg->type) {
	case KV_MSG_BEGIN:
	case KV_MSG_PROVE:
		put_begin(&w, &msg->begin);
		break;
	case KV_MSG_ACK:
		put_ack(&w, &msg->ack);
		break;
	case KV_MSG_ABORT:
		put_abort(&w, &msg->abort);
		break;
	case KV_MSG_LEASE:
		put_lease(&w, &msg->lease);
		break;
	case KV_MSG_IDS:
		put_ids(&w, &msg->ids);
		break;
	case KV_MSG_REVOKE:
	case KV_MSG_REVOKED:
		wire_put_u64(&w, msg->id.lease);
		break;
	case KV_MSG_DIGESTS:
		put_digests(&w, &msg->digests);
		break;
	case KV_MSG_WRONG:
		put_wrong(&w, &msg->wrong);
		break;
	default: /* BYE, ADOPTED, PING, PONG have no fields */
		break;
	}
	return w.bad ? 0 : w.len;
}

bool kv_wire_get(const void *buf, size_t len, struct kv_msg *msg)
{
	struct wire_reader r = wire_reader_of(buf, len);

	msg->type = wire_get_u8(&r);
	switch (msg->type) {
	case KV_MSG_BEGIN:
	case KV_MSG_PROVE:
		get_begin(&r, &msg->begin);
		break;
	case KV_MSG_ACK:
		get_ack(&r, &msg->ack);
		break;
	case KV_MSG_ABORT:
		get_abort(&r, &msg->abort);
		break;
	case KV_MSG_LEASE:
		get_lease(&r, &msg->lease);
		break;
	case KV_MSG_IDS:
		get_ids(&r, &msg->ids);
		break;
	case KV_MSG_REVOKE:
	case KV_MSG_REVOKED:
		msg->id.lease = wire_get_u64(&r);
		break;
	case KV_MSG_DIGESTS:
		get_digests(&r, &msg->digests);
		break;
	case KV_MSG_WRONG:
		get_wrong(&r, &msg->wrong);
		break;
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

static void put_geometry(struct wire_writer *w, const struct kv_geometry *g)
{
	wire_put_u8(w, (uint8_t)g->cache_id);
	wire_put_u16(w, (uint16_t)g->layers);
	wire_put_u32(w, g->blocks);
	wire_put_u32(w, g->tp_size);
	wire_put_u32(w, g->tp_rank);
	wire_put_u32(w, g->block_tokens);
	wire_put_u32(w, g->dtype);
	wire_put_u32(w, g->flags);
	wire_put_u32(w, g->kv_heads);
	wire_put_u8(w, (uint8_t)g->tensors);
	for (uint32_t i = 0; i < g->tensors; i++) {
		wire_put_string(w, g->tensor[i].name);
		wire_put_u64(w, g->tensor[i].block_bytes);
		wire_put_u8(w, (uint8_t)g->tensor[i].flags);
		wire_put_u8(w, (uint8_t)g->tensor[i].order);
	}
}

static void get_geometry(struct wire_reader *r, struct kv_geometry *g)
{
	memset(g, 0, sizeof(*g));
	g->cache_id = wire_get_u8(r);
	g->layers = wire_get_u16(r);
	g->blocks = wire_get_u32(r);
	g->tp_size = wire_get_u32(r);
	g->tp_rank = wire_get_u32(r);
	g->block_tokens = wire_get_u32(r);
	g->dtype = wire_get_u32(r);
	g->flags = wire_get_u32(r);
	g->kv_heads = wire_get_u32(r);
	g->tensors = wire_get_u8(r);
	if (g->tensors > KV_TENSORS_MAX)
		r->bad = true;
	for (uint32_t i = 0; i < g->tensors && !r->bad; i++) {
		wire_get_string(r, g->tensor[i].name, sizeof(g->tensor[i].name));
		g->tensor[i].block_bytes = wire_get_u64(r);
		g->tensor[i].flags = wire_get_u8(r);
		g->tensor[i].order = wire_get_u8(r);
	}
	if (!r->bad && kv_geometry_check(g, "connect", NULL))
		r->bad = true;
}

size_t kv_wire_put_hello(const struct kv_hello *hello, void *buf, size_t cap)
{
	struct wire_writer w = wire_writer_of(buf, cap);

	wire_put_string(&w, hello->name);
	wire_put_u64(&w, hello->comm);
	wire_put_u32(&w, hello->comm_rank);
	wire_put_u8(&w, (uint8_t)hello->caches);
	for (uint32_t i = 0; i < hello->caches; i++)
		put_geometry(&w, &hello->cache[i]);
	return w.bad ? 0 : w.len;
}

bool kv_wire_get_hello(const void *buf, size_t len, struct kv_hello *hello)
{
	struct wire_reader r = wire_reader_of(buf, len);
	uint32_t seen = 0;

	wire_get_string(&r, hello->name, sizeof(hello->name));
	hello->comm = wire_get_u64(&r);
	hello->comm_rank = wire_get_u32(&r);
	hello->caches = wire_get_u8(&r);
	if (hello->caches > KV_CACHES_MAX)
		return false;
	for (uint32_t i = 0; i < hello->caches && !r.bad; i++) {
		get_geometry(&r, &hello->cache[i]);
		if (!r.bad && seen & 1u << hello->cache[i].cache_id)
			return false; /* an id twice */
		if (!r.bad)
			seen |= 1u << hello->cache[i].cache_id;
	}
	return wire_done(&r);
}
