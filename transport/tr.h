/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr.h -- the transport contract: the one data mover under the KV API and the NCCL plugin
 *
 * A provider (shm, ib, later nvlink and tcp) fills the operations of provider.h; which one carries
 * a connection is decided once, in its handshake. Both ends of a connection are alike after the
 * handshake.
 *
 * Threads  tr_open .. tr_close, tr_alloc, tr_mem_reg, tr_mem_dereg and tr_listen may be called from
 *          any thread at any time. A listener and a connection belong to one caller at a time: the
 *          upper layer holds its lock per call. Connections share no lock on the data path.
 * Blocking Nothing here blocks, except that tr_listen waits for a name server, KVCACHE_HANDSHAKE_MS
 *          at most. TR_AGAIN means "not now, call again with the same arguments"; waiting is the
 *          caller's: tr_conn_arm, then epoll (tr_conn_enter_set).
 * Errors   0 or a positive count, TR_AGAIN where it is named, or a negative KV_ERR_* with the cause
 *          in `err` (may be NULL). A failed call has changed nothing. A connection that fails
 *          reports TR_PEER_LOST once, after it has reported the end of each of its operations; then
 *          only tr_conn_error, tr_fence and tr_conn_close are useful.
 *
 * Why a connection owns its completion queues and event ring (the first design had a separate
 * "worker"): every owner that we have (a KV peer, an NCCL communicator) polls exactly its own
 * connection, under its own lock, and a failure must not reach another peer. A shared queue would
 * only bring a second lock and a second lifetime.
 */
#ifndef TR_H
#define TR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <kvrail/kv_error.h>

struct kv_option_set;
struct kv_log;
struct tr;
struct tr_listener;
struct tr_conn;
struct tr_mem;	/* registered local memory */
struct tr_rmem; /* a region of the peer, as this connection sees it */
struct tr_op;

#define TR_AGAIN 1

enum tr_limits {
	TR_OPS_MAX = 256,    /* operations of one connection that have not reported their end */
	TR_MSG_MAX = 256,    /* bytes of a message */
	TR_HELLO_MAX = 2048, /* bytes of the upper layer's hello */
	/* bytes of the upper layer's setup, sent after both hellos were accepted */
	TR_SETUP_MAX = 1 << 20,
	TR_MEM_PACK_MAX = 4096, /* bytes of a packed memory description */
	TR_MEMS_MAX = 65536,	/* registered regions of one context */
	TR_SPANS_GOOD = 256,	/* spans a tr_op_add likes: a doorbell, a process_vm_writev */
	TR_SPANS_MOST = 1024,	/* of long lists: that one is handed to a thread at a time */
};

/* ---------------------------------------------------------------- context */

struct tr_config {
	const struct kv_option_set *options; /* must outlive the context */
	struct kv_log *log;		     /* must outlive the context; may be NULL */
	/*
	 * GPUs copy in contexts of their own, so that no call of the application into CUDA holds a
	 * copy up; then only memory that is mapped piece by piece (cuMemMap) is TR_MEM_CUDA.
	 */
	bool gpu_apart;
};

int tr_open(const struct tr_config *config, struct tr **tr_p, struct kv_error *err);
/* every connection, listener and region of it must be closed before */
void tr_close(struct tr *tr);
/*
 * From any thread, for one that waits until another has moved an operation's bytes: moves some of
 * them itself, `most` at most. Never waits. Returns how many; 0: nobody moves any just now, or not
 * in a way in which help is of use.
 */
uint64_t tr_help(struct tr *tr, uint64_t most);

/*
 * 128 random bits of this process's context: another value is another process, or another life of
 * it.
 */
const uint8_t *tr_incarnation(const struct tr *tr);

/* ---------------------------------------------------------------- memory */

/* The numbers of kv.h. All but HOST: a GPU's; no CPU touches it, but its kernels and NICs do */
enum tr_mem_kind {
	TR_MEM_HOST = 0,
	TR_MEM_CUDA,
	TR_MEM_KINDS = 4, /* numbers that the table of kinds has room for (kinds.c) */
};

