/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_engine.h -- an engine, its caches; what every object uses
 *
 * Locks, in the order in which they may be taken:
 *   engine.turn    one thread at a time sits in service_turn
 *   peer.claim     everything of a peer and of its operations, leases and grants; the only lock of
 *                  the data path, taken once per call. Its holder posts and polls the connection.
 *   engine.lock    the table of peers, the list of caches, the listener
 *   the rest       cache.lock (owners of blocks), arrivals.lock, pool.lock: leaves, held for a few
 *                  instructions
 * A thread that holds engine.lock may try peer.claim, never wait for it.
 *
 * A thread that releases a claim leaves the connection armed (KV_PROGRESS_AUTO), so that the
 * service thread wakes for the next event. When the service thread finds a claim taken it sets
 * engine.wants[index]; the holder then gives the descriptor back to epoll after its release.
 */
#ifndef KV_ENGINE_H
#define KV_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/option.h"
#include "base/sample.h"
#include "kv_geometry.h"
#include "kv_plan.h"
#include "kv_wire.h"
#include "tr.h"

enum {
	KV_ASK_MS = 50,	    /* kv_engine_set_interrupt's function is called this often */
	KV_TICK_MS = 100,   /* deadlines without a waiting thread are seen this late at most */
	KV_STOP_MS = 1000,  /* posted work of a stopped operation has this long to drain */
	/*
	 * What a call may take beyond its deadline: the drain, and as long again for a device whose
	 * connection has to be cut, or that is slow to destroy a queue pair.
	 */
	KV_SLACK_MS = 2 * KV_STOP_MS,
	KV_CLOSE_MS = 1000, /* kv_engine_close waits for its peers this long */
	/* peers, handshakes that came and those that were begun */
	KV_ROWS_MAX = 2 * KV_PEERS_MAX,
	/*
	 * How long kv_comm_init waits for its ranks, unless the caller says; and how long a peer
	 * that connected for a communicator waits for the kv_comm_init that makes it part of it
	 */
	KV_COMM_MS = 30000,
	KV_EVENTS = 32,	    /* taken from a connection at a time */
	/*
	 * A record that waits for its next use (operation, lease, grant) keeps an array of ids up
	 * to this size: short arrays are not allocated each time, long ones are freed.
	 */
	KV_IDS_KEEP_BYTES = 16 << 10,
	/*
	 * Of a caller of kv_progress, without an event: the first finds a peer that had work idle
	 * and arms it, the second is for what came meanwhile.
	 */
	KV_AWAKE_TURNS = 2,
	KV_WORDS = KV_OPS_MAX / 64,
	KV_LAYER_WORDS = KV_LAYERS_MAX / 64,
	KV_ADDRESSES = 256, /* peers are counted by a hash of their address */
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

/* ---------------------------------------------------------------- claims: kv_claim.c */

struct kv_claim {
	atomic_uint word;
	atomic_uint wanting;	  /* threads that wait for it */
	_Atomic int64_t until_ns; /* the deadline of the call that holds it; for kv_watch.c */
	atomic_bool at_socket;	  /* its holder sleeps there until it is nudged, too: */
	int nudge_fd;		  /* the engine's eventfd, above 0 while a thread nudges */
};
/*
 * Every wait has a deadline. Waiting threads get the claim before a thread that was not waiting: a
 * holder that sees `wanting` above 0 releases it after its current piece of work.
 */
bool kv_claim_try(struct kv_claim *claim);
bool kv_claim_until(struct kv_claim *claim, int64_t deadline_ns);
/* A waiter's deadline has passed: from now on it counts as the holder's deadline, too. */
void kv_claim_hurry(struct kv_claim *claim, int64_t deadline_ns);
bool kv_claim_is_held(const struct kv_claim *claim); /* a moment ago */
void kv_claim_release(struct kv_claim *claim);

/* ---------------------------------------------------------------- counters: kv_stats.c */

#define KV_COUNTERS(X)                                                        \
	X(writes) X(reads) X(sends) X(recvs) X(in_flight)                         \
	X(spans_out) X(arrivals)                                                               \
	X(leases_opened) X(leases_open) X(leases_revoked) X(leases_expired)       \
	X(leases_fenced)                                                          \
	X(peers_accepted) X(peers_connected) X(peers_now) X(peers_lost)           \
	X(rejected_garbage) X(rejected_version) X(rejected_geometry)              \
	X(rejected_timeout) X(rejected_limit) X(unknown_messages)                 \
	X(work_requests) X(doorbells) X(completions) X(syscalls)

struct kv_counters {
#define KV_COUNTER_FIELD(name) _Atomic uint64_t name;
	KV_COUNTERS(KV_COUNTER_FIELD)
#undef KV_COUNTER_FIELD
};
#define kv_count_at(counter, n) \
	atomic_fetch_add_explicit((counter), (uint64_t)(n), memory_order_relaxed)
#define kv_count(engine, name, n) kv_count_at(&(engine)->count.name, n)

enum {
	KV_KINDS = 4,	     /* enum kv_op_kind */
	KV_CODES = 96,	     /* -KV_ERR_*; 0: success */
	KV_TRANSPORTS = 4    /* tr_transport_name */
};

/* What went over one transport, and came. */
struct kv_traffic {
	_Atomic uint64_t blocks_out, bytes_out, blocks_in, bytes_in;
	_Atomic uint64_t blocks_read, bytes_read; /* of reads that succeeded, by who read */
};

/* Parts of an operation's time, measured where metrics are asked for. */
enum kv_time { KV_TIME_FIRST, KV_TIME_ACK, KV_TIME_ALL, KV_TIMES };
struct kv_timing {
	struct kv_times of[KV_KINDS][KV_TIMES];
};

/* ---------------------------------------------------------------- arrivals: kv_arrival.c */

struct kv_arrivals {
	pthread_mutex_t lock;
	struct kv_arrival *ring;
	size_t cap, head, count;
	int fd;	       /* eventfd */
	bool fd_asked; /* kv_arrivals_fd was called: keep it up to date */
	bool starved;  /* the ring was full: wake the service thread when there is room */
};
int kv_arrivals_open(struct kv_engine *engine, struct kv_error *err);
void kv_arrivals_close(struct kv_engine *engine);
bool kv_arrivals_push(struct kv_engine *engine, const struct kv_arrival *arrival); /* false: full */
void kv_arrivals_forget(struct kv_engine *engine,
			const struct kv_peer *peer); /* the handle becomes invalid */

/* ---------------------------------------------------------------- loop/kv_linger.c */

enum { KV_LINGER_PEERS = 8 };

/* Under engine.turn. */
struct kv_linger {
	int64_t ns;	  /* that a peer is polled after it had work, */
	int64_t open_ns;  /* and while the notify of one of its operations is to come */
	bool asked;	  /* by the option: whatever processors there are */
	int processors;   /* that this process may use */
	int64_t until_ns; /* of all peers here */
	int64_t off_ns;	  /* until then none */
	long preempted;
	unsigned int n; /* peers; they are neither armed nor watched */
	struct {
		uint32_t index, generation;
		uint64_t completions; /* tr_conn_completions at the last look */
	} peer[KV_LINGER_PEERS];
};

/* ---------------------------------------------------------------- engine: api/kv_engine.c */

struct kv_engine {
	uint32_t magic;
	uint32_t *life; /* a page that is zeroes in a forked child */
	pid_t pid;
	bool wiped; /* the kernel zeroes that page; otherwise compare pids */
	bool caller_mode, arrivals_off, ack_read, checks;
	int64_t spin_ns, op_timeout_ms, handshake_ms, heartbeat_ns;
	uint32_t peers_max, pending_max, address_max;
	char name[KV_NAME_MAX];
	struct kv_option_set *options;
	struct kv_log *log;
	struct tr *tr;

