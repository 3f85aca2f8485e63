/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_internal.h -- the objects behind kv.h, who may touch them, and what the files of this folder
 * offer each other
 *
 * Locks, in the order in which they may be taken:
 *   engine.turn    one thread at a time sits in kv_service_turn
 *   peer.claim     everything of a peer and of its operations, leases and grants; the only lock of
 *                  the data path, taken once per call. Its holder posts and polls the connection.
 *   engine.lock    the table of peers, the list of caches, the listener
 *   the rest       cache.lock (owners of blocks), arrivals.lock, pool.lock: leaves, held for a few
 *                  instructions
 * A thread that holds engine.lock may try peer.claim, never wait for it.
 *
 * Whoever releases a claim leaves the connection armed (KV_PROGRESS_AUTO), so that the service
 * thread hears of what comes next. When the service thread finds a claim taken it sets
 * engine.wants[index]; the holder then gives the descriptor back to epoll after its release.
 */
#ifndef KV_INTERNAL_H
#define KV_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/option.h"
#include "kv_geometry.h"
#include "kv_plan.h"
#include "kv_wire.h"
#include "tr.h"

enum {
	KV_TICK_MS = 100,   /* deadlines that nobody waits for are seen this late at most */
	KV_STOP_MS = 1000,  /* posted work of a stopped operation has this long to drain */
	KV_LATE_MS = 1000,  /* a LEASE message may come this long after its number */
	KV_CLOSE_MS = 1000, /* kv_engine_close waits for its peers this long */
	KV_EVENTS = 32,	    /* taken from a connection at a time */
	KV_WORDS = KV_OPS_MAX / 64,
	KV_LAYER_WORDS = KV_LAYERS_MAX / 64,
};

#define KV_NO_DEADLINE INT64_MAX

/* ---------------------------------------------------------------- sleeping: kv_waiter.c */

/*
 * A futex. A waiter counts itself in, looks at its condition, then sleeps unless the sequence has
 * moved since.
 */
struct kv_waiter {
	atomic_uint seq;
	atomic_uint sleepers;
};
uint32_t kv_waiter_enter(struct kv_waiter *waiter);
void kv_waiter_leave(struct kv_waiter *waiter);
void kv_waiter_sleep(struct kv_waiter *waiter, uint32_t seq, int64_t deadline_ns);
void kv_waiter_wake(struct kv_waiter *waiter);

/* ---------------------------------------------------------------- counters: kv_stats.c */

#define KV_COUNTERS(X)                                                                            \
	X(writes)                                                                                 \
	X(reads)                                                                                  \
	X(sends) X(recvs) X(ok) X(failed) X(cancelled) X(in_flight) X(blocks_out) X(bytes_out)    \
		X(blocks_in) X(bytes_in) X(spans_out) X(arrivals) X(leases_opened) X(leases_open) \
			X(leases_revoked) X(leases_expired) X(leases_fenced) X(peers_accepted)    \
				X(peers_connected) X(peers_now) X(peers_lost) X(rejected_garbage) \
					X(rejected_version) X(rejected_geometry)                  \
						X(rejected_timeout) X(rejected_limit)             \
							X(unknown_messages) X(work_requests)      \
								X(doorbells) X(completions)       \
									X(syscalls)

struct kv_counters {
#define KV_COUNTER_FIELD(name) _Atomic uint64_t name;
	KV_COUNTERS(KV_COUNTER_FIELD)
#undef KV_COUNTER_FIELD
};
void kv_stats_keep(struct kv_peer *peer); /* the counters of a connection that is about to close */
#define kv_count(engine, name, n) \
	atomic_fetch_add_explicit(&(engine)->count.name, (uint64_t)(n), memory_order_relaxed)

/* ---------------------------------------------------------------- arrivals: kv_arrival.c */

struct kv_arrivals {
	pthread_mutex_t lock;
	struct kv_arrival *ring;
	size_t cap, head, count;
	int fd;	       /* eventfd */
	bool fd_asked; /* kv_arrivals_fd was called: keep it up to date */
	bool starved;  /* somebody found the ring full: tell the service thread of room */
};
int kv_arrivals_open(struct kv_engine *engine, struct kv_error *err);
void kv_arrivals_close(struct kv_engine *engine);
bool kv_arrivals_push(struct kv_engine *engine, const struct kv_arrival *arrival); /* false: full */
void kv_arrivals_forget(struct kv_engine *engine,
			const struct kv_peer *peer); /* the handle becomes invalid */

