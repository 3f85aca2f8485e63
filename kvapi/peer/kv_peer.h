/* SPDX-License-Identifier: Apache-2.0 */
/* kv_peer.h -- a peer: what comes in from it, its tables, its progress */
#ifndef KV_PEER_H
#define KV_PEER_H

#include "kv_lease.h"
#include "kv_op.h"

/*
 * ---------------------------------------------------------------- incoming operations:
 * kv_incoming.c
 */

struct kv_incoming {
	bool begun, notified;
	uint64_t notified_op;
	struct kv_msg_begin begin;
	int32_t status;
};
/* These three: 0, or PROTOCOL where it contradicts an earlier message. */
int kv_incoming_begin(struct kv_peer *peer, const struct kv_msg_begin *begin);
int kv_incoming_notified(struct kv_peer *peer, uint64_t value);
int kv_incoming_abort(struct kv_peer *peer, const struct kv_msg_abort *abort);
/* An operation that was begun under the lease is neither committed nor aborted. */
bool kv_incoming_uses(const struct kv_peer *peer, uint64_t lease);
void kv_incoming_retry(struct kv_peer *peer); /* arrivals that found the queue full */
bool kv_incoming_flush(struct kv_peer *peer); /* acknowledgements */

/* -------------------------------------------------------------- peers: kv_peer.c, kv_progress.c */

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

/* What exists from the accepted hello on. */
struct kv_link {
	struct kv_cache
		*known[KV_CACHES_MAX]; /* ours, as sent to the peer; counted in cache.peers */
	struct kv_map map[KV_CACHES_MAX];
	struct kv_slot slot[KV_OPS_MAX];
	uint64_t busy[KV_WORDS], posting[KV_WORDS], aborts[KV_WORDS];
	unsigned int slots_used;
	unsigned int turn; /* where the next round of posting begins */
	struct kv_op *collected; /* operations that have not begun */
	struct kv_incoming in[KV_OPS_MAX];
	uint64_t ack[KV_WORDS], withheld[KV_WORDS];
	struct kv_lease *lease[KV_LEASES_MAX];
	struct kv_lease *announce; /* not all of their messages are sent; oldest first */
	struct kv_grant *grant[KV_LEASES_MAX];
	struct kv_grant *oldest, *newest;
	uint32_t newest_serial;
	uint64_t answer[KV_LEASES_MAX]; /* leases whose revocation is to be answered */
	uint64_t charged; /* bytes: kv_budget.c */
	unsigned int leases, leases_end;
	unsigned int placed_slab; /* kv_place.c: where the last byte went */
	bool lease_work, grant_work; /* messages of leases, answers of grants wait for credits */
	struct tr_span span[TR_SPANS_GOOD];
};

enum kv_peer_state {
	KV_PEER_HANDSHAKE = 0,
	KV_PEER_UP,
	KV_PEER_LOST,
	KV_PEER_CLOSED, /* neither conn nor link: only the holders of the record still read it */
};

struct kv_peer {
	uint32_t magic;
	_Atomic uint8_t state; /* changes under claim */
	bool incoming;
	bool owned;   /* the application has the handle, or will have it from PEER_UP */
	bool counted; /* in engine.peers_up */
	bool closing, bye, bye_sent, fenced, restless;
	bool up_queued, lost_queued; /* PEER_UP, PEER_LOST are queued */
	/* kv_comm_init: both ends have made it part of their communicator */
	atomic_bool adopted;
	bool adopted_sent; /* to the end that connected */
	int64_t adopt_by_ns;
	/* kv_connect returned while another thread held the claim: the service frees it */
	atomic_bool orphan;
	struct kv_engine *engine;
	struct tr_conn *conn;
	atomic_uint holders; /* the table of peers, operations, a kv_revoke */
	struct kv_claim claim;
	uint32_t index; /* in engine.peer */
	int64_t begun_ns;
	int64_t next_deadline_ns;
	int64_t round_ns;	    /* when the last round ended */
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
	char address[64], transport[16]; /* for errors, also without the claim or after the close */
	/* for the end of a connect or of a revocation, a slot, a lease whose number came first */
	struct kv_waiter waiter;
	struct kv_error error;	 /* why it failed or was lost */
	struct tr_counters count; /* as kv_stats saw them last; under engine.lock */
	struct kv_link *link;
};
extern const struct tr_upper_ops kv_upper_ops; /* kv_hello.c */
void kv_hello_free(struct kv_peer *peer);
/* kv_place.c: tr_upper_ops.may */
int kv_place_may(void *arg, const struct tr_mem *mem, uint64_t offset, uint64_t len,
		 unsigned int access, uint64_t grant);

