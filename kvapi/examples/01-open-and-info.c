/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 01-open-and-info.c -- open an engine, ask what it can use, register a cache, and see a mistake
 * explained
 *
 *     cc 01-open-and-info.c -o 01-open-and-info $(pkg-config --cflags --libs kvrail)
 */
#include <stdio.h>
#include <string.h>

#include <kvrail/kv.h>

/* Every call that can fail takes a struct kv_error and fills in the cause. */
static int fail(const struct kv_error *err)
{
	char line[1024];

	kv_error_format(err, line, sizeof(line));
	fprintf(stderr, "%s\n", line);
	return 1;
}

int main(void)
{
	enum { LAYERS = 2, BLOCKS = 100, BLOCK_BYTES = 32768 };
	struct kv_device_info device = KV_INIT(kv_device_info);
	struct kv_layout layout = KV_INIT(kv_layout); /* size is set, the rest is 0 */
	struct kv_engine *engine;
	struct kv_cache *cache;
	struct kv_error err;
	void *memory;

	printf("kvrail %s\n", kv_version());
	if (kv_engine_open(NULL, &engine, &err))
		return fail(&err);
	for (size_t i = 0; !kv_device_get(engine, i, &device, NULL); i++)
		printf("%s (%s): %s: %s\n", device.transport, device.name,
		       device.usable ? "usable" : "not usable", device.detail);

	/*
	 * A cache is layers x tensors x blocks. Here each layer is one piece of memory: all K
	 * blocks, then all V blocks.
	 */
	struct kv_tensor tensors[2] = {};

	if (kv_alloc(engine, (size_t)LAYERS * 2 * BLOCKS * BLOCK_BYTES, &memory, &err))
		return fail(&err);
	for (size_t t = 0; t < 2; t++) {
		tensors[t].name = t ? "v" : "k";
		tensors[t].block_bytes = BLOCK_BYTES;
		tensors[t].base = (char *)memory + t * BLOCKS * BLOCK_BYTES;
		tensors[t].layer_stride = (size_t)2 * BLOCKS * BLOCK_BYTES;
	}
	layout.layers = LAYERS;
	layout.tensors = 2;
	layout.tensor = tensors;
	layout.blocks = BLOCKS;
	if (kv_cache_register(engine, &layout, &cache, &err))
		return fail(&err);
	printf("registered a cache of %d layers x k, v x %d blocks of %d bytes\n", LAYERS, BLOCKS,
	       BLOCK_BYTES);

	/*
	 * A mistake changes nothing and is reported exactly. The scope says that the arguments are
	 * to be corrected.
	 */
	if (!kv_cache_register(engine, &layout, &cache, &err) || err.code != KV_ERR_BUSY ||
	    kv_error_scope(err.code) != KV_SCOPE_CALL) {
		fprintf(stderr, "the cache id could be taken twice\n");
		return 1;
	}
	printf("registering it again: %s\n", err.message);

	if (kv_cache_unregister(cache, &err) || kv_free(engine, memory, &err))
		return fail(&err);
	kv_engine_close(engine);
	return 0;
}