/* ---------------------------------------------------------------- engine: kv_engine.c */

struct kv_engine {
	uint32_t magic;
	uint32_t *life; /* a page that is zeroes in a forked child */
	pid_t pid;
	bool wiped; /* the kernel zeroes that page; otherwise compare pids */
	bool caller_mode, arrivals_off, ack_read;
	int64_t spin_ns, op_timeout_ms, handshake_ms;
	uint32_t peers_max, pending_max;
	char name[KV_NAME_MAX];
	struct kv_option_set *options;
	struct kv_log *log;
	struct tr *tr;

	int epoll_fd, wake_fd;
	pthread_t thread;
	bool thread_on;
	atomic_bool stopping;
	pthread_mutex_t turn;
	int64_t swept_ns;	 /* under turn: when every peer was looked at last */
	bool restless;		 /* under turn: a peer wants to be looked at again soon */
	struct kv_waiter waiter; /* kv_progress beside another thread that is at it */

	pthread_mutex_t lock;
	struct tr_listener *listener;
	struct kv_peer *peer[KV_PEERS_MAX];
	/*
	 * The service thread found the claim of this peer taken. Here, because a peer may be gone
	 * after a release.
	 */
	atomic_bool wants[KV_PEERS_MAX];
	uint32_t peer_generation[KV_PEERS_MAX];
	_Atomic uint32_t peers_end; /* no peer lies at or above this index */
	uint32_t peers_pending, peers_up;
	struct kv_cache *cache[KV_CACHES_MAX];
	struct kv_pool_range *ranges; /* kv_alloc */
	uint64_t comms;		      /* kv_comm_init calls */

	pthread_mutex_t pool_lock;
	struct kv_op *free_ops;
	struct kv_lease *free_leases;
	struct kv_op_chunk *op_chunks;
	_Atomic uint32_t lease_serial;

	struct kv_arrivals arrivals;
	struct kv_counters count;
};
/* NULL, closed or forked handles are refused here. */
int kv_engine_use(const struct kv_engine *engine, const char *op, struct kv_error *err);
void kv_engine_wake(struct kv_engine *engine);
/* Checks a caller's timeout and makes a deadline of it. */
int kv_engine_deadline(int64_t timeout_ms, const char *op, int64_t *deadline_p,
		       struct kv_error *err);

/* ---------------------------------------------------------------- service: kv_service.c */

int kv_service_start(struct kv_engine *engine, struct kv_error *err);
void kv_service_stop(struct kv_engine *engine);
/* One round of epoll; returns the number of things done, or -1 if another thread is at it. */
int kv_service_turn(struct kv_engine *engine, int64_t deadline_ns);
enum { KV_TOKEN_WAKE = 0, KV_TOKEN_LISTENER = 1, KV_TOKEN_PEERS = 2 }; /* what epoll tells */
int kv_service_watch(struct kv_peer *peer, struct kv_error *err);
bool kv_service_knows(struct kv_engine *engine, uint32_t index); /* a peer is there */
/* Tries for a while; NULL: none, or busy. */
struct kv_peer *kv_service_claim(struct kv_engine *engine, uint32_t index);
/* The release for it: the peer is not the caller's and may be gone a moment later. */
void kv_service_leave(struct kv_peer *peer);
void kv_service_rearm(struct kv_peer *peer);
void kv_service_unwatch(struct kv_peer *peer);
/*
 * Sleeps until the waiter is woken or something was done (caller mode); the condition is the
 * caller's to look at again.
 */
void kv_service_sleep(struct kv_engine *engine, struct kv_waiter *waiter, uint32_t seq,
		      int64_t deadline_ns);

/* ---------------------------------------------------------------- caches: kv_cache.c */

struct kv_slab {
	struct tr_mem *mem;
	uint64_t offset; /* of block 0 */
};