enum tr_access {
	TR_REMOTE_WRITE = 1 << 0,
	TR_REMOTE_READ = 1 << 1,
	/* data: the device may place its bytes in any order before the completion */
	TR_RELAXED = 1 << 2,
};

/* Zeroed, page-aligned, backed by a memfd that peers of this host map; not inherited by fork. */
int tr_alloc(struct tr *tr, size_t len, void **ptr_p, struct kv_error *err);
/* ARG: not from tr_alloc. BUSY: a registered region lies in it. */
int tr_free(struct tr *tr, void *ptr, struct kv_error *err);
/* A line of what pages the pools have, "" without pools; its length, as snprintf. */
size_t tr_pools_dump(struct tr *tr, char *buf, size_t cap);

/*
 * Registers [addr, addr + len) with every provider. A range inside a region that is registered with
 * at least the same access shares that region (reference count), so tr_mem_addr(mem) may be lower
 * than addr. May be called long after connections were made. A GPU's goes as the DMA-BUF that its
 * driver exports of it, or else needs a module of the kernel (nvidia_peermem). ARG: also a kind
 * that there is not. UNSUPPORTED: no device of this machine reaches it. DEVICE: its GPU does not
 * see what a NIC writes in order.
 */
int tr_mem_reg(struct tr *tr, void *addr, size_t len, int kind, unsigned int access,
	       struct tr_mem **mem_p, struct kv_error *err);
/*
 * Registers TR_MEM_CUDA as a DMA-BUF: `addr` is what `offset` of the buffer is called in spans,
 * and is not read. Both have the same offset within a page. The descriptor may be closed after the
 * call. A device without DMA-BUF gets the memory as tr_mem_reg gives it.
 */
int tr_mem_reg_dmabuf(struct tr *tr, void *addr, size_t len, int fd, uint64_t offset,
		      unsigned int access, struct tr_mem **mem_p, struct kv_error *err);
/*
 * 0, or why this connection cannot use the region: with several providers one whose device cannot
 * register it (MEMLOCK, DEVICE; shared memory: that of a device) is left out with a warning, as
 * another may be all that is needed. tr_mem_pack and tr_op_add say the same.
 */
int tr_mem_usable(const struct tr_conn *conn, const struct tr_mem *mem, struct kv_error *err);
/*
 * BUSY while an operation that uses the region has not ended, or while others own the region, too,
 * and the device of a connection that was closed before tr_fence returned 0 may still reach it;
 * then nothing has changed. After 0 no such device reaches it through a registration of this owner,
 * and no registration shares the region but one that others still own in whole.
 */
int tr_mem_dereg(struct tr_mem *mem, struct kv_error *err);
/*
 * The same for n of them, or (BUSY) for none, in two steps: `begin` takes no time and may be called
 * under a lock that others need; from then on no search finds the regions. `end` takes them from
 * the devices, which may take long; their pools cannot be freed before.
 */
int tr_mem_dereg_begin(struct tr *tr, struct tr_mem *const *mems, size_t n, struct tr_mem **gone_p,
		       struct kv_error *err);
void tr_mem_dereg_end(struct tr *tr, struct tr_mem *gone);
/*
 * For an owner that cannot handle BUSY: its last call for the region, which no registration shares
 * any more. It is deregistered by a later call for memory once its last use has ended, or with the
 * context.
 */
void tr_mem_abandon(struct tr_mem *mem);
void *tr_mem_addr(const struct tr_mem *mem);
size_t tr_mem_len(const struct tr_mem *mem);

/*
 * A description of the region for the peer of `conn`: keys of all rails, memfd or process ids. At
 * most TR_MEM_PACK_MAX bytes; it travels in the upper layer's setup or in messages. tr_mem_open at
 * the other end gives the same tr_rmem for the same (id, generation). Legal from setup_put on.
 * PROTOCOL: the bytes are not a description.
 */
int tr_mem_pack(struct tr_conn *conn, struct tr_mem *mem, void *buf, size_t cap, size_t *len_p,
		struct kv_error *err);
