/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_flight.h -- a request on its way from a prefill rank into this decode rank's pool
 *
 *   admitted -> chunk opened (kv_blocks_open) and ordered (a mail block)
 *            -> its layers arrive, each is checked
 *            -> lease revoked, blocks held and published
 *            -> next chunk, or the request runs to its end
 */
#ifndef MPI_TESTS_REPLAY_FLIGHT_H
#define MPI_TESTS_REPLAY_FLIGHT_H

#include "replay.h"
#include "replay_admit.h"
#include "replay_check.h"

struct flight {
	int used;
	int waiting; /* its prefill rank is gone and will be replaced */
	uint32_t prefill;
	uint32_t mail; /* the mail block that carries its orders, the same number on both sides */
	struct admitted got;
	uint32_t next;		   /* first block of the request that has not arrived */
	uint32_t epoch;		   /* how often a chunk of it was lost */
	struct replay_chunk chunk; /* under way; count 0 = none */
	struct kv_peer *peer;	   /* to which it was ordered */
	struct kv_lease *lease;
	uint64_t opened_ns;
	uint64_t tag;
	uint32_t layers_here;
	uint8_t layer_here[KV_LAYERS_MAX];
};

struct decode {
	struct replay *rp;
	struct pool pool;
	struct admit admit;
	struct replay_check check;
	struct flight *flight; /* REPLAY_FLIGHTS for each prefill rank */
	uint32_t flights, used;
	uint32_t *mine, mines, next; /* requests of this rank; the first `next` were admitted */
	uint8_t *over;		     /* of `mine`: finished or given up */
	uint8_t peer_lost[RANK_MAX];
	const struct kv_peer *gone; /* the last one that an arrival reported lost */
	uint64_t waiting_since_ns; /* for a replacement; 0 = nobody waits */
	uint32_t unchecked;	   /* requests since the last check of the whole pool */
	int corrupted, dies;
};

/*
 * Admits the next request of this rank into an idle flight. 1, 0 when it has to wait, -1 on error.
 */
int flight_begin(struct decode *d);

/* Opens the next chunk, or ends the request that has all its blocks. 0, or -1. */
int flight_advance(struct decode *d, struct flight *f);

/* A layer arrived: check it; after the last one hold the chunk. 0, or -1. */
int flight_layer(struct decode *d, struct flight *f, uint32_t layer);

/* Its peer is lost: take the blocks back, then send again, wait for a replacement or give up. */
int flight_lost(struct decode *d, struct flight *f);

/* The flight that waits for arrivals with this tag, or NULL. */
struct flight *flight_by_tag(struct decode *d, uint64_t tag);

#endif