struct kv_cache {
	uint32_t magic;
	struct kv_engine *engine;
	struct kv_geometry geometry;
	uint64_t stride[KV_TENSORS_MAX];
	struct kv_slab *slab;	/* [layer * tensors + tensor] */
	struct tr_mem **region; /* what was registered for it */
	size_t regions;
	unsigned int peers; /* that know it; under engine.lock */
	atomic_uint users;  /* operations and leases */
	pthread_mutex_t lock;
	/* serial of the lease that holds a block, 0 = none; made by the first lease */
	uint32_t *owner;
};
int kv_cache_use(const struct kv_cache *cache, const struct kv_engine *engine, const char *op,
		 struct kv_error *err);
/* All layers of a call, checked: ARG. */
int kv_cache_layers(const struct kv_cache *cache, struct kv_layers *layers, const char *op,
		    struct kv_error *err);
void kv_cache_free(struct kv_cache *cache);
void kv_ranges_free(struct kv_engine *engine); /* what kv_alloc gave out */

/* ---------------------------------------------------------------- operations: kv_op.c */

enum kv_op_kind { KV_OP_WRITE = 0, KV_OP_READ, KV_OP_SEND, KV_OP_RECV };

enum kv_op_stage {
	KV_STAGE_IDLE = 0,   /* collected by a group, not begun */
	KV_STAGE_WAIT_GRANT, /* kv_send_blocks: no lease of the tag yet */
	KV_STAGE_BEGIN,
	KV_STAGE_POST,
	KV_STAGE_COMMIT,
	KV_STAGE_FLIGHT, /* committed (receive: the lease is open) */
	KV_STAGE_STOP,	 /* waits for what was posted, then ends with `end_code` */
	KV_STAGE_ENDED,
};

struct kv_op {
	uint32_t magic;
	uint8_t kind, stage;
	bool begun;	/* BEGIN was sent */
	bool committed; /* the notify was given to the transport */
	bool written;	/* the transport is done with it */
	bool visible;   /* the receiver has said so, and holds its acknowledgement back */
	bool acked;
	bool blocking; /* its caller waits: the id arrays stay valid */
	struct kv_engine *engine;
	struct kv_peer *peer;
	struct kv_cache *cache;
	struct kv_map *map;
	struct tr_op *tr;
	struct kv_lease *lease; /* receive */
	uint64_t id;		/* slot, generation: BEGIN, ACK, notify, transport event */
	atomic_int grade;
	atomic_bool ended; /* result and err are final */
	int result;
	int end_code;
	int ack_status;
	int64_t begun_ns, deadline_ns;
	int64_t timeout_ms;
	struct kv_layers layers;
	uint64_t tag, grant; /* the receiver's lease id, 0 = none */
	uint64_t bytes;
	const int64_t *local, *remote;
	size_t n;
	uint32_t layer, tensor; /* what is posted next */
	size_t index;
	int64_t *ids; /* own copy, kept between uses */
	size_t ids_cap;
	struct kv_waiter own_waiter, *waiter;
	struct kv_op *next; /* pool or group */
	struct kv_error err;
};

/* The blocks of a call. A send or receive has no remote ids, and the tag that joins the two. */
struct kv_ids {
	const int64_t *local, *remote;
	size_t n;
	uint64_t tag;
};
const char *kv_op_name(const struct kv_op *op);
const char *kv_op_stage_name(const struct kv_op *op);
/* Checks a public call and begins its operation. n == 0 gives one that has succeeded. */
int kv_request_run(int kind, struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		   const struct kv_ids *ids, const struct kv_options *opts, struct kv_op **op_p,
		   struct kv_error *err);
/* The same, and waits for its end. */
int kv_request_finish(int kind, struct kv_peer *peer, struct kv_cache *cache,
		      struct kv_layers layers, const struct kv_ids *ids,
		      const struct kv_options *opts, struct kv_error *err);
/* GEOMETRY unless both have the cache and the ranks share a part of its blocks. */
int kv_request_map(const struct kv_peer *peer, const struct kv_cache *cache, const char *name,
		   struct kv_error *err);

