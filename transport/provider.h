/* SPDX-License-Identifier: Apache-2.0 */
/*
 * provider.h -- what a transport provider implements, and what tr.c keeps for it
 *
 * tr.c (context), mem.c (regions), handshake.c (TCP, hello, setup) and op.c (slots, checks, events)
 * are common. A provider moves bytes. All functions on a connection are called under the upper
 * layer's lock of that connection. mem_reg and mem_dereg are called under no lock, from several
 * threads at once: pinning takes long, and no thread waits for another's.
 */
#ifndef TR_PROVIDER_H
#define TR_PROVIDER_H

#include <stdatomic.h>
#include <sys/socket.h>

#include "base/wire.h"
#include "tr.h"

struct kv_device_info;

struct tr_provider {
	const char *name;
	uint16_t id; /* TR_PROVIDER_*: on the wire */

	/*
	 * open: KV_ERR_UNSUPPORTED with a message = this machine does not have it (not an error of
	 * tr_open unless KVCACHE_TRANSPORT asks for it by name). device_get: rows for `kvrail
	 * info`; also called with ctx == NULL after a failed open; the row comes filled with "" and
	 * the values that mean "not known".
	 */
	int (*open)(struct tr *tr, void **ctx_p, struct kv_error *err);
	void (*close)(void *ctx);
	/* NULL: it needs no device */
	int (*device_get)(void *ctx, size_t index, struct kv_device_info *info);

	bool pins; /* mem_reg holds pages where they are, so those of a pool are made before */
	int (*mem_reg)(void *ctx, struct tr_mem *mem, void **handle_p, struct kv_error *err);
	void (*mem_dereg)(void *ctx, void *handle);
	/* tr_mem_usable, of a device's memory that it has taken; NULL: it is */
	int (*mem_usable)(const struct tr_conn *conn, const struct tr_mem *mem,
			  struct kv_error *err);

	/*
	 * Handshake. Accepting side: offer (after the hello was accepted; KV_ERR_UNSUPPORTED = not
	 * for this peer), then, if the connecting side chose this provider, setup_get, setup_put.
	 * Connecting side: start (TR_AGAIN = call again; negative = cannot reach, the next offer is
	 * tried, err says why), then setup_put, setup_get. conn->priv is the provider's. `stop`
	 * undoes whatever of these was done, in any state, and is called exactly once for each
	 * offer or start that succeeded. After the last of them succeeded on a side, that side may
	 * receive; it sends after the peer's READY. offered: while an offer may still be taken, in
	 * each tr_conn_step (NULL: nothing to do); what comes by a descriptor is to be watched.
	 */
	int (*offer)(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_writer *w,
		     struct kv_error *err);
	void (*offered)(struct tr_conn *conn, void *priv);
	int (*start)(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_reader *r,
		     struct kv_error *err);
	int (*setup_put)(struct tr_conn *conn, struct wire_writer *w, struct kv_error *err);
	int (*setup_get)(struct tr_conn *conn, struct wire_reader *r, struct kv_error *err);
	void (*stop)(struct tr_conn *conn, void *priv);

	/* Remote regions: the provider's part of tr_mem_pack and tr_mem_open. */
	int (*mem_pack)(struct tr_conn *conn, struct tr_mem *mem, struct wire_writer *w,
			struct kv_error *err);
	int (*mem_open)(struct tr_conn *conn, struct tr_rmem *rmem, struct wire_reader *r,
			struct kv_error *err);
	void (*mem_close)(struct tr_conn *conn, struct tr_rmem *rmem);