int tr_mem_open(struct tr_conn *conn, const void *buf, size_t len, struct tr_rmem **rmem_p,
		struct kv_error *err);
void tr_mem_close(struct tr_rmem *rmem); /* counted; the connection's close frees what is left */
/* As long as an operation's calls name it: one tr_mem_close more. */
void tr_rmem_hold(struct tr_rmem *rmem);
size_t tr_rmem_len(const struct tr_rmem *rmem);

/* ---------------------------------------------------------------- connections */

/*
 * The upper layer's part of the handshake. Called inside tr_conn_step, in this order on both sides:
 * hello_put, hello_get (the accepting side: get before put), setup_put, setup_get (the accepting
 * side: get before put). *_put: write at most cap bytes, return their number or a negative code.
 * *_get: 0 accepts, a negative code refuses; the code, err->message and err->hint are sent to the
 * peer. setup_put and setup_get are NULL where a protocol has nothing to say there.
 */
struct tr_upper_ops {
	uint16_t id;	  /* TR_UPPER_*: both ends must have the same */
	uint16_t version; /* compared for equality; VERSION names both */
	int (*hello_put)(void *arg, struct tr_conn *conn, void *buf, size_t cap);
	int (*hello_get)(void *arg, struct tr_conn *conn, const void *buf, size_t len,
			 struct kv_error *err);
	int (*setup_put)(void *arg, struct tr_conn *conn, void *buf, size_t cap,
			 struct kv_error *err);
	int (*setup_get)(void *arg, struct tr_conn *conn, const void *buf, size_t len,
			 struct kv_error *err);
	/*
	 * Where this side places the peer's bytes itself: whether the peer may write (access
	 * TR_REMOTE_WRITE), under `grant` of its tr_op_grant, or read these bytes of a region;
	 * asked before a byte is placed. TR_PLACE, TR_DROP (they go nowhere, the connection goes
	 * on), or a negative code: the peer breaks the rules and is lost. NULL: every region that
	 * tr_mem_pack described to it.
	 */
	int (*may)(void *arg, const struct tr_mem *mem, uint64_t offset, uint64_t len,
		   unsigned int access, uint64_t grant);
};
enum { TR_DROP = 0, TR_PLACE = 1 };
enum { TR_UPPER_KV = 1, TR_UPPER_NCCL = 2, TR_UPPER_AGENT = 3, TR_UPPER_TEST = 99 };

enum tr_conn_flags {
	/* each 128-byte line arrives whole and its last bytes last (NCCL LL, LL128) */
	TR_LINE_ORDER = 1 << 0,
	/*
	 * The owner never sleeps and has no pools of tr_alloc, nor has its peer's: what is only
	 * there to wake it, or to pass them, costs no descriptor, and none is waited for.
	 */
	TR_POLLED = 1 << 1,
	/* Beside it: but GPU memory of either end may have to be passed. */
	TR_PASSES_GPU = 1 << 2,
	/*
	 * The owner adds long lists, up to TR_SPANS_MOST spans at a time: what moves them is ready
	 * before the first.
	 */
	TR_LISTS = 1 << 3,
};

struct tr_conn_config {
	const struct tr_upper_ops *ops; /* must outlive the connection */
	void *arg;
	unsigned int flags;
	/*
	 * 0 = KVCACHE_HANDSHAKE_MS; starts with the first byte from the peer (accepting side: with
	 * the connection for the hello, and anew with tr_accept for the rest)
	 */
	int64_t handshake_ms;
	/* bits of the upper layer for its other end; one that is older sends none */
	uint64_t features;
};

/*
 * Listens on every address of `host`. host NULL = 127.0.0.1; port 0 = any. ARG, BUSY (address in
 * use), UNREACHABLE (the resolver did not answer), SYSTEM.
 */
int tr_listen(struct tr *tr, const char *host, uint32_t port, struct tr_listener **listener_p,
	      struct kv_error *err);
uint32_t tr_listener_port(const struct tr_listener *listener);
/*
 * Polls readable when a connection comes or sends bytes: call tr_accept until it has nothing more.
 */
