/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_wire_test.c -- the bytes of the kv messages: golden vectors, and bytes that no peer of ours
 * sends
 */
#include <string.h>

#include "kv_wire.h"
#include "lib/test.h"

struct golden {
	struct kv_msg msg;
	size_t len;
	uint8_t bytes[48];
};

static const struct golden
	golden[] = {
		{ { .type = KV_MSG_BEGIN,
		    .begin = { 0x0102030405060007, 3, 0x0110, 0x0020, 0x00011213,
			       0x1415161718191a1b, 0x2122232425262728, 0x3132333435363738 } },
		  42,
		  { 1,	  0x07, 0x00, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01, 3,	0x10,
		    0x01, 0x20, 0x00, 0x13, 0x12, 0x01, 0x00, 0x1b, 0x1a, 0x19, 0x18,
		    0x17, 0x16, 0x15, 0x14, 0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22,
		    0x21, 0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31 } },
		{ { .type = KV_MSG_ACK,
		    .ack = { 2, { { 0x10005, 0 }, { 0x20006, KV_ERR_REVOKED } } } },
		  26,
		  { 2, 2, 5, 0, 1, 0, 0, 0, 0, 0,    0,	   0,	 0,
		    0, 6, 0, 2, 0, 0, 0, 0, 0, 0xed, 0xff, 0xff, 0xff } },
		{ { .type = KV_MSG_ABORT, .abort = { 0x10005, 0x30001, KV_ERR_TIMEOUT } },
		  21,
		  { 3, 5, 0, 1, 0, 0, 0, 0, 0, 1, 0, 3, 0, 0, 0, 0, 0, 0xf0, 0xff, 0xff, 0xff } },
		{ { .type = KV_MSG_LEASE,
		    .lease = { 0x30001, 0x42, 1, KV_LEASE_ONCE, 2, 3, 0x100 } },
		  27,
		  { 4, 1, 0, 3, 0, 0, 0, 0, 0, 0x42, 0, 0, 0, 0,
		    0, 0, 0, 1, 1, 2, 0, 3, 0, 0,    1, 0, 0 } },
		{ { .type = KV_MSG_IDS,
		    .ids = { 0x30001, 9, 2, { { 0x11223344, 1 }, { 5, 0x0102 } } } },
		  26,
		  { 5, 1,    0,	   3,	 0,    0, 0, 0, 0, 9, 0, 0,    0,
		    2, 0x44, 0x33, 0x22, 0x11, 1, 0, 5, 0, 0, 0, 0x02, 0x01 } },
		{ { .type = KV_MSG_REVOKE, .id = { 0x30001 } }, 9, { 6, 1, 0, 3, 0, 0, 0, 0, 0 } },
		{ { .type = KV_MSG_REVOKED, .id = { 0x30001 } }, 9, { 7, 1, 0, 3, 0, 0, 0, 0, 0 } },
		{ { .type = KV_MSG_BYE }, 1, { 8 } },
		{ { .type = KV_MSG_ADOPTED }, 1, { 9 } },
		{ { .type = KV_MSG_PING }, 1, { 13 } },
		{ { .type = KV_MSG_PONG }, 1, { 14 } },
		{ { .type = KV_MSG_DIGESTS,
		    .digests = { 0x10005, 2, { { 7, 0x11223344 }, { 0x55667788, 9 } } } },
		  26,
		  { 10, 5,    0,    1,	  0,	0,    0,    0,	  0,	2, 7, 0, 0,
		    0,	0x44, 0x33, 0x22, 0x11, 0x88, 0x77, 0x66, 0x55, 9, 0, 0, 0 } },
		{ { .type = KV_MSG_WRONG, .wrong = { 0x10005, 0x0102, 3, 0x11223344, 0x55 } },
		  20,
		  { 11, 5, 0, 1, 0, 0, 0, 0, 0, 2, 1, 3, 0x44, 0x33, 0x22, 0x11, 0x55, 0, 0, 0 } },
	};
enum { GOLDEN = sizeof(golden) / sizeof(golden[0]) };

CASE(every_message_has_these_bytes)
{
	for (int i = 0; i < GOLDEN; i++) {
		uint8_t buf[TR_MSG_MAX], again[TR_MSG_MAX];
		struct kv_msg msg;

		assert_int_equal(kv_wire_put(&golden[i].msg, buf, sizeof(buf)), golden[i].len);
		assert_memory_equal(buf, golden[i].bytes, golden[i].len);
		assert_true(kv_wire_get(buf, golden[i].len, &msg));
		assert_int_equal(kv_wire_put(&msg, again, sizeof(again)), golden[i].len);
		assert_memory_equal(again, golden[i].bytes, golden[i].len);
	}
}

CASE(a_message_cut_or_prolonged_anywhere_is_refused)
{
	for (int i = 0; i < GOLDEN; i++) {
		uint8_t buf[64] = { 0 };
		struct kv_msg msg;

		memcpy(buf, golden[i].bytes, golden[i].len);
		for (size_t len = 0; len < golden[i].len; len++)
			assert_false(kv_wire_get(buf, len, &msg));
		assert_false(kv_wire_get(buf, golden[i].len + 1, &msg));
		assert_int_equal(kv_wire_put(&golden[i].msg, buf, golden[i].len - 1), 0);
	}
}

