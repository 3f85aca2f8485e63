/* SPDX-License-Identifier: Apache-2.0 */
/*
 * example.h -- what every example needs and what is not the lesson: errors, a small cache, a
 * recognisable pattern
 */
#ifndef KVRAIL_EXAMPLE_H
#define KVRAIL_EXAMPLE_H

#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <kvrail/kv.h>

enum { LAYERS = 4, TENSORS = 2, BLOCKS = 64, BLOCK_BYTES = 4096, WAIT_MS = 60000 };

/* Ends the program with the whole cause if `code` is an error: check(kv_...(..., &err), &err). */
static inline void check(int code, const struct kv_error *err)
{
	char line[1024];

	if (code >= 0)
		return;
	kv_error_format(err, line, sizeof(line));
	fprintf(stderr, "%s\n", line);
	exit(1);
}

static inline void require(bool condition, const char *what)
{
	if (condition)
		return;
	fprintf(stderr, "not as expected: %s\n", what);
	exit(1);
}

/*
 * A K/V cache of LAYERS x {k, v} x BLOCKS blocks in memory that peers of this host can write
 * directly.
 */
struct small_cache {
	unsigned char *memory;
	struct kv_cache *handle;
	size_t block_bytes;
};

static inline unsigned char *block_of(const struct small_cache *cache, uint32_t layer,
				      uint32_t tensor, int64_t id)
{
	return cache->memory +
	       ((layer * TENSORS + tensor) * (size_t)BLOCKS + (size_t)id) * cache->block_bytes;
}

/* tp_size and tp_rank: this process holds one of tp_size equal parts of every block. */
static inline struct small_cache open_cache(struct kv_engine *engine, uint32_t flags,
					    uint32_t tp_size, uint32_t tp_rank)
{
	struct small_cache cache = {};
	size_t tensor_bytes = BLOCKS * (BLOCK_BYTES / tp_size);
	struct kv_tensor tensors[TENSORS] = {};
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_error err;
	void *memory;

	check(kv_alloc(engine, LAYERS * TENSORS * tensor_bytes, &memory, &err), &err);
	cache.memory = (unsigned char *)memory;
	cache.block_bytes = BLOCK_BYTES / tp_size;
	for (uint32_t t = 0; t < TENSORS; t++) {
		tensors[t].name = t ? "v" : "k";
		tensors[t].block_bytes = cache.block_bytes;
		tensors[t].order = KV_ORDER_HND; /* a rank's heads lie together */
		tensors[t].base = cache.memory + t * tensor_bytes;
		tensors[t].layer_stride = TENSORS * tensor_bytes;
	}
	layout.layers = LAYERS;
	layout.tensors = TENSORS;
	layout.tensor = tensors;
	layout.blocks = BLOCKS;
	layout.tp_size = tp_size;
	layout.tp_rank = tp_rank;
	layout.flags = flags;
	check(kv_cache_register(engine, &layout, &cache.handle, &err), &err);
	return cache;
}

/*
 * The byte that every byte of a block has, so that a block in the wrong place never looks right.
 * Never 0.
 */
static inline unsigned char pattern(uint32_t layer, uint32_t tensor, int64_t id, uint32_t salt)
{
	uint32_t mixed = (layer * 31 + tensor) * 131 + (uint32_t)id * 7 + salt * 53;

	return (unsigned char)(mixed % 251 + 1);
}

static inline void fill_block(const struct small_cache *cache, uint32_t layer, int64_t id,
			      uint32_t salt)
{
	for (uint32_t t = 0; t < TENSORS; t++)
		memset(block_of(cache, layer, t, id), pattern(layer, t, id, salt),
		       cache->block_bytes);
}

/*
 * Is part `part` of `parts` of block `id` of one layer what the writer had in its block `source`?
 */
static inline void expect_part(const struct small_cache *cache, uint32_t layer, int64_t id,
			       int64_t source, uint32_t salt, uint32_t part, uint32_t parts)
{
	size_t len = cache->block_bytes / parts;

	for (uint32_t t = 0; t < TENSORS; t++) {
		const unsigned char *bytes = block_of(cache, layer, t, id) + part * len;

		for (size_t i = 0; i < len; i++)
			require(bytes[i] == pattern(layer, t, source, salt), "a received byte");
	}
}

static inline void expect_block(const struct small_cache *cache, uint32_t layer, int64_t id,
				int64_t source, uint32_t salt)
{
	expect_part(cache, layer, id, source, salt, 0, 1);
}

/* Every block that is not in ids[] must still be zero, in all layers. */
static inline void expect_rest_untouched(const struct small_cache *cache, const int64_t *ids,
					 size_t n)
{
	for (int64_t id = 0; id < BLOCKS; id++) {
		bool named = false;

		for (size_t i = 0; i < n; i++)
			named |= ids[i] == id;
		for (uint32_t l = 0; l < LAYERS && !named; l++)
			for (uint32_t t = 0; t < TENSORS; t++)
				for (size_t i = 0; i < cache->block_bytes; i++)
					require(!block_of(cache, l, t, id)[i], "an untouched byte");
	}
}

/* Sleeps until the engine has an arrival, and takes it. */
static inline struct kv_arrival next_arrival_within(struct kv_engine *engine, int ms)
{
	struct pollfd fd = { kv_arrivals_fd(engine), POLLIN, 0 };
	struct kv_arrival arrival;
	struct kv_error err;
	int n;

	do {
		require(poll(&fd, 1, ms) == 1, "an arrival in time");
		n = kv_poll_arrivals(engine, &arrival, 1, &err);
		check(n, &err);
	} while (!n);
	return arrival;
}

static inline struct kv_arrival next_arrival(struct kv_engine *engine)
{
	return next_arrival_within(engine, WAIT_MS);
}

static inline void send_bytes(int fd, const void *bytes, size_t len)
{
	require(write(fd, bytes, len) == (ssize_t)len, "writing to a pipe");
}

static inline void receive_bytes(int fd, void *bytes, size_t len)
{
	for (size_t got = 0; got < len;) {
		ssize_t n = read(fd, (char *)bytes + got, len - got);

		require(n > 0, "reading from a pipe");
		got += (size_t)n;
	}
}

/*
 * Runs writer(fd) in a child process and reader(fd) in this one, joined by a socket pair through
 * which the application sends the other side what it must know. An engine belongs to the process
 * that opens it, so both open theirs after the fork.
 */
static inline void run_pair(void (*writer)(int fd), void (*reader)(int fd))
{
	int fds[2], status;
	pid_t child;

	require(!socketpair(AF_UNIX, SOCK_STREAM, 0, fds), "a socket pair");
	child = fork();
	require(child >= 0, "a second process");
	if (!child) {
		close(fds[0]);
		writer(fds[1]);
		exit(0);
	}
	close(fds[1]);
	reader(fds[0]);
	close(fds[0]);
	require(waitpid(child, &status, 0) == child && !status, "the writer's success");
}

#endif
