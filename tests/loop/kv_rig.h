/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_rig.h -- two engines for the loop tests: in one process, or each in its own
 *
 * Every byte of a cache is f(side, layer, tensor, block, offset, epoch), the gaps between blocks
 * included, so that a misplaced, stale or stray byte never looks right.
 */
#ifndef KV_RIG_H
#define KV_RIG_H

#include <stdbool.h>
#include <sys/types.h>

#include <kvrail/kv.h>

#include "../lib/slow.h"
#include "../lib/test.h"

enum { RIG_LAYERS = 4, RIG_TENSORS = 2, RIG_BLOCKS = 96 };
#define RIG_TIMEOUT_MS slow_ms(20000) /* for what surely comes, on whatever machine */

struct shape {
	uint32_t layers, blocks;
	uint64_t block_bytes[RIG_TENSORS], stride[RIG_TENSORS];
	uint32_t tp_size, tp_rank;
	uint32_t flags;
	bool malloced; /* memory that did not come from kv_alloc */
	/* Memory of a GPU: returns where this process sees it; *addr_p is its address for CUDA. */
	uint8_t *(*cuda)(size_t len, uint8_t **addr_p);
	int32_t kind; /* of it, if it is not CUDA's */
};
extern const struct shape
	rig_shape; /* K without gaps, V with gaps, KV_CACHE_OPEN | KV_CACHE_READABLE */

struct node {
	struct kv_engine *engine;
	struct kv_cache *cache;
	struct kv_peer *peer;
	struct shape shape;
	uint8_t *mem;
	uint8_t *addr; /* what is registered: the same, or a GPU's address */
	size_t len;
	uint32_t port;
	unsigned int side;
	struct kv_error err;
};

/* Opens an engine with a cache, filled with this side's epoch 0. */
void node_open(struct node *node, unsigned int side, const struct shape *shape,
	       const struct kv_engine_config *config);
void node_close(struct node *node);
void node_listen(struct node *node);
void node_connect(struct node *node, uint32_t port);
void node_await_peer(struct node *node); /* PEER_UP */

/*
 * Registers a second cache of that many bytes, and takes it back: mapped, never touched. To look at
 * the pages of a terabyte takes seconds all the same.
 */
int register_untouched(struct kv_engine *engine, size_t len, struct kv_error *err);

struct pair {
	struct node a, b; /* a has connected to b */
};
void pair_open(struct pair *pair, const struct shape *shape, const struct kv_engine_config *config);
void pair_close(struct pair *pair);

uint8_t *block_at(const struct node *node, uint32_t layer, uint32_t tensor, int64_t block);
void fill_side(struct node *node, unsigned int side, unsigned int epoch);
void fill_block(struct node *node, unsigned int side, int64_t block, unsigned int epoch);
uint8_t pattern(unsigned int side, uint32_t layer, uint32_t tensor, int64_t block, uint64_t offset,
		unsigned int epoch);

/*
 * Whether node's memory is exactly: its own pattern (epoch 0), except that to[i] of these layers
 * hold block from[i] of side `side`, epoch `epoch`. Prints the first byte that differs.
 */
bool memory_is(const struct node *node, struct kv_layers layers, unsigned int side,
	       const int64_t *from, const int64_t *to, size_t n, unsigned int epoch);

/* Takes the next arrival that is not PEER_UP or PEER_LOST; false after `ms`. */
bool next_arrival(struct node *node, struct kv_arrival *arrival, int64_t ms);
void no_arrival(struct node *node); /* fails the test if one waits */
bool await_kind(struct node *node, int kind, struct kv_arrival *arrival, int64_t ms);

/*
 * What another thread or process counts a moment later: waits until the field of node's kv_stats is
 * `want`, and asserts that it is.
 */
#define await_stat(node, field, want) await_count((node), offsetof(struct kv_stats, field), (want))
void await_count(struct node *node, size_t at, uint64_t want);

/* Fails the test with the whole error in words. */
void check_ok(int ret, const struct kv_error *err, const char *what);
#define ok(call, err) check_ok((call), (err), #call)

/* How bytes go, from now on: a word of KVCACHE_SHM_PATH, or "tcp". */
void rig_path(const char *path);

/*
 * A child process that runs `run` with one end of a socket pair; the other end is the parent's.
 * Start it while this process has no engine: a sanitizer's allocator does not survive a fork beside
 * threads.
 */
struct child {
	pid_t pid;
	int fd;
};
void child_start(struct child *child, int (*run)(int fd, const void *arg), const void *arg);
void child_send(int fd, const void *p, size_t n);
void child_receive(int fd, void *p, size_t n); /* fails the test after RIG_TIMEOUT_MS */
int child_join(struct child *child);	       /* its exit code, or 128 + signal */
void child_kill(struct child *child, int sig);
/* In the child, with a node of its own: */
void child_listens(int fd, struct node *node); /* and sends its port */
void child_connects(int fd, struct node *node); /* to the port that it is sent */
int child_ends(int fd, struct node *node); /* when the parent closes its end; the exit code */
/*
 * `run` of a child that receives: sends its port, waits for a byte, and sends one. From then on
 * its memory answers no page fault (stuck.h), if the byte was 1. It ends when it is killed.
 */
int rig_stuck_receiver(int fd, const void *arg);

#endif
