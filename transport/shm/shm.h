/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shm.h -- what the files of the shm provider know of each other
 *
 *   prove.c    same host? AF_UNIX, the segment, the nonce
 *   link.c     the AF_UNIX socket afterwards: pools, doorbell, death
 *   segment.c  the shared memory of a connection
 *   ring.c     records in it
 *   trust.c    which peers may reach memory directly
 *   path.c     how a region of the peer is reached, and why
 *   pool.c     the peer's memfd pools
 *   cma.c      process_vm_writev, process_vm_readv
 *   copy.c     threads that do the latter, as such a call may never return
 *   help.c     pieces of them that those move who would only wait
 *   call.c     operations whose bytes they move
 *   present.c  whether such a call finds its pages at once, and so needs no thread
 *   store.c    copy loops of the pool path
 *   cuda_range.c memory of the peer's GPU that it has mapped piece by piece
 *   cuda_map.c the GPUs that copy for a connection, and what they see
 *   cuda.c     operations with a GPU's memory at either end
 *   cuda_ring.c the same through the rings
 *   send.c     op_begin .. op_cancel, messages
 *   receive.c  progress: records of the peer; going to sleep
 *   stop.c     the end: loss, fence
 */
#ifndef SHM_H
#define SHM_H

#include <pthread.h>
#include <sys/types.h>

#include "gpu/gpu.h"
#include "provider.h"
#include "segment.h"
#include "stage.h"
#include "store.h"

enum shm_limits {
	SHM_POOLS_MAX = 64,	      /* pools of one side that the other may map, per connection */
	SHM_UIDS_MAX = 33,	      /* users with direct access: this one and 32 of the option */
	SHM_LINK_MESSAGES = 128,      /* that one look at the local socket takes */
	SHM_PROGRESS_RECORDS = 2048,  /* that one progress consumes at most, and */
	SHM_READS_MAX = 64,	      /* ring reads that are not answered, per side */
	SHM_ADD_BYTES = 4 << 20,      /* that one call copies: how long it may keep its caller */
	SHM_CMA_SPANS = 256,	      /* iovecs of one process_vm_writev */
	SHM_RING_RESERVE = 8 << 10,   /* of the ring: kept for notifies and messages */
	SHM_CHUNK_LEAST = 1024,	      /* a larger piece is cut no smaller at the end of the ring */
	SHM_PUBLISH_BYTES = 64 << 10, /* progress is published after so many bytes */
	SHM_PROGRESS_BYTES = 1 << 20, /* that one progress consumes at most */
	SHM_CMA_LEAST = 32768,	/* bytes for which a system call costs less than a second copy */
	SHM_COPY_LEAST = 65536, /* bytes that are worth another thread */
	SHM_COPY_THREADS_MAX = 64,
	/* Spans of a call whose pages are asked for; more are worth a thread, if one is idle. */
	SHM_PRESENT_SPANS = 8,
	SHM_HELP_LEAST = 256 << 10, /* bytes of a call that are worth sharing with a caller who */
	SHM_HELP_SPAN = 32 << 10,  /* asks, if its spans have so many: a look costs a microsecond */
	SHM_UNLOOKED = 8,	    /* ends of a sleep without a bell, until it looks at the link */
	SHM_LOOKS = 8,		    /* answers that are remembered, for */
	SHM_LOOK_NS = 50 * 1000,    /* as long as a call for 1 MiB takes */
	SHM_COPY_PATIENCE_MS = 10, /* until a call that has not returned is not waited for */
	SHM_COPY_CLOSE_MS = 1000,  /* that closing a context waits for such calls */
	SHM_PIECES = 32, /* descriptors that one message passes; fewer than the kernel's 253 */
	SHM_GPUS = 4, /* of one process, whose kernels copy for one connection */
	SHM_FENCE_GRACE_MS = 100, /* until a peer that does not answer a stop is called BUSY */
};

/*
 * Address space for pools of peers. A pool may be sparse, so its size costs its owner nothing, but
 * this process has only 128 TiB for all of them. A pool that does not fit is not mapped: its
 * regions take another path.
 */