int kv_peer_use(const struct kv_peer *peer, const char *op, struct kv_error *err);
int kv_peer_fail(const struct kv_peer *peer, struct kv_error *err, int code, const char *op,
		 const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* PEER_LOST, or why else nothing can be begun on this peer. */
int kv_peer_usable(const struct kv_peer *peer, const char *op, struct kv_error *err);
int kv_peer_new(struct kv_engine *engine, bool incoming, struct kv_peer **peer_p,
		struct kv_error *err);
/*
 * Claim held, and released: ends its operations, takes it out of the table, frees everything but
 * the record, which the last holder frees.
 */
void kv_peer_free(struct kv_peer *peer);
void kv_peer_hold(struct kv_peer *peer);
void kv_peer_drop(struct kv_peer *peer);
void kv_peer_end_ops(struct kv_peer *peer, int code, int64_t stop_ns); /* those of the link */
void kv_peer_note(struct kv_peer *peer); /* address and transport, as they are known now */
/*
 * Claim held: ends what is in flight and fences. BUSY: a process of this host that writes directly
 * is still alive.
 */
int kv_peer_shut(struct kv_peer *peer, int64_t deadline_ns, struct kv_error *err);

/*
 * kv_budget.c: memory that a peer's messages cost (records of leases, their ids, owners of its
 * blocks). A peer may cost KV_CHARGE_PEER, and KV_CHARGE_BLOCK for each block of this engine's
 * caches; all peers together KV_CHARGE_PEERS times that. 0; PROTOCOL: this peer's limit is reached;
 * NOMEM: that of all peers is.
 */
enum { KV_CHARGE_PEER = 16 << 20, KV_CHARGE_BLOCK = 64, KV_CHARGE_PEERS = 4 };
int kv_budget_take(struct kv_peer *peer, size_t bytes);
void kv_budget_give(struct kv_peer *peer, size_t bytes);

/* kv_connect.c: a peer until its handshake is over */
void kv_peer_accept(struct kv_engine *engine);
bool kv_peer_accept_due(struct kv_engine *engine);
void kv_count_rejected(struct kv_engine *engine, int code);
bool kv_peer_handshake(struct kv_peer *peer, int *done_p); /* one step; false: freed */
bool kv_peer_tell_up(struct kv_peer *peer);
/*
 * It has connected for a communicator, and no kv_comm_init of this engine has made it part of that
 * yet: the application does not have its handle.
 */
bool kv_peer_is_waif(const struct kv_peer *peer);
void kv_peer_adopt(struct kv_peer *peer); /* claim held */
void kv_peer_leave_pending(struct kv_peer *peer, enum kv_peer_state state);
int kv_peer_connect(struct kv_engine *engine, const char *host, uint32_t port, int64_t deadline_ns,
		    uint64_t comm, uint32_t comm_rank, struct kv_peer **peer_p,
		    struct kv_error *err);

/* kv_progress.c */
/* 0, or `code` and why. */
int kv_peer_claim_for(struct kv_peer *peer, int64_t deadline_ns, int code, const char *op,
		      struct kv_error *err);
void kv_peer_release(struct kv_peer *peer); /* by an owner of the handle */
void kv_peer_arm(struct kv_peer *peer, bool may_post, int *done_p); /* before any release */
/*
 * kv_peer_round polls, dispatches, sends what waits, posts one piece of each operation, or
 * KV_PIECE_BYTES in all; kv_peer_progress does so until nothing is left to be done, another thread
 * wants the peer, or its turn is over. Both return the number of things done.
 */
int kv_peer_round(struct kv_peer *peer, bool may_post);
int kv_peer_take_events(struct kv_peer *peer); /* the first part of a round; returns how many */
int kv_peer_progress(struct kv_peer *peer, bool may_post);
/* What the service thread does with a peer, claim held. false: the peer is gone, freed. */
bool kv_peer_service(struct kv_peer *peer, int *done_p);
/* The same for a peer without an owner, in a handshake or lost. */
bool kv_peer_discard(struct kv_peer *peer);
/* A peer whose kv_connect returned before the handshake ended. false: freed. */
bool kv_peer_discard_orphan(struct kv_peer *peer);
/* After a loss: fences, delivers what is left, frees a peer that nobody owns. false: freed. */
bool kv_peer_finish_lost(struct kv_peer *peer);
void kv_peer_break(struct kv_peer *peer, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void kv_peer_due(struct kv_peer *peer, int64_t deadline_ns); /* next_deadline_ns = min */
/* Sends a message: 0, TR_AGAIN or negative. */
int kv_peer_send(struct kv_peer *peer, const struct kv_msg *msg);

#endif
