/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scatter.c -- slots of the peer (slot.h): what is in one is checked, and placed
 *
 * The peer can write into its slots at any time: a span of a table is read once, checked, and only
 * then used. Bytes may change while they are copied; that only harms bytes that it may choose.
 */
#include <endian.h>
#include <string.h>

#include "base/error.h"
#include "slot.h"

static int refuse_slot(const struct staged_message *message, const char *what, struct kv_error *err)
{
	return kv_fail(err, KV_ERR_PROTOCOL, "gpu",
		       "the peer's slot (kind %u, %u spans, %u bytes) %s", message->kind,
		       message->spans, message->bytes, what);
}

struct place {
	uint32_t mem, len;
	uint64_t offset;
};

static struct place place_at(const uint8_t *table, uint16_t i)
{
	const uint64_t *words = (const uint64_t *)(const void *)(table + i * STAGED_SPAN);
	uint64_t first = le64toh(__atomic_load_n(&words[0], __ATOMIC_RELAXED));

	return (struct place){ .mem = (uint32_t)first,
			       .len = (uint32_t)(first >> 32),
			       .offset = le64toh(__atomic_load_n(&words[1], __ATOMIC_RELAXED)) };
}

static int copy_in(struct ib_conn *c, struct tr_mem *mem, uint8_t *to, const uint8_t *from,
		   uint32_t n, struct kv_error *err)
{
	int ret;

	if (!stage_region(mem)) {
		memcpy(to, from, n);
		return 0;
	}
	ret = ib_staged_open(c, mem, false, err);
	return ret ? ret
		   : stage_put(c->staged->scatter, mem, false, (uint8_t *)(uintptr_t)from, to, n,
			       err);
}

static int place_span(struct ib_conn *c, const struct staged_message *message,
		      const struct place *place, const uint8_t *bytes, struct kv_error *err)
{
	struct tr_mem *mem =
		tr_conn_reach(c->conn, place->mem, place->offset, place->len, TR_REMOTE_WRITE);
	int ret = 0, may = mem ? tr_conn_may(c->conn, mem, place->offset, place->len,
					     TR_REMOTE_WRITE, message->word)
			       : KV_ERR_PROTOCOL;

	if (may == TR_PLACE)
		ret = copy_in(c, mem, mem->addr + place->offset, bytes, place->len, err);
	if (mem)
		tr_mem_put(mem);
	return may < 0 ? refuse_slot(message, "writes outside the memory that was opened to it",
				     err)
		       : ret;
}

static int place_writes(struct ib_conn *c, const struct staged_message *message,
			const uint8_t *slot, struct kv_error *err)
{
	struct ib_staged *s = c->staged;
	const uint8_t *bytes = slot + message->spans * STAGED_SPAN;

	while (s->span < message->spans) {
		struct place place = place_at(slot, s->span);
		int ret = !place.len || place.len > message->bytes - s->at
				  ? refuse_slot(message, "has fewer bytes than spans", err)
				  : place_span(c, message, &place, bytes + s->at, err);

		if (ret)
			return ret;
		s->at += place.len;
		s->span++;
	}
	return s->at == message->bytes ? 0 : refuse_slot(message, "has more bytes than spans", err);
}

static int place_answers(struct ib_conn *c, const struct staged_message *message,
			 const uint8_t *bytes, struct kv_error *err)
{
	struct ib_staged *s = c->staged;

	while (s->at < message->bytes) {
		struct staged_read *read = &s->read[s->read_next % STAGED_READS];
		uint32_t n = message->bytes - s->at;
		int ret = 0;

		if (s->read_next == s->read_tail)
			return refuse_slot(message, "answers no read", err);
		n = read->left < n ? read->left : n;
		if (read->dst)
			ret = copy_in(c, read->mem, read->dst, bytes + s->at, n, err);
		if (ret)
			return ret;
		if (read->dst)
			read->dst += n;
		read->left -= n;
		s->read_next += !read->left;
		s->at += n;
	}
	return 0;
}

static int take_requests(struct ib_conn *c, const struct staged_message *message,
			 const uint8_t *slot, struct kv_error *err)
{
	struct ib_staged *s = c->staged;

	for (uint16_t i = 0; i < message->spans; i++) {
		struct place place = place_at(slot, i);
		struct tr_mem *mem =
			tr_conn_reach(c->conn, place.mem, place.offset, place.len, TR_REMOTE_READ);
		bool may = mem && place.len &&
			   tr_conn_may(c->conn, mem, place.offset, place.len, TR_REMOTE_READ, 0) ==
				   TR_PLACE;

		if (mem)
			tr_mem_put(mem);
		if (!may)
			return refuse_slot(message,
					   "reads outside the memory that was opened to it", err);
		if (s->answer_tail - s->answer_head == STAGED_READS)
			return refuse_slot(message, "is one read too many", err);
		s->answer[s->answer_tail++ % STAGED_READS] =
			(struct staged_answer){ place.mem, place.len, place.offset };
	}
	return 0;
}

/* Reads of which all bytes are there. */
static void end_reads(struct ib_conn *c)
{
	struct ib_staged *s = c->staged;

	while (s->read_ended != s->read_next) {
		uint16_t op = s->read[s->read_ended++ % STAGED_READS].op;

		if (op == STAGED_NO_OP)
			continue;
		ib_op_at(c, op)->reads--;
		c->staged_ends = true;
	}
}

int ib_scatter_slot(struct ib_conn *c, const struct staged_message *message, struct kv_error *err)
{
	struct ib_staged *s = c->staged;
	const uint8_t *slot = staged_in(s, s->placed);
	int ret, ended;

	if (message->spans > STAGED_SPANS || message->bytes > STAGED_BYTES)
		return refuse_slot(message, "is larger than a slot", err);
	if (message->kind == STAGED_WRITE)
		ret = place_writes(c, message, slot, err);
	else if (message->kind == STAGED_ANSWER && !message->spans)
		ret = place_answers(c, message, slot, err);
	else if (message->kind == STAGED_READ && !message->bytes)
		ret = take_requests(c, message, slot, err);
	else
		ret = refuse_slot(message, "is of an unknown kind", err);
	if (ret < 0)
		return ret;
	/* What there was no room for is put when this has ended. */
	ended = stage_end(s->scatter, c->conn, err);
	if (ret || ended)
		return ended < 0 ? ended : TR_AGAIN;
	end_reads(c);
	s->span = 0;
	s->at = 0;
	s->placed++;
	return 0;
}