int kv_op_take(struct kv_engine *engine, struct kv_op **op_p, struct kv_error *err);
void kv_op_give(struct kv_op *op);
void kv_op_pool_free(struct kv_engine *engine);
int kv_op_keep_ids(struct kv_op *op, struct kv_error *err);
int kv_op_result(const struct kv_op *op, struct kv_error *err);
/* Waits for a grade or the end. Takes and releases the claim. false: the deadline passed before. */
bool kv_op_wait_for(struct kv_op *op, int grade, int64_t deadline_ns);
/* The rest under the peer's claim. */
int kv_op_start(struct kv_op *op, struct kv_error *err);
int kv_op_activate(struct kv_op *op, struct kv_error *err); /* takes a slot: BUSY */
unsigned int kv_op_slot(const struct kv_op *op);
void kv_op_count(struct kv_op *op);
bool kv_op_step(struct kv_op *op,
		bool may_post); /* kv_write.c: one piece further; false: nothing could be done */
bool kv_send_match(struct kv_op *op); /* kv_pair.c: the same for KV_STAGE_WAIT_GRANT */
int kv_recv_start(struct kv_op *op, struct kv_error *err);
void kv_op_stop(struct kv_op *op, int code, int64_t stop_ns,
		const struct kv_error *cause); /* cause may be NULL */
void kv_op_end(struct kv_op *op, int code, const struct kv_error *cause);
void kv_op_set_error(struct kv_op *op, int code, const struct kv_error *cause);
void kv_op_event(struct kv_peer *peer, const struct tr_event *event);
void kv_op_acked(struct kv_peer *peer, const struct kv_ack *ack);
bool kv_op_flush(struct kv_peer *peer); /* ABORT messages; false: out of credits */
void kv_op_timeout(struct kv_op *op);
void kv_op_lost(struct kv_op *op); /* the connection is gone, and with it the transport's part */

/* ---------------------------------------------------------------- leases (receiver): kv_lease.c */

