/* SPDX-License-Identifier: Apache-2.0 */
/* frame_test.c -- the handshake's bytes: golden vectors, every truncation, random bytes */
#include <stdlib.h>

#include "frame.h"
#include "lib/test.h"

static const uint8_t header_golden[FRAME_HEADER] = { 'K', 'V', 'R',  'L',  1, 0,
						     2,	  0,   0x78, 0x56, 0, 0 };

CASE(a_header_has_these_bytes)
{
	uint8_t buf[FRAME_HEADER];
	struct frame_header h;

	frame_put_header(buf, FRAME_SETUP, 0x5678);
	assert_memory_equal(buf, header_golden, sizeof(buf));
	assert_int_equal(frame_get_header(buf, &h), 0);
	assert_int_equal(h.type, FRAME_SETUP);
	assert_int_equal(h.len, 0x5678);
}

CASE(another_major_version_is_distinguished_from_garbage)
{
	uint8_t buf[FRAME_HEADER];
	struct frame_header h;

	memcpy(buf, header_golden, sizeof(buf));
	buf[4] = 9;
	assert_int_equal(frame_get_header(buf, &h), KV_ERR_VERSION);
	buf[0] = 'G';
	assert_int_equal(frame_get_header(buf, &h), KV_ERR_PROTOCOL);
}

CASE(garbage_is_seen_at_its_first_wrong_byte)
{
	assert_int_equal(frame_check_prefix((const uint8_t *)"", 0), 0);
	assert_int_equal(frame_check_prefix((const uint8_t *)"KV", 2), 0);
	assert_int_equal(frame_check_prefix((const uint8_t *)"G", 1), KV_ERR_PROTOCOL);
	assert_int_equal(frame_check_prefix((const uint8_t *)"KVX", 3), KV_ERR_PROTOCOL);
}

CASE(a_length_above_its_type_s_limit_is_refused)
{
	static const struct {
		enum frame_type type;
		uint32_t limit;
	} rows[] = { { FRAME_HELLO, FRAME_HELLO_MAX },
		     { FRAME_SETUP, FRAME_SETUP_MAX },
		     { FRAME_READY, 0 },
		     { FRAME_REJECT, FRAME_REJECT_MAX } };
	uint8_t buf[FRAME_HEADER];
	struct frame_header h;

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		frame_put_header(buf, rows[i].type, rows[i].limit);
		assert_int_equal(frame_get_header(buf, &h), 0);
		assert_true(frame_fits(&h));
		frame_put_header(buf, rows[i].type, rows[i].limit + 1);
		assert_int_equal(frame_get_header(buf, &h), 0); /* it may be the MAC's */
		assert_false(frame_fits(&h));
		frame_put_header(buf, rows[i].type, rows[i].limit + MAC_BYTES + 1);
		assert_int_equal(frame_get_header(buf, &h), KV_ERR_PROTOCOL);
	}
}

/* u64 0, incarnation 0x10.., upper 1 version 2 "hi", one offer of provider 7: "abc" */
static const uint8_t hello_golden[] = {
	0,    0,    0,	  0,	0,    0,    0,	  0,	0x10, 0x11, 0x12, 0x13, 0x14, 0x15,
	0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 1,	  0,	2,    0,
	2,    0,    'h',  'i',	1,    7,    0,	  3,	0,    'a',  'b',  'c',
};

static size_t make_hello(uint8_t *buf, size_t cap)
{
	struct wire_writer w = wire_writer_of(buf, cap);
	struct frame_hello hello = {
		.upper_id = 1,
		.upper_version = 2,
		.upper = { (const uint8_t *)"hi", 2 },
		.offers = 1,
		.offer = { { 7, { (const uint8_t *)"abc", 3 } } },
	};

	for (int i = 0; i < 16; i++)
		hello.incarnation[i] = (uint8_t)(0x10 + i);
	frame_put_hello(&w, &hello);
	assert_false(w.bad);
	return w.len;
}

CASE(a_hello_has_these_bytes)
{
	uint8_t buf[128];
	struct frame_hello hello;

	assert_int_equal(make_hello(buf, sizeof(buf)), sizeof(hello_golden));
	assert_memory_equal(buf, hello_golden, sizeof(hello_golden));
	assert_int_equal(frame_get_hello(hello_golden, sizeof(hello_golden), &hello), 0);
	assert_int_equal(hello.upper.len, 2);
	assert_memory_equal(hello.upper.p, "hi", 2);
	assert_int_equal(hello.offers, 1);
	assert_int_equal(hello.offer[0].provider, 7);
	assert_memory_equal(hello.offer[0].bytes.p, "abc", 3);
}