int tr_listener_fd(const struct tr_listener *listener);
/* CLOCK_MONOTONIC; the listener is to be looked at then even if nothing comes. INT64_MAX: never. */
int64_t tr_listener_deadline(const struct tr_listener *listener);
/* A hello is complete: the next tr_accept takes its connection. */
bool tr_listener_waiting(const struct tr_listener *listener);
void tr_listener_close(struct tr_listener *listener);

/* Connections that were sent away without becoming a tr_conn. */
struct tr_refused {
	uint64_t garbage; /* not kvrail, or closed before its hello was complete */
	uint64_t timeout; /* no complete hello in time */
	uint64_t limit;	  /* made room for another, or there was no descriptor: refused with BUSY */
};
/* Since the last call. */
void tr_listener_refused(struct tr_listener *listener, struct tr_refused *refused);

/*
 * tr_accept: 0 and a connection whose hello has come and whose handshake is to be stepped; TR_AGAIN
 * if there is none. A connection without a complete hello is a stranger and costs a descriptor and
 * a row of the listener's table (lobby.h): at most KVCACHE_MAX_PENDING, and a quarter of the
 * descriptors. A silent one is sent away after the handshake's deadline, or sooner to make room.
 * NOFD: no connection can be accepted, not even to refuse it.
 */
int tr_accept(struct tr_listener *listener, const struct tr_conn_config *config,
	      struct tr_conn **conn_p, struct kv_error *err);
/* The same, but nothing is accepted: for a caller with too many unfinished handshakes. */
int tr_listener_tend(struct tr_listener *listener, struct kv_error *err);
int tr_connect(struct tr *tr, const char *host, uint32_t port, const struct tr_conn_config *config,
	       struct tr_conn **conn_p, struct kv_error *err);

/*
 * 0: ready. TR_AGAIN: wait for an event and call again. Negative: failed for good (VERSION,
 * GEOMETRY, PROTOCOL, UNREACHABLE, TIMEOUT, ...).
 */
int tr_conn_step(struct tr_conn *conn, struct kv_error *err);

/*
 * Ends a handshake that is under way; the peer gets the cause. Only tr_conn_close is left to do. In
 * hello_get: the peer gets this instead of the error that hello_get then returns.
 */
void tr_conn_refuse(struct tr_conn *conn, const struct kv_error *why);

/*
 * Puts the descriptors of the connection into an epoll set of the caller, with those that follow:
 * an event comes there when tr_conn_step or tr_poll has something to do. Its data are the token
 * with a slot in bits 24 to 31, or TR_TOKEN_ALL: any connection may have something to do. An event
 * comes once, until its slot is armed again; one of TR_TOKEN_ALL is not armed again, and the owner
 * calls tr_alarm before it looks at its connections. SYSTEM; after a failure it is as before.
 */
int tr_conn_enter_set(struct tr_conn *conn, int epoll_fd, uint64_t token, struct kv_error *err);
void tr_conn_rearm(const struct tr_conn *conn, unsigned int slot);
void tr_conn_leave_set(struct tr_conn *conn); /* takes them out */
enum { TR_SLOT_SHIFT = 24, TR_SLOTS_MAX = 256, TR_EVERY_SLOT = TR_SLOTS_MAX };
#define TR_TOKEN_ALL UINT64_MAX
void tr_alarm(struct tr *tr); /* takes what devices have reported; any thread */
static inline unsigned int tr_event_slot(uint64_t data)
{
	return (unsigned int)(data >> TR_SLOT_SHIFT) % TR_SLOTS_MAX;
}
static inline uint64_t tr_event_token(uint64_t data)
{
	return data & ~((uint64_t)(TR_SLOTS_MAX - 1) << TR_SLOT_SHIFT);
}
/* Sleeps until one of them has an event, or the time has passed: false. In a set or in none. */
bool tr_conn_wait(const struct tr_conn *conn, int ms);

/*
 * Nanoseconds (CLOCK_MONOTONIC) at which the handshake fails, INT64_MAX if it has not begun or is
 * over.
 */
