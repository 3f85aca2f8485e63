/* SPDX-License-Identifier: Apache-2.0 */
/* kv_end.c -- the engine under test of kv_fuzz and api_fuzz: its cache, its peer, what it posts */
#include <string.h>

#include "kv_world.h"

const uint64_t block_bytes[TENSORS] = { STRIDE, 48 };
struct world w;
uint8_t memory[MEMORY], shadow[MEMORY];

/* ---------------------------------------------------------------- what it posts */

static void heard(const void *buf, size_t len)
{
	uint8_t again[TR_MSG_MAX];
	struct kv_msg msg;

	FUZZ_CHECK(kv_wire_get(buf, len, &msg));
	FUZZ_CHECK(kv_wire_put(&msg, again, sizeof(again)) == len && !memcmp(again, buf, len));
	if (msg.type == KV_MSG_BEGIN)
		w.begun[w.begins++ % OPS] = msg.begin.op;
}

void check_local(const uint8_t *at, uint64_t len)
{
	FUZZ_CHECK(at >= memory && len <= MEMORY && (size_t)(at - memory) <= MEMORY - len);
	for (size_t i = (size_t)(at - memory); len; i++, len--)
		FUZZ_CHECK(i % STRIDE < block_bytes[slab_of(i) % TENSORS]);
}

/* The blocks of the peer that [at, at + len) of its region lies in. */
static uint32_t remote_blocks(uint64_t at, uint64_t len)
{
	uint32_t blocks = 0;

	for (int i = 0; i < SLABS; i++) {
		uint64_t bytes = w.far.tensor[i % TENSORS].block_bytes;
		uint64_t slab = w.far.blocks * bytes;

		if (at >= slab) {
			at -= slab;
			continue;
		}
		FUZZ_CHECK(at + len <= slab);
		for (uint64_t b = at / bytes; b <= (at + len - 1) / bytes; b++)
			blocks |= 1u << b;
		break;
	}
	return blocks;
}

static void spans(const struct tr_op *op, const struct tr_mem *lmem, const struct tr_rmem *rmem,
		  const struct tr_span *span)
{
	uint8_t *at = lmem->addr + span->local;
	uint64_t grant = op->grant;
	unsigned int i;

	check_local(at, span->len);
	if (op->kind == TR_READ_OP) {
		memset(at, 0xee, span->len);
		memset(shadow + (at - memory), 0xee, span->len);
		return;
	}
	if (!grant) {
		FUZZ_CHECK(w.far.flags & KV_CACHE_OPEN);
		return;
	}
	for (i = 0; i < SLOTS && w.grant_id[i] != grant; i++)
		;
	FUZZ_CHECK(i < SLOTS);
	FUZZ_CHECK(!(remote_blocks(span->remote, span->len) & ~w.grant_blocks[i]));
}

/* ---------------------------------------------------------------- the handshake */

static void connect_out(void)
{
	struct kv_error err;
	int ret;

	rig.idle = far_moves;
	ret = kv_connect(w.engine, "far", 1, 1000, &w.peer, &err);
	rig.idle = NULL;
	FUZZ_CHECK(!ret || (err.code == ret && err.message[0]));
	if (ret)
		w.peer = NULL;
}

bool is_alive(void)
{
	return w.peer && w.engine->peer[0] == w.peer;
}

static void connect_in(void)
{
	struct kv_error err;

	if (kv_listen(w.engine, NULL, 0, NULL, &err))
		return;
	far_connect();
	for (int i = 0; i < 5; i++) {
		kv_progress(w.engine, 0, NULL);
		far_moves();
	}
	kv_progress(w.engine, 0, NULL);
	w.peer = w.engine->peer[0];
	/* Before it is up nobody has its handle. */
	if (!is_alive() || w.peer->state != KV_PEER_UP)
		w.peer = NULL;
	w.comm = w.peer ? w.peer->comm : w.comm; /* a byte of the hello may have been changed */
}

void end_connect(bool incoming)
{
	rig.message = heard;
	rig.span = spans;
	if (incoming)
		connect_in();
	else
		connect_out();
}

/* ---------------------------------------------------------------- an engine */

static void no_log(void *arg, int level, const char *line)
{
	FUZZ_CHECK(*line);
}

void end_open(const struct step *s)
{
	const char *const options[] = {
		"KVCACHE_TRANSPORT=shm", "KVCACHE_ARRIVALS=64", "KVCACHE_SPIN_US=0",
		s->a & 0x80 ? "KVCACHE_HEARTBEAT_MS=1000" : "KVCACHE_HEARTBEAT_MS=0", NULL
	};
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_tensor tensor[TENSORS] = { { .name = "k" }, { .name = "v" } };
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_error err;

	config.progress = KV_PROGRESS_CALLER;
	config.options = options;
	config.log = no_log;
	FUZZ_CHECK(!kv_engine_open(&config, &w.engine, &err));
	rig_take(w.engine->tr);
	for (int t = 0; t < TENSORS; t++) {
		tensor[t].block_bytes = block_bytes[t];
		tensor[t].stride = STRIDE;
		tensor[t].base = memory + t * BLOCKS * STRIDE;
		tensor[t].layer_stride = TENSORS * BLOCKS * STRIDE;
		tensor[t].order = s->b & 0x10 ? KV_ORDER_HND : 0;
	}
	layout.layers = LAYERS;
	layout.tensors = TENSORS;
	layout.blocks = BLOCKS;
	layout.tensor = tensor;
	layout.flags = w.flags;
	FUZZ_CHECK(!kv_cache_register(w.engine, &layout, &w.cache, &err));
}
