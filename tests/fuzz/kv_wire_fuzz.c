/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_wire_fuzz.c -- messages, hellos and setups of the KV API: what is taken keeps the limits that
 * the rest relies on, and is the same bytes when it is written again
 */
#include <string.h>

#include "base/wire.h"
#include "fuzz.h"
#include "kv_api.h"

enum { MESSAGE = 0, HELLO, SETUP, KINDS };

static const struct kv_geometry shape = {
	.cache_id = 3,
	.layers = 4,
	.tensors = 2,
	.blocks = 96,
	.tp_size = 2,
	.tp_rank = 1,
	.block_tokens = 16,
	.kv_heads = 8,
	.tensor = { { .name = "k", .block_bytes = 4096, .order = KV_ORDER_NHD },
		    { .name = "v", .block_bytes = 512, .order = KV_ORDER_HND } },
};

/* ---------------------------------------------------------------- well-formed input */

static size_t seed_message(unsigned int which, uint8_t *buf, size_t cap)
{
	struct kv_msg msg = { .type = (uint8_t)(KV_MSG_BEGIN + which % KV_MSG_BYE) };

	switch (msg.type) {
	case KV_MSG_BEGIN:
		msg.begin = (struct kv_msg_begin){ 1, 3, 0, 4, 96, 4608 * 4 * 96, 7, 42 };
		break;
	case KV_MSG_ACK:
		msg.ack = (struct kv_msg_ack){ 2, { { 1, 0 }, { 2, KV_ERR_REVOKED } } };
		break;
	case KV_MSG_ABORT:
		msg.abort = (struct kv_msg_abort){ 1, 7, KV_ERR_TIMEOUT };
		break;
	case KV_MSG_LEASE:
		msg.lease = (struct kv_msg_lease){ 7, 42, 3, KV_LEASE_ONCE, 0, 4, 20 };
		break;
	case KV_MSG_IDS:
		msg.ids = (struct kv_msg_ids){ .lease = 7, .runs = which % 3 ? 2 : KV_RUNS_MAX };
		for (int i = 0; i < msg.ids.runs; i++)
			msg.ids.run[i] = (struct kv_run){ (uint32_t)i * 20, 10 };
		break;
	default:
		msg.id.lease = 7;
	}
	return kv_wire_put(&msg, buf, cap);
}

static size_t seed_hello(unsigned int which, uint8_t *buf, size_t cap)
{
	struct kv_hello hello = { .name = "prefill-0", .caches = which % 4 };

	for (uint32_t i = 0; i < hello.caches; i++) {
		hello.cache[i] = shape;
		hello.cache[i].cache_id = i;
	}
	return kv_wire_put_hello(&hello, buf, cap);
}

/* One region that holds all slabs, as kv_hello.c describes them. */
static size_t seed_setup(uint8_t *buf, size_t cap)
{
	struct wire_writer w = wire_writer_of(buf, cap);
	uint64_t at = 0;

	wire_put_u8(&w, (uint8_t)shape.cache_id);
	wire_put_u16(&w, 1);
	wire_put_u16(&w, 8);
	wire_put_u64(&w, 0); /* stands for a packed region: this side does not open it */
	for (uint32_t t = 0; t < shape.tensors; t++)
		wire_put_u64(&w, shape.tensor[t].block_bytes);
	for (uint32_t i = 0; i < shape.layers * shape.tensors; i++) {
		wire_put_u16(&w, 0);
		wire_put_u64(&w, at);
		at += shape.tensor[i % shape.tensors].block_bytes * shape.blocks;
	}
	return w.len;
}

size_t fuzz_seed(unsigned int which, uint8_t *buf, size_t cap)
{
	buf[0] = (uint8_t)(which % KINDS);
	if (which % KINDS == MESSAGE)
		return 1 + seed_message(which / KINDS, buf + 1, cap - 1);
	if (which % KINDS == HELLO)
		return 1 + seed_hello(which / KINDS, buf + 1, cap - 1);
	return 1 + seed_setup(buf + 1, cap - 1);
}

/* ---------------------------------------------------------------- rules */

static bool layers_fit(uint32_t first, uint32_t count)
{
	return count && first + count <= KV_LAYERS_MAX;
}

static void check_message(const uint8_t *data, size_t size)
{
	uint8_t again[TR_MSG_MAX];
	struct kv_msg msg;

	if (!kv_wire_get(data, size, &msg))
		return;
	if (msg.type == KV_MSG_BEGIN)
		FUZZ_CHECK(msg.begin.cache < KV_CACHES_MAX &&
			   layers_fit(msg.begin.first, msg.begin.count) &&
			   msg.begin.blocks <= KV_CALL_BLOCKS_MAX);
	if (msg.type == KV_MSG_ACK)
		FUZZ_CHECK(msg.ack.count <= KV_ACKS_MAX);
	if (msg.type == KV_MSG_LEASE)
		FUZZ_CHECK(msg.lease.cache < KV_CACHES_MAX &&
			   layers_fit(msg.lease.first, msg.lease.count) &&
			   msg.lease.blocks <= KV_LEASE_BLOCKS_MAX);
	if (msg.type == KV_MSG_IDS)
		FUZZ_CHECK(msg.ids.runs && msg.ids.runs <= KV_RUNS_MAX);
	FUZZ_CHECK(kv_wire_put(&msg, again, sizeof(again)) == size && !memcmp(again, data, size));
}

static void check_hello(const uint8_t *data, size_t size)
{
	struct kv_hello hello;
	uint8_t *again;

	if (!kv_wire_get_hello(data, size, &hello))
		return;
	FUZZ_CHECK(hello.caches <= KV_CACHES_MAX && strlen(hello.name) < KV_NAME_MAX);
	for (uint32_t i = 0; i < hello.caches; i++)
		FUZZ_CHECK(!kv_geometry_check(&hello.cache[i], "fuzz", NULL));
	again = malloc(size);
	FUZZ_CHECK(again && kv_wire_put_hello(&hello, again, size) == size &&
		   !memcmp(again, data, size));
	free(again);
}

/* Of a cache that this side has not: every field is read, no region is opened. */
static void check_setup(const uint8_t *data, size_t size)
{
	static struct kv_link link;
	struct kv_peer peer = { .link = &link };
	struct kv_error err;

	memset(&link, 0, sizeof(link));
	link.map[shape.cache_id].remote = shape;
	if (kv_upper_ops.setup_get(&peer, NULL, data, size, &err))
		FUZZ_CHECK(err.code == KV_ERR_PROTOCOL && err.message[0]);
	FUZZ_CHECK(!link.map[shape.cache_id].slab);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const checks[])(const uint8_t *, size_t) = { check_message, check_hello,
								   check_setup };

	if (size)
		checks[data[0] % KINDS](data + 1, size - 1);
	return 0;
}
