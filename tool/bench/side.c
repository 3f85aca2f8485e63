/* SPDX-License-Identifier: Apache-2.0 */
/* side.c -- what both sides of kvrail bench need: engine, caches, messages, waiting */
#include "bench.h"

#include <stdio.h>
#include <string.h>

volatile sig_atomic_t bench_interrupted;

static int interrupted(void *arg)
{
	return bench_interrupted;
}

static int register_cache(struct bench_side *s, uint32_t id, void *base, uint64_t block_bytes,
			  uint32_t blocks, uint32_t flags, struct kv_cache **cache_p)
{
	struct kv_tensor tensor = { .name = "bench", .block_bytes = block_bytes, .base = base };
	struct kv_layout layout = KV_INIT(kv_layout);

	layout.cache_id = id;
	layout.layers = 1;
	layout.tensors = 1;
	layout.blocks = blocks;
	layout.tensor = &tensor;
	layout.flags = flags;
	return kv_cache_register(s->engine, &layout, cache_p, &s->err);
}

int bench_side_open(struct bench_side *s, const char *name)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	void *memory;
	int ret;

	config.name = name;
	ret = kv_engine_open(&config, &s->engine, &s->err);
	if (ret)
		return ret;
	kv_engine_set_interrupt(s->engine, interrupted, NULL);
	ret = kv_alloc(s->engine, 2 * BENCH_CONTROL_BYTES, &memory, &s->err);
	if (!ret) {
		s->messages = memory;
		ret = register_cache(s, BENCH_CONTROL_ID, memory, BENCH_CONTROL_BYTES, 2, 0,
				     &s->control);
	}
	if (ret)
		bench_side_close(s);
	return ret;
}

void bench_side_close(struct bench_side *s)
{
	kv_engine_close(s->engine);
	s->engine = NULL;
}

int bench_side_take(struct bench_side *s, const struct bench_plan *plan)
{
	void *memory;
	int ret = kv_alloc(s->engine, bench_pool_bytes(plan), &memory, &s->err);

	if (ret)
		return ret;
	s->pool = memory;
	memset(memory, 0, bench_pool_bytes(plan)); /* no page is new in a measured write */
	for (uint32_t row = 0; row < plan->rows && !ret; row++)
		ret = register_cache(s, row, memory, plan->row_bytes[row],
				     bench_round_batches(plan, row) * plan->batch, KV_CACHE_OPEN,
				     &s->cache[row]);
	return ret;
}

void bench_side_drop(struct bench_side *s)
{
	for (uint32_t row = 0; row < BENCH_ROWS_MAX; row++)
		if (s->cache[row] && !kv_cache_unregister(s->cache[row], &s->err))
			s->cache[row] = NULL;
	if (s->pool && !kv_free(s->engine, s->pool, &s->err))
		s->pool = NULL;
}

int bench_send(struct bench_side *s, const struct bench_message *m, int64_t timeout_ms)
{
	static const int64_t out = 0;
	struct kv_options options = KV_INIT(kv_options);
	const struct kv_layers all = { 0 };

	memcpy(s->messages, m, sizeof(*m));
	options.timeout_ms = timeout_ms;
	return kv_send_blocks(s->peer, s->control, all, &out, 1, 0, &options, &s->err);
}

int bench_complain(struct bench_side *s, const char *what)
{
	char line[1024];

	if (bench_interrupted) {
		snprintf(s->said, sizeof(s->said), "interrupted");
	} else {
		kv_error_format(&s->err, line, sizeof(line));
		snprintf(s->said, sizeof(s->said), "%s: %s", what, line);
	}
	fprintf(stderr, "kvrail bench: %s\n", s->said);
	return bench_interrupted ? 128 + SIGINT : 1;
}