#define SHM_MAP_PEER_BYTES (UINT64_C(4) << 40) /* of one connection */
#define SHM_MAP_ALL_BYTES (UINT64_C(32) << 40) /* of one context */

enum shm_path { SHM_AUTO = 0, SHM_POOL, SHM_CMA, SHM_RING, SHM_CUDA, SHM_WAYS };
enum { PATH_TEXT = 160 }; /* what a way is called, and why it is that */

struct shm_ctx {
	struct tr *tr;
	enum shm_path forced; /* KVCACHE_SHM_PATH */
	uint64_t nt_from;     /* KVCACHE_SHM_STORES: from this length on non-temporal */
	store_fn *nt;
	const char *nt_name;
	uint64_t ring_bytes;
	bool split; /* KVCACHE_NET_COPY_THREADS: large writes go in pieces */
	uid_t uid[SHM_UIDS_MAX]; /* users with direct access */
	unsigned int uids;
	_Atomic uint64_t mapped; /* bytes of peers' pools */
	int64_t spin_ns;	 /* KVCACHE_SPIN_US */
	struct copy_pool *copy;
	atomic_bool helped;	  /* there are callers who take pieces */
	struct gpu *gpu; /* CUDA's */
	int sms; /* KVCACHE_GPU_SMS */
	pthread_mutex_t pin_lock; /* of what cuda.c pins of local regions */
};

/* A pool of the peer, passed over the socket. */
struct shm_pool {
	uint64_t id, len;
	uint32_t pages; /* enum tr_pages when it was passed, as the peer says */
	uint8_t *addr; /* NULL: not mapped, for lack of address space */
};

/* rmem->priv */
struct shm_rmem {
	enum shm_path path;
	/* path is ring for the sake of lines only: TR_ANY_ORDER may use process_vm */
	bool cma_any_order;
	uint8_t *addr; /* pool: here. cma, ring, cuda: the peer's address */
	struct gpu_share share; /* cuda: the peer's */
	bool told; /* the log has why kernels do not reach it */
	uint64_t gpu_at[SHM_GPUS]; /* where kernels of shm_cuda.queue find it, 0: not mapped */
	bool gpu_mapped[SHM_GPUS];
	struct gpu_range range; /* share.span: filled as cuda_range.c gets the pieces */
};

/* Spans that are moved by process_vm_*: by one thread, or in pieces by several. */
struct copy_job {
	struct shm_conn *sc;
	struct tr_mem *mem; /* the local region: counted in_flight until nothing touches it */
	int kind;	    /* TR_WRITE or TR_READ_OP */
	bool split;	    /* threads take it in pieces */
	uint8_t *local, *remote;
	const struct tr_span *span;
	uint32_t spans;
	uint64_t len; /* of all spans */
	/* Under the pool's lock: what no one has taken begins in this span. */
	uint32_t at;
	uint64_t at_byte, untaken;
	_Atomic uint64_t left;
	_Atomic int error; /* errno */
	_Atomic uint32_t state;
	struct copy_job *next;
};

enum copy_state {
	COPY_BEGUN = 0,
	COPY_AWAITED, /* a thread sleeps until it is done */
	COPY_LATE,    /* no thread sleeps for it any more: ring the bell */
	COPY_DONE,
};

/* A message of the local socket brings them. */
struct link_fds {
	unsigned int n;
	int fd[SHM_PIECES];
};

/* Pieces of a GPU's memory, which are passed as they are asked for. */
struct shm_pieces {
	/* Asked for by this side: the next ones of this region of the peer. */
	struct shm_rmem *rm; /* NULL: it was closed meanwhile */
	uint32_t mem;
	bool asked, came;
	struct link_fds fds; /* came: to be mapped; */
	uint64_t len, error; /* of each; why there is none, as the driver numbers it */
	/* Asked for by the peer, and not passed yet. */
	bool due;
	uint32_t due_mem;
	uint64_t due_from;
};

