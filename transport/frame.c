/* SPDX-License-Identifier: Apache-2.0 */
/* frame.c -- codec of the handshake's frames */
#include "frame.h"

#include "base/error.h"

static const uint8_t magic[4] = { 'K', 'V', 'R', 'L' };

int frame_check_prefix(const uint8_t *buf, size_t len)
{
	return memcmp(buf, magic, len < sizeof(magic) ? len : sizeof(magic)) ? KV_ERR_PROTOCOL : 0;
}

static uint32_t limit_of(uint16_t type)
{
	switch (type) {
	case FRAME_HELLO:
		return FRAME_HELLO_MAX;
	case FRAME_SETUP:
		return FRAME_SETUP_MAX;
	case FRAME_REJECT:
		return FRAME_REJECT_MAX;
	case FRAME_KNOCK:
		return AUTH_KNOCK;
	case FRAME_CHALLENGE:
		return AUTH_CHALLENGE;
	default:
		return 0;
	}
}

bool frame_fits(const struct frame_header *header)
{
	return header->len <= limit_of(header->type);
}

bool frame_begins(const struct frame_header *header)
{
	return header->type == FRAME_KNOCK ||
	       (header->type == FRAME_HELLO && header->len <= TR_HELLO_MAX + FRAME_HELLO_FIXED);
}

int frame_get_header(const uint8_t buf[FRAME_HEADER], struct frame_header *header)
{
	struct wire_reader r = wire_reader_of(buf, FRAME_HEADER);

	if (frame_check_prefix(buf, FRAME_HEADER))
		return KV_ERR_PROTOCOL;
	wire_get(&r, sizeof(magic));
	header->major = wire_get_u8(&r);
	header->minor = wire_get_u8(&r);
	header->type = wire_get_u16(&r);
	header->len = wire_get_u32(&r);
	if (header->major != FRAME_MAJOR)
		return KV_ERR_VERSION;
	if (header->type < FRAME_HELLO || header->type > FRAME_CHALLENGE)
		return KV_ERR_PROTOCOL;
	return header->len > limit_of(header->type) + MAC_BYTES ? KV_ERR_PROTOCOL : 0;
}

void frame_put_header(uint8_t buf[FRAME_HEADER], enum frame_type type, uint32_t len)
{
	struct wire_writer w = wire_writer_of(buf, FRAME_HEADER);

	wire_put_bytes(&w, magic, sizeof(magic));
	wire_put_u8(&w, FRAME_MAJOR);
	wire_put_u8(&w, FRAME_MINOR);
	wire_put_u16(&w, (uint16_t)type);
	wire_put_u32(&w, len);
}

/* A byte range behind its length of `width` bytes, at most max long. */
static void put_range(struct wire_writer *w, struct frame_bytes b, unsigned int width)
{
	wire_put_uint(w, b.len, width);
	wire_put_bytes(w, b.p, b.len);
}

static struct frame_bytes get_range(struct wire_reader *r, unsigned int width, size_t max)
{
	struct frame_bytes b = { .len = wire_get_uint(r, width) };

	if (b.len > max)
		r->bad = true;
	b.p = wire_get(r, b.len);
	if (!b.p)
		b.len = 0;
	return b;
}

void frame_put_hello(struct wire_writer *w, const struct frame_hello *hello)
{
	wire_put_u64(w, hello->features);
	wire_put_bytes(w, hello->incarnation, sizeof(hello->incarnation));
	wire_put_u16(w, hello->upper_id);
	wire_put_u16(w, hello->upper_version);
	put_range(w, hello->upper, 2);
	wire_put_u8(w, (uint8_t)hello->offers);
	for (unsigned int i = 0; i < hello->offers; i++) {
		wire_put_u16(w, hello->offer[i].provider);
		put_range(w, hello->offer[i].bytes, 2);
	}
}

int frame_get_hello(const uint8_t *buf, size_t len, struct frame_hello *hello)
{
	struct wire_reader r = wire_reader_of(buf, len);

	memset(hello, 0, sizeof(*hello));
	hello->features = wire_get_u64(&r);
	wire_get_bytes(&r, hello->incarnation, sizeof(hello->incarnation));
	hello->upper_id = wire_get_u16(&r);
	hello->upper_version = wire_get_u16(&r);
	hello->upper = get_range(&r, 2, TR_HELLO_MAX);
	hello->offers = wire_get_u8(&r);
	if (hello->offers > FRAME_OFFERS_MAX)
		return KV_ERR_PROTOCOL;
	for (unsigned int i = 0; i < hello->offers; i++) {
		hello->offer[i].provider = wire_get_u16(&r);
		hello->offer[i].bytes = get_range(&r, 2, FRAME_OFFER_MAX);
		for (unsigned int k = 0; k < i; k++)
			if (hello->offer[k].provider == hello->offer[i].provider)
				return KV_ERR_PROTOCOL;
	}
	return wire_done(&r) ? 0 : KV_ERR_PROTOCOL;
}

void frame_put_setup(struct wire_writer *w, const struct frame_setup *setup)
{
	wire_put_u16(w, setup->provider);
	put_range(w, setup->provider_bytes, 4);
	put_range(w, setup->upper, 4);
}

int frame_get_setup(const uint8_t *buf, size_t len, struct frame_setup *setup)
{
	struct wire_reader r = wire_reader_of(buf, len);

	setup->provider = wire_get_u16(&r);
	setup->provider_bytes = get_range(&r, 4, FRAME_PROVIDER_SETUP_MAX);
	setup->upper = get_range(&r, 4, TR_SETUP_MAX);
	return wire_done(&r) ? 0 : KV_ERR_PROTOCOL;
}

void frame_put_reject(struct wire_writer *w, int code, const char *message, const char *hint)
{
	wire_put_u32(w, (uint32_t)-code);
	wire_put_string(w, message);
	wire_put_string(w, hint);
}

int frame_get_reject(const uint8_t *buf, size_t len, struct frame_reject *reject)
{
	struct wire_reader r = wire_reader_of(buf, len);
	uint32_t code = wire_get_u32(&r);

	wire_get_string(&r, reject->message, sizeof(reject->message));
	wire_get_string(&r, reject->hint, sizeof(reject->hint));
	if (!wire_done(&r))
		return KV_ERR_PROTOCOL;
	reject->code = code && code < 256 ? -(int)code : KV_ERR_PROTOCOL;
	if (!kv_error_is_known(reject->code))
		reject->code = KV_ERR_PROTOCOL;
	return 0;
}
