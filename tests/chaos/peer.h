/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peer.h -- a process that writes, or is written to, for ever, and checks every byte meanwhile
 *
 * Receivers order and senders write. An order is a block of the sender's mail cache that the
 * receiver writes: which of its blocks it has opened (a lease, or a receive under a tag) and the
 * seed that their bytes follow from. chaos.py runs several of these processes, makes faults and
 * reads what they count in struct status.
 */
#ifndef PEER_H
#define PEER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include <kvrail/kv.h>

enum {
	IDS = 8,	    /* processes of a world */
	TENSORS = 2,
	N_MAX = 12,	    /* blocks of a request */
	LAYERS_MAX = 8,
	CODES = 80,
	MAIL_SLOTS = 64,
	SLOTS_EACH = MAIL_SLOTS / IDS, /* of one receiver */
	MAIL_BYTES = 256,
};

#define OP_MS (500 * options.patience)	    /* deadline of an operation, and */
#define CALL_MS (100 * options.patience)    /* of a call that waits for it */
#define REQUEST_MS (700 * options.patience) /* then a receiver takes its blocks back */
#define STOP_MS (300 * options.patience)    /* how long a revoke, a cancel or a close may wait */
#define CONNECT_MS (1000 * options.patience)
enum { SLACK_MS = 4000 }; /* beyond a deadline; docs/deadlines.md has 2500 at most */

/* In a file that chaos.py reads. What is under `wrong` or `late` is a fault of kvrail. */
struct status {
	uint64_t ready;		   /* the engine is open */
	uint64_t connected;	   /* peers */
	uint64_t good[IDS];	   /* requests, by the other process: every byte was right */
	uint64_t bytes;
	uint64_t taken_back;	   /* requests that were revoked or cancelled before their end */
	uint64_t failed;	   /* operations and requests that ended with an error */
	uint64_t quarantined;	   /* peers and leases that cannot be closed yet */
	uint64_t checked;	   /* bytes compared */
	uint64_t wrong, late;	   /* bytes; late ones in blocks that had been given back */
	uint64_t untyped;	   /* errors without a cause, or with a code of another call */
	uint64_t overdue;	   /* calls and operations beyond deadline and slack */
	uint64_t codes[CODES];	   /* errors by code */
};
extern struct status *status;

struct shape {
	uint32_t layers, blocks;
	uint64_t bytes[TENSORS], stride[TENSORS]; /* multiples of 8 */
};

/* ---------------------------------------------------------------- data.c: bytes */

struct cache {
	struct kv_cache *handle;
	struct shape shape;
	uint8_t *mem;
	uint64_t *stamp;	/* by block: the seed of its bytes while nobody may write it */
	uint64_t *incoming;	/* by block: the seed of what is being written to it, or 0 */
	uint32_t *landed;	/* by block: the layers that have come, a bit each */
};

uint64_t mix(uint64_t x);
uint64_t chance(uint64_t *random, uint64_t of); /* 0 .. of - 1 */
uint64_t seed_of(uint64_t request, size_t index);
size_t cache_len(const struct shape *shape);
void cache_begin(struct cache *cache, uint64_t *random);
void cache_end(struct cache *cache);
void block_fill(struct cache *cache, int64_t id, uint64_t seed);
/* Nobody may write it now: other bytes than before, which must stay. */
void block_stamp(struct cache *cache, int64_t id, uint64_t *random);
/* Compares a layer of a block, or all of it, with what it must be; counts and tells what is not. */
bool block_check_layer(struct cache *cache, int64_t id, uint32_t layer);
bool block_check(struct cache *cache, int64_t id);
bool cache_check(struct cache *cache);

/* ---------------------------------------------------------------- guard.c: time and errors */

void guard_begin(void); /* starts the thread that counts time */
pthread_t thread_start(void *(*run)(void *arg), void *arg);
/*
 * Milliseconds that this process has lived through: one that was stopped, or got no processor, has
 * not aged. A call that does not come back ends the process with a dump of its engine.
 */
int64_t lived_ms(void);
void tell(const char *format, ...) __attribute__((format(printf, 1, 2)));

void call_begin(const char *name, int64_t timeout_ms);
int call_end(int ret, const struct kv_error *err, const int *may);
/* The result of a kvrail call with this deadline; other codes than those of `may` are counted. */
#define CALL(may, timeout_ms, call) \
	(call_begin(#call, timeout_ms), call_end((call), &error, may))
extern _Thread_local struct kv_error error;
extern const int may_end[], may_open[], may_connect[], may_close[], may_never[];

/* ---------------------------------------------------------------- peer.c: the engine */

struct options {
	uint64_t id, random;
	bool sends;
	const char *host;
	uint32_t listen, dial[IDS];
	unsigned int dials;
	struct shape shape;
	int64_t patience;
	bool soak; /* nothing is taken back early, every byte is looked at once */
	uint64_t in_flight;
	int kept; /* descriptors that libraries keep: librdmacm two for each device that it saw */
};
extern struct options options;
extern struct kv_engine *engine;
extern struct cache cache;
extern struct kv_cache *mail;
extern uint8_t (*mail_mem)[MAIL_BYTES]; /* MAIL_SLOTS */
extern const struct kv_layers all_layers;

struct order {
	uint64_t check; /* of what follows */
	uint64_t receiver, tag, lease, seed;
	uint64_t n;
	int64_t ids[N_MAX];
};
_Static_assert(sizeof(struct order) <= MAIL_BYTES, "an order is one block");
uint64_t order_check(const struct order *order);

/* A connection; what role has with it hangs from `state`. */
struct link {
	struct kv_peer *peer;
	uint64_t id;	/* of the other process */
	bool lost;	/* no more work; to be closed */
	uint64_t since; /* a number for each connection */
};
enum { LINKS = 64 };
extern struct link links[LINKS];
void link_drop(struct link *link);

/* What a role does; receive.c and send.c. */
struct role {
	bool (*step)(void); /* true: something was done */
	void (*arrival)(struct link *link, const struct kv_arrival *arrival);
	void (*closed)(struct link *link); /* nothing of it can land, or is read, any more */
	bool (*idle)(void);
	void (*finish)(void); /* begin nothing new */
};
extern const struct role receiver, sender;

#endif