/*
 * Each offer is begun once: what the first try of a transport has left does not begin a second
 * one.
 */
CASE(a_transport_is_offered_once)
{
	struct frame_hello hello = { .offers = 2,
				     .offer = { { 7, { (const uint8_t *)"abc", 3 } },
						{ 8, { (const uint8_t *)"de", 2 } } } };
	uint8_t buf[128];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	frame_put_hello(&w, &hello);
	assert_int_equal(frame_get_hello(buf, w.len, &hello), 0);
	hello.offer[1].provider = 7;
	w.len = 0;
	frame_put_hello(&w, &hello);
	assert_int_equal(frame_get_hello(buf, w.len, &hello), KV_ERR_PROTOCOL);
}

CASE(every_truncation_and_every_extra_byte_is_refused)
{
	struct frame_hello hello;
	struct frame_setup setup;
	struct frame_reject reject;
	uint8_t buf[128];
	struct wire_writer w;

	for (size_t n = 0; n < sizeof(hello_golden); n++) {
		uint8_t *exact = malloc(
			n + 1); /* exact size, so that a sanitizer sees a read past the end */

		memcpy(exact, hello_golden, n);
		exact = realloc(exact, n ? n : 1);
		assert_int_equal(frame_get_hello(exact, n, &hello), KV_ERR_PROTOCOL);
		free(exact);
	}
	memcpy(buf, hello_golden, sizeof(hello_golden));
	assert_int_equal(frame_get_hello(buf, sizeof(hello_golden) + 1, &hello), KV_ERR_PROTOCOL);

	w = wire_writer_of(buf, sizeof(buf));
	frame_put_setup(&w, &(struct frame_setup){
				    2, { (const uint8_t *)"x", 1 }, { (const uint8_t *)"yz", 2 } });
	assert_int_equal(frame_get_setup(buf, w.len, &setup), 0);
	assert_memory_equal(setup.upper.p, "yz", 2);
	for (size_t n = 0; n < w.len; n++)
		assert_int_equal(frame_get_setup(buf, n, &setup), KV_ERR_PROTOCOL);

	w = wire_writer_of(buf, sizeof(buf));
	frame_put_reject(&w, KV_ERR_GEOMETRY, "layers differ", "");
	assert_int_equal(frame_get_reject(buf, w.len, &reject), 0);
	assert_int_equal(reject.code, KV_ERR_GEOMETRY);
	assert_string_equal(reject.message, "layers differ");
	for (size_t n = 0; n < w.len; n++)
		assert_int_equal(frame_get_reject(buf, n, &reject), KV_ERR_PROTOCOL);
}

CASE(a_refusal_cannot_carry_success_or_control_characters)
{
	uint8_t buf[64];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct frame_reject reject;

	frame_put_reject(&w, 0, "fine", "");
	assert_int_equal(frame_get_reject(buf, w.len, &reject), 0);
	assert_int_equal(reject.code, KV_ERR_PROTOCOL);
	w = wire_writer_of(buf, sizeof(buf));
	frame_put_reject(&w, -200, "of a later version", "");
	assert_int_equal(frame_get_reject(buf, w.len, &reject), 0);
	assert_int_equal(reject.code, KV_ERR_PROTOCOL);
	w = wire_writer_of(buf, sizeof(buf));
	frame_put_reject(&w, KV_ERR_ARG, "a\nforged log line", "");
	assert_int_equal(frame_get_reject(buf, w.len, &reject), KV_ERR_PROTOCOL);
}

CASE(random_bytes_never_read_outside)
{
	uint64_t x = 88172645463325252u;

	for (int round = 0; round < 200000; round++) {
		uint8_t buf[96];
		struct frame_hello hello;
		struct frame_setup setup;
		struct frame_reject reject;
		size_t len;

		for (size_t i = 0; i < sizeof(buf); i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			buf[i] = round & 1 ? (uint8_t)x : (uint8_t)(x % 5);
		}
		len = (size_t)(x % sizeof(buf));
		if (!frame_get_hello(buf, len, &hello))
			assert_true(hello.upper.len <= len && hello.offers <= FRAME_OFFERS_MAX);
		if (!frame_get_setup(buf, len, &setup))
			assert_true(setup.upper.len + setup.provider_bytes.len <= len);
		if (!frame_get_reject(buf, len, &reject))
			assert_true(reject.code < 0);
	}
}
