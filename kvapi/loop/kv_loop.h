/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_loop.h -- a peer from the listener to its end, and what serves it; by file, in the order of a
 * peer's life
 */
#ifndef KV_LOOP_H
#define KV_LOOP_H

#include "kv_lease.h"

/* ---------------------------------------------------------------- kv_service.c, kv_watch.c */

int kv_service_start(struct kv_engine *engine, struct kv_error *err);
/* For good: engine.turn stays taken. false: a thread does not return from a call. */
bool kv_service_stop(struct kv_engine *engine);
/*
 * Sleeps until the waiter is woken, `wake_ns`, or something was done (caller mode); the caller then
 * checks its condition again. `deadline_ns`: the call's; in caller mode it serves other peers.
 */
void kv_service_sleep(struct kv_engine *engine, struct kv_waiter *waiter, uint32_t seq,
		      int64_t wake_ns, int64_t deadline_ns);
void kv_watch_start(struct kv_engine *engine); /* once; nothing if it is there */
void kv_watch_stop(struct kv_engine *engine);

/* ------------------------------- kv_accept.c, kv_handshake.c, kv_hello.c: until it is up */

void kv_peer_accept(struct kv_engine *engine);
bool kv_peer_accept_due(struct kv_engine *engine);
void kv_count_rejected(struct kv_engine *engine, int code);
bool kv_peer_handshake(struct kv_peer *peer, int *done_p); /* one step; false: freed */
/*
 * It has connected for a communicator, and no kv_comm_init of this engine has made it part of that
 * yet: the application does not have its handle.
 */
bool kv_peer_is_waif(const struct kv_peer *peer);
void kv_peer_adopt(struct kv_peer *peer); /* claim held */
extern const struct tr_upper_ops kv_upper_ops;
uint64_t kv_hello_features(const struct kv_engine *engine);
void kv_hello_free(struct kv_peer *peer);

/* ---------------------------------------------------------------- kv_progress.c: one that is up */

/* Claim held: its holder polls until it releases the peer. */
static inline void kv_peer_poll_on(struct kv_peer *peer)
{
	if (peer->state == KV_PEER_UP)
		tr_conn_poll_on(peer->conn);
}
/*
 * kv_peer_round polls, dispatches, sends what waits, posts one piece of each operation, or
 * KV_PIECE_BYTES in all; kv_peer_progress does so until nothing is left to be done, another thread
 * wants the peer, or its turn is over. Both return the number of things done.
 */
int kv_peer_round(struct kv_peer *peer, bool may_post);
int kv_peer_take_events(struct kv_peer *peer); /* the first part of a round; returns how many */
int kv_peer_progress(struct kv_peer *peer, bool may_post);
void kv_peer_arm(struct kv_peer *peer, bool may_post, int *done_p); /* before any release */
void kv_peer_release(struct kv_peer *peer); /* by an owner of the handle */

/* ---------------------------------------------------------------- kv_serve.c, kv_linger.c */

/* What the service thread does with a peer, claim held. false: the peer is gone, freed. */
bool kv_peer_service(struct kv_peer *peer, int *done_p);
/* One that is up, and stays unarmed. */
void kv_peer_poll(struct kv_peer *peer, int *done_p);
/* Lingering: under engine.turn but for open. */
void kv_linger_open(struct kv_engine *engine);
/* With the claim: true: the peer had work and goes on being polled; it is not given to epoll. */
bool kv_linger_take(struct kv_peer *peer, int done);
bool kv_linger_has(const struct kv_linger *linger, uint32_t index);
/* Polls them for a moment, and gives them back when their time is over; things done. */
int kv_linger_turn(struct kv_engine *engine, bool *restless_p);

/* -------------------------- kv_heartbeat.c: a peer that says nothing, if the option asks for it */

void kv_heartbeat_begin(struct kv_peer *peer);
void kv_heartbeat_heard(struct kv_peer *peer, int64_t now);
void kv_heartbeat(struct kv_peer *peer, int64_t now);

/* ---------------------------------------------------------------- kv_close.c: its end */

void kv_peer_fence(struct kv_peer *peer); /* one that is lost, if its writer has stopped by now */
/* After a loss: fences, delivers what is left, frees a peer that nobody owns. false: freed. */
bool kv_peer_finish_lost(struct kv_peer *peer);
/*
 * Claim held: ends what is in flight and fences. BUSY: a process of this host that writes directly
 * is still alive.
 */
int kv_peer_shut(struct kv_peer *peer, int64_t deadline_ns, struct kv_error *err);
/* The same for a peer without an owner, in a handshake or lost. false: freed. */
bool kv_peer_discard(struct kv_peer *peer);
/*
 * For a peer of which the application has no handle, and which this thread cannot free: the
 * service does it, once the handshake has ended and nothing of the other end can land any more.
 */
void kv_peer_abandon(struct kv_peer *peer);
/* One that was abandoned. false: freed. */
bool kv_peer_discard_orphan(struct kv_peer *peer);
/*
 * Claim held, and released: ends its operations, takes it out of the table, frees everything but
 * the record, which the last holder frees.
 */
void kv_peer_free(struct kv_peer *peer);

#endif
