/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire.h -- little-endian cursors over a byte buffer
 *
 * Every byte that crosses a process boundary is written and read through these. A cursor that would
 * run past its end becomes bad and stays bad; check it once at the end. Reading from a bad cursor
 * gives zeros.
 */
#ifndef BASE_WIRE_H
#define BASE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct wire_writer {
	uint8_t *buf;
	size_t cap;
	size_t len;
	bool bad;
};

struct wire_reader {
	const uint8_t *buf;
	size_t len;
	size_t pos;
	bool bad;
};

static inline struct wire_writer wire_writer_of(void *buf, size_t cap)
{
	return (struct wire_writer){ .buf = buf, .cap = cap };
}

static inline struct wire_reader wire_reader_of(const void *buf, size_t len)
{
	return (struct wire_reader){ .buf = buf, .len = len };
}

static inline size_t wire_left(const struct wire_reader *r)
{
	return r->bad ? 0 : r->len - r->pos;
}

/* True if nothing was read past the end and nothing is left over. */
static inline bool wire_done(const struct wire_reader *r)
{
	return !r->bad && r->pos == r->len;
}

static inline void wire_put_bytes(struct wire_writer *w, const void *p, size_t n)
{
	if (w->bad || n > w->cap - w->len) {
		w->bad = true;
		return;
	}
	if (n)
		memcpy(w->buf + w->len, p, n);
	w->len += n;
}

static inline void wire_put_uint(struct wire_writer *w, uint64_t v, unsigned int bytes)
{
	uint8_t b[8];

	for (unsigned int i = 0; i < bytes; i++)
		b[i] = (uint8_t)(v >> (8 * i));
	wire_put_bytes(w, b, bytes);
}

static inline void wire_put_u8(struct wire_writer *w, uint8_t v)
{
	wire_put_uint(w, v, 1);
}
static inline void wire_put_u16(struct wire_writer *w, uint16_t v)
{
	wire_put_uint(w, v, 2);
}
static inline void wire_put_u32(struct wire_writer *w, uint32_t v)
{
	wire_put_uint(w, v, 4);
}
static inline void wire_put_u64(struct wire_writer *w, uint64_t v)
{
	wire_put_uint(w, v, 8);
}

/* A string: u8 length, then the bytes; longer ones are cut at 255. */
static inline void wire_put_string(struct wire_writer *w, const char *s)
{
	size_t n = strlen(s);

	if (n > 255)
		n = 255;
	wire_put_u8(w, (uint8_t)n);
	wire_put_bytes(w, s, n);
}

/* The next n bytes in place, or NULL. */
static inline const uint8_t *wire_get(struct wire_reader *r, size_t n)
{
	const uint8_t *p;

	if (r->bad || n > r->len - r->pos) {
		r->bad = true;
		return NULL;
	}
	p = r->buf + r->pos;
	r->pos += n;
	return p;
}

static inline void wire_get_bytes(struct wire_reader *r, void *out, size_t n)
{
	const uint8_t *p = wire_get(r, n);

	if (!n)
		return;
	if (p)
		memcpy(out, p, n);
	else
		memset(out, 0, n);
}

static inline uint64_t wire_get_uint(struct wire_reader *r, unsigned int bytes)
{
	const uint8_t *p = wire_get(r, bytes);
	uint64_t v = 0;

	if (!p)
		return 0;
	for (unsigned int i = 0; i < bytes; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

static inline uint8_t wire_get_u8(struct wire_reader *r)
{
	return (uint8_t)wire_get_uint(r, 1);
}
static inline uint16_t wire_get_u16(struct wire_reader *r)
{
	return (uint16_t)wire_get_uint(r, 2);
}
static inline uint32_t wire_get_u32(struct wire_reader *r)
{
	return (uint32_t)wire_get_uint(r, 4);
}
static inline uint64_t wire_get_u64(struct wire_reader *r)
{
	return wire_get_uint(r, 8);
}

/*
 * A string into a buffer of cap bytes; bad if it does not fit or holds a NUL or another control
 * character.
 */
static inline void wire_get_string(struct wire_reader *r, char *out, size_t cap)
{
	size_t n = wire_get_u8(r);
	const uint8_t *p = wire_get(r, n);

	out[0] = 0;
	if (!p || n >= cap) {
		r->bad = true;
		return;
	}
	for (size_t i = 0; i < n; i++)
		if (p[i] < 0x20 || p[i] == 0x7f)
			r->bad = true;
	if (r->bad)
		return;
	memcpy(out, p, n);
	out[n] = 0;
}

#endif
