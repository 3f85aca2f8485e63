/* SPDX-License-Identifier: Apache-2.0 */
/* kv_world.h -- two or three engines, their memory, their connections */
#ifndef SIM_KV_WORLD_H
#define SIM_KV_WORLD_H

#include <pthread.h>

#include "bounds.h"
#include "model.h"
#include "sim.h"

/* One end of a connection. */
struct link {
	struct engine *engine;
	int remote;
	struct kv_peer *peer;
	int users; /* calls that are given the handle: it is not closed before they have returned */
	bool closing, lost, dead;
	struct link *next; /* of its engine; the first to a remote engine is the one in use */
};

/* Blocks that a receiver has opened for one writer. */
struct slot {
	struct kv_lease *lease; /* NULL: a receive, or its handle is no longer the simulation's */
	struct link *link;	/* the receiver's end; NULL: free */
	uint64_t id, tag;
	int to, from, cache;
	struct kv_layers layers;
	int64_t block[OP_BLOCKS];
	size_t n;
	bool receives, revoking, taken;
	struct model_op *op; /* of the sender, into a receive */
	uint32_t generation;
};

struct engine {
	int number;
	struct kv_engine *kv;
	bool caller; /* KV_PROGRESS_CALLER */
	uint32_t port;
	struct kv_cache *cache[CACHES];
	struct kv_cache *part; /* of a page of cache 0: it stays when that goes; NULL: none */
	uint8_t *mem[CACHES][LAYERS][TENSORS];
	struct link *links;
	int users;   /* steps that use its memory */
	bool frozen; /* its memory is being made anew */
	bool ends;   /* its pump */
	pthread_t pump;
};

enum { SLOTS = 96 };

struct world {
	int engines;
	struct engine engine[ENGINES];
	struct slot slot[SLOTS];
	bool joining[ENGINES][ENGINES];
	struct link *source[ENGINES][CACHES][BLOCKS]; /* a source that may still be read */
	uint64_t tags;
	struct link *dead;
	bool left_open; /* an engine was closed beside a device that was slow to give up */
};
extern struct world w;

void world_open(uint64_t seed, int engines);
void world_close(void);

/* An end of a connection that is up, for one call; NULL: there is none now. link_put after it. */
struct link *link_get(int engine, int remote);
void link_put(struct link *link);
bool link_is_up(struct link *link); /* by what the engine says; the link is in use */
/* Closes both ends of what there is and connects again; false: not now. */
bool world_join(int engine, int remote);
void link_close(struct link *link);
/* Gives the memory of an engine back and takes it anew, at the same place. */
void world_recycle(int engine, bool keep_part);
/* Closes the engine, with its connections as they are; opens it again, its memory as above. */
void world_reopen(int engine);

struct slot *slot_new(void);
void slot_close(struct slot *slot); /* its blocks are the receiver's again */

#endif