/* State of an operation's slot. */
struct shm_op {
	uint32_t reads; /* ring reads that are not answered */
	bool in_ring;	/* some of its bytes went through the ring */
	bool committed;
	bool waiting; /* it stands in shm_conn.wait, until the peer has consumed our ring */
	bool copying; /* job is under way or was not looked at since */
	bool late;    /* shm_conn.call is its, and did not return in time */
	/* A span that is larger than SHM_ADD_BYTES, of which `done` bytes are copied. */
	struct {
		const uint8_t *local, *remote;
		uint64_t len, done;
	} part;
	/* What follows is set when a field above begins to say that it is there. */
	struct { /* waiting: */
		uint64_t at; /* up to here; */
		int64_t deadline_ns; /* of a cancelled one; INT64_MAX */
		int32_t end_kind;
		struct tr_op *next;
	} wait;
	struct copy_job job;	/* copying: */
	struct tr_span range;	/* of job, */
	struct tr_rmem *rmem;	/* and where it goes */
};

static inline struct shm_op *shm_op_of(const struct tr_op *op)
{
	return op->priv;
}

/* A connection for which GPUs copy. */
struct shm_cuda {
	struct gpu_queue *queue[SHM_GPUS]; /* in the order of first use; NULL past the last */
	unsigned int stopping;		   /* operations that cuda.c has to end */
	struct {
		/* Some of its spans are in `batch` of that queue, or in one before it. */
		struct gpu_queue *queue; /* NULL: in none */
		uint64_t batch;
		int64_t stop_ns; /* cancelled; the connection ends it then. 0: it is not */
	} op[TR_OPS_MAX];
	struct {
		uint64_t at; /* where kernels find it, 0: not pinned for a GPU */
		int device;  /* for which it was pinned */
		bool pinned; /* by this side */
	} pool[SHM_POOLS_MAX];
};

/* Our read by ring. Answers come in the order of the requests. */
struct shm_read {
	uint8_t *dst; /* NULL: cancelled, the bytes are thrown away */
	struct tr_mem *of; /* the region if it is a GPU's; else NULL */
	uint64_t left;
	struct tr_op *op;
};

/* A read that the peer asked for. */
struct shm_answer {
	uint32_t mem;
	uint64_t offset, left;
	uint32_t line; /* where in a 128-byte line of the reader the next byte goes */
};

struct shm_conn {
	struct shm_ctx *ctx;
	struct tr_conn *conn;
	int side;      /* SEGMENT_CONNECTING or SEGMENT_ACCEPTING */
	int listen_fd; /* accepting side, until the peer came */
	int sock;      /* AF_UNIX; -1 until it is connected */
	int pidfd;     /* of the peer, or -1 and why in no_pidfd */
	pid_t pid;     /* of the peer as this process sees it, 0: not visible */
	uid_t uid;     /* of the peer */
	bool same_ends; /* the local socket and the control connection lead to the same process */

	char no_pidfd[64];
	uint8_t token[16];
	uint8_t nonce[16]; /* in the segment; accepting side: the local socket's name */

	bool peer_allows_pool, peer_allows_cma; /* it could watch us die */
	bool we_allow_direct;
	bool cma_works;
	bool line_order;
	char says[SHM_WAYS][PATH_TEXT]; /* "": no region goes that way */
	char no_cma[96];

	struct segment seg;
	struct ring_out out;
	struct ring_in in;

	/* Sending. */
	struct { /* the one span that did not fit into the ring as a whole */
		struct tr_op *op;
		struct tr_mem *of; /* as in shm_read */
		const uint8_t *src;
		uint64_t offset, left, addr;
		uint32_t mem;
	} rest;
	unsigned int copies; /* operations that are copying */
	struct copy_job call; /* the one that its caller waits for */
	struct tr_span *call_span; /* call_spans; NULL: no region is reached so */
	size_t call_spans;
	int pagemap;		   /* the peer's page table, or -1 */
	struct { /* pages [first, end) of the peer were there, and it is still true enough */
		uint64_t first, end;
		int64_t until_ns;
	} looked[SHM_LOOKS];
	struct tr_op *late;	   /* whose call was not waited for any more, or NULL */
	int64_t late_deadline_ns; /* of a cancelled one; INT64_MAX */
	atomic_int bell;	   /* eventfd that a late call rings, or -1 */
	/* Under the copy threads' lock. */
	unsigned int calls; /* in which a thread is */
	uint64_t look;	    /* at the pages of call's next piece: its number; 0: nobody looks */
	bool quitting;	    /* the last of them says that this side has stopped */
	struct shm_conn *next_left;