struct kv_lease {
	uint32_t magic;
	uint32_t serial;
	uint64_t id; /* serial, index in the peer's table */
	struct kv_peer *peer;
	struct kv_cache *cache;
	struct kv_op *op; /* of kv_recv_blocks */
	uint64_t tag;
	struct kv_layers layers;
	int64_t expires_ns;
	bool once; /* KV_LEASE_ONCE */
	bool open; /* commits are taken */
	bool expired, expired_told;
	bool announced; /* LEASE was sent */
	bool revoke, revoke_sent;
	/* no byte can land any more: the writer said so, or the connection is fenced */
	bool stopped;
	bool orphan;	  /* nobody holds a handle: release it as soon as it is stopped */
	uint32_t n, sent; /* ids, and how many were told to the writer */
	uint32_t *ids;	  /* kept between uses */
	size_t ids_cap;
	uint64_t done[KV_LAYER_WORDS];
	uint32_t layers_done;
	struct kv_waiter waiter;
	struct kv_lease *next; /* pool */
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
int kv_lease_open(const struct kv_lease_request *req, struct kv_lease **lease_p,
		  struct kv_error *err);
void kv_lease_stop(struct kv_lease *lease); /* takes no more commits, asks the writer to stop */
void kv_lease_stopped(struct kv_lease *lease);
void kv_lease_end_op(struct kv_op *op, int code, int64_t stop_ns, const struct kv_error *cause);
void kv_lease_release(struct kv_lease *lease);
bool kv_lease_flush(struct kv_peer *peer); /* sends what waits; false: out of credits */
void kv_lease_revoked(struct kv_peer *peer, uint64_t id); /* the writer's answer */
void kv_lease_expire(struct kv_peer *peer, int64_t now);
void kv_lease_fenced(struct kv_peer *peer); /* nothing can land any more: all are stopped */
void kv_lease_lost(struct kv_peer *peer);   /* no commit comes any more; operations end */
void kv_lease_close_all(
	struct kv_peer *peer); /* kv_peer_close: no commits, no more waiting for the writer */
void kv_lease_free_all(struct kv_peer *peer);
/* 0, or the status with which a commit of `layers` is refused; *lease_p the lease. */
int kv_lease_commit(struct kv_peer *peer, const struct kv_msg_begin *begin,
		    struct kv_lease **lease_p);
void kv_lease_committed(struct kv_lease *lease, struct kv_layers layers);
void kv_lease_aborted(struct kv_peer *peer, uint64_t id, int status);
void kv_lease_pool_free(struct kv_engine *engine);

/* ---------------------------------------------------------------- grants (writer): kv_grant.c */

/* A lease that the peer has opened for us. */
struct kv_grant {
	uint64_t id, tag;
	uint8_t cache;
	bool live, once, revoked;
	bool failed; /* a part of it will never be committed: the receiver is going to revoke it */
	struct kv_layers layers;
	uint32_t n, got;
	int64_t *ids; /* kept between uses */
	size_t ids_cap;
	uint64_t sent[KV_LAYER_WORDS]; /* layers that kv_send_blocks has begun */
	uint64_t done[KV_LAYER_WORDS]; /* and that were acknowledged */
	struct kv_grant *older, *newer;
};
int kv_grant_lease(struct kv_peer *peer, const struct kv_msg_lease *msg); /* 0 or PROTOCOL, NOMEM */
int kv_grant_ids(struct kv_peer *peer, const struct kv_msg_ids *msg);
void kv_grant_revoke(struct kv_peer *peer, uint64_t id);
bool kv_grant_flush(struct kv_peer *peer);
struct kv_grant *kv_grant_find(struct kv_peer *peer, uint64_t id);
bool kv_grant_is_new(const struct kv_peer *peer, uint64_t id); /* its LEASE message has not come */
uint32_t kv_grant_owner(const struct kv_grant *grant); /* its value in map.owner */
/* The oldest complete grant of this tag and cache that still lacks one of these layers. */
struct kv_grant *kv_grant_match(struct kv_peer *peer, const struct kv_op *op);
bool kv_grant_claim(struct kv_grant *grant,
		    struct kv_layers layers); /* false: one was sent before */
void kv_grant_settled(struct kv_peer *peer, uint64_t id, struct kv_layers layers, int status);
void kv_grant_free_all(struct kv_peer *peer);

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
int kv_incoming_begin(struct kv_peer *peer, const struct kv_msg_begin *begin);
void kv_incoming_notified(struct kv_peer *peer, uint64_t value);
void kv_incoming_abort(struct kv_peer *peer, const struct kv_msg_abort *abort);
void kv_incoming_retry(struct kv_peer *peer); /* arrivals that found the queue full */
bool kv_incoming_flush(struct kv_peer *peer); /* acknowledgements */

/* ---------------------------------------------------------------- peers: kv_peer.c, kv_hello.c */

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
	/* index + 1 of the grant that holds a remote block; made by the first grant */
	uint32_t *owner;
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
		*known[KV_CACHES_MAX]; /* ours, as told to the peer; counted in cache.peers */
	struct kv_map map[KV_CACHES_MAX];
	struct kv_slot slot[KV_OPS_MAX];
	uint64_t busy[KV_WORDS], posting[KV_WORDS], aborts[KV_WORDS];
	unsigned int slots_used;
	unsigned int turn; /* where the next round of posting begins */
	struct kv_waiter waiter; /* for a slot, or for a lease whose number came first */
	struct kv_incoming in[KV_OPS_MAX];
	uint64_t ack[KV_WORDS], withheld[KV_WORDS];
	struct kv_lease *lease[KV_LEASES_MAX];
	struct kv_grant *grant[KV_LEASES_MAX];
	struct kv_grant *oldest, *newest;
	uint32_t newest_serial;
	uint64_t answer[KV_LEASES_MAX]; /* leases whose revocation is to be answered */
	unsigned int leases, leases_end;
	bool lease_work, grant_work; /* messages of leases, answers of grants wait for credits */
	struct tr_span span[TR_SPANS_GOOD];
};

enum kv_peer_state { KV_PEER_HANDSHAKE = 0, KV_PEER_UP, KV_PEER_LOST };

