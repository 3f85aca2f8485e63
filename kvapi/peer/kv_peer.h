/* SPDX-License-Identifier: Apache-2.0 */
/* kv_peer.h -- a peer: its record, its tables, its place in the engine */
#ifndef KV_PEER_H
#define KV_PEER_H

#include "kv_engine.h"

/* A block of an operation: kv_check.c walks over all of them in this order, the ids fastest. */
struct kv_walk {
	uint32_t layer; /* of the operation's */
	uint32_t tensor;
	uint32_t index; /* of its ids */
};

/* An operation of the peer: kv_incoming.c. */
struct kv_incoming {
	bool begun, notified;
	bool proves; /* PROVE, not BEGIN */
	uint64_t notified_op;
	struct kv_msg_begin begin;
	int32_t status;
};

struct kv_rslab {
	struct tr_rmem *rmem;
	uint64_t offset;
};

/* One cache as this peer has it, next to ours. */
struct kv_map {
	struct kv_cache *cache; /* ours of the same id; NULL: none, or the peer has none */
	struct kv_geometry remote;
	bool meets;
	struct kv_part part[KV_TENSORS_MAX];
	uint64_t block_bytes; /* that move per block and layer: the sum of the parts */
	uint64_t stride[KV_TENSORS_MAX];
	struct kv_rslab *slab;
	struct kv_marks remote_marks, local_marks;
	/*
	 * index + 1 of the grant that holds a remote block; mapped by the first grant, and charged
	 * to the peer page by page as it names blocks (bit i: page i was)
	 */
	uint32_t *owner;
	uint64_t *paid;
};

enum kv_slot_state { KV_SLOT_FREE = 0, KV_SLOT_BUSY, KV_SLOT_ABORT, KV_SLOT_UNACKED };

struct kv_slot {
	uint32_t generation;
	uint8_t state;
	struct kv_op *op; /* BUSY */
	/* What an acknowledgement that comes after the operation's end still settles. */
	uint64_t grant;
	struct kv_layers layers;
	int32_t status;
	bool send; /* kv_send_blocks */
};

/* What there is more where digests were agreed on. */
struct kv_checks {
	struct kv_verify { /* of an operation of the peer: kv_verify.c */
		bool is_wrong;
		struct kv_walk next;	   /* whose digest comes next */
		struct kv_msg_wrong wrong; /* the first whose digest was another */
	} in[KV_OPS_MAX];
	/* A message of kv_digests.c that has not found a credit yet; op 0: there is none. */
	struct kv_unsent {
		struct kv_msg msg;
		struct kv_walk next; /* behind its blocks, if there are more */
		bool more;
	} unsent;
};

/* Of a cache that one of the ends has not; nothing writes to it. */
extern const struct kv_map kv_no_map;

/* What exists from the accepted hello on. Its tables begin empty and grow with their use. */
struct kv_link {
	struct kv_cache
		*known[KV_CACHES_MAX]; /* ours, as sent to the peer; counted in cache.peers */
	struct kv_map *maps; /* of the caches that the peer has named */
	struct kv_map *map[KV_CACHES_MAX]; /* one of them, or kv_no_map */
	struct kv_slot *slot; /* `slots` of KV_OPS_MAX */
	unsigned int slots;
	uint64_t busy[KV_WORDS], posting[KV_WORDS], aborts[KV_WORDS];
	unsigned int slots_used;
	unsigned int turn; /* where the next round of posting begins */
	struct kv_op *collected; /* operations that have not begun */
	struct kv_incoming *in; /* `ins` of KV_OPS_MAX */
	unsigned int ins;
	uint64_t ack[KV_WORDS], withheld[KV_WORDS];
	struct kv_lease **lease; /* `leases_cap` of KV_LEASES_MAX */
	unsigned int leases_cap;
	struct kv_lease *announce; /* not all of their messages are sent; oldest first */
	struct kv_grant **grant; /* `grants` of KV_LEASES_MAX */
	unsigned int grants;
	struct kv_grant *oldest, *newest;
	uint32_t newest_serial;
	uint64_t charged; /* bytes: kv_budget.c */
	unsigned int leases, leases_end;
	unsigned int placed_slab; /* kv_place.c: where the last byte went */
	bool lease_work, grant_work; /* messages of leases, answers of grants wait for credits */
	struct kv_checks *checks; /* NULL: no block is digested */
};

/* How far kv_peer_close has come. */
enum kv_peer_leaving { KV_STAYS = 0, KV_CLOSING, KV_BYE_SENT };

/* Which of its arrivals the queue has. */
enum kv_peer_announced { KV_UNANNOUNCED = 0, KV_UP_QUEUED, KV_LOST_QUEUED };