	size_t op_bytes; /* of tr_op.priv */
	/*
	 * Data path. op_begin prepares the provider's state of the slot. op_add: spans are
	 * checked already; returns the number accepted. op_commit: 0 or TR_AGAIN. op_cancel: begins
	 * to stop; the provider ends it with tr_op_end. progress: moves what can be moved, calls
	 * tr_op_end, tr_conn_notified, tr_conn_message, tr_conn_lost; returns the number of things
	 * done.
	 */
	void (*polled)(struct tr_conn *conn); /* tr_conn_poll_on; NULL: it costs nothing anyway */
	/* tr_conn_await; NULL: false */
	bool (*await)(struct tr_conn *conn, int64_t looks_ns, int64_t most_ns, int fd);
	bool (*computes)(const struct tr_conn *conn); /* tr_conn_computes; NULL: no */
	void (*op_begin)(struct tr_op *op);
	long (*op_add)(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		       const struct tr_span *spans, size_t n, struct kv_error *err);
	/* NULL: its upper layer makes spans of them; takes_blocks NULL: it takes all. */
	bool (*takes_blocks)(const struct tr_mem *lmem, const struct tr_rmem *rmem);
	long (*op_add_blocks)(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
			      const struct tr_blocks *blocks, size_t n, struct kv_error *err);
	int (*op_commit)(struct tr_op *op, unsigned int flags, uint64_t value,
			 struct kv_error *err);
	void (*op_cancel)(struct tr_op *op, int64_t deadline_ns);
	int (*msg)(struct tr_conn *conn, const void *buf, size_t len, bool wake,
		   struct kv_error *err);
	int (*progress)(struct tr_conn *conn);
	int (*arm)(struct tr_conn *conn);
	int (*hand_over)(struct tr_conn *conn); /* tr_conn_hand_over; NULL: as arm */
	int (*fence)(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err);
	/* `fence`, once begun, leaves nothing of this side's under way, even if it is not done. */
	bool stops_at_once;
	/* Kernels of a GPU see the bytes before their notify comes: tr_flush has nothing to do. */
	bool flushed;
	void (*cut)(struct tr_conn *conn); /* tr_conn_cut; NULL: no call of its own can last */
	/*
	 * The peer was silent for long, over TCP and in completions: true if it is known to be
	 * there. Else its answer is counted in tr_counters.completions. Called again and again
	 * while it is silent.
	 */
	bool (*ask)(struct tr_conn *conn);
	int (*dump)(const struct tr_conn *conn, char *buf, size_t cap);
	bool (*places)(const struct tr_conn *conn); /* tr_conn_places; NULL: no */
	uint64_t (*help)(void *ctx, uint64_t most); /* tr_help; any thread. NULL: 0 */
	void (*alarm)(void *ctx); /* tr_alarm; any thread. NULL: it shares no descriptor */
};

enum { TR_PROVIDER_SHM = 1, TR_PROVIDER_IB = 2, TR_PROVIDER_TCP = 3, TR_PROVIDERS = 3 };
enum { TR_WHY = 140 }; /* bytes of the reason why a provider is not used, in an error */
extern const struct tr_provider tr_shm_provider;
extern const struct tr_provider tr_ib_provider;
extern const struct tr_provider tr_tcp_provider;
extern const struct tr_provider *const tr_known[TR_PROVIDERS]; /* in order of preference */
/* kinds.c: by enum tr_mem_kind; NULL: there is none, or it is the host's */
extern const struct gpu_kind *const tr_kinds[TR_MEM_KINDS];

/* ----------------------------------------------------- what providers see of the common objects */

struct tr {
	const struct kv_option_set *options;
	struct kv_log *log;
	uint8_t incarnation[16];
	/* in order of preference; NULL past the last that opened */
	const struct tr_provider *provider[TR_PROVIDERS];
	void *provider_ctx[TR_PROVIDERS];
	int providers;
	char absent[TR_PROVIDERS][TR_WHY]; /* as tr_known: why it is not open here; "" = it is */
	struct tr_memory *memory; /* mem.c */
	struct gpu *gpu[TR_MEM_KINDS]; /* those of each kind that it has used */
	struct psk_file *psk;	  /* NULL: none is asked for */
	_Atomic uint8_t keyless; /* what was logged of that: listener.c */
	_Atomic int64_t warned_ns; /* when the log had a line of a refusal: control.c */
};

/* Its place in the tables of a context; -1: it is not open there. */
static inline int tr_provider_at(const struct tr *tr, const struct tr_provider *provider)
{
	int i = tr->providers;

	while (i-- && tr->provider[i] != provider)
		;
	return i;
}

struct tr_mem {
	struct tr *tr;
	uint8_t *addr;
	size_t len;
	int kind;
	int gpu; /* a GPU's: the ordinal of that whose kernels copy it (stage.h) */
	/* A GPU's, while it is being registered: the buffer that holds it, or -1 */
	int dmabuf_fd;
	uint64_t dmabuf_off;      /* of addr in the buffer */
	const char *no_dmabuf;    /* why there is none */
	/* There is one of each piece of the grid that begins here; 0: no such pieces (gpu_grid) */
	uint64_t piece_first, piece_bytes;
	/*
	 * A GPU's, if that does not order what NICs write: memory of the library there,
	 * which they read to flush that; until it is deregistered. NULL: no need, or
	 */
	struct tr_mem *flush;
	const struct kv_error *no_nic; /* why none may write into it; NULL: they may */
	unsigned int access;
	uint32_t id;              /* unique in the context's life */
	int pool_fd;              /* memfd that backs it (tr_alloc), or -1 */
	uint64_t pool_id;         /* of the memfd */
	uint64_t pool_off;        /* of addr in the memfd */
	uint64_t pool_len;        /* of the whole memfd */
	/* Under the memory lock: */
	unsigned int refs;        /* tr_mem_reg calls that were not given back */
	unsigned int left;        /* closed connections whose device still holds it */
	bool in_part;             /* a registration for a part of it has shared it */
	atomic_bool ready;        /* every provider has it */
	atomic_uint in_flight;    /* operations that use it */
	atomic_uint readers;      /* tr_mem_get; survives the record's next use */
	void *handle[TR_PROVIDERS];  /* by index in tr->provider */
	struct kv_error *why[TR_PROVIDERS]; /* the same: why it was left out; NULL: it has it */
	struct tr_mem *next, **prev;
	struct tr_mem *range_next, **range_prev; /* range.c; NULL: no registration shares it */
	struct tr_mem *gone;      /* the next that is being deregistered */
};