int64_t tr_conn_deadline(const struct tr_conn *conn);

const char *tr_conn_stage(const struct tr_conn *conn);	 /* "waiting for hello", for people */
const char *tr_conn_address(const struct tr_conn *conn); /* "127.0.0.1:4711" of the other end */
uint64_t tr_conn_host(const struct tr_conn *conn); /* equal for connections from one address */
const char *tr_conn_transport(const struct tr_conn *conn); /* "shm", "ib", "" before it is chosen */
bool tr_has_cuda(void); /* the driver is installed: there may be TR_MEM_CUDA */
/* 0: CUDA runs in this process, so its GPUs copy for peers of this host; UNSUPPORTED: why not */
int tr_runs_cuda(struct kv_error *err);
const char *tr_transport_name(unsigned int i); /* those that there are, from 0 on; NULL: no more */
/* how bytes travel and why, for people */
const char *tr_conn_path(const struct tr_conn *conn);
const uint8_t *tr_conn_incarnation(const struct tr_conn *conn); /* the peer's */
uint64_t tr_conn_features(const struct tr_conn *conn);		/* the peer's, from hello_get on */

/*
 * Of a connection that was lost: the peer ended it by tr_fence or tr_conn_close; false if it died,
 * or it is not known: so over shared memory, unless an end is TR_POLLED.
 */
bool tr_conn_peer_left(const struct tr_conn *conn);

/* Why the connection failed; code 0 while it has not. */
const struct kv_error *tr_conn_error(const struct tr_conn *conn);

/*
 * Stops, frees. Never waits for the peer. Operations that have not ended are dropped without an
 * event: call tr_fence first where their memory is to be reused. Closed before tr_fence returned 0,
 * a device may still work for the connection. Of what its peer could reach and what its operations
 * used the last owner takes the memory from the device by tr_mem_dereg; as long as there are
 * several, tr_mem_dereg is BUSY until the device is done. Memory is safe to use again when tr_fence
 * or tr_mem_dereg has returned 0.
 */
void tr_conn_close(struct tr_conn *conn);

/* ---------------------------------------------------------------- operations */

/*
 * TR_ANY_ORDER is or-ed to a kind: the bytes of this operation need no order within lines, whatever
 * the connection keeps.
 */
enum tr_op_kind { TR_WRITE = 0, TR_READ_OP = 1, TR_ANY_ORDER = 1 << 4 };

/*
 * The number by which the peer's upper layer finds the right of this operation to write; 0 at
 * first.
 */
void tr_op_grant(struct tr_op *op, uint64_t grant);

/*
 * Every byte of the peer that lands here is placed by this side, in tr_poll, after
 * tr_upper_ops.may: what that refuses cannot land, whatever the peer does.
 */
bool tr_conn_places(const struct tr_conn *conn);

/*
 * Something of CUDA that an operation waits for before its bytes are added: what is on a stream
 * when the gate is opened, or events that the caller names. The calling thread has the context of
 * those. UNSUPPORTED: there is no CUDA in the process.
 */
struct tr_gate {
	void *context, *event; /* event: our own, of the stream */
};
int tr_gate_open(struct tr_gate *gate, void *stream, struct kv_error *err); /* NULL: of events */
/* 0: it has been reached; TR_AGAIN; DEVICE: it never will be. */
int tr_gate_ask(const struct tr_gate *gate, void *event, struct kv_error *err);
void tr_gate_close(struct tr_gate *gate);

/* Offsets count from the beginning of the local and the remote region. */
struct tr_span {
	uint64_t local;
	uint64_t remote;
	uint64_t len;
};

/* TR_AGAIN: TR_OPS_MAX operations have not ended. `user` comes back with the event. */
int tr_op_begin(struct tr_conn *conn, int kind, uint64_t user, struct tr_op **op_p,
		struct kv_error *err);

/*
 * Adds spans between one pair of regions. Returns how many were accepted, from the first on; fewer
 * than n when credits are out: poll, then add the rest (the first of it may be copied in part: the
 * operation's next call begins with it, or there is none). Spans are checked against both regions
 * first (ARG with block_index = the span's index; then none was accepted). An operation may take
 * any number of calls and pairs. Spans of one operation are not ordered among each other.
 */
