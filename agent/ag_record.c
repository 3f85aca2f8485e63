/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ag_record.c -- bytes of any number in messages of the transport
 *
 * The first message of a record: u8 kind, u32 length, then its first bytes. Each further one: u8
 * AG_MORE, then bytes. Records of a connection follow each other; messages come in their order.
 */
#include <stdlib.h>
#include <string.h>

#include "ag.h"
#include "base/wire.h"

enum { AG_MORE = 0x80, HEAD = 5, FIRST_ROOM = 4096 };

struct ag_record *ag_record_new(int kind, const void *body, size_t len, struct kv_error *err)
{
	struct ag_record *record = malloc(sizeof(*record) + len);

	if (!record) {
		kv_fail(err, KV_ERR_NOMEM, "say", "cannot allocate %zu bytes", len);
		return NULL;
	}
	*record = (struct ag_record){ .kind = (uint8_t)kind, .len = (uint32_t)len };
	if (len)
		memcpy(record->body, body, len);
	return record;
}

void ag_records_init(struct ag_records *records)
{
	*records = (struct ag_records){ .last = &records->first };
}

void ag_records_add(struct ag_records *records, struct ag_record *record)
{
	record->next = NULL;
	*records->last = record;
	records->last = &record->next;
	records->bytes += record->len;
	records->n++;
}

void ag_records_move(struct ag_records *to, struct ag_records *from)
{
	if (!from->first)
		return;
	*to->last = from->first;
	to->last = from->last;
	to->bytes += from->bytes;
	to->n += from->n;
	ag_records_init(from);
}

bool ag_records_remove(struct ag_records *records, struct ag_record *record)
{
	struct ag_record **at = &records->first;

	while (*at && *at != record)
		at = &(*at)->next;
	if (!*at)
		return false;
	*at = record->next;
	if (!*at)
		records->last = at;
	records->bytes -= record->len;
	records->n--;
	return true;
}

void ag_records_free(struct ag_records *records)
{
	while (records->first) {
		struct ag_record *record = records->first;

		records->first = record->next;
		free(record);
	}
	ag_records_init(records);
}

size_t ag_records_say(const struct ag_records *records, uint8_t *buf, size_t cap)
{
	const struct ag_record *record = records->first;
	struct wire_writer w = wire_writer_of(buf, cap);
	size_t n = record->len - record->sent;

	wire_put_u8(&w, record->begun ? (uint8_t)AG_MORE : record->kind);
	if (!record->begun)
		wire_put_u32(&w, record->len);
	if (n > cap - w.len)
		n = cap - w.len;
	wire_put_bytes(&w, record->body + record->sent, n);
	return w.len;
}

struct ag_record *ag_records_said(struct ag_records *records, size_t message_len)
{
	struct ag_record *record = records->first;

	record->sent += (uint32_t)(message_len - (record->begun ? 1 : HEAD));
	record->begun = true;
	if (record->sent < record->len)
		return NULL;
	ag_records_remove(records, record);
	return record;
}

static uint32_t record_max(int kind)
{
	switch (kind) {
	case AG_NOTE:
		return AG_NOTIFY_MAX;
	case AG_PACK:
		return 16 + TR_MEM_PACK_MAX;
	case AG_WANT:
	case AG_WITHDRAW:
	case AG_LEFT:
		return 8;
	default:
		return 0;
	}
}

static int hear_nonsense(const char *what, struct kv_error *err)
{
	return kv_fail(err, KV_ERR_PROTOCOL, "hear", "the peer's message %s", what);
}

/* Room grows with what comes: a length alone costs nothing. */
static int keep_bytes(struct ag_hearing *h, const uint8_t *p, size_t n, struct kv_error *err)
{
	size_t need = h->got + n, cap = h->cap ? h->cap : FIRST_ROOM;
	uint8_t *buf;

	while (cap < need)
		cap *= 2;
	buf = cap > h->cap ? realloc(h->buf, cap) : h->buf;
	if (!buf)
		return kv_fail(err, KV_ERR_NOMEM, "hear", "cannot allocate %zu bytes", cap);
	h->buf = buf;
	h->cap = cap;
	memcpy(buf + h->got, p, n);
	h->got += (uint32_t)n;
	return 0;
}

int ag_hear(struct ag_hearing *h, const uint8_t *msg, size_t len, const uint8_t **body_p,
	    struct kv_error *err)
{
	struct wire_reader r = wire_reader_of(msg, len);
	uint8_t kind = wire_get_u8(&r);
	size_t n;
	int ret;

	if (h->kind && h->got == h->len) { /* the last one was whole */
		h->kind = 0;
		if (h->cap > FIRST_ROOM) {
			free(h->buf);
			h->buf = NULL;
			h->cap = 0;
		}
	}
	if ((kind == AG_MORE) != (h->kind != 0))
		return hear_nonsense("comes in the middle of another, or goes on with none", err);
	if (kind != AG_MORE) {
		uint32_t total = wire_get_u32(&r);

		if (r.bad || (kind != AG_NOTE && !record_max(kind)) || total > record_max(kind))
			return hear_nonsense("is of no known kind, or too long", err);
		h->kind = kind;
		h->len = total;
		h->got = 0;
	}
	n = wire_left(&r);
	if (n > h->len - h->got)
		return hear_nonsense("has more bytes than were announced", err);
	if (!h->got && n == h->len) {
		h->got = h->len;
		*body_p = wire_get(&r, n);
		return 1;
	}
	if (!n)
		return hear_nonsense("has no bytes", err);
	ret = keep_bytes(h, msg + len - n, n, err);
	if (ret)
		return ret;
	*body_p = h->buf;
	return h->got == h->len;
}
