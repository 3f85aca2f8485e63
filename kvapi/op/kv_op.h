/* SPDX-License-Identifier: Apache-2.0 */
/* kv_op.h -- operations of this side: their slots, steps and end */
#ifndef KV_OP_H
#define KV_OP_H

#include "kv_grant.h"

enum kv_op_kind { KV_OP_WRITE = 0, KV_OP_READ, KV_OP_SEND, KV_OP_RECV };

/* Assigned in this folder only: tests/lint/circles.py. */
enum kv_op_stage {
	KV_STAGE_IDLE = 0,   /* not begun: collected by a group, or waits for a slot */
	KV_STAGE_WAIT_GRANT, /* a send: no lease of the tag yet; a write: not all of its lease */
	KV_STAGE_BEGIN,
	KV_STAGE_POST,
	KV_STAGE_COMMIT,
	KV_STAGE_PROVE,	 /* a read is here: PROVE; where there are digests, as */
	KV_STAGE_DIGEST, /* DIGESTS */
	KV_STAGE_FLIGHT, /* committed (receive: the lease is open) */
	KV_STAGE_STOP,	 /* waits for what was posted, then ends with `end_code` */
	KV_STAGE_ENDED,
};

enum kv_op_fate { KV_OP_GOING = 0, KV_OP_ENDED, KV_OP_LEFT };

struct kv_op {
	uint32_t magic;
	uint8_t kind, stage;
	bool begun;	/* BEGIN, or PROVE, was sent */
	bool committed; /* the notify was given to the transport, and the digests */
	bool written;	/* the transport is done with it */
	bool visible;   /* the receiver has said so, and holds its acknowledgement back */
	bool acked;
	bool passed;   /* not all is posted because another thread wanted the peer */
	bool spun;     /* its caller has polled for it, and sleeps next */
	bool unclaimed; /* its caller could not take the claim again */
	bool blocking; /* its caller waits: the id arrays stay valid */
	bool admitted; /* kv_op_admit has accepted it before */
	bool wrong;    /* the receiver has named a block that arrived wrong: it is in err */
	bool early;    /* a write that was called before all of its lease had come */
	struct kv_engine *engine;
	struct kv_peer *peer; /* held until the operation is freed */
	struct kv_cache *cache;
	struct kv_map *map;
	struct tr_op *tr;
	struct kv_lease *lease; /* receive, until it has ended */
	uint64_t id;		/* slot, generation: BEGIN, ACK, notify, transport event */
	atomic_int grade;  /* progress so far, always < KV_ACKED */
	atomic_bool ids_gone; /* its caller has returned, long after the deadline: no more posts */
	atomic_int ended;  /* enum kv_op_fate; set last: after it result and err do not change */
	int result;
	int end_code;
	int ack_status;
	int64_t begun_ns;
	int64_t first_ns, written_ns; /* engine.timed: first bytes posted, last bytes away */
	_Atomic int64_t deadline_ns; /* changes under the claim, is read without it, too */
	int64_t timeout_ms;
	struct kv_layers layers;
	uint64_t tag, grant; /* the receiver's lease id, also of a receive; 0 = none */
	uint64_t bytes;
	uint64_t range; /* of NVTX */
	const int64_t *local, *remote;
	size_t n;
	uint32_t layer, tensor; /* what is posted next */
	void *const *events; /* of each layer, or NULL */
	struct tr_gate gate; /* context NULL: there is nothing to wait for */
	uint32_t gated; /* layers below it may move */
	struct kv_place place;
	struct kv_walk walk; /* whose digest is sent next */
	int64_t *ids; /* own copy; a short one is kept for the next use */
	size_t ids_cap;
	struct kv_waiter own_waiter, *waiter;
	struct kv_op *next; /* pool or group */
	atomic_bool grouped; /* in a group's list, which kv_group_end still reads */
	/* link.collected: the next one, and what points to this one; NULL: not in it */
	struct kv_op *after, **at;
	struct kv_error err;
};

const char *kv_op_kind_name(int kind);
const char *kv_op_name(const struct kv_op *op);
const char *kv_op_stage_name(int stage);

/* It ends when the transport has proven that its bytes are visible: KVCACHE_ACK=read. */
static inline bool kv_op_is_proven(const struct kv_op *op)
{
	return op->engine->ack_read && !op->grant && !op->peer->link->checks;
}

