/* SPDX-License-Identifier: Apache-2.0 */
/* listener_rig.c -- an engine in a process of its own, so that its memory and descriptors are */
#include "listener_rig.h"

#include <stdio.h>
#include <unistd.h>

void tiny_open(struct tiny *t, const char *const *options)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_tensor tensor = { .name = "k", .block_bytes = 512 };
	struct kv_error err;
	void *memory;

	config.options = options;
	config.arrivals_off = 1; /* so that peers which have left are the engine's to free */
	ok(kv_engine_open(&config, &t->engine, &err), &err);
	ok(kv_alloc(t->engine, 8 * 512, &memory, &err), &err);
	tensor.base = memory;
	layout.layers = layout.tensors = 1;
	layout.blocks = 8;
	layout.tensor = &tensor;
	layout.flags = KV_CACHE_OPEN;
	ok(kv_cache_register(t->engine, &layout, &t->cache, &err), &err);
}

static int server(int fd, const void *arg)
{
	const struct server_config *config = arg;
	struct tiny t;
	uint32_t port;
	char command;

	if (config->descriptors) {
		struct rlimit limit = { config->descriptors, config->descriptors };

		setrlimit(RLIMIT_NOFILE, &limit);
	}
	tiny_open(&t, config->options[0] ? config->options : NULL);
	ok(kv_listen(t.engine, NULL, 0, &port, NULL), NULL);
	child_send(fd, &port, sizeof(port));
	while (read(fd, &command, 1) == 1 && command != 'q') {
		struct kv_stats stats = KV_INIT(kv_stats);
		struct kv_error err = { 0 };
		struct kv_peer *peer;
		int ret;

		if (command == 's') {
			kv_stats(t.engine, &stats, NULL);
			child_send(fd, &stats, sizeof(stats));
			continue;
		}
		child_receive(fd, &port, sizeof(port));
		ret = kv_connect(t.engine, NULL, port, slow_ms(10000), &peer, &err);
		if (ret)
			fprintf(stderr, "the server's own connect: %s\n", err.message);
		else
			kv_peer_close(peer, 1000, NULL);
		child_send(fd, &ret, sizeof(ret));
	}
	kv_engine_close(t.engine);
	return 0;
}

uint32_t start_server(struct child *child, const struct server_config *config)
{
	uint32_t port;

	child_start(child, server, config);
	child_receive(child->fd, &port, sizeof(port));
	return port;
}

struct kv_stats stats_of(const struct child *child)
{
	struct kv_stats stats;

	child_send(child->fd, "s", 1);
	child_receive(child->fd, &stats, sizeof(stats));
	return stats;
}