	struct tr_op *wait, **wait_last; /* in the order of the ring */
	unsigned int waits;
	struct shm_read read[SHM_READS_MAX];
	unsigned int read_head, read_next, read_tail; /* before read_next: all bytes have come */
	uint64_t blocked_at; /* out.head then */
	bool blocked; /* a call returned TR_AGAIN, the ring was full; room was not reported since */
	bool cut; /* a copy stopped at SHM_ADD_BYTES; not reported yet that it can go on */

	/* Receiving. */
	struct shm_answer answer[SHM_READS_MAX];
	unsigned int answer_head, answer_tail;
	bool armed;
	uint8_t unlooked; /* times that it was armed, not rung, and the link not looked at */
	bool unrung;  /* the peer may sleep though link_wake was called */
	bool hung_up; /* the socket's EOF or the pidfd was seen, or that the peer is ending */

	int64_t fence_deadline_ns; /* 0: not begun */

	/* A GPU's memory through the rings. NULL: none has; bytes that kernels copy. */
	struct stage *gather, *scatter;
	uint64_t gathering, scattering;
	struct kv_error failure; /* of a gather; progress reports it */

	struct shm_cuda *cuda; /* NULL: no GPU has copied for it */
	struct shm_pieces pieces;
	bool kernels_run; /* after the end: this side has not promised that it has stopped */

	struct shm_pool pool[SHM_POOLS_MAX];
	unsigned int pools;
	uint64_t mapped; /* bytes of them */
	uint64_t sent_pool[SHM_POOLS_MAX];
	unsigned int sent_pools;
};

/* prove.c */
int shm_offer(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_writer *w,
	      struct kv_error *err);
int shm_start(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_reader *r,
	      struct kv_error *err);
int shm_setup_put(struct tr_conn *conn, struct wire_writer *w, struct kv_error *err);
int shm_setup_get(struct tr_conn *conn, struct wire_reader *r, struct kv_error *err);
void shm_stop(struct tr_conn *conn, void *priv);

/* trust.c */
int trust_read(struct shm_ctx *ctx, struct kv_error *err); /* KVCACHE_SHM_ALLOW_UIDS */
bool trust_user(const struct shm_conn *sc);		   /* may have our memory */
const char *trust_refuses(const struct shm_conn *sc);	   /* why we do not use its; or NULL */
/*
 * What arrives by TCP (addresses, offsets) is used on the process at the other end of the local
 * socket. A relay between two trusted processes could name any address of either, so each end says
 * on the local socket which TCP connection it has.
 */
void trust_compare_ends(struct shm_conn *sc, const struct tr_conn_ends *theirs);

/* link.c */
enum link_kind { LINK_SEGMENT = 1, LINK_POOL, LINK_DOORBELL, LINK_ENDS, LINK_PIECES };
struct link_message {
	uint32_t kind;
	uint32_t zero;
	uint8_t token[16];	  /* SEGMENT, ENDS: tr_conn_prove */
	/* POOL; PIECES: region and bytes of each, or none and the driver's number */
	uint64_t id, len;
	struct tr_conn_ends ends; /* SEGMENT, ENDS: of the sender's control connection */
	uint32_t pages;		  /* POOL: enum tr_pages; 0 from an older end */
};
int link_send(struct shm_conn *sc, const struct link_message *message, const struct link_fds *fds,
	      struct kv_error *err); /* fds: NULL, or what goes with it */
/* 0 (the descriptors, at most `most`, are the caller's), TR_AGAIN (nothing there), or negative. */
int link_receive(struct shm_conn *sc, int sock, struct link_message *message, unsigned int most,
		 struct link_fds *fds, struct kv_error *err);
