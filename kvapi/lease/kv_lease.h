/* SPDX-License-Identifier: Apache-2.0 */
/* kv_lease.h -- leases, which the receiver opens, and what comes in under them */
#ifndef KV_LEASE_H
#define KV_LEASE_H

#include "kv_op.h"

/* ---------------------------------------------------------------- leases (receiver): kv_lease.c */

struct kv_lease {
	struct kv_engine *engine; /* also while it lies in the pool */
	uint32_t magic;
	uint32_t serial;
	uint64_t id; /* kv_id: serial, place in the peer's table */
	struct kv_peer *peer;
	struct kv_cache *cache;
	struct kv_op *op; /* of kv_recv_blocks */
	uint64_t tag;
	struct kv_layers layers;
	int64_t expires_ns;
	bool once; /* KV_LEASE_ONCE */
	bool open; /* commits are taken */
	bool expired, expired_queued;
	bool unfinished; /* it was open when its writer was lost, and that is not said yet */
	bool announced; /* LEASE was sent */
	bool revoke, revoke_sent;
	/* no byte can land any more: REVOKED came, or the connection is fenced */
	bool stopped;
	bool orphan;	  /* no handle is left: release it as soon as it is stopped */
	uint32_t n, sent; /* ids, and how many were sent to the writer */
	uint32_t *ids;	  /* short ones are kept for the next use */
	size_t ids_cap;
	uint64_t done[KV_LAYER_WORDS];
	uint32_t layers_done;
	struct kv_lease *next; /* pool, or link.announce */
};
struct kv_lease_request {
	const char *name;
	struct kv_peer *peer;
	struct kv_cache *cache;
	struct kv_layers layers;
	const int64_t *ids;
	size_t n;
	uint64_t tag;
	int64_t expires_ns;
	bool once;
};
/* The lease of this peer with the id; NULL: there is none, or no longer. */
struct kv_lease *kv_lease_find(struct kv_peer *peer, uint64_t id);
int kv_lease_open(const struct kv_lease_request *req, struct kv_lease **lease_p,
		  struct kv_error *err);
/* The peer of a handle, held; NULL: the lease is gone, its peer was closed. */
struct kv_peer *kv_lease_hold_peer(struct kv_lease *lease);
void kv_lease_stop(struct kv_lease *lease); /* takes no more commits, asks the writer to stop */
void kv_lease_stopped(struct kv_lease *lease);
/*
 * After kv_lease_stop, where this side places the bytes: its blocks are free and its handle is
 * void. The record is freed when the writer's answer comes; no call waits for it.
 */
void kv_lease_close_here(struct kv_lease *lease);
/* A receive's blocks, its end or not: whether their writer may reach them. With the claim. */
bool kv_recv_is_open(const struct kv_op *op);
void kv_recv_stop(struct kv_op *op, int code, int64_t stop_ns, const struct kv_error *cause);
/* Ends an operation of any kind: kv_recv_stop or kv_op_stop. */
void kv_stop(struct kv_op *op, int code, int64_t stop_ns, const struct kv_error *cause);
void kv_lease_release(struct kv_lease *lease);
bool kv_lease_flush(struct kv_peer *peer); /* sends what waits; false: out of credits */
int kv_lease_revoked(struct kv_peer *peer, uint64_t id); /* the writer's answer: 0 or PROTOCOL */
void kv_lease_expire(struct kv_peer *peer, int64_t now);
void kv_lease_fenced(struct kv_peer *peer); /* nothing can land any more: all are stopped */
void kv_lease_lost(struct kv_peer *peer);   /* no commit comes any more; operations end */
void kv_lease_close_all(
	struct kv_peer *peer); /* kv_peer_close: no commits, no more waiting for the writer */
void kv_lease_free_all(struct kv_peer *peer);
/* Whether the writer could believe that this operation is allowed. */
bool kv_lease_allows(struct kv_peer *peer, const struct kv_msg_begin *begin);
/* 0, or the status with which a commit of `layers` is refused; *lease_p the lease. */
int kv_lease_commit(struct kv_peer *peer, const struct kv_msg_begin *begin,
		    struct kv_lease **lease_p);
void kv_lease_committed(struct kv_lease *lease, struct kv_layers layers);
int kv_lease_aborted(struct kv_peer *peer, uint64_t id, int status); /* 0 or PROTOCOL */
void kv_lease_pool_free(struct kv_engine *engine);

/* ----------------- operations of the peer: kv_incoming.c, kv_verify.c, kv_place.c */

/* These: 0, or PROTOCOL where it contradicts an earlier message. */
int kv_incoming_begin(struct kv_peer *peer, const struct kv_msg_begin *begin);
int kv_incoming_notified(struct kv_peer *peer, uint64_t value);
/* Where digests were agreed on; the last one commits. */
int kv_incoming_prove(struct kv_peer *peer, const struct kv_msg_begin *begin);
int kv_incoming_digests(struct kv_peer *peer, const struct kv_msg_digests *digests);
int kv_incoming_abort(struct kv_peer *peer, const struct kv_msg_abort *abort);
/* An operation that was begun under the lease is neither committed nor aborted. */
bool kv_incoming_uses(const struct kv_peer *peer, uint64_t lease);
bool kv_incoming_open(const struct kv_peer *peer); /* the same of any operation */
void kv_incoming_retry(struct kv_peer *peer); /* arrivals that found the queue full */
/* What a lost writer leaves undone is said: UNFINISHED. false: the queue is full. */
bool kv_incoming_tell_unfinished(struct kv_peer *peer, int status);
bool kv_incoming_flush(struct kv_peer *peer); /* acknowledgements */
/* kv_verify.c: an operation whose digests will come */
void kv_verify_begin(struct kv_peer *peer, const struct kv_incoming *in);
bool kv_verify_take(struct kv_peer *peer, const struct kv_incoming *in,
		    const struct kv_msg_digests *digests, bool *last_p); /* false: PROTOCOL */
/* 0, or CHECKSUM: it has been said, and a receive into the lease (or NULL) is ended. */
int kv_verify_result(struct kv_peer *peer, const struct kv_incoming *in,
		     const struct kv_lease *lease);
bool kv_verify_flush(struct kv_peer *peer); /* answers to those; false: out of credits */
/* kv_place.c: tr_upper_ops.may */
int kv_place_may(void *arg, const struct tr_mem *mem, uint64_t offset, uint64_t len,
		 unsigned int access, uint64_t grant);

#endif
