/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv.h -- move blocks of a paged KV cache between processes
 *
 * The words used here
 *   engine   one process's endpoint: devices, memory, options, one service thread
 *   cache    layers x tensors (K, V, scales; MLA has one), each an array of equally large blocks
 *   block    the smallest unit that moves; block id i of a tensor begins at base + i * stride
 *   peer     one connection to another engine
 *   lease    blocks that a receiver has opened for one writer, until it is complete or revoked
 *   op       one operation: any number of layers, tensors and blocks that succeed or fail together
 *   arrival  a receiver's event: these layers of these blocks are here and visible
 *
 * Rules that hold for every function
 *   Threads      Every function may be called from any thread at any time, except that a handle
 *                must not be used while or after it is closed. Calls on one peer take turns; calls
 *                on different peers do not wait for each other.
 *   Errors       0 or a negative KV_ERR_* code. `err` may be NULL; otherwise it holds the cause
 *                after a failure and is left alone after success. Output arguments (`*_p`) are
 *                written only on success. Codes that any function may return are not repeated at
 *                each: ARG (a NULL handle or a struct `size` that this version does not know),
 *                FORKED (the engine was opened by a parent process), CLOSED, NOMEM, INTERNAL.
 *   Time         timeout_ms counts from the call. 0 means "do not wait". There is no infinite wait:
 *                values below 0 or above KV_TIMEOUT_MAX_MS are KV_ERR_ARG. How much longer each
 *                function may take, whatever peers and devices do: docs/deadlines.md.
 *   Structs      set `size = sizeof(struct ...)` and zero the rest (KV_INIT does both). Zero always
 *                means the default.
 *   Success      0 from a blocking write means that the receiver's engine has said that every byte
 *                is visible there.
 */
#ifndef KVRAIL_KV_H
#define KVRAIL_KV_H

#include <kvrail/kv_error.h>

/* The library is compiled with hidden symbols; what this header declares is what it exports. */
#pragma GCC visibility push(default)
#ifdef __cplusplus
/* What KV_INIT is in C++, which has no initialisers by name before C++20. */
template <class T> static inline T kvrail_init(void)
{
	T zeroed = T();

	zeroed.size = sizeof(T);
	return zeroed;
}
#define KV_INIT(type) kvrail_init<struct type>()