enum kv_peer_state {
	KV_PEER_HANDSHAKE = 0,
	KV_PEER_UP,
	KV_PEER_LOST,
	KV_PEER_FENCED, /* lost, and no byte of it can land any more */
	KV_PEER_CLOSED, /* neither conn nor link: only the holders of the record still read it */
};

struct kv_peer {
	uint32_t magic;
	_Atomic uint8_t state; /* changes under claim */
	/* the connection has failed: its operations say so now, and TR_PEER_LOST follows */
	atomic_bool failing;
	bool incoming;
	bool owned;   /* the application has the handle, or will have it from PEER_UP */
	bool bye;      /* the other end has said that it closes */
	bool pong;	/* a PING came */
	bool heartbeat; /* it sends PONG: kv_heartbeat.c */
	bool awaits; /* a GPU: in its last round an operation met an event that is to come */
	bool restless; /* it had more than one turn holds: it comes again without an event */
	uint8_t leaving, announced;
	/* kv_comm_init: the end that accepted has all of its ranks */
	atomic_bool adopted;
	bool adopted_sent; /* to the end that connected */
	int64_t adopt_by_ns;
	/* kv_peer_abandon: no handle of it is left, the service frees it */
	atomic_bool orphan;
	struct kv_engine *engine;
	struct tr_conn *conn;
	atomic_uint holders; /* the table of peers, operations, a kv_revoke */
	struct kv_claim claim;
	uint32_t index; /* in engine.peer */
	int64_t begun_ns;
	int64_t next_deadline_ns;
	bool heard;		    /* a message came in this round */
	int64_t heard_ns;	    /* kv_heartbeat.c: when one came last, and */
	unsigned int pings;	    /* how many went out since */
	int64_t round_ns;	    /* when the last round ended */
	int64_t now_ns;		    /* kv_peer_now; 0: not read in this round */
	uint64_t turn_bytes;	    /* posted in this round */
	_Atomic int64_t rounds;	    /* of progress, and */
	_Atomic int64_t posting_ns; /* the deadline of the operation that is being posted */
	/* kv_watch.c: the claim was held in this round at so many looks */
	int64_t seen_rounds;
	unsigned int looks;
	_Atomic uint64_t user;
	uint64_t comm; /* kv_comm_init: in the hello; 0: none */
	uint32_t comm_rank;
	char name[KV_NAME_MAX];
	_Atomic uint64_t host;   /* tr_conn_host */
	char address[64], transport[16]; /* for errors, also without the claim or after the close */
	/* for the end of a connect or of a revocation, a slot, a lease whose number came first */
	struct kv_waiter waiter;
	struct kv_error error;	 /* why it failed or was lost */
	struct tr_counters count; /* as kv_stats saw them last; under engine.lock */
	struct kv_traffic *traffic;	  /* the engine's, of its transport */
	struct kv_timing *timing;	  /* its own; as long as the record, from its tables on */
	struct kv_link *link;
};