/*
 * kv_op_pool.c: every operation of the engine that has not ended, whatever lock another thread
 * keeps: the oldest `cap` of them, oldest first. Returns how many there are; *idle_p of these have
 * not begun.
 */
struct kv_op_look {
	uint8_t kind, stage;
	bool begun, written, visible, acked;
	int64_t begun_ns, deadline_ns;
	size_t blocks;
	uint64_t bytes, tag;
	uint32_t layer, layers, peer;
	char name[KV_NAME_MAX], address[64];
};
size_t kv_op_look(struct kv_engine *engine, struct kv_op_look *oldest, size_t cap,
		  size_t *idle_p);

/* kv_op_pool.c */
int kv_op_take(struct kv_engine *engine, struct kv_op **op_p, struct kv_error *err);
void kv_op_give(struct kv_op *op);
void kv_op_pool_free(struct kv_engine *engine);
int kv_op_keep_ids(struct kv_op *op, struct kv_error *err);
void kv_op_trim_ids(struct kv_op *op); /* it has ended: a long copy of the ids is not kept */

/* kv_op.c */
/*
 * The caller returns before the operation has ended: nothing more is posted, and its end frees it.
 * false: it has ended. The ids need not stay valid.
 */
bool kv_op_leave(struct kv_op *op);
/* The rest under the peer's claim. */
/*
 * An operation that has not begun is known to its peer, so that a revoke, a loss or a close ends
 * it. kv_op_end and kv_op_activate take it out.
 */
void kv_op_collect(struct kv_op *op);
void kv_op_uncollect(struct kv_op *op);
int kv_op_admit(struct kv_op *op, struct kv_error *err); /* kv_admit.c */
/*
 * The only way to a slot, and so to the transport: admits it (again), then takes one. BUSY: no slot
 * is free.
 */
int kv_op_activate(struct kv_op *op, struct kv_error *err);
bool kv_op_slot_free(const struct kv_peer *peer);
unsigned int kv_op_slot(const struct kv_op *op);
enum kv_step {
	KV_STEP_NONE = 0, /* not now: no credits, no lease */
	KV_STEP_ON,
	KV_STEP_OVER, /* it was stopped: it may have ended, and its record may be in use again */
};
bool kv_op_step(struct kv_op *op,
		bool may_post); /* kv_post.c: one piece further; false: nothing could be done */
/* kv_digests.c: after the commit. false: nothing could be sent. */
void kv_digests_begin(struct kv_op *op);
bool kv_digests_step(struct kv_op *op);
bool kv_digests_prove(struct kv_op *op);
void kv_op_committed(struct kv_op *op); /* all of it was given to the transport */
void kv_op_sent(struct kv_op *op);	/* and its blocks may be used again */
struct kv_msg_begin kv_op_begin_of(const struct kv_op *op);
void kv_op_stop(struct kv_op *op, int code, int64_t stop_ns,
		const struct kv_error *cause); /* cause may be NULL */
/* For kv_op_stop and kv_recv_stop: it ends with this code later. false: it ends already. */
bool kv_op_begin_stop(struct kv_op *op, int code, const struct kv_error *cause);
void kv_op_receives(struct kv_op *op); /* a receive whose lease is open */
void kv_op_end(struct kv_op *op, int code, const struct kv_error *cause);
void kv_op_event(struct kv_peer *peer, const struct tr_event *event);
int kv_op_acked(struct kv_peer *peer, const struct kv_ack *ack); /* 0 or PROTOCOL */
int kv_op_wrong(struct kv_peer *peer, const struct kv_msg_wrong *wrong); /* the same */
bool kv_op_flush(struct kv_peer *peer); /* ABORT messages; false: out of credits */
void kv_op_timeout(struct kv_op *op);
/* What a deadline that has passed is called, and why it has. */
int kv_op_late(const struct kv_op *op, struct kv_error *err);
/* Its receiver takes the lease back: ends what writes to it. */
void kv_op_revoked(struct kv_peer *peer, uint64_t grant);
/* Answers it once nothing that writes to it is with the transport. false: out of credits. */
bool kv_op_answer_revokes(struct kv_peer *peer);
void kv_op_lost(struct kv_op *op); /* the connection is gone, and with it the transport's part */

#endif