struct tr_rmem {
	struct tr_conn *conn;
	uint64_t len;
	uint32_t id;
	unsigned int access;
	bool device;              /* a GPU's over there, into which a NIC writes */
	unsigned int refs;
	void *priv;               /* the provider's */
	struct tr_rmem *next;
};

enum tr_op_state { TR_OP_FREE = 0, TR_OP_OPEN, TR_OP_COMMITTED, TR_OP_STOPPING, TR_OP_ENDED };

enum { TR_OP_MEMS = 8 };

struct tr_op {
	struct tr_conn *conn;
	uint16_t index;           /* 0 .. TR_OPS_MAX - 1 */
	uint8_t kind;             /* TR_WRITE or TR_READ_OP */
	bool any_order;           /* TR_ANY_ORDER */
	bool to_device;           /* some of it goes to a GPU's */
	uint8_t state;            /* enum tr_op_state */
	/* changes with each use of the slot: a stale completion is recognised */
	uint32_t generation;
	uint64_t user;
	uint64_t grant;           /* tr_op_grant */
	uint64_t bytes;
	/* Local regions in use; those past TR_OP_MEMS different ones are in `wide` (hold.c). */
	struct tr_mem *mem[TR_OP_MEMS];
	uint8_t mems;
	struct tr_op_wide *wide;
	int32_t end_kind;         /* event to report */
	struct tr_op *next;       /* that has ended, or that is free */
	void *priv;               /* the provider's: op_bytes */
};

static inline struct tr_span tr_block_span(const struct tr_blocks *b, size_t i)
{
	return (struct tr_span){ b->local_base + (uint64_t)b->local[i] * b->local_stride,
				 b->remote_base + (uint64_t)b->remote[i] * b->remote_stride,
				 b->len };
}

/* Called by providers. */
void *tr_conn_priv(const struct tr_conn *conn);
struct tr *tr_conn_tr(const struct tr_conn *conn);
void *tr_mem_handle(const struct tr_mem *mem, const struct tr_provider *provider);
/* Why that provider, which is open, was left out; NULL: it was not. */
const struct kv_error *tr_mem_why(const struct tr_mem *mem, const struct tr_provider *provider);
/* Most pages of the pool in which a region lies; it travels to peers of the host. */
enum tr_pages {
	TR_PAGES_UNKNOWN = 0, TR_PAGES_LAZY, TR_PAGES_COMING, TR_PAGES_SMALL, TR_PAGES_HUGE
};
enum tr_pages tr_mem_pages(const struct tr_mem *mem);
enum tr_pages tr_pages_here(struct tr *tr); /* what a pool gets that is made now; takes one */
const char *tr_pages_text(enum tr_pages pages); /* ", huge pages"; "": not known */
bool tr_conn_line_order(const struct tr_conn *conn);
bool tr_conn_polled(const struct tr_conn *conn); /* TR_POLLED */
bool tr_conn_moves_lists(const struct tr_conn *conn); /* TR_LISTS */
bool tr_conn_passes_gpu(const struct tr_conn *conn); /* TR_PASSES_GPU */
/* This end's IP address of the control connection, IPv4 as IPv6 maps it; false: not known. */
bool tr_conn_local(const struct tr_conn *conn, uint8_t address[16]);
/*
 * Address (IPv4 as IPv6 maps it) and port of both ends of the control connection, as this end sees
 * them; false: not known.
 */
struct tr_conn_ends {
	uint8_t local[18], remote[18];
};
bool tr_conn_ends(const struct tr_conn *conn, struct tr_conn_ends *ends);
unsigned int tr_conn_ops(const struct tr_conn *conn); /* slots that there are */
struct tr_op *tr_conn_op(const struct tr_conn *conn, unsigned int index);
/*
 * From setup_get: both ends have said that descriptors of the provider's own, which are watched,
 * show the peer's end as soon as the control socket does. That is closed at READY (control.c);
 * `ask` is called when one of them is readable.
 */
