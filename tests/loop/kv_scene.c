/* SPDX-License-Identifier: Apache-2.0 */
/* kv_scene.c -- one of everything that the block API does */
#include "kv_scene.h"

#include <stdio.h>
#include <string.h>

enum { N = 3 };

static const struct kv_layers all_layers = { 0, 0 };
int64_t scene_patience_ms;
static const int64_t ids[N] = { 1, 2, 3 }, leased[N] = { 10, 11, 12 };

static int gather_alone(void *arg, const void *mine, void *all, size_t len)
{
	memcpy(all, mine, len);
	return 0;
}

/* Opens an engine with a cache; what was made is closed again if a later step fails. */
int scene_open_side(struct node *node, unsigned int side, struct kv_error *err)
{
	struct kv_tensor tensor = { .name = "k", .block_bytes = 256 };
	struct kv_layout layout = KV_INIT(kv_layout);
	int ret;

	memset(node, 0, sizeof(*node));
	node->side = side;
	ret = kv_engine_open(NULL, &node->engine, err);
	if (!ret)
		ret = kv_alloc(node->engine, 1 << 16, (void **)&node->mem, err);
	tensor.base = node->mem;
	tensor.layer_stride = 1 << 14;
	layout.layers = 4;
	layout.tensors = 1;
	layout.blocks = 64;
	layout.tensor = &tensor;
	layout.flags = KV_CACHE_OPEN | KV_CACHE_READABLE;
	if (!ret)
		ret = kv_cache_register(node->engine, &layout, &node->cache, err);
	return ret;
}

static int await_up(struct node *node, struct kv_error *err)
{
	struct kv_arrival arrival;

	if (!await_kind(node, KV_ARRIVAL_PEER_UP, &arrival, scene_patience_ms)) {
		err->code = KV_ERR_TIMEOUT;
		snprintf(err->op, sizeof(err->op), "scene");
		snprintf(err->message, sizeof(err->message), "no PEER_UP");
		return KV_ERR_TIMEOUT;
	}
	node->peer = arrival.peer;
	return 0;
}

static int use_group(struct node *a, struct kv_error *err)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_op *op = NULL;
	int ret = kv_group_start(a->engine, &opts.group, err);

	if (ret)
		return ret;
	ret = kv_write_blocks_async(a->peer, a->cache, all_layers, ids, ids, N, &opts, &op, err);
	if (!ret)
		ret = kv_group_end(opts.group, scene_patience_ms, NULL, err);
	else
		kv_group_end(opts.group, 0, NULL, NULL);
	kv_op_free(op, NULL);
	return ret;
}

static int use_pair(struct node *a, struct node *b, struct kv_error *err)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_lease *lease;
	struct kv_op *op;
	int ret = kv_recv_blocks_async(b->peer, b->cache, all_layers, leased, N, 5, NULL, &op, err);

	if (ret)
		return ret;
	opts.timeout_ms = scene_patience_ms;
	ret = kv_send_blocks(a->peer, a->cache, all_layers, ids, N, 5, &opts, err);
	if (!ret)
		ret = kv_wait(op, KV_ACKED, scene_patience_ms, err);
	kv_cancel(op, slow_ms(1000), NULL);
	kv_op_free(op, NULL);
	if (!ret)
		ret = kv_blocks_open(b->peer, b->cache, leased, N, 6, RIG_TIMEOUT_MS, &lease, err);
	if (!ret)
		ret = kv_revoke(lease, scene_patience_ms, err);
	return ret;
}

static int use_comm(struct node *a, struct kv_error *err)
{
	struct kv_comm_config config = KV_INIT(kv_comm_config);
	struct kv_comm *comm;
	int ret;

	config.nranks = 1;
	config.group = KV_COMM_ALL;
	config.allgather = gather_alone;
	ret = kv_comm_init(a->engine, &config, &comm, err);
	return ret ? ret : kv_comm_free(comm, scene_patience_ms, err);
}

/* An operation that cannot be posted at once: its receiver has not opened anything yet. */
static int use_waiting_send(struct node *a, struct kv_error *err)
{
	struct kv_op *op;
	int ret = kv_send_blocks_async(a->peer, a->cache, all_layers, ids, N, 77, NULL, &op, err);

	if (ret)
		return ret;
	ret = kv_test(op, err);
	kv_cancel(op, slow_ms(1000), NULL);
	kv_op_free(op, NULL);
	return ret < 0 ? ret : 0;
}

int scene_play(struct kv_error *err)
{
	struct node a = { .engine = NULL }, b = { .engine = NULL };
	int ret = scene_open_side(&b, 2, err);

	if (!ret)
		ret = scene_open_side(&a, 1, err);
	if (!ret)
		ret = kv_listen(b.engine, NULL, 0, &b.port, err);
	if (!ret)
		ret = kv_connect(a.engine, NULL, b.port, scene_patience_ms, &a.peer, err);
	if (!ret)
		ret = await_up(&b, err);
	if (!ret)
		ret = kv_write_blocks(a.peer, a.cache, all_layers, ids, ids, N, NULL, err);
	if (!ret)
		ret = kv_read_blocks(a.peer, a.cache, all_layers, ids, ids, N, NULL, err);
	if (!ret)
		ret = use_group(&a, err);
	if (!ret)
		ret = use_pair(&a, &b, err);
	if (!ret)
		ret = use_waiting_send(&a, err);
	if (!ret)
		ret = use_comm(&a, err);
	kv_engine_close(a.engine);
	kv_engine_close(b.engine);
	return ret;
}