void link_close_fds(struct link_fds *fds);
/* Takes what waits on the socket, up to SHM_LINK_MESSAGES. Sets hung_up at its end. */
int link_drain(struct shm_conn *sc, struct kv_error *err);
void link_wake(struct shm_conn *sc,
	       uint32_t why); /* rings the doorbell if the peer sleeps for it */
/* A doorbell that could not be rung (unrung) is rung again. */
void link_wake_again(struct shm_conn *sc);
/* The process at the other end of a connected socket: pid, uid, pidfd. */
int link_identify(struct shm_conn *sc, struct kv_error *err);
bool link_peer_is_dead(const struct shm_conn *sc);

/* pool.c */
int pool_send(struct shm_conn *sc, const struct tr_mem *mem, bool *sent_p, struct kv_error *err);
int pool_received(struct shm_conn *sc, const struct link_message *message, int fd,
		  struct kv_error *err);
int pool_find(struct shm_conn *sc, uint64_t id, uint64_t len, const struct shm_pool **pool_p,
	      struct kv_error *err);
void pool_close_all(struct shm_conn *sc);
/* Address space for memory of the peer: false if it has had its share. */
bool pool_take_budget(struct shm_conn *sc, uint64_t len);
void pool_give_budget(struct shm_conn *sc, uint64_t len);

/* cma.c */
void cma_probe(struct shm_conn *sc);
/*
 * The peer's address space is gone: nothing of it runs any more, and its sockets will close, when
 * the kernel has freed its memory. A GPU may still store for it. Seen where process_vm_* works.
 */
bool cma_peer_is_ending(const struct shm_conn *sc);
/*
 * Moves all spans: 0 or errno. May never return (copy.c). Touches nothing of the connection that
 * changes; any thread may call it. alive: the caller has just seen that the process still exists.
 */
int cma_move(const struct shm_conn *sc, int kind, bool alive, uint8_t *local, uint8_t *remote,
	     const struct tr_span *spans, size_t n);

/* copy.c */
/* `split`: threads that take a job in pieces, 0: each job is one thread's. */
int copy_open(int split, int64_t spin_ns, struct copy_pool **pool_p, struct kv_error *err);
/* Every connection is closed. false: a call has not returned, and its thread goes on. */
bool copy_close(struct copy_pool *pool);
void copy_ready(struct shm_conn *sc); /* a thread is there, or on its way, if one can be started */
/*
 * Hands the job (sc .. len) to a thread; false: there is none. It must stay where it is until
 * copy_end gives an end.
 */
bool copy_begin(struct copy_job *job);
bool copy_is_full(struct shm_conn *sc); /* a job would wait until a call of another returns */
int copy_end(struct copy_job *job); /* 0, TR_AGAIN: not yet, or -errno */
/* The same, waiting. After TR_AGAIN the end rings the connection's bell. */
int copy_wait(struct copy_job *job, int64_t deadline_ns);
void copy_stop(struct copy_job *job); /* what no thread has begun is not begun any more */
/* No thread is in a call for the connection. */
bool copy_is_quiet(struct shm_conn *sc);
/* The same, waiting a moment. false: the thread will call segment_promise. */
bool copy_quit(struct shm_conn *sc);
/* From `stop`: frees the connection, now or when a thread returns from a call for it. */
void copy_leave(struct shm_conn *sc);

/* help.c */
/* A prepared job's pieces are moved, here and by who helps, or left to a thread: then copy_wait. */
void help_share(struct copy_job *job);
uint64_t shm_help(void *ctx, uint64_t most); /* bytes that were moved; any thread */

/* present.c */
void present_open(struct shm_conn *sc);
/* Any thread: all pages are there now. */
bool present_now(const struct shm_conn *sc, const uint8_t *remote, const struct tr_span *spans,
		 size_t n);
/* True proves as well that the peer's process had not ended SHM_LOOK_NS ago. */
bool present(struct shm_conn *sc, const uint8_t *remote, const struct tr_span *spans, size_t n);

