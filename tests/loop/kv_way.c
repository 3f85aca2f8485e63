/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_way.c -- one block is written, and acknowledged: what way.py follows in a debugger
 *
 * The writer makes progress in its own call only, and does not sleep, so that its acknowledgement
 * comes there.
 */
#include <stdlib.h>

#include "kv_rig.h"

/* A debugger stops here: what came before was connecting. */
__attribute__((noinline)) void way_begins(void);
void way_begins(void)
{
	__asm__ volatile("");
}

int main(void)
{
	static const struct kv_layers all_layers = { 0, 0 };
	static const int64_t local[] = { 1 }, remote[] = { 2 };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct pair pair;
	struct kv_error err;

	node_open(&pair.b, 2, &rig_shape, NULL);
	node_listen(&pair.b);
	setenv("KVCACHE_SPIN_US", "1000000", 1);
	config.progress = KV_PROGRESS_CALLER;
	node_open(&pair.a, 1, &rig_shape, &config);
	node_connect(&pair.a, pair.b.port);
	node_await_peer(&pair.b);
	way_begins();
	ok(kv_write_blocks(pair.a.peer, pair.a.cache, all_layers, local, remote, 1, NULL, &err),
	   &err);
	pair_close(&pair);
	return 0;
}