void tr_conn_own_link(struct tr_conn *conn);
struct tr_counters *tr_conn_count(struct tr_conn *conn);
void tr_conn_set_path(struct tr_conn *conn, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Adds a descriptor to what the owner waits for (readable), or removes it before it is closed. */
int tr_conn_watch(struct tr_conn *conn, int fd, struct kv_error *err);
/* One that other connections watch as well, and that is read until it has no more. */
int tr_conn_watch_shared(struct tr_conn *conn, int fd, struct kv_error *err);
/* The same, of one that is there already: what makes it known besides its end. */
enum tr_watch { TR_WATCH_IN = 1 << 0, TR_WATCH_OUT = 1 << 1 };
int tr_conn_watch_for(struct tr_conn *conn, int fd, unsigned int what, struct kv_error *err);
void tr_conn_unwatch(struct tr_conn *conn, int fd);

/*
 * A region by the id in its packed description; NULL if there is none. It is not deregistered
 * before tr_mem_put, which follows soon: the thread that deregisters it waits for that.
 */
struct tr_mem *tr_mem_get(struct tr *tr, uint32_t id);
/* The same, if the connection moves bytes of it; */
struct tr_mem *tr_conn_region(const struct tr_conn *conn, uint32_t id);
/* [offset, offset + len) is in it, and may be reached in this way. */
static inline bool tr_mem_lets(const struct tr_mem *mem, uint64_t offset, uint64_t len,
			       unsigned int access)
{
	return mem->access & access && offset <= mem->len && len <= mem->len - offset;
}
/*
 * and if the peer may reach [offset, offset + len) of it in this way. Every use asks again: the
 * region may have been deregistered meanwhile.
 */
struct tr_mem *tr_conn_reach(const struct tr_conn *conn, uint32_t id, uint64_t offset, uint64_t len,
			     unsigned int access);
void tr_mem_put(struct tr_mem *mem);
/* The memory of the library on that GPU (tr_mem.flush), once more; tr_mem_dereg gives it back. */
int tr_mem_scratch(struct tr *tr, int kind, int gpu, struct tr_mem **mem_p, struct kv_error *err);
/* The same of a region of a device that was described to the peer. */
struct tr_mem *tr_mem_lent(struct tr_conn *conn, uint32_t id);
/* tr_upper_ops.may, or what stands for it; asked before bytes of the peer are placed here. */
int tr_conn_may(struct tr_conn *conn, const struct tr_mem *mem, uint64_t offset, uint64_t len,
		unsigned int access, uint64_t grant);

/*
 * From `stop`, where a device still works for the connection: of the regions that were described to
 * the peer and those of its operations no owner but the last one can deregister (BUSY) until
 * tr_left_done (from any thread). NULL: no memory for that; then `stop` has to wait for the device.
 */
struct tr_left *tr_conn_leave(struct tr_conn *conn);
void tr_left_done(struct tr_left *left);

/*
 * Ends an operation: kind TR_WRITTEN, TR_READ or TR_CANCELLED. The event is queued; there is always
 * room. There is no single failed operation: as on a reliable queue pair, a failure is the
 * connection's (tr_conn_lost), which ends every open operation as TR_IN_DOUBT. An operation in
 * TR_OP_STOPPING that a provider reports as done stays done.
 */
void tr_op_end(struct tr_op *op, int kind);

/*
 * Events from the peer. tr_conn_room says how many of them can be queued now; a provider stops
 * reading at 0.
 */
int tr_conn_room(const struct tr_conn *conn);
void tr_conn_notified(struct tr_conn *conn, uint64_t value);
void tr_conn_message(struct tr_conn *conn, const void *buf, size_t len);

/*
 * The connection failed: ends every open operation as TR_IN_DOUBT with this cause and queues
 * TR_PEER_LOST. The first cause stays. A provider calls it only when nothing of those operations is
 * under way on this side any more.
 */
void tr_conn_lost(struct tr_conn *conn, const struct kv_error *cause);
/*
 * From `fence`, once what was sent has left and before the peer can see that this end is gone.
 * Nothing unless tr_fence began it.
 */
void tr_conn_goodbye(struct tr_conn *conn);
/*
 * 16 bytes for a second socket of the connection to begin with: what it makes of a nonce that one
 * end has sent to the other in the handshake. With a key only the two ends can; without one they
 * are the nonce. label: 8 bytes, another one for each direction.
 */
void tr_conn_prove(const struct tr_conn *conn, const char label[8], const uint8_t nonce[16],
		   uint8_t proof[16]);
/* The same is made of it here; how much of it is right is not to be learnt from the time. */
bool tr_conn_is_proof(const struct tr_conn *conn, const char label[8], const uint8_t nonce[16],
		      const uint8_t proof[16]);
/*
 * Another TCP socket of the family and the interface of the control connection, and the address of
 * one of its ends, with this port.
 */
int tr_conn_socket(struct tr_conn *conn, bool peer, uint16_t port, struct sockaddr_storage *sa,
		   socklen_t *len_p, int *fd_p, struct kv_error *err);
/* Why a transport that is preferred to the connection's was not taken, as far as this end knows. */
const char *tr_conn_why_not(const struct tr_conn *conn, const char *name);

#endif