/* call.c */
int call_open(struct shm_conn *sc, struct kv_error *err); /* for a region that calls reach */
/* The connection's failure for that errno. */
int call_failed(struct shm_conn *sc, int kind, int error, struct kv_error *err);
/* Number of spans, 0: another such call is under way; or -errno. */
long call_move(struct shm_conn *sc, struct tr_op *op, struct tr_mem *lmem, uint8_t *remote,
	       const struct tr_span *spans, size_t n);
bool call_end_late(struct shm_conn *sc); /* sc->late: true if it is over, in one way or the other */
void call_cancel_late(struct shm_conn *sc, int64_t deadline_ns);
/* One large range, if threads are wanted for it: its operation is committed after they are done. */
bool call_split(struct shm_conn *sc, struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		const struct tr_span *spans, size_t n);
int call_end_split(struct shm_conn *sc, struct tr_op *op,
		   struct kv_error *err); /* 0, TR_AGAIN or the connection's failure */
/* false: a thread does not return, and the connection is lost. */
bool call_cancel_split(struct shm_conn *sc, struct tr_op *op);

/* cuda_range.c */
/* For kernels of that GPU: 0, TR_AGAIN (pieces are awaited), or negative. */
int range_map(struct shm_conn *sc, struct tr_rmem *rmem, int device, struct kv_error *err);
void range_unmap(struct shm_conn *sc, struct shm_rmem *rm, int device);
void range_forget(struct shm_conn *sc, const struct shm_rmem *rm); /* its pieces are not wanted */
/* The peer asks: false if it may not. */
bool range_asked(struct shm_conn *sc, uint32_t mem, uint64_t from);
/* What is due: things done, or negative. */
int range_pass(struct shm_conn *sc, struct kv_error *err);
static inline int range_answer(struct shm_conn *sc, struct kv_error *err)
{
	return sc->pieces.due ? range_pass(sc, err) : 0; /* seldom, and each progress asks */
}

/* cuda_map.c */
int shm_mem_reg(void *ctx, struct tr_mem *mem, void **handle_p, struct kv_error *err);
void shm_mem_dereg(void *ctx, void *handle);
const struct gpu_share *cuda_share(const struct tr_mem *mem); /* of a region of a GPU */
/* Which of cuda->queue copies between two regions, and where its kernels find them; or TR_AGAIN. */
int cuda_find_ends(struct shm_conn *sc, struct tr_mem *lmem, struct tr_rmem *rmem, int *queue_p,
		   uint64_t *local_p, uint64_t *remote_p, struct kv_error *err);
/* Nothing is started any more; waits a moment for what runs. false: something still does. */
bool cuda_quit(struct shm_conn *sc);
void cuda_forget(struct shm_conn *sc, struct shm_rmem *rm); /* unmaps a region of the peer */
/* false: kernels run; the pools must stay mapped. */
bool cuda_close(struct shm_conn *sc);

/* cuda.c */
/* Number of spans that were taken, or negative. */
long cuda_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
	      const struct tr_span *spans, size_t n, struct kv_error *err);
/* The same with blocks, where kernels may reach both; 0 also if they turn out not to. */
bool cuda_takes_blocks(const struct tr_mem *lmem, const struct tr_rmem *rmem);
long cuda_add_blocks(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		     const struct tr_blocks *blocks, size_t n, struct kv_error *err);
/* Every kernel of the operation has ended: 0; TR_AGAIN; or the connection's failure. */
int cuda_end(struct shm_conn *sc, struct tr_op *op, struct kv_error *err);
/* Some of its spans may still be copied. */
static inline bool cuda_has(const struct shm_conn *sc, const struct tr_op *op)
{
	return sc->cuda && sc->cuda->op[op->index].queue;
}
bool cuda_runs(const struct tr_conn *conn); /* a kernel does, as far as was looked */
/* Each progress: what operations have put and no commit has started, as they wait for an event. */
void cuda_go(struct shm_conn *sc);
/* false: nothing of it runs. true: cuda_ended will return it, or the connection ends it. */
bool cuda_cancel(struct shm_conn *sc, struct tr_op *op, int64_t deadline_ns);
struct tr_op *cuda_ended(struct shm_conn *sc); /* a cancelled one of which nothing runs now */

