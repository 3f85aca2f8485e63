/* SPDX-License-Identifier: Apache-2.0 */
/* stream.c -- codec of a data socket */
#include "stream.h"

#include <endian.h>

void stream_put_greeting(uint8_t buf[STREAM_GREETING], uint8_t stream,
			 const uint8_t proof[STREAM_PROOF])
{
	memcpy(buf, (uint8_t[8]){ 'K', 'V', 'R', 'D', STREAM_VERSION, stream }, 8);
	memcpy(buf + 8, proof, STREAM_PROOF);
}

bool stream_is_greeting(const uint8_t *buf, size_t len)
{
	static const uint8_t begin[] = { 'K', 'V', 'R', 'D', STREAM_VERSION };

	return !memcmp(buf, begin, len < sizeof(begin) ? len : sizeof(begin)) &&
	       (len <= 6 || !buf[6]) && (len <= 7 || !buf[7]);
}

void stream_put(struct wire_writer *w, const struct stream_frame *frame,
		const struct stream_span *spans)
{
	wire_put_u8(w, frame->type);
	wire_put_u8(w, 0);
	wire_put_u16(w, frame->spans);
	wire_put_u32(w, frame->payload);
	wire_put_u32(w, frame->number);
	wire_put_u64(w, frame->value);
	for (unsigned int i = 0; i < frame->spans; i++) {
		uint64_t offset = htole64(spans[i].offset);
		uint32_t len = htole32(spans[i].len);

		wire_put_bytes(w, &offset, sizeof(offset));
		wire_put_bytes(w, &len, sizeof(len));
	}
}

/* Whether a header may look like that; what the fields name is checked by their user. */
static bool frame_is_sane(const struct stream_frame *f)
{
	switch (f->type) {
	case STREAM_DATA:
		return f->spans && f->payload;
	case STREAM_NOTIFY:
		return !f->spans && !f->payload && !f->number;
	case STREAM_MSG:
		return !f->spans && f->payload <= TR_MSG_MAX && !f->number && !f->value;
	case STREAM_READ:
		return f->spans && !f->payload && !f->value;
	case STREAM_ANSWER:
		return !f->spans && f->payload && !f->number && !f->value;
	case STREAM_TELL:
		return !f->spans && !f->payload && !f->number && !f->value;
	case STREAM_REPORT:
	case STREAM_AFTER:
		return !f->spans && !f->payload;
	default:
		return false;
	}
}

int stream_get(const uint8_t *buf, size_t len, struct stream_frame *frame,
	       struct stream_span spans[STREAM_SPANS_MAX])
{
	struct wire_reader r = wire_reader_of(buf, len);
	uint64_t sum = 0;
	uint8_t zero;

	if (len < STREAM_FIXED)
		return 0;
	frame->type = wire_get_u8(&r);
	zero = wire_get_u8(&r);
	frame->spans = wire_get_u16(&r);
	frame->payload = wire_get_u32(&r);
	frame->number = wire_get_u32(&r);
	frame->value = wire_get_u64(&r);
	if (zero || frame->spans > STREAM_SPANS_MAX || frame->payload > STREAM_PAYLOAD_MAX ||
	    !frame_is_sane(frame))
		return KV_ERR_PROTOCOL;
	if (wire_left(&r) < (size_t)frame->spans * STREAM_SPAN)
		return 0;
	for (unsigned int i = 0; i < frame->spans; i++) {
		const uint8_t *at = wire_get(&r, STREAM_SPAN);

		memcpy(&spans[i].offset, at, sizeof(spans[i].offset));
		memcpy(&spans[i].len, at + sizeof(spans[i].offset), sizeof(spans[i].len));
		spans[i].offset = le64toh(spans[i].offset);
		spans[i].len = le32toh(spans[i].len);
		if (!spans[i].len || spans[i].len > STREAM_PAYLOAD_MAX)
			return KV_ERR_PROTOCOL;
		sum += spans[i].len;
	}
	if (frame->type == STREAM_DATA && sum != frame->payload)
		return KV_ERR_PROTOCOL;
	return (int)r.pos;
}