long tr_op_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
	       const struct tr_span *spans, size_t n, struct kv_error *err);

/* Whether all ids are in [0, last]: the sign of what is or-ed, so that nothing branches. */
static inline bool tr_ids_inside(const int64_t *ids, size_t n, uint64_t last)
{
	uint64_t outside = 0;

	for (size_t i = 0; i < n; i++)
		outside |= (last - (uint64_t)ids[i]) | (uint64_t)ids[i];
	return !(outside >> 63);
}
/*
 * Blocks of one size by their numbers: number i begins at base + i * stride of the region, on
 * either side. `ids` are the numbers, of the same block here and in the peer.
 */
struct tr_blocks {
	uint64_t local_base, local_stride;
	uint64_t remote_base, remote_stride;
	uint64_t len;
	const int64_t *local, *remote; /* ids */
};
/*
 * The same as tr_op_add with the spans of n blocks, which no one has to make, where it is taken
 * between these regions. It may not be any more in the middle: 0, and then the rest goes as spans.
 */
bool tr_takes_blocks(const struct tr_mem *lmem, const struct tr_rmem *rmem);
long tr_op_add_blocks(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		      const struct tr_blocks *blocks, size_t n, struct kv_error *err);

enum tr_commit_flags {
	/*
	 * deliver `value` to the peer once every byte is visible there; legal with no spans at all
	 */
	TR_NOTIFY = 1 << 0,
	/*
	 * TR_WRITTEN only after the bytes are visible there (a READ behind the last WRITE on each
	 * lane); UNSUPPORTED: a GPU's memory over a NIC
	 */
	TR_PROVEN = 1 << 1,
	/*
	 * TR_WRITTEN only when nothing of it can be written any more by this side. Over a NIC the
	 * peer's device has all of it then, ahead of every later message of this connection; only
	 * the peer can confirm that it has reached memory (a notify, a revocation). Costs nothing
	 * where that is so anyway.
	 */
	TR_LANDED = 1 << 2,
};
/*
 * No more spans. TR_AGAIN: no credit for the notify. After 0 exactly one event ends the operation.
 */
int tr_op_commit(struct tr_op *op, unsigned int flags, uint64_t value, struct kv_error *err);

/*
 * Stops an operation, committed or not; its event follows (TR_CANCELLED, or TR_WRITTEN if it was
 * done already). Posted work is waited for until `deadline_ns`; then the lanes are broken: the
 * connection fails and its other operations end IN_DOUBT.
 */
int tr_op_cancel(struct tr_op *op, int64_t deadline_ns, struct kv_error *err);

/*
 * Delivered in order and after the bytes of every operation that was committed, with TR_NOTIFY,
 * before it. TR_AGAIN: no credit.
 */
int tr_msg(struct tr_conn *conn, const void *buf, size_t len, struct kv_error *err);
/*
 * The same, but a peer that sleeps need not be woken for it: it is read with the next event that
 * does.
 */
int tr_msg_lazy(struct tr_conn *conn, const void *buf, size_t len, struct kv_error *err);

/*
 * After 0: a reader (CPU; later a GPU kernel) started now sees the bytes of every notify that was
 * polled. Host memory, and a GPU's that GPUs of this host wrote, needs nothing more than the poll
 * itself; a GPU's that a NIC wrote is UNSUPPORTED.
 */
int tr_flush(struct tr_conn *conn, struct tr_mem *mem, struct kv_error *err);

/*
 * After 0 no byte of this connection can land in local memory any more, and none of ours leaves;
 * the connection is lost. Legal in the handshake, too: the peer may be ready before this end knows.
 * TR_AGAIN: not yet, call again; over a NIC until the device has destroyed the queue pairs, which
 * takes up to a minute where it or its wire is in trouble. BUSY: a same-host writer with direct
 * access has not answered and its process lives; call again after it has gone. What was sent last,
 * an acknowledgement perhaps, has until linger_ns (CLOCK_MONOTONIC) to leave, at most as long as
 * the provider finds useful; the earliest of several calls counts.
 */