	int epoll_fd, wake_fd, nudge_fd;
	pthread_t thread;
	bool thread_on;
	atomic_bool stopping, stopped; /* asked to end; has ended */
	atomic_bool idle; /* it serves nobody: it is in no call that could hold it up */
	pthread_t watch;
	bool watch_on;
	atomic_bool watch_ends;
	struct kv_waiter watch_stop;
	pthread_mutex_t turn;
	int64_t swept_ns;	 /* under turn: when every peer was looked at last */
	/* under turn: the deadline of the call that runs it; when it serves no further peer */
	int64_t turn_ns, enough_ns, look_ns;
	/* under turn: a peer wants to be looked at again soon, at once if the last turn moved */
	bool restless, moved;
	/*
	 * Under turn. deaf: accepting failed, try again at the next tick. knocked: a connection
	 * with a complete hello waits at the listener, which is looked at without an event.
	 */
	bool deaf, knocked;
	int64_t listener_ns;
	struct kv_linger linger;
	struct kv_waiter waiter; /* kv_progress waits here while another thread runs the loop */

	pthread_mutex_t lock;
	struct tr_listener *listener;
	struct kv_peer *peer[KV_ROWS_MAX];
	/*
	 * The service thread found the claim of this peer taken. Here, because a peer may be gone
	 * after a release.
	 */
	atomic_bool wants[KV_ROWS_MAX];
	/*
	 * Caller mode: so many more turns look at this peer without an event: it may not be armed,
	 * or had work a moment ago.
	 */
	_Atomic uint8_t awake[KV_ROWS_MAX];
	uint32_t peer_generation[KV_ROWS_MAX];
	_Atomic uint32_t peers_end; /* no peer lies at or above this index */
	/*
	 * Unfinished handshakes that came in. Those that this engine began are not counted: they
	 * never wait for a place.
	 */
	uint32_t peers_pending;
	uint32_t peers_up;
	_Atomic uint64_t charged; /* bytes: kv_budget.c; those of peers of each address: */
	_Atomic uint64_t charged_of[KV_ADDRESSES];
	bool listening; /* a listener is there, or is being made */
	struct kv_cache *cache[KV_CACHES_MAX];
	struct kv_cache *making[KV_CACHES_MAX]; /* ids of caches that are being registered */
	struct kv_pool_range *ranges; /* kv_alloc */
	uint64_t comms;		      /* kv_comm_init calls */
	atomic_uint joining;	      /* those under way, each with a deadline of its own */