/* A golden message with one byte replaced. */
static bool accepts(int i, size_t at, uint8_t value)
{
	uint8_t buf[48];
	struct kv_msg msg;

	memcpy(buf, golden[i].bytes, golden[i].len);
	buf[at] = value;
	return kv_wire_get(buf, golden[i].len, &msg);
}

CASE(counts_and_ranges_are_checked)
{
	struct kv_msg msg;
	uint8_t none[2] = { KV_MSG_ACK, 0 };

	for (unsigned int type = 0; type < 256; type++)
		if (!type || type > KV_MSG_PONG)
			assert_false(kv_wire_get(&(uint8_t){ (uint8_t)type }, 1, &msg));
	assert_false(kv_wire_get(none, 2, &msg));
	assert_false(accepts(0, 9, KV_CACHES_MAX)); /* cache */
	assert_false(accepts(0, 11, 0xff));	    /* first layer */
	assert_false(accepts(0, 13, 0xff));	    /* layers */
	assert_false(accepts(0, 17, 0xff));	    /* blocks */
	assert_false(accepts(1, 1, KV_ACKS_MAX + 1));
	assert_false(accepts(3, 18, 0xfe)); /* flags of a lease */
	assert_false(accepts(3, 25, 0x02)); /* blocks of a lease */
	assert_false(accepts(4, 13, KV_RUNS_MAX + 1));
	assert_false(accepts(4, 18, 0)); /* a run of no blocks */
	assert_false(accepts(11, 9, KV_DIGESTS_MAX + 1));
	assert_false(accepts(12, 10, 0xff)); /* layer */
	assert_false(accepts(12, 11, KV_TENSORS_MAX));
}

CASE(the_largest_messages_fit)
{
	struct kv_msg ack = { .type = KV_MSG_ACK, .ack.count = KV_ACKS_MAX };
	struct kv_msg ids = { .type = KV_MSG_IDS, .ids.runs = KV_RUNS_MAX };
	uint8_t buf[TR_MSG_MAX];

	assert_int_not_equal(kv_wire_put(&ack, buf, sizeof(buf)), 0);
	assert_int_not_equal(kv_wire_put(&ids, buf, sizeof(buf)), 0);
}

/*
 * Of version 2: name, comm, rank; caches, cache id, layers, blocks, tp_size, tp_rank; block_tokens,
 * dtype, flags, kv_heads; tensors, name, block_bytes, flags, order.
 */
static const uint8_t golden_hello[] = {
	6, 'h',	 'o', 's', 't', ':', '1', 7, 0, 0,   0, 0, 0, 0,  0, 3, 0, 0, 0, 1, 5, 80,
	0, 0xe8, 3,   0,   0,	8,   0,	  0, 0, 7,   0, 0, 0, 16, 0, 0, 0, 2, 0, 0, 0, 1,
	0, 0,	 0,   8,   0,	0,   0,	  1, 1, 'k', 0, 0, 0, 0,  2, 0, 0, 0, 0, 2,
};

CASE(hellos_survive_the_wire_and_hostile_ones_are_refused)
{
	struct kv_hello hello = { .name = "host:1", .comm = 7, .comm_rank = 3, .caches = 1 }, got;
	struct kv_geometry *g = &hello.cache[0];
	uint8_t buf[TR_HELLO_MAX], bad[TR_HELLO_MAX];
	size_t len;

	*g = (struct kv_geometry){ .cache_id = 5,
				   .layers = 80,
				   .tensors = 1,
				   .blocks = 1000,
				   .tp_size = 8,
				   .tp_rank = 7,
				   .block_tokens = 16,
				   .dtype = 2,
				   .flags = KV_CACHE_OPEN,
				   .kv_heads = 8 };
	g->tensor[0].name[0] = 'k';
	g->tensor[0].block_bytes = UINT64_C(1) << 33;
	g->tensor[0].order = KV_ORDER_NHD;
	len = kv_wire_put_hello(&hello, buf, sizeof(buf));
	assert_int_equal(len, sizeof(golden_hello));
	assert_memory_equal(buf, golden_hello, len);
	assert_true(kv_wire_get_hello(buf, len, &got));
	assert_string_equal(got.name, "host:1");
	assert_int_equal(got.comm, 7);
	assert_int_equal(got.comm_rank, 3);
	assert_memory_equal(&got.cache[0], g, sizeof(*g));
	for (size_t cut = 0; cut < len; cut++)
		assert_false(kv_wire_get_hello(buf, cut, &got));
	/* Any byte may be anything: it is refused, or it is a geometry within the limits. */
	for (size_t at = 0; at < len; at++)
		for (unsigned int v = 0; v < 256; v++) {
			memcpy(bad, buf, len);
			bad[at] = (uint8_t)v;
			if (kv_wire_get_hello(bad, len, &got))
				assert_int_equal(kv_geometry_check(&got.cache[0], "t", NULL), 0);
		}
	/* The same cache twice. */
	hello.caches = 2;
	hello.cache[1] = hello.cache[0];
	len = kv_wire_put_hello(&hello, buf, sizeof(buf));
	assert_false(kv_wire_get_hello(buf, len, &got));
}