/* cuda_ring.c */
/* Before anything of that region goes that way: &sc->gather or &sc->scatter. */
int staged_open(struct shm_conn *sc, struct stage **stage_p, const struct tr_mem *mem,
		struct kv_error *err);
/* The payload of the record that ring_put is to write next; false: not now. */
bool gather_put(struct shm_conn *sc, struct tr_mem *mem, const uint8_t *src, uint64_t len);
bool gather_ends(struct shm_conn *sc); /* all of it is there */
void publish_tail(struct shm_conn *sc); /* what is in our ring, unless it is being gathered */
/* A payload goes to dst of a region. 0, TR_AGAIN: not now; or the connection's failure. */
int scatter_put(struct shm_conn *sc, struct tr_mem *mem, const uint8_t *payload, uint8_t *dst,
		uint64_t len, struct kv_error *err);
/* 0: all of it is there; TR_AGAIN, after a wait if there is a deadline; or the failure. */
int scatter_await(struct shm_conn *sc, int64_t deadline_ns, struct kv_error *err);
static inline int scatter_end(struct shm_conn *sc, int64_t deadline_ns, struct kv_error *err)
{
	return sc->scattering ? scatter_await(sc, deadline_ns, err) : 0; /* mostly host memory */
}
void reads_end(struct shm_conn *sc); /* those of which all bytes have come, unless scattering */
/* false: the operation has ended, or the connection will end it, because a kernel runs on. */
bool scatter_cancel(struct shm_conn *sc, struct tr_op *op, int64_t deadline_ns);

/* path.c */
/* How the bytes of one call go: past the ring where that is allowed and worth a system call. */
static inline enum shm_path path_of(const struct shm_rmem *rm, bool any_order, uint64_t len)
{
	return rm->cma_any_order && any_order && len >= SHM_CMA_LEAST ? SHM_CMA : rm->path;
}
/*
 * After a process_vm call with that errno: true if the ring reaches the region, and takes all of it
 * from now on. Memory of a device may be mapped and yet out of the kernel's reach.
 */
bool path_falls_back(struct shm_rmem *rm, int error);
int shm_mem_pack(struct tr_conn *conn, struct tr_mem *mem, struct wire_writer *w,
		 struct kv_error *err);
int shm_mem_open(struct tr_conn *conn, struct tr_rmem *rmem, struct wire_reader *r,
		 struct kv_error *err);
void shm_mem_close(struct tr_conn *conn, struct tr_rmem *rmem);

/* send.c */
void shm_op_begin(struct tr_op *op);
long shm_op_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		const struct tr_span *spans, size_t n, struct kv_error *err);
int shm_op_commit(struct tr_op *op, unsigned int flags, uint64_t value, struct kv_error *err);
void shm_op_cancel(struct tr_op *op, int64_t deadline_ns);
int shm_msg(struct tr_conn *conn, const void *buf, size_t len, bool wake, struct kv_error *err);
int send_progress(
	struct shm_conn *sc); /* the rest of a span, operations that waited; returns things done */
/*
 * Puts as much of one piece into the ring as fits, in records of `type`; returns the bytes. `addr`:
 * where it will lie at the peer; of: as in shm_read.
 */
uint64_t send_piece(struct shm_conn *sc, const struct ring_record *first, const uint8_t *src,
		    struct tr_mem *of, uint64_t len, uint64_t addr);

/* receive.c */
int shm_progress(struct tr_conn *conn);
int shm_arm(struct tr_conn *conn);
bool shm_ask(struct tr_conn *conn);

/* stop.c */
int shm_fence(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err);
/* The connection fails for this reason: reports it to the peer, then to the core. */
void shm_lose(struct shm_conn *sc, const struct kv_error *cause);
void stop_leave(struct shm_conn *sc);

#endif