	int (*interrupted)(void *arg); /* kv_engine_set_interrupt; NULL: not set */
	void *interrupted_arg;

	pthread_mutex_t pool_lock;
	struct kv_error last_error; /* of an operation or a peer; code 0: none yet */
	int64_t last_error_ns;
	struct kv_op *free_ops;
	struct kv_lease *free_leases;
	struct kv_op_chunk *op_chunks;
	struct kv_group *left_groups;
	_Atomic uint32_t lease_serial;

	struct kv_arrivals arrivals;
	struct kv_counters count;
	_Atomic uint64_t ended[KV_KINDS][KV_CODES]; /* operations, by how they ended */
	_Atomic uint64_t lost[KV_CODES];	    /* peers, by the cause */
	struct kv_traffic traffic[KV_TRANSPORTS];
	atomic_bool timed; /* operations are: from the first who asks on */
	struct kv_timing timing_gone; /* of peers that are no more; under lock */
	struct kv_metrics *metrics; /* NULL: not asked for */
};
static inline bool kv_engine_times(const struct kv_engine *engine)
{
	return atomic_load_explicit(&engine->timed, memory_order_relaxed);
}
/* kv_call.c. BUSY in the log callback, which runs inside another call. */
int kv_not_in_callback(const char *op, struct kv_error *err);
/* NULL, closed or forked handles are refused here. */
int kv_engine_use(const struct kv_engine *engine, const char *op, struct kv_error *err);
void kv_engine_wake(struct kv_engine *engine);
/* engine.lock, for those who look at an engine in trouble: false at the deadline. */
bool kv_engine_lock_until(struct kv_engine *engine, int64_t deadline_ns);
void kv_engine_note(struct kv_engine *engine, const struct kv_error *err); /* last_error */
/*
 * Whether the application wants a call that waits to end. Its function is called when *ask_ns (at
 * first kv_deadline_ns(KV_ASK_MS)) has passed, which is then set anew. No lock or claim held.
 */
bool kv_engine_given_up(struct kv_engine *engine, int64_t *ask_ns);
/* Checks a caller's timeout and makes a deadline of it. */
int kv_engine_deadline(int64_t timeout_ms, const char *op, int64_t *deadline_p,
		       struct kv_error *err);

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
	bool device; /* a GPU's memory */
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
/* A hello with the shapes of these caches, KV_CACHES_MAX of them; NULL: none at this id. */
void kv_cache_hello(struct kv_hello *hello, const char *name, struct kv_cache *const *caches);
void kv_ranges_free(struct kv_engine *engine); /* what kv_alloc gave out */
uint64_t kv_ranges_bytes(const struct kv_engine *engine); /* engine.lock held */

/* ---------------------------------------------------------------- sets of bits, magic numbers */

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
/* The first that is set of those from `i` on, below KV_OPS_MAX; KV_OPS_MAX: there is none. */
static inline unsigned int kv_bit_next(const uint64_t *words, unsigned int i)
{
	for (unsigned int w = i / 64; w < KV_WORDS; w++) {
		uint64_t word = w == i / 64 ? words[w] >> (i % 64) << (i % 64) : words[w];

		if (word)
			return w * 64 + (unsigned int)__builtin_ctzll(word);
	}
	return KV_OPS_MAX;
}
static inline bool kv_bits_any(const uint64_t *words)
{
	return kv_bit_next(words, 0) < KV_OPS_MAX;
}
#define KV_EACH_BIT(words, i)                                                                      \
	for (unsigned int i = kv_bit_next(words, 0); i < KV_OPS_MAX; i = kv_bit_next(words, i + 1))

enum {
	KV_MAGIC_ENGINE = 0x4b56454e,
	KV_MAGIC_CACHE = 0x4b564341,
	KV_MAGIC_PEER = 0x4b565045,
	KV_MAGIC_LEASE = 0x4b564c45,
	KV_MAGIC_OP = 0x4b564f50,
	KV_MAGIC_DEAD = 0x4b564445,
	KV_ALIVE = 0x616c6976, /* engine.life; a page that a child of fork finds empty */
};

#endif