extern "C" {
#endif

#define KV_VERSION_MAJOR 0
#define KV_VERSION_MINOR 1
#define KV_VERSION_PATCH 0

#ifndef __cplusplus
#define KV_INIT(type) { .size = sizeof(struct type) }
#endif

/* Limits. Beyond each of them a call fails with KV_ERR_ARG and says so. */
enum {
	KV_TIMEOUT_MAX_MS = 24 * 3600 * 1000,
	KV_LAYERS_MAX = 1024,
	KV_TENSORS_MAX = 8,
	KV_CACHES_MAX = 16,
	KV_BLOCKS_MAX = 1 << 28,      /* blocks of one cache */
	KV_CALL_BLOCKS_MAX = 1 << 20, /* block ids of one call */
	KV_LEASE_BLOCKS_MAX = 1 << 16, /* of kv_blocks_open, kv_recv_blocks, kv_send_blocks */
	KV_LEASES_MAX = 1024,         /* open at one time towards one peer */
	KV_PEERS_MAX = 4096,
	KV_OPS_MAX = 128,             /* unfinished towards one peer, in each direction */
	KV_NAME_MAX = 64,
};

struct kv_engine;
struct kv_cache;
struct kv_peer;
struct kv_lease;
struct kv_op;
struct kv_group;
struct kv_comm;

/*
 * kv_version -- which kvrail this is
 * RETURNS "0.1.0"
 */
const char *kv_version(void);

/* ---------------------------------------------------------------- engine */

enum kv_progress {
	/* a service thread accepts peers and acknowledges arrivals whenever no caller is polling */
	KV_PROGRESS_AUTO = 0,
	/*
	 * Nothing advances but inside kv_progress, kv_wait, kv_test and blocking calls. With a peer
	 * over a NIC there is a thread all the same, which moves nothing: it breaks the connection
	 * of a call that is stuck in the device past its deadline.
	 */
	KV_PROGRESS_CALLER,
};

enum kv_log_level { KV_LOG_ERROR = 1, KV_LOG_WARN, KV_LOG_INFO, KV_LOG_DEBUG };

struct kv_engine_config {
	size_t size;
	const char *name;            /* shown to peers; NULL: "host:pid" */
	int32_t progress;            /* enum kv_progress */
	/* 1: kv_poll_arrivals will not be called (rdma_comm); arrivals are counted and dropped */
	int32_t arrivals_off;
	/* NULL or a NULL-terminated list of "KVCACHE_NAME=value"; they beat the environment */
	const char *const *options;
	/*
	 * NULL: KVCACHE_DEBUG and the log file options decide. Called in whatever thread has
	 * something to say, in the middle of its work, by several at a time. Inside it the
	 * functions of this header return KV_ERR_BUSY, kv_engine_close does nothing; and it must
	 * not wait for a thread that is in one of them.
	 */
	void (*log)(void *arg, int level, const char *line);
	void *log_arg;
};

/*
 * kv_engine_open -- make an engine
 *
 * Reads the options, opens the transports that this machine has and starts the service thread
 * (KV_PROGRESS_AUTO). Unknown KVCACHE_* variables are warned about with the nearest known name.
 * `config` may be NULL. Engine and handles belong to the process that opened the engine; after fork
 * the child may only call kv_engine_close, which then frees nothing that the parent uses.
 *
 * ERRORS
 *   ARG      config->progress, or an option with a bad value (the message names it and its range)
 *   AUTH     the file of KVCACHE_PSK_FILE cannot be used as a key
 *   NOFD     epoll, eventfd or socket: EMFILE or ENFILE
 *   SYSTEM   the service thread could not be started (sys_errno)
 *   DEVICE   KVCACHE_TRANSPORT or KVCACHE_RDMA_NICS names something that this machine does not have
 */
int kv_engine_open(const struct kv_engine_config *config, struct kv_engine **engine_p,
		   struct kv_error *err);

/*
 * kv_engine_close -- stop, drain, free
 *
 * Unfinished operations end with KV_ERR_CLOSED, peers get a goodbye, the listener is closed, the
 * service thread is joined and every peer, lease, op, cache and allocation of the engine is freed;
 * their handles are invalid afterwards. After the return nothing lands in memory that was
 * registered, also from a peer whose handshake this end had not finished; except from a same-host
 * writer with direct access that does not answer, which an error in the log names. A call of this
 * engine into that peer's memory, which has not returned either, may read and write its local
 * blocks until the peer's process is gone: those of kv_alloc stay mapped for it. Never waits for
 * its peers longer than 1 s, nor for a device that destroys their queue pairs: one that takes
 * longer is left open. NULL is allowed.
 */
void kv_engine_close(struct kv_engine *engine);

/*
 * kv_engine_set_interrupt -- install a callback that can abort long waits
 *
 * `interrupted(arg)` is called about every 50 ms in the thread of a kv_connect, kv_comm_init,
 * kv_group_end or blocking write, read, send or receive that waits, with no lock held. Non-zero
 * ends the call: operations are cancelled as by kv_cancel, a connect and a communicator return
 * CANCELLED and leave nothing behind. For languages that handle signals between their own
 * instructions. NULL removes it; there is none by default. Not to be called while another call of
 * the engine is under way. All other calls that wait can be made in pieces.
 */
void kv_engine_set_interrupt(struct kv_engine *engine, int (*interrupted)(void *arg), void *arg);

/*
 * kv_progress -- let the engine work for up to timeout_ms, or until something happened
 *
 * Needed only with KV_PROGRESS_CALLER; harmless otherwise.
 * RETURNS the number of events handled, 0 if there were none, or a negative KV_ERR_* code.
 */
int kv_progress(struct kv_engine *engine, int64_t timeout_ms, struct kv_error *err);

/* ---------------------------------------------------------------- memory and caches */

/*
 * kv_alloc, kv_free -- memory that peers of the same host can write directly
 *
 * Page-aligned, zeroed, backed by a memfd (its pages: KVCACHE_POOL_PAGES), not inherited by fork.
 * Peers of the same host reach registered memory from elsewhere more slowly (process_vm_writev, a
 * ring). A peer that has a cache can touch the whole allocation in which it lies.
 *
 * ERRORS
 *   ARG     len == 0, or (kv_free) ptr did not come from kv_alloc of this engine
 *   NOMEM   memfd, ftruncate or mmap: ENOMEM, ENOSPC or EFBIG; less is left than the pages take
 *   UNSUPPORTED  KVCACHE_POOL_PAGES asks for huge pages, which this kernel does not make
 *   BUSY    (kv_free) a registered cache lies in it
 */
int kv_alloc(struct kv_engine *engine, size_t len, void **ptr_p, struct kv_error *err);
int kv_free(struct kv_engine *engine, void *ptr, struct kv_error *err);

enum kv_mem_kind {
	KV_MEM_HOST = 0,
	KV_MEM_CUDA = 1, /* a GPU's: moved by its kernels on one host, else by a NIC, or over TCP */
};

enum {
	/* peers may write any block without a lease; only a peer-level fence protects it */
	KV_CACHE_OPEN = 1 << 0,
	KV_CACHE_READABLE = 1 << 1, /* peers may kv_read_blocks from it */
	/* every tensor-parallel rank holds the same bytes (MLA): never split by rank */
	KV_TENSOR_REPLICATED = 1 << 0,
};

/* How the heads and tokens of a block lie, the last one densest. */
enum kv_order {
	KV_ORDER_UNKNOWN = 0, /* not given: blocks go only to an equal tp_size */
	KV_ORDER_HND,         /* head, token, dim: a head's tokens lie together */
	KV_ORDER_NHD,         /* token, head, dim: a token's heads lie together */
};

/* One tensor of every layer. */
struct kv_tensor {
	const char *name;     /* "k", "v", "k_scale": compared with the peer's; at most 15 bytes */
	uint64_t block_bytes; /* bytes of one block that are moved */
	uint64_t stride;      /* bytes to the next block, >= block_bytes; 0 = block_bytes */
	uint32_t flags;       /* KV_TENSOR_* */
	uint32_t order;       /* enum kv_order, compared */
	/* Where the layers are: either one address per layer ... */
	void *const *layer_base; /* array of `layers` addresses, copied */
	/* ... or, if layer_base is NULL, a base and a distance. */
	void *base;
	uint64_t layer_stride;   /* bytes from one layer to the next; 0 only with a single layer */
};

struct kv_layout {
	size_t size;
	uint32_t cache_id;       /* equal ids of both sides belong together; < KV_CACHES_MAX */
	uint32_t layers;         /* 1 .. KV_LAYERS_MAX */
	uint32_t tensors;        /* 1 .. KV_TENSORS_MAX */
	uint32_t blocks;         /* ids 0 .. blocks - 1 */
	const struct kv_tensor *tensor; /* array of `tensors`, copied */
	uint32_t tp_size;        /* tensor-parallel size of this engine's group, 0 = 1 */
	uint32_t tp_rank;        /* this engine's rank in it */
	uint32_t block_tokens;   /* tokens of one block, compared; 0 = not given */
	uint32_t dtype;          /* a number of the application's, compared; 0 = not given */
	int32_t mem_kind;        /* enum kv_mem_kind */
	uint32_t flags;          /* KV_CACHE_* */
	/* kv heads of the model, all ranks together: MLA has 1; compared; 0 = not given */
	uint32_t kv_heads;
	uint32_t reserved;
};

/*
 * kv_cache_register -- make a cache known to the engine
 *
 * Registers the memory with every transport. The memory stays the caller's and must outlive the
 * registration. A peer sees the caches that are registered when it connects: register before
 * kv_listen and kv_connect.
 *
 * Every block has bytes of its own: what is written to one must not change another. Blocks may lie
 * between those of another tensor or layer, as where K and V of a block, or all its layers, lie
 * together; a layout in which two blocks of the cache share a byte is refused.
 *
 * Several caches may lie over the same memory, as where a pool is used with blocks of several
 * sizes. They are not compared, and each is by itself: a lease, a revoke and KV_CACHE_OPEN are
 * about the blocks of their cache alone. Of blocks that share bytes let one be open at a time: a
 * lease of one keeps no write away that reaches these bytes through the other, and after its
 * kv_revoke the other's writes still land.
 *
 * With different tensor-parallel sizes the smaller block goes into (or comes out of) a part of the
 * larger one, and each tensor's `order` says where that part lies: with r = tp_size / remote
 * tp_size > 1 a writer's block (HND) lands at byte (tp_rank mod r) * block_bytes of the remote
 * block, which must be r times as large, or (NHD, block_tokens must be given) the same share of
 * each token's bytes does, which makes block_tokens pieces of a block; with r < 1 the writer sends
 * only the receiver's part of each of its blocks. An order that was not given is refused then. With
 * fewer kv heads than ranks (kv_heads < tp_size) tp_size / kv_heads ranks in a row hold the same
 * head, and the group counts as kv_heads ranks. Any rank that holds a head may write it or be
 * written to: of several writers that hold the same, one is enough.
 *
 * ERRORS
 *   ARG        layers, tensors, blocks, cache_id, tp_rank >= tp_size, kv_heads and tp_size of which
 *              neither divides the other, order, block_bytes == 0 or not a multiple of the rank's
 *              heads (or, NHD, of block_tokens), stride < block_bytes, mem_kind, a NULL address,
 *              or a size that overflows; the message names the field; or two tensors or layers
 *              whose blocks share bytes; or (KV_MEM_CUDA) a layer's tensor is not memory of CUDA,
 *              or not in one allocation
 *   BUSY       the cache id is taken
 *   SYSTEM     the memory is not mapped (EFAULT)
 *   UNSUPPORTED  (KV_MEM_CUDA) no transport that is open moves the GPU's memory; the message says
 *              what is missing, the hint how to get it. If one does, peers that connect afterwards
 *              get that one, and a warning says why not a better one
 *   MEMLOCK    a device could not pin it; the hint names the limit, the need and the fix
 *   DEVICE     registration failed for another reason (sys_errno), or (KV_MEM_CUDA) the GPU has
 *              no memory for what flushes a NIC's writes (compute capability before 9.0)
 *
 * The last two only if no other transport is open (KVCACHE_TRANSPORT=ib): else the device is left
 * out for this cache with a warning, and kv_connect to a peer that needs it fails with this cause.
 */
int kv_cache_register(struct kv_engine *engine, const struct kv_layout *layout,
		      struct kv_cache **cache_p, struct kv_error *err);

/*
 * kv_cache_unregister -- forget a cache
 * ERRORS
 *   BUSY   an operation or a lease of this engine uses it, or a connected peer knows it: close
 *          those peers first; or a call or a device still works in its memory for a connection
 *          that was closed: try again
 */
int kv_cache_unregister(struct kv_cache *cache, struct kv_error *err);

/* ---------------------------------------------------------------- peers */

/*
 * kv_listen -- accept peers on a TCP address
 *
 * `host` is a name or address of this machine; "0.0.0.0" or "::" must be asked for by name. NULL
 * means 127.0.0.1. `port` 0 takes a free one; the port in use is stored in *port_p (may be NULL).
 * A name is listened to on each of its addresses: "localhost" on 127.0.0.1 and ::1. One listener
 * per engine. Bytes that are not a kvrail handshake cost a counter (kv_stats.rejected_*) and
 * nothing else. Silent connections cost a descriptor each, at most KVCACHE_MAX_PENDING and a
 * quarter of what the process may have; beyond that the oldest of the address with the most makes
 * room (SECURITY.md).
 *
 * ERRORS
 *   ARG      the host does not resolve, or port > 65535
 *   UNREACHABLE  no name server answered within KVCACHE_HANDSHAKE_MS; it can be tried again
 *   BUSY     the engine listens already, or the address is in use (EADDRINUSE)
 *   SYSTEM   bind or listen failed (sys_errno)
 */
int kv_listen(struct kv_engine *engine, const char *host, uint32_t port, uint32_t *port_p,
	      struct kv_error *err);

/*
 * kv_connect -- connect to a listening engine
 *
 * Returns when both sides have accepted versions and geometry and a transport has been proven to
 * work. The peer is good for both directions. kv_peer_close must be called for it.
 *
 * ERRORS
 *   ARG           the host does not resolve, port is 0 or > 65535, or the timeout is out of range
 *   TIMEOUT       the deadline passed; the message says at which stage
 *   PEER_LOST     connection refused or reset, at every address of the name
 *   VERSION       the other end speaks another version; both are named
 *   AUTH          the two ends have no key in common (KVCACHE_PSK_FILE)
 *   GEOMETRY      caches differ; the message lists every field with both values
 *   PROTOCOL      the other end is not kvrail
 *   UNREACHABLE   no transport that both ends have reaches the peer; the message says why for each.
 *                 Or no name server answered, which can be tried again
 *   CANCELLED     kv_engine_set_interrupt's function said so
 *   BUSY          the peer is at a limit: of peers (KVCACHE_MAX_PEERS), of unfinished handshakes,
 *                 of descriptors or memory; the message says which. Or this engine has its limit of
 *                 peers, or 32 names are being resolved. What others connect to this engine never
 *                 makes it BUSY
 *   MEMLOCK, DEVICE  a cache of this engine or of the peer is not registered with the device that
 *                 would carry the connection (kv_cache_register)
 */
int kv_connect(struct kv_engine *engine, const char *host, uint32_t port, int64_t timeout_ms,
	       struct kv_peer **peer_p, struct kv_error *err);

/*
 * kv_peer_close -- say goodbye and free the peer
 *
 * Ends its unfinished operations with KV_ERR_CLOSED, those that a group has collected too: a call
 * that waits for one gets that code, and its handle stays good until kv_op_free. Revokes its
 * leases, whose handles become invalid; a kv_revoke that waits for one returns 0. After 0 no byte
 * of this connection can land in this engine's memory. Waits at most timeout_ms.
 *
 * ERRORS
 *   BUSY   a same-host writer does not answer, and its blocks stay quarantined (kv_revoke); or a
 *          device takes longer to destroy its queue pairs, or another thread's call on the peer to
 *          return. The peer stays: call again
 */
int kv_peer_close(struct kv_peer *peer, int64_t timeout_ms, struct kv_error *err);

struct kv_peer_info {
	size_t size;
	char name[KV_NAME_MAX];     /* the peer's engine name */
	char address[64];           /* "127.0.0.1:41000" */
	char transport[16];         /* "shm", "ib", "tcp" */
	char path[96]; /* how its bytes travel, each way once: "memfd pool, plain stores; ..." */
	uint8_t incarnation[16];    /* another value = another process */
	int32_t connected;          /* 1 until the peer is lost or closed */
	int32_t incoming;           /* 1: it connected to us */
	uint64_t user;              /* kv_peer_set_user */
};
/* kv_peer_info -- what a peer is called, where it is and how its bytes travel */
int kv_peer_info(struct kv_peer *peer, struct kv_peer_info *info, struct kv_error *err);

/* kv_peer_set_user -- give a peer a number of the caller's own, which comes back in arrivals */
void kv_peer_set_user(struct kv_peer *peer, uint64_t user);

/* ---------------------------------------------------------------- one-sided operations */

struct kv_layers { uint32_t first, count; }; /* count 0 = all layers from `first` on */

enum kv_grade {
	KV_NONE = 0,
	KV_SENT,    /* the source blocks may be reused */
	KV_VISIBLE, /* every byte is visible at the receiver */
	KV_ACKED,   /* the receiver's engine has consumed the event and queued the arrival */
};

struct kv_options {
	size_t size;
	int64_t timeout_ms;      /* the operation's deadline; 0 = KVCACHE_OP_TIMEOUT_MS (5000) */
	uint64_t tag;            /* given to the receiver with the arrival */
	uint64_t lease;          /* kv_lease_id of one that the receiver opened for us; 0 = none */
	struct kv_group *group;  /* collect instead of posting; only for the *_async calls */
	/*
	 * For blocks that a GPU still works on: no byte of layer i of the call moves before the
	 * event events[i] (CUevent, cudaEvent_t; NULL: at once), or before all that is on `stream`
	 * now. Events and array must stay until KV_SENT. Not for a receive.
	 */
	void *const *events;
	void *stream;            /* CUstream, cudaStream_t; cudaStreamLegacy for the default one */
};

/*
 * kv_write_blocks -- copy blocks into a peer's cache, and return when the receiver has them
 *
 * For each layer, tensor and i < n: local block local_ids[i] is written to remote block
 * remote_ids[i]. All layers and tensors are one operation: one arrival at the receiver, one
 * acknowledgement. The ids are read during the call only. Remote blocks that are adjacent where the
 * local ones are adjacent too move as one piece. n == 0 is a no-op that succeeds without an
 * arrival. `opts` may be NULL. On failure the destination blocks of this call are undefined if
 * err->in_doubt is 1; else no byte moved.
 *
 * ERRORS
 *   ARG          layers out of range, n > KV_CALL_BLOCKS_MAX, ids NULL, another engine's cache
 *   BLOCK_ID     local_ids[i] >= blocks or remote_ids[i] >= the peer's blocks, or negative
 *                (block_index, block_id)
 *   DUP_BLOCK    two remote ids are equal (block_index is the second one)
 *   GEOMETRY     the peer has no cache of this id, or its tensor-parallel part does not meet ours
 *   LEASE        the peer's cache is not KV_CACHE_OPEN and opts->lease is 0, unknown, or does not
 *                hold a remote block. A lease whose number arrived before the peer's word of it is
 *                waited for, until the operation's deadline; an asynchronous call returns at once
 *   REVOKED      the receiver revoked the lease meanwhile: before the operation was posted (no byte
 *                moved), or while it was under way
 *   BUSY         KV_OPS_MAX operations are unfinished towards this peer; the blocking call waits
 *                for one to end, the asynchronous one returns at once. One that timed out counts
 *                until the peer has acknowledged it
 *   TIMEOUT      no acknowledgement within the deadline. If it passes while the device does not
 *                return from a post, the connection is broken to get out of it. A device that does
 *                not give back what was posted is waited for until 2 s after the deadline; the
 *                local blocks may be in use after that, until kv_peer_close has returned 0
 *   CANCELLED    kv_engine_set_interrupt's function said so
 *   PEER_LOST    the connection broke, or was broken already
 *   CHECKSUM     KVCACHE_CHECKSUM, also of a read or receive: this block_id arrived wrong
 *   LINK, RNR, REMOTE_ACCESS, LOCAL_MR, DEVICE   of the device (wc_status, vendor_err, qp_num);
 *                DEVICE also of opts->events and opts->stream, UNSUPPORTED if CUDA is not there
 */
int kv_write_blocks(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		    const int64_t *local_ids, const int64_t *remote_ids, size_t n,
		    const struct kv_options *opts, struct kv_error *err);

/*
 * kv_write_blocks_async -- copy blocks into a peer's cache, as an operation to wait for later
 *
 * Checks everything that kv_write_blocks checks before it returns, posts as much as the transport
 * takes now and keeps a copy of the ids for the rest. That is posted by kv_test, kv_wait and
 * kv_progress, and by the service thread (KV_PROGRESS_AUTO) where no thread waits for the
 * operation. On shm the caller's thread copies the bytes inside this call. The source blocks must
 * not change before KV_SENT. *op_p must be given to kv_op_free.
 *
 * ERRORS as kv_write_blocks
 */
int kv_write_blocks_async(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			  const int64_t *local_ids, const int64_t *remote_ids, size_t n,
			  const struct kv_options *opts, struct kv_op **op_p, struct kv_error *err);

/*
 * kv_read_blocks, kv_read_blocks_async -- copy blocks out of a peer's cache
 *
 * Remote block remote_ids[i] is copied to local block local_ids[i]; the local ids must differ from
 * each other. The peer's cache must be KV_CACHE_READABLE. No arrival is made at the peer. On
 * success the bytes are in local memory (KV_ACKED).
 * ERRORS as kv_write_blocks, except
 *   LEASE       the peer's cache is not KV_CACHE_READABLE
 *   DUP_BLOCK   two local ids are equal (block_index is the second one)
 */
int kv_read_blocks(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		   const int64_t *local_ids, const int64_t *remote_ids, size_t n,
		   const struct kv_options *opts, struct kv_error *err);
int kv_read_blocks_async(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			 const int64_t *local_ids, const int64_t *remote_ids, size_t n,
			 const struct kv_options *opts, struct kv_op **op_p, struct kv_error *err);

/*
 * kv_test -- advance an operation and look at it
 * RETURNS the highest grade reached (enum kv_grade), or the code of the operation that failed.
 */
int kv_test(struct kv_op *op, struct kv_error *err);

/*
 * kv_wait -- wait until an operation has reached a grade
 *
 * The operation's own deadline is opts->timeout_ms of the call that made it.
 * RETURNS 0 when the operation has reached the grade, its own code when it failed.
 * ERRORS
 *   TIMEOUT   with err->op "wait": timeout_ms passed, and the operation goes on
 *   ARG       grade is not KV_SENT, KV_VISIBLE or KV_ACKED
 */
int kv_wait(struct kv_op *op, int grade, int64_t timeout_ms, struct kv_error *err);

/*
 * kv_cancel -- stop an operation
 *
 * After the return nothing of the operation can land any more and the source blocks are the
 * caller's. 0: it ended as CANCELLED, or had ended before (kv_test shows which). If posted work
 * does not drain within timeout_ms the connection is broken to stop it: then other operations
 * towards that peer fail and the peer must be closed and connected again. The same holds for an
 * operation whose deadline passes, 1 s after it.
 *
 * ERRORS
 *   BUSY   a same-host transfer that the peer's process performs has not stopped yet, or another
 *          thread's call on the peer has not returned: call again
 */
int kv_cancel(struct kv_op *op, int64_t timeout_ms, struct kv_error *err);

/*
 * kv_op_free -- free an operation that has ended
 *
 * NULL is allowed.
 * ERRORS
 *   BUSY   the operation has not ended: cancel it or wait for it; or its group has not ended
 */
int kv_op_free(struct kv_op *op, struct kv_error *err);

/* ------------------------------------------------------- leases and two-sided operations */

/*
 * kv_blocks_open -- open blocks of a cache for one writer
 *
 * Tells the peer, under `tag`, that it may write these blocks. The peer finds the lease by its tag
 * (kv_send_blocks) or by kv_lease_id. After lifetime_ms the lease takes no further commits (arrival
 * KV_ARRIVAL_EXPIRED), but its blocks stay closed to others until kv_revoke has returned 0: only
 * then is it certain that no late byte can land.
 *
 * ERRORS
 *   ARG         n == 0 or > KV_LEASE_BLOCKS_MAX, lifetime_ms out of range
 *   BLOCK_ID    an id is out of range
 *   DUP_BLOCK   an id is named twice
 *   LEASE       a block is open under another lease (block_index, block_id)
 *   BUSY        KV_LEASES_MAX leases are open towards this peer, or another thread's call on it
 *               does not return within KVCACHE_OP_TIMEOUT_MS
 *   PEER_LOST   the peer is gone
 */
int kv_blocks_open(struct kv_peer *peer, struct kv_cache *cache, const int64_t *ids, size_t n,
		   uint64_t tag, int64_t lifetime_ms, struct kv_lease **lease_p,
		   struct kv_error *err);

/*
 * kv_lease_id -- the number under which the writer names a lease (kv_options.lease)
 * RETURNS a number that is never 0. `lease` must not be NULL.
 */
uint64_t kv_lease_id(const struct kv_lease *lease);

/*
 * kv_revoke -- close a lease, so that no byte can land in its blocks any more
 *
 * After 0 the handle is freed. Where this side places every byte itself (the ring, with
 * KVCACHE_SHM_PATH=ring here or a peer of another user) it closes at once, and the writer only gets
 * a message. Otherwise it asks the writer to stop. If that does not answer within timeout_ms the
 * connection is fenced (ib: its queue pairs are destroyed here) and the peer is lost. A complete
 * lease (kv_recv_blocks) is closed at once.
 *
 * ERRORS
 *   BUSY   a same-host writer with direct access does not answer, and cannot be stopped from
 *          outside: its blocks stay quarantined and the handle stays valid, until it answers or
 *          its process is gone. Or a device is slow to destroy a queue pair: call again
 */
int kv_revoke(struct kv_lease *lease, int64_t timeout_ms, struct kv_error *err);

/*
 * kv_recv_blocks, kv_recv_blocks_async -- open blocks that a peer's kv_send_blocks is to fill
 *
 * Waits until they are filled in every named layer; as an operation it is KV_ACKED then. The lease
 * is closed by the completion; on failure and after kv_cancel the blocks are closed as by
 * kv_revoke, and stay closed (KV_ERR_LEASE for others) as long as the writer could reach them; so
 * long kv_cancel is BUSY, after the end, too. No arrival is made: the operation's end says it. A
 * receive whose time is up ends when the sender has stopped, 1 s after its deadline at the latest.
 * ERRORS as kv_blocks_open, and
 *   TIMEOUT    the layers were not all there at the deadline
 *   REVOKED    the sender gave up
 *   GEOMETRY   sender and receiver name different layers
 */
int kv_recv_blocks(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		   const int64_t *ids, size_t n, uint64_t tag, const struct kv_options *opts,
		   struct kv_error *err);
int kv_recv_blocks_async(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			 const int64_t *ids, size_t n, uint64_t tag,
			 const struct kv_options *opts, struct kv_op **op_p, struct kv_error *err);

/*
 * kv_send_blocks, kv_send_blocks_async -- fill the blocks that the peer has opened under `tag`
 *
 * Waits for the oldest lease of this tag that still lacks one of these layers, then writes ids[i]
 * to its i-th block. May be called once per layer or once for all.
 * ERRORS as kv_write_blocks, and
 *   ARG        the lease has another number of blocks than n; the receiver waits on
 *   GEOMETRY   the receiver does not name these layers; its receive ends, too
 *   LEASE      one of these layers was sent before
 */
int kv_send_blocks(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		   const int64_t *ids, size_t n, uint64_t tag, const struct kv_options *opts,
		   struct kv_error *err);
int kv_send_blocks_async(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			 const int64_t *ids, size_t n, uint64_t tag,
			 const struct kv_options *opts, struct kv_op **op_p, struct kv_error *err);

/* ---------------------------------------------------------------- arrivals */

enum kv_arrival_kind {
	KV_ARRIVAL_BLOCKS = 1, /* `blocks` blocks of `layers` are visible */
	/* a peer has connected to us; the handle is now the caller's, for kv_peer_close */
	KV_ARRIVAL_PEER_UP,
	/* `peer` is gone: `status` KV_ERR_CLOSED if it said goodbye, else KV_ERR_PEER_LOST */
	KV_ARRIVAL_PEER_LOST,
	KV_ARRIVAL_EXPIRED,    /* the lease `lease` has passed its lifetime */
	KV_ARRIVAL_UNFINISHED, /* before PEER_LOST, of each open lease or begun write without one */
};

struct kv_arrival {
	int32_t kind;
	int32_t status;
	struct kv_peer *peer;
	struct kv_cache *cache;
	struct kv_layers layers;
	uint64_t tag;
	uint64_t lease;   /* 0: written without a lease */
	uint64_t blocks;  /* number of block ids of the operation */
	uint64_t bytes;
	uint64_t user;    /* kv_peer_set_user */
};

/*
 * kv_poll_arrivals -- take up to `max` events, oldest first
 *
 * Each committed operation makes exactly one KV_ARRIVAL_BLOCKS, except into a kv_recv_blocks. A
 * slow reader slows the writers (their acknowledgements wait), it loses nothing.
 * RETURNS the number of events taken, 0 if there are none, or a negative KV_ERR_* code.
 */
int kv_poll_arrivals(struct kv_engine *engine, struct kv_arrival *arrivals, size_t max,
		     struct kv_error *err);

/*
 * kv_arrivals_fd -- a descriptor that polls readable while events are waiting
 * RETURNS the descriptor, which is the engine's (do not read or close it), or a KV_ERR_* code.
 */
int kv_arrivals_fd(struct kv_engine *engine);

/* ---------------------------------------------------------------- groups and communicators */

/*
 * kv_group_start, kv_group_end -- many operations to many peers, posted together, one result
 *
 * Between the two, *_async calls with opts.group set are checked and collected; their timeout_ms
 * count from kv_group_end. What is collected ends at once when its lease is revoked or its peer is
 * lost or closed. kv_group_end checks each again, lease and ids, and posts them, a piece of each in
 * turn, and waits until all have ended. Each op keeps its own result (kv_test) and must be freed by
 * kv_op_free. *failed_p (may be NULL) is the number that failed. The group is freed. The id arrays
 * must stay valid until kv_group_end returns. A group belongs to one thread.
 * RETURNS 0 if all succeeded, else the code of the first operation that failed.
 */
int kv_group_start(struct kv_engine *engine, struct kv_group **group_p, struct kv_error *err);
int kv_group_end(struct kv_group *group, int64_t timeout_ms, size_t *failed_p,
		 struct kv_error *err);

/*
 * kv_comm_init -- connect the engines of `nranks` processes with each other
 *
 * `allgather(arg, mine, all, len)` must give every rank the `len` opaque bytes of every rank, in
 * rank order, and return 0; MPI_Allgather, a TCP rendezvous or a file do. Each rank listens (if it
 * does not yet: on `host`, any port) and the lower rank of each pair connects to the higher one.
 * Ranks of the same `group` number are not connected to each other (prefill 0, decode 1);
 * KV_COMM_ALL connects all. Every rank must call it with the same nranks. Returns when every rank
 * that this one is connected to has made it part of its communicator, too: it may leave then, and
 * no other rank's call fails for that. A rank that comes while no kv_comm_init of this engine is
 * under way, as it failed or is still to come, is dropped after 30 s and gets PEER_LOST.
 *
 * ERRORS as kv_listen and kv_connect, and
 *   SYSTEM     allgather returned non-zero
 *   TIMEOUT    a rank did not come; the message names it
 *   PEER_LOST  a rank gave up: each that it was connected to gets this, or later that arrival
 */
enum { KV_COMM_ALL = -1 };
struct kv_comm_config {
	size_t size;
	uint32_t rank, nranks;
	int32_t group;      /* KV_COMM_ALL, or a number >= 0 */
	const char *host;   /* address to listen on; NULL = 127.0.0.1 */
	int (*allgather)(void *arg, const void *mine, void *all, size_t len);
	void *arg;
	int64_t timeout_ms; /* 0 = 30000 */
};
int kv_comm_init(struct kv_engine *engine, const struct kv_comm_config *config,
		 struct kv_comm **comm_p, struct kv_error *err);

/*
 * kv_comm_peer -- the peer of a rank
 * RETURNS a peer that the communicator owns; NULL for this rank itself, and for a rank that is not
 * connected or out of range.
 */
struct kv_peer *kv_comm_peer(struct kv_comm *comm, uint32_t rank);

/*
 * kv_comm_free -- close the peers and free the communicator
 *
 * The engine stays open. Waits at most timeout_ms. NULL is allowed.
 * ERRORS
 *   BUSY   a peer cannot be closed yet (kv_peer_close): call again
 */
int kv_comm_free(struct kv_comm *comm, int64_t timeout_ms, struct kv_error *err);

/* ---------------------------------------------------------------- looking inside */

struct kv_stats {
	size_t size;
	uint64_t writes, reads, sends, recvs;      /* operations begun */
	/* writes + reads + sends + recvs = ok + failed + cancelled + in_flight */
	uint64_t ok, failed, cancelled, in_flight;
	uint64_t blocks_out, bytes_out, blocks_in, bytes_in;
	uint64_t spans_out;                        /* pieces given to the transport after merging */
	uint64_t arrivals, arrivals_waiting;
	uint64_t leases_opened, leases_open, leases_revoked, leases_expired, leases_fenced;
	uint64_t peers_accepted, peers_connected, peers_now, peers_lost, rejected_garbage;
	uint64_t rejected_version, rejected_geometry, rejected_timeout, rejected_limit;
	/* about what this end has forgotten; what contradicts itself costs the connection */
	uint64_t unknown_messages;
	uint64_t work_requests, doorbells, completions, syscalls; /* where they are counted */
};
/* kv_stats -- read the engine's counters */
int kv_stats(struct kv_engine *engine, struct kv_stats *stats, struct kv_error *err);

/*
 * kv_dump -- the engine's state as text, to answer "why does it hang"
 *
 * The operations in flight, the oldest first, with stage, age and peer; each peer's path, leases,
 * credits. Writes at most `cap` bytes with the closing NUL; `buf` may be NULL if that is 0. May be
 * called while other threads hang in a call. `kvrail dump PID` prints it of another process.
 * RETURNS the length of the whole text, as snprintf does, or a negative KV_ERR_* code.
 */
int kv_dump(struct kv_engine *engine, char *buf, size_t cap);

/*
 * One row of the option table. Strings are static except `value`, which is valid until the engine
 * is closed.
 */
struct kv_option_info {
	size_t size;
	const char *name, *type, *range, *def, *help;
	const char *value;   /* what is in force */
	const char *source;  /* "default", "environment", "config" */
};
/*
 * kv_option_get -- one row of the option table
 *
 * Row `index`, counted from 0. `engine` may be NULL: values as an engine opened now would have; the
 * environment is read at row 0, and strings are valid until the next call for row 0.
 * ERRORS
 *   ARG   index is past the last row
 */
int kv_option_get(struct kv_engine *engine, size_t index, struct kv_option_info *info,
		  struct kv_error *err);

/* How an RDMA port reaches the memory of a GPU. */
enum kv_gpu_reach {
	KV_GPU_DMABUF = 1 << 0,  /* its driver registers DMA-BUFs */
	KV_GPU_PEERMEM = 1 << 1, /* nvidia_peermem is loaded */
};

/* One transport or device that this build knows. */
struct kv_device_info {
	size_t size;
	char transport[16];
	char name[32];        /* "mlx5_0:1", "host memory" */
	int32_t usable;
	int32_t gpu_reach;    /* enum kv_gpu_reach, or 0 */
	char detail[160];     /* what it is, or why it cannot be used and what to do */
	/* Of an RDMA port; "", 0 or -1 elsewhere. */
	char link[16];        /* "RoCE", "InfiniBand" */
	/* the address that a connection made now would use: "::ffff:10.0.0.1" */
	char gid[48];
	int32_t gid_index;    /* its row of the GID table; -1: InfiniBand, addressed by lid */
	uint32_t lid;
	uint32_t speed_mbps;
	uint32_t mtu_bytes;   /* of an RDMA packet's payload */
	char pci[16];         /* "0000:18:00.0"; "" for a software device */
	int32_t numa_node;    /* -1 = not known */
	char distance[8];     /* to the GPU of KVCACHE_GPU: "PIX", "PXB", "PHB", "NODE", "SYS" */
	char reason[160];     /* why this address */
};
/*
 * kv_device_get -- one transport or device that this build knows
 *
 * Row `index`, counted from 0. info->size may be that of an older version's struct, from transport
 * to detail: then only that much is written.
 * ERRORS
 *   ARG   index is past the last row
 */
int kv_device_get(struct kv_engine *engine, size_t index, struct kv_device_info *info,
		  struct kv_error *err);

#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop
#endif