int tr_fence(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err);

/*
 * From any thread, at a connection whose owner is in a call that does not return: what is posted
 * fails, the call returns, the connection is lost. Does not wait.
 */
void tr_conn_cut(struct tr_conn *conn);
bool tr_conn_can_cut(const struct tr_conn *conn); /* a call of its transport may last */

/* ---------------------------------------------------------------- events */

enum tr_event_kind {
	/*
	 * the operation `user` is done: its source may be reused (TR_PROVEN: and its bytes are
	 * visible)
	 */
	TR_WRITTEN = 1,
	TR_READ,     /* the operation `user` is done: its bytes are here */
	TR_NOTIFIED, /* `value` from the peer; the bytes of its operation are visible here */
	TR_MSG,	     /* `msg`, `len` bytes, valid until the next tr_poll */
	/* the operation `user` was cancelled; nothing of it is under way any more */
	TR_CANCELLED,
	/*
	 * the operation `user` failed; status and cause say why; its bytes may or may not have
	 * arrived
	 */
	TR_IN_DOUBT,
	TR_PEER_LOST, /* once, last */
};

struct tr_event {
	int32_t kind;
	int32_t status; /* KV_ERR_* of TR_IN_DOUBT and TR_PEER_LOST */
	uint64_t user;
	uint64_t value;
	const void *msg;
	size_t len;
	const struct kv_error *cause; /* of a failure; valid until the next tr_poll */
};

/* Makes progress and takes up to n events. Returns how many. */
int tr_poll(struct tr_conn *conn, struct tr_event *events, int n);

/*
 * Before sleeping: 0 = armed, an event or room from now on makes a descriptor readable; 1 = an
 * event, or room for a call that returned TR_AGAIN, is there already: poll and call again instead.
 * A wake-up may be spurious.
 */
int tr_conn_arm(struct tr_conn *conn);
/*
 * The same by a thread that lets the connection go while another one sleeps at its descriptors:
 * what woke that one for nothing is left to it, so this costs fewer system calls.
 */
int tr_conn_hand_over(struct tr_conn *conn);
/*
 * The owner polls from now until it arms: what comes meanwhile need not make a descriptor readable,
 * which would wake a thread that has nothing to do here.
 */
void tr_conn_poll_on(struct tr_conn *conn);
/*
 * Between two polls that found nothing: sleeps until there may be something, for `most_ns`, or
 * until another descriptor, or -1, is readable. A caller that would poll for `looks_ns` may be left
 * to that first. false: polling again is all that there is, or what comes may come at any moment.
 */
bool tr_conn_await(struct tr_conn *conn, int64_t looks_ns, int64_t most_ns, int fd);
bool tr_conn_awaits(const struct tr_conn *conn); /* it may sleep there at all */
/* A kernel of a GPU runs for it, whose end wakes nobody: who sleeps now learns of it late. */
bool tr_conn_computes(const struct tr_conn *conn);
/* tr_counters.completions: while they grow bytes move, though no event says so yet. */
uint64_t tr_conn_completions(const struct tr_conn *conn);

/* ---------------------------------------------------------------- looking inside */

struct tr_counters {
	uint64_t spans, bytes_out, bytes_in, msgs_out, msgs_in, notifies_out, notifies_in;
	uint64_t work_requests, doorbells, completions, syscalls;
};
void tr_conn_counters(const struct tr_conn *conn, struct tr_counters *counters);

/* Queue pair states, credits, operations in flight: as snprintf. */
int tr_conn_dump(const struct tr_conn *conn, char *buf, size_t cap);
/* The same, and where its handshake is, as fields of an item (base/report.h). */
struct kv_report;
void tr_conn_report(const struct tr_conn *conn, struct kv_report *r);

struct kv_device_info;
/* 0, or KV_ERR_ARG past the last */
int tr_device_get(struct tr *tr, size_t index, struct kv_device_info *info);

#endif