/* The clock, read once in a round for all that takes next to no time: not posting. */
static inline int64_t kv_peer_now(struct kv_peer *peer)
{
	if (!peer->now_ns)
		peer->now_ns = kv_now_ns();
	return peer->now_ns;
}
static inline void kv_peer_posted(struct kv_peer *peer, uint64_t bytes)
{
	peer->turn_bytes += bytes;
	peer->now_ns = 0;
}
/* What the application sees: the loss itself comes after the ends of the operations. */
static inline bool kv_peer_is_connected(struct kv_peer *peer)
{
	return peer->state == KV_PEER_UP && !atomic_load(&peer->failing);
}
int kv_peer_use(const struct kv_peer *peer, const char *op, struct kv_error *err);
int kv_peer_fail(const struct kv_peer *peer, struct kv_error *err, int code, const char *op,
		 const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* PEER_LOST, or why else nothing can be begun on this peer. */
int kv_peer_usable(const struct kv_peer *peer, const char *op, struct kv_error *err);
int kv_peer_new(struct kv_engine *engine, bool incoming, struct kv_peer **peer_p,
		struct kv_error *err);
void kv_peer_hold(struct kv_peer *peer);
void kv_peer_drop(struct kv_peer *peer);
void kv_peer_note(struct kv_peer *peer); /* address and transport, as they are known now */

/*
 * kv_budget.c: memory that a peer's messages cost (records of leases, their ids, owners of its
 * blocks). A peer may cost KV_CHARGE_PEER, and KV_CHARGE_BLOCK for each block of this engine's
 * caches; all peers together KV_CHARGE_PEERS times that, those of one address KV_CHARGE_ADDRESS
 * times. 0; PROTOCOL: this peer's limit is reached; NOMEM: that of others, too, is.
 */
enum { KV_CHARGE_PEER = 16 << 20, KV_CHARGE_BLOCK = 64, KV_CHARGE_PEERS = 4,
       KV_CHARGE_ADDRESS = 3 };
int kv_budget_take(struct kv_peer *peer, size_t bytes);
void kv_budget_give(struct kv_peer *peer, size_t bytes);

bool kv_peer_tell_up(struct kv_peer *peer);
void kv_peer_leave_pending(struct kv_peer *peer, enum kv_peer_state state);

/* 0, or `code` and why. */
int kv_peer_claim_for(struct kv_peer *peer, int64_t deadline_ns, int code, const char *op,
		      struct kv_error *err);
void kv_peer_break(struct kv_peer *peer, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void kv_peer_due(struct kv_peer *peer, int64_t deadline_ns); /* next_deadline_ns = min */
/* Sends a message: 0, TR_AGAIN or negative. */
int kv_peer_send(struct kv_peer *peer, const struct kv_msg *msg);

/*
 * kv_check.c: blocks whose digests both ends compare. The digest of the part of a block of ours
 * that the two ranks share; whether there is a block behind this one, which `walk` is then; and
 * the failure that names a block: of `by`, an operation's name.
 */
uint32_t kv_check_block(const struct kv_map *map, uint32_t layer, uint32_t tensor, uint32_t id);
bool kv_check_next(const struct kv_map *map, uint32_t layers, uint32_t ids, struct kv_walk *walk);
int kv_check_fail(const struct kv_peer *peer, const struct kv_map *map,
		  const struct kv_msg_wrong *wrong, const char *by, struct kv_error *err);

/*
 * kv_table.c: a table with `need` entries at least, zero where they are new: `table`, or another
 * one in its place with at least double the *cap_p. NULL: there is no memory, and `table` stays.
 */
void *kv_table_grow(void *table, unsigned int *cap_p, unsigned int need, size_t entry_bytes);

/* kv_stats for who looks at an engine in trouble. false: a thread keeps engine.lock. */
struct kv_stats;
bool kv_stats_look(struct kv_engine *engine, struct kv_stats *stats, uint64_t *pool_bytes_p);
/* The counters of a connection that is about to close. Claim and engine.lock held. */
void kv_stats_keep(struct kv_peer *peer);

/* ---------------------------------------------------------------- kv_times.c */

/* A peer that is about to leave the table. engine.lock held. */
void kv_times_keep(struct kv_peer *peer);
/* Adds its operations of every kind. engine.lock or claim held. */
void kv_times_of(const struct kv_peer *peer, struct kv_times *sum);
struct kv_timed_peer {
	uint32_t index;
	char name[KV_NAME_MAX];
	struct kv_timing timing;
};
/*
 * All that there were, and the first `cap` peers of the table. No claim is taken. false, and
 * nothing is written: a thread keeps engine.lock.
 */
bool kv_times_look(struct kv_engine *engine, struct kv_timing *all, struct kv_timed_peer *rows,
		   size_t cap, size_t *n_p);

/* ---------------------------------------------------------------- the table: kv_table.c */

enum { KV_TOKEN_WAKE = 0, KV_TOKEN_LISTENER = 1, KV_TOKEN_PEERS = 2 }; /* data of epoll events */
int kv_table_watch(struct kv_peer *peer, struct kv_error *err);
/* With its claim, or NULL. `generation` NULL: any peer there, and engine.wants is not set. */
struct kv_peer *kv_table_try(struct kv_engine *engine, uint32_t index, const uint32_t *generation);
/* The same, but threads that wait for the peer have it first, and its holder learns nothing. */
struct kv_peer *kv_table_glance(struct kv_engine *engine, uint32_t index);
/*
 * To look at a peer whose handle the caller does not hold, and to release it: it may be freed a
 * moment later. Its connection must not be polled or posted to. Tries until the deadline; NULL:
 * none, or busy.
 */
struct kv_peer *kv_table_claim(struct kv_engine *engine, uint32_t index, int64_t deadline_ns);
void kv_table_leave(struct kv_peer *peer);
static inline void kv_table_keep_awake(const struct kv_peer *peer)
{
	atomic_store(&peer->engine->awake[peer->index], KV_AWAKE_TURNS);
}
/* What can be said of a peer whose claim another thread keeps; false: there is none. */
struct kv_peer_look {
	uint8_t state, leaving;
	bool incoming;
	int64_t round_ns;
	char name[KV_NAME_MAX], address[64], transport[16];
	struct kv_times times; /* kv_times_of */
};
uint32_t kv_table_count(const struct kv_engine *engine, unsigned int state); /* under engine.lock */
bool kv_table_look(struct kv_engine *engine, uint32_t index, int64_t deadline_ns,
		   struct kv_peer_look *look);

#endif