struct kv_peer {
	uint32_t magic;
	uint8_t state; /* under claim */
	bool incoming;
	bool owned;   /* the application has the handle, or will have it from PEER_UP */
	bool counted; /* in engine.peers_up */
	bool closing, bye, bye_sent, fenced, restless;
	bool up_told, lost_told; /* PEER_UP, PEER_LOST are queued */
	struct kv_engine *engine;
	struct tr_conn *conn;
	pthread_mutex_t claim;
	atomic_uint wanting; /* threads that wait for the claim */
	uint32_t index; /* in engine.peer */
	int64_t next_deadline_ns;
	_Atomic uint64_t user;
	uint64_t comm; /* kv_comm_init: told in the hello */
	uint32_t comm_rank;
	char name[KV_NAME_MAX];
	struct kv_waiter waiter; /* kv_connect */
	struct kv_error error;	 /* why it failed or was lost */
	struct kv_link *link;
};
extern const struct tr_upper_ops kv_upper_ops; /* kv_hello.c */
void kv_hello_free(struct kv_peer *peer);
int kv_hello_fits(struct kv_engine *engine, const struct kv_geometry *more, struct kv_error *err);

int kv_peer_use(const struct kv_peer *peer, const char *op, struct kv_error *err);
int kv_peer_fail(const struct kv_peer *peer, struct kv_error *err, int code, const char *op,
		 const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* PEER_LOST, or why else nothing can be begun on this peer. */
int kv_peer_usable(const struct kv_peer *peer, const char *op, struct kv_error *err);
int kv_peer_new(struct kv_engine *engine, bool incoming, struct kv_peer **peer_p,
		struct kv_error *err);
void kv_peer_free(struct kv_peer *peer); /* claim held; takes it out of the table */
/* kv_connect.c: the same three for a peer whose handshake is not over */
void kv_peer_accept(struct kv_engine *engine);
bool kv_peer_handshake(struct kv_peer *peer, int *done_p); /* false: the peer is gone, freed */
bool kv_peer_tell_up(struct kv_peer *peer);
int kv_peer_connect(struct kv_engine *engine, const char *host, uint32_t port, int64_t deadline_ns,
		    uint64_t comm, uint32_t comm_rank, struct kv_peer **peer_p,
		    struct kv_error *err);

void kv_peer_claim(struct kv_peer *peer);
void kv_peer_release(struct kv_peer *peer); /* by an owner of the handle */
void kv_peer_arm(struct kv_peer *peer, bool may_post, int *done_p); /* before any release */
/*
 * kv_peer_round polls, dispatches, sends what waits, posts one piece of each operation;
 * kv_peer_progress does so until nothing is left to be done. Both return the number of things done.
 */
int kv_peer_round(struct kv_peer *peer, bool may_post);
int kv_peer_progress(struct kv_peer *peer, bool may_post);
/* What the service thread does with a peer, claim held. false: the peer is gone, freed. */
bool kv_peer_service(struct kv_peer *peer, int *done_p);
void kv_peer_break(struct kv_peer *peer, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void kv_peer_due(struct kv_peer *peer, int64_t deadline_ns); /* next_deadline_ns = min */
/* Sends a message: 0, TR_AGAIN or negative. */
int kv_peer_send(struct kv_peer *peer, const struct kv_msg *msg);
int kv_peer_shut(struct kv_peer *peer, int64_t deadline_ns, struct kv_error *err);

/* ---------------------------------------------------------------- groups: kv_group.c */

int kv_group_add(struct kv_group *group, struct kv_op *op, struct kv_error *err);

static inline bool kv_bit(const uint64_t *words, unsigned int i)
{
	return words[i / 64] >> (i % 64) & 1;
}
static inline void kv_bit_set(uint64_t *words, unsigned int i)
{
	words[i / 64] |= UINT64_C(1) << (i % 64);
}
static inline void kv_bit_clear(uint64_t *words, unsigned int i)
{
	words[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

enum {
	KV_MAGIC_ENGINE = 0x4b56454e,
	KV_MAGIC_CACHE = 0x4b564341,
	KV_MAGIC_PEER = 0x4b565045,
	KV_MAGIC_LEASE = 0x4b564c45,
	KV_MAGIC_OP = 0x4b564f50,
	KV_MAGIC_DEAD = 0x4b564445,
};

#endif
