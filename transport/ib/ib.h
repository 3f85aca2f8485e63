/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib.h -- the objects of the ib provider and which file does what with them
 *
 *   rail   one port of one device: its own verbs context and protection domain    device.c
 *          which ports become rails, at once and later                            rails.c, late.c
 *   path   a rail of ours joined with a rail of the peer                          rail_match.c
 *          out of which port the route to the peer's address goes (librdmacm)     route.c
 *          how its packets are addressed                                          address.c
 *          its numbers, sent to the peer                                          setup.c
 *          its memory and completion queues                                       conn_mem.c
 *   lane   one RC queue pair of a path                                            qp.c
 *          taken down without waiting for its device                              slow_verbs.c
 *   chain  prebuilt work requests; only addresses, lengths and keys change        post.c
 *   slot   what a lane remembers of each work request that it has posted          post.c, poll.c
 *
 * The path of a byte: post.c (spans to work requests) -> poll.c (completions) -> notify.c (the
 * peer gets a notify).
 *
 * Everything of a connection is used under its caller's lock. Shared between connections are only
 * the rails; what changes in them (dead, down) is atomic.
 */
#ifndef IB_IB_H
#define IB_IB_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/pci.h"
#include "provider.h"
#include "verbs_load.h"

struct ib_conn;
struct ib_match;
struct kv_option_set;

enum ib_limits {
	IB_RAILS_MAX = 8,
	IB_PORTS_MAX = 64,  /* looked at; the best IB_RAILS_MAX of them are used */
	IB_WEIGHT = 256,    /* of the fastest path; others have less */
	IB_ILL_MS = 5000,   /* a device that could not make a connection's objects is left alone */
	IB_LATE_MS = 1000,  /* between two looks at ports that could not be used */
	IB_MSG_LEAST = 4096, /* bytes of a message that a port must take */
	IB_LANES_MAX = 64,  /* of a connection: the width of a lane mask */
	IB_SQ_DEPTH = 512,  /* work requests of a lane; a power of two */
	IB_SQ_NOTIFY = 8,   /* of them kept free of data: for notifies, messages and credits, */
	IB_SQ_MSG = 4,	    /* for messages and credits, */
	IB_SQ_CREDIT = 2,   /* for credits */
	IB_RECV_DATA = 64,  /* receive requests of a lane that notifies and messages may use */
	IB_RECV_CREDIT = 2, /* and those that credit messages use; msg.c proves that 2 are enough */
	IB_RECV_MSG = 8,    /* of the first lane's IB_RECV_DATA, those that only messages may use */
	IB_RECVS = IB_RECV_DATA + IB_RECV_CREDIT,
	IB_CHAIN = 64,	      /* work requests of one doorbell */
	IB_SIGNAL_EVERY = 32, /* a chain's last one is signalled as well */
	IB_CHUNK =
		256
		<< 10, /* bytes of one work request, and of one chain before the next lane's turn */
	IB_SHARE = 64 << 10, /* the least that is worth another path */
	IB_LINE = 128, /* pieces are cut at remote addresses that are multiples of it */
	IB_SGES = 2,   /* of a work request: two fit the smallest work queue element */
	IB_INLINE = 32, /* a notify record */
	IB_MSG_HEADER = 16,
	IB_BUFFER = IB_MSG_HEADER + TR_MSG_MAX,
	IB_CELL = 32,	       /* bytes of a notify record */
	IB_RD_ATOMIC = 16,     /* reads under way on a lane */
	IB_POLL = 32,	       /* completions taken at once */
	IB_BREAK_MS = 500,     /* how long a broken connection waits for its flushed work */
	/* a fenced one, before that, for its last messages, one of them sent again */
	IB_LINGER_MS = 300,
	IB_SLOW_MS = 1,       /* a verb that may take long is waited for this long in the call */
	IB_CLOSE_MS = 1000,    /* and this long when the context is closed */
	IB_ASYNC_EVERY = 1024, /* idle polls between two looks at a device's asynchronous events */
	/* slices of one region: their keys on all rails fit a description */
	IB_SLICES_MAX = (TR_MEM_PACK_MAX - 64) / (4 * IB_RAILS_MAX),
	IB_SOFT_ROCE = 0xffffff, /* what Soft-RoCE calls its vendor */
};
/* A larger one of 4 KiB pages makes some devices slow; only past IB_SLICES_MAX it is larger. */
#define IB_SLICE_BYTES (UINT64_C(2) << 30)

/* ---------------------------------------------------------------- rails */

struct ib_address {
	union ibv_gid gid; /* zero: there is none */
	uint8_t gid_index;
	uint8_t mtu;	  /* enum ibv_mtu */
	uint16_t lid;	  /* InfiniBand: the first of 2^lmc */
	uint8_t lmc;
	char reason[160]; /* why this entry of the GID table */
};

struct ib_rail {
	struct ibv_context *context;
	struct ibv_pd *pd;
	uint8_t port;
	bool ethernet;
	char name[32]; /* "mlx5_0:1" */
	struct ibv_device_attr attr;
	struct ibv_port_attr port_attr;
	unsigned int gigabits; /* a second; 0 = not known */
	struct ib_address address; /* when it was opened */
	struct pci_place place;
	atomic_bool dead; /* the device has failed: nothing but destroying works */
	atomic_bool down; /* the port is down */
	atomic_bool ill;  /* verbs fail; new connections do without it until they work again */
	_Atomic int64_t ill_until_ns; /* not even tried before */
	atomic_bool lame; /* it could not register memory: it is used no more, a new one may come */
	bool noted;	  /* dead or lame, and looked for again: late.c */
};

/* A port that could not be used when it was last tried. */
struct ib_absent {
	char device[32];
	uint8_t port;
};

struct ib_ctx {
	struct tr *tr;
	const struct ib_verbs *v;
	uint64_t slice_bytes;
	uint32_t sq_depth;
	bool relaxed;
	bool inline_jobs; /* tests: no threads, so that a run can be repeated */
	pthread_mutex_t left_lock;
	struct ib_conn *left; /* closed, with a job under way */
	int gid_option; /* KVCACHE_RDMA_GID_INDEX */
	const char *sysroot;
	struct pci_place gpu; /* of KVCACHE_GPU; its address is "" where none is known */
	/* Grows under `lock`; what is below it does not change but for its atomic parts. */
	atomic_int rails;
	struct ib_rail rail[IB_PORTS_MAX];
	/* late.c; the lock is held over no verb that may last */
	pthread_mutex_t lock;
	pthread_cond_t idle;
	struct ib_mr *mrs;
	int regs;   /* registrations under way */
	int taking; /* rails that they serve: `rails`, or one more */
	atomic_int late;
	pthread_t late_thread;
	int64_t late_next_ns;
	int absents;
	struct ib_absent absent[IB_PORTS_MAX];
};

/* speed.c */
void ib_speed_find(const struct ib_ctx *ctx, struct ib_rail *rail);
void ib_speed_choose(struct ib_ctx *ctx, bool by_name, bool named, struct kv_log *log);
bool ib_speed_is_far_slower(const struct ib_ctx *ctx, const struct ib_rail *rail);
void ib_speed_weigh(struct ib_conn *c);

/* late.c */
void ib_late_note(struct ib_ctx *ctx, const char *device, uint8_t port);
void ib_late_look(struct ib_ctx *ctx); /* for a new connection */
bool ib_late_busy(struct ib_ctx *ctx);

/* rails.c */
int ib_rails_near(struct ib_ctx *ctx, const char *word, struct kv_log *log, struct kv_error *err);
int ib_rails_open(struct ib_ctx *ctx, const char *nics, struct kv_log *log, struct kv_error *err);
void ib_rails_close(struct ib_ctx *ctx);

/* device.c */
void ib_rail_place(const struct ib_ctx *ctx, const char *device, struct pci_place *place);
/* ARG: there is no such port. UNSUPPORTED, UNREACHABLE: it is not active. */
int ib_rail_open(struct ib_ctx *ctx, struct ib_rail *rail, struct ibv_device *device, uint8_t port,
		 struct kv_error *err);
void ib_rail_close(struct ib_ctx *ctx, struct ib_rail *rail);
/* Its verbs fail, and a warning says so once; they work (again). */
void ib_rail_is_ill(struct ib_ctx *ctx, struct ib_rail *rail, const struct kv_error *why);
void ib_rail_is_well(struct ib_ctx *ctx, struct ib_rail *rail);
int ib_rail_address(const struct ib_ctx *ctx, struct ib_rail *rail,
		    const union ibv_gid *near, struct ib_address *address_p, struct kv_error *err);
int ib_rail_ready(struct ib_ctx *ctx, struct ib_rail *rail, const union ibv_gid *near,
		  struct ib_address *address_p, struct kv_error *err);
bool ib_rails_have(const struct ib_ctx *ctx, const union ibv_gid *gid);
void ib_rail_describe(const struct ib_rail *rail, char *buf, size_t cap);
void ib_async_drain(struct ib_ctx *ctx);

/* The choice of a GID: device.c, pure */

enum ib_gid_rank {
	IB_GID_USELESS = 0, /* zero */
	IB_GID_LINK_LOCAL,  /* reaches one link only; never chosen where a better one exists */
	IB_GID_ROCE_V1,	    /* is not routed, and many networks drop it */
	IB_GID_IPV6,	    /* RoCE v2, routable IPv6 */
	IB_GID_IPV4,	    /* RoCE v2, IPv4-mapped */
};

struct ib_gid_choice {
	int entry; /* index into the array, -1 = none is usable */
	enum ib_gid_rank rank;
	bool asked; /* it is the one that the option asks for */
	char reason[160];
};

bool ib_gid_is_ipv4(const union ibv_gid *gid); /* an IPv4 address as IPv6 maps it */
bool ib_gid_is_zero(const union ibv_gid *gid);
bool ib_gid_is_link_local(const union ibv_gid *gid); /* as an IPv6 address */

/*
 * The entry for a RoCE port from all its valid entries; `option` is KVCACHE_RDMA_GID_INDEX (-1 =
 * automatic). `near` is an address or NULL: that very entry is best, then one of its family (IPv4,
 * IPv6).
 */
void ib_gid_choose(const struct ibv_gid_entry *entries, size_t n, int option,
		   const union ibv_gid *near, struct ib_gid_choice *choice);

/*
 * The entry for an InfiniBand port: the asked one, or 0, which is the port's own (IBTA volume 1,
 * 14.2.5.5 GUIDInfo).
 */
void ib_gid_choose_infiniband(const struct ibv_gid_entry *entries, size_t n, int option,
			      struct ib_gid_choice *choice);

/* "::ffff:10.0.0.1" style text of a GID into a buffer of at least INET6_ADDRSTRLEN bytes. */
void ib_gid_text(const union ibv_gid *gid, char *buf, size_t cap);

/* ---------------------------------------------------------------- memory */

struct ib_mr {
	uint64_t first; /* of slice 0's range: the address rounded down to a page */
	uint64_t slice_bytes;
	uint32_t slices;
	int rails;     /* that were asked, */
	uint32_t have; /* and those of them that have it: a bit for each */
	bool busy; /* the job of late.c is registering it */
	const struct tr_mem *mem;
	struct ib_mr *next, **prev;
	struct ibv_mr *mr[]; /* [rail * slices + slice], for IB_RAILS_MAX rails */
};

struct ib_rmr {
	uint64_t addr; /* of the region in the peer */
	uint64_t first;
	uint64_t slice_bytes;
	uint32_t slices;
	uint32_t rkey[]; /* [path * slices + slice] */
};

int ib_mem_reg(void *ctx, struct tr_mem *mem, void **handle_p, struct kv_error *err);
void ib_mem_dereg(void *ctx, void *handle);
int ib_mem_pack(struct tr_conn *conn, struct tr_mem *mem, struct wire_writer *w,
		struct kv_error *err);
int ib_mem_open(struct tr_conn *conn, struct tr_rmem *rmem, struct wire_reader *r,
		struct kv_error *err);
void ib_mem_close(struct tr_conn *conn, struct tr_rmem *rmem);
int ib_gpu_reach(const struct ib_ctx *ctx, const struct ib_rail *rail); /* enum kv_gpu_reach */
/* Breaks the connection, which has a path without keys for the region. */
int ib_mem_lacks(struct ib_conn *c, const struct ib_mr *mr, struct kv_error *err);
/* With one rail more; from the rail `rails` on no more. */
int ib_mr_extend(struct ib_ctx *ctx, struct ib_mr *mr, int rail, struct kv_error *err);
void ib_mr_shrink(struct ib_ctx *ctx, struct ib_mr *mr, int rails);
int ib_mem_short(const struct ib_ctx *ctx, const struct ib_rail *rail, size_t len, int why,
		 struct kv_error *err); /* shortage.c: why a device has no more room for memory */
int ib_mr_make(struct ib_ctx *ctx, struct ib_rail *rail, void *addr, size_t len,
	       unsigned int access, struct ibv_mr **mr_p, struct kv_error *err);

/* ---------------------------------------------------------------- connections */

enum ib_kind {
	IB_KIND_WRITE = 1,
	IB_KIND_READ,
	IB_KIND_NOTIFY,
	IB_KIND_PROOF, /* the READ behind the last WRITE */
	IB_KIND_ASK,   /* the READ that asks whether the peer is there; of no operation */
	IB_KIND_MSG,
	IB_KIND_CREDIT,
	IB_KIND_RECV,
};

struct ib_slot {
	uint16_t op; /* of the kinds WRITE, READ, NOTIFY and PROOF */
	uint8_t kind;
};

struct ib_lane {
	struct ib_conn *c;
	struct ib_path *path;
	struct ibv_qp *qp; /* a job's while one is under way that may destroy it */
	uint32_t qpn;
	uint16_t index;
	bool inlines;	  /* the queue pair takes IB_INLINE bytes inline */
	bool failed;	  /* a completion with an error was seen */
	bool refuses;	  /* the device did not put it into the error state */
	atomic_int async; /* enum ibv_event_type + 1 of the queue pair's last bad event, 0 = none */
	uint32_t posted;  /* work requests posted, */
	uint32_t retired; /* and known to be finished; free-running */
	uint32_t unsignalled; /* since the last signalled one */
	uint32_t ctl_posted;  /* notifies, messages and credits: users of the source buffers */
	uint32_t ctl_retired;
	uint16_t credits;   /* the peer's receive requests that this side may use */
	uint16_t owed;	    /* ours that were used and not yet given back */
	uint32_t cells_out; /* notifies sent, */
	uint32_t cells_in;  /* and received: the number of the peer's and of our next cell */
	uint32_t psn;
	uint32_t peer_qpn, peer_psn;
	struct ib_slot *slot; /* ctx->sq_depth of them */
};

/*
 * The path between two ports as the subnet manager has it (InfiniBand) or the routing table (RoCE:
 * only the MTU).
 */
struct ib_record {
	bool known;
	uint16_t slid, dlid; /* of this side and of the peer; with an LMC a port has several */
	uint16_t pkey;	     /* the value, not its index */
	uint8_t sl;
	uint8_t mtu, rate; /* enum ibv_mtu, enum ibv_rate */
	uint8_t hop_limit; /* above 0: packets carry a GRH */
	uint8_t life;	   /* packet lifetime, 4.096 us x 2^life */
};

struct ib_end { /* what the other end of a path has sent */
	union ibv_gid gid;
	uint16_t lid;	/* that packets to it carry */
	uint16_t to_lid; /* that its packets to this side carry; 0 = the port's own */
	uint16_t pkey;
	uint8_t sl, rate;
	bool grh;
	uint8_t mtu;
	uint8_t rd_atomic;
	uint8_t rail;	       /* the peer's number of it */
	uint16_t gigabits;     /* of its port, 0 = not known */
	uint64_t cells, probe; /* addresses */
	uint32_t cells_rkey, probe_rkey;
};

struct ib_path {
	struct ib_rail *rail;
	uint8_t rail_index; /* here, */
	uint8_t sent_index; /* and as sent to the peer */
	uint32_t weight;    /* share of the bytes, as IB_WEIGHT is the fastest path's; */
	uint16_t turn;	    /* of its lanes, */
	uint64_t load;	    /* and what it has carried, by its weight */
	struct ib_address address; /* the rail's, when this connection was made */
	struct ib_record record;
	uint16_t pkey, pkey_index;
	const char *chosen; /* by what */
	struct ibv_comp_channel *channel;
	struct ibv_cq *scq, *rcq;
	struct ibv_mr *mr_cells, *mr_probe, *mr_private;
	struct ib_end peer;
	bool watched, watched_async;
	bool deaf; /* its completion queues cannot be polled any more */
};

/* An operation slot; its index and generation are tr_op's. */
struct ib_op {
	uint32_t in_flight; /* work requests posted and not retired */
	uint64_t lanes;	    /* used by it */
	bool busy, committed, stopping;
	bool proof_due; /* stopping: the READs behind its bytes are not posted yet */
	bool failed;	/* one of its work requests ended with an error: never TR_WRITTEN */
	int64_t began_ns;
	int64_t deadline_ns; /* of stopping */
	uint32_t share; /* bytes of a chain of its last spans */
	/* The rest of the one span that was accepted while only a part of it found room. */
	struct tr_mem *lmem;
	struct tr_rmem *rmem;
	struct tr_span rest;
};

/*
 * A notify or message whose turn to be delivered may not have come; the ring is indexed by sequence
 * number.
 */
struct ib_inbox {
	uint64_t lanes; /* seen on these lanes */
	uint64_t value;
	uint32_t imm;
	uint16_t want; /* lanes that carry it, 0 = nothing is here yet */
	uint16_t len;  /* of a message */
	bool is_msg;
	uint8_t msg; /* index of its copy */
};

struct ib_chain {
	struct ibv_send_wr wr[IB_CHAIN];
	struct ibv_sge sge[IB_CHAIN][IB_SGES];
	struct ib_lane *lane; /* NULL: no chain is begun */
	uint32_t n, room;     /* work requests in it, and how many the lane takes */
	uint64_t bytes;
	uint64_t len, limit; /* of the last one: its bytes, and how many it may have */
};

enum ib_state {
	IB_SETUP = 0,
	IB_LIVE,
	IB_BREAKING, /* queue pairs are in the error state, their work is being flushed */
	IB_DOWN,     /* nothing is under way, tr_conn_lost was called */
};

struct ib_conn {
	struct ib_ctx *ctx;
	const struct ib_verbs *v;
	struct tr_conn *conn;
	enum ib_state state;
	uint16_t generation; /* in every wr_id */
	bool accepting;
	bool line_order;
	bool uneven; /* the paths are not equally fast */
	int paths, lanes_per_path, lanes;
	uint32_t rails; /* of the paths: a bit for each */
	struct ib_path path[IB_RAILS_MAX];
	/* connecting side, until the paths are chosen */
	struct ib_match *match;
	/* accepting side: the rails that were offered, in the peer's numbers */
	struct ib_offered {
		uint8_t rail_index;
		struct ib_address address;
	} offered[IB_RAILS_MAX];
	int offers;
	struct ib_lane *lane;
	struct ib_slot *slots;
	uint32_t chunk;	  /* bytes of a chain, */
	uint32_t message; /* and of one work request */
	uint32_t turn; /* of the lanes: post.c */
	struct ib_chain *chain[2]; /* by enum tr_op_kind */
	/* Control region: cells (the peer writes), probe (the peer reads), private. */
	uint8_t *region;
	size_t region_len, probe_off, private_off;
	uint32_t seq_out, seq_in;
	uint32_t inbox_mask;
	struct ib_inbox *inbox;
	uint8_t (*msgs)[TR_MSG_MAX];
	uint32_t msgs_in;
	struct ib_op op[TR_OPS_MAX];
	bool asking;	   /* an IB_KIND_ASK is under way */
	uint32_t stopping; /* operations that are being cancelled */
	bool refused;	   /* a call returned TR_AGAIN because the queue was full */
	bool room; /* space appeared since; no event may follow, so poll again before sleeping */
	uint32_t idle;
	atomic_bool cq_error;  /* a device has reported one for a queue of this connection */
	uint64_t stale;	       /* completions of another life, counted and ignored */
	struct kv_error cause; /* of IB_BREAKING and IB_DOWN */
	bool cause_is_flush;   /* a consequence; what caused it may still be found */
	int64_t break_deadline_ns; /* 0: the error state is not reached yet */
	atomic_bool cut; /* by another thread, which can do it no more once this is set */
	bool reset; /* what did not flush in time */
	int64_t linger_deadline_ns; /* 0: no fence yet */
	atomic_int slow; 	    /* of the job in its own thread: see slow_verbs.c */
	pthread_t slow_thread;
	void (*job)(struct ib_conn *c);
	struct tr_left *left; /* what its thread's queue pairs may reach */
	struct ib_conn *next_left;
};

static inline struct ib_conn *ib_conn_of(const struct tr_conn *conn)
{
	return tr_conn_priv(conn);
}

static inline bool ib_lane_drained(const struct ib_lane *lane)
{
	return lane->posted == lane->retired;
}

/* TR_AGAIN because there is no room; ib_arm shows when there may be some. */
static inline int ib_again(struct ib_conn *c)
{
	c->refused = true;
	return TR_AGAIN;
}

/* How many more work requests the lane takes if `keep` slots must stay free. */
static inline uint32_t ib_lane_room(const struct ib_lane *lane, uint32_t keep)
{
	uint32_t used = lane->posted - lane->retired + keep;
	uint32_t depth = lane->c->ctx->sq_depth;

	return used < depth ? depth - used : 0;
}

/*
 * wr_id: kind, lane, the connection's generation, and the number of the work request on its lane
 * (RECV: of the receive buffer). A completion finds its slot without a search and one of another
 * life is recognised.
 */
#define IB_WR_ID(kind, lane, generation, number) \
	((uint64_t)(kind) << 56 | (uint64_t)(lane) << 48 | (uint64_t)(generation) << 32 | (number))
#define IB_WR_KIND(id) ((uint8_t)((id) >> 56))
#define IB_WR_LANE(id) ((uint8_t)((id) >> 48))
#define IB_WR_GENERATION(id) ((uint16_t)((id) >> 32))
#define IB_WR_NUMBER(id) ((uint32_t)(id))
_Static_assert(IB_LANES_MAX <= 256, "a lane fits its byte of the wr_id");
_Static_assert(TR_OPS_MAX <= 256, "an operation's slot fits its byte of the immediate");

/* conn_mem.c: the control region, completion queues and lanes' memory of a connection */
/* *bad_p: the path whose device has failed, -1 = none */
int ib_conn_mem_make(struct ib_conn *c, int *bad_p, struct kv_error *err);
bool ib_conn_mem_free(struct ib_conn *c);
uint8_t *ib_conn_cell(struct ib_conn *c, const struct ib_lane *lane, uint32_t number);
uint8_t *ib_conn_source(struct ib_conn *c, const struct ib_lane *lane, uint32_t number);
uint8_t *ib_conn_buffer(struct ib_conn *c, const struct ib_lane *lane, uint32_t number);
uint8_t *ib_conn_landing(struct ib_conn *c, const struct ib_lane *lane);
uint64_t ib_peer_cell(const struct ib_lane *lane, uint32_t number);

/*
 * rail_match.c: connecting side: which rails are joined. step: 0 = c->path is filled, TR_AGAIN, or
 * the error
 */
int ib_match_begin(struct ib_conn *c, struct wire_reader *r, struct kv_error *err);
int ib_match_step(struct ib_conn *c, struct kv_error *err);
void ib_match_end(struct ib_conn *c);

/* address.c: how the packets of a path are addressed */
int ib_path_check(const struct ib_ctx *ctx, const struct ib_rail *rail,
		  const struct ib_address *own, const union ibv_gid *peer, struct kv_error *err);
int ib_path_partition(const struct ib_ctx *ctx, struct ib_path *path, uint16_t pkey,
		      struct kv_error *err);
int ib_path_agree(const struct ib_path *path, struct kv_error *err);
bool ib_path_wants_grh(const struct ib_path *path);
uint16_t ib_path_lid(const struct ib_path *path);
uint8_t ib_path_sl(const struct ib_path *path, const struct kv_option_set *options);
enum ibv_mtu ib_path_mtu(const struct ib_path *path);
void ib_path_vector(const struct ib_path *path, const struct kv_option_set *options,
		    struct ibv_ah_attr *ah);

/* qp.c */
int ib_lane_make(struct ib_lane *lane, struct kv_error *err);
int ib_lane_connect(struct ib_lane *lane, struct kv_error *err);
int ib_lane_post_recv(struct ib_lane *lane, uint32_t number, struct kv_error *err);
void ib_lane_destroy(struct ib_lane *lane);
void ib_lanes_destroy(struct ib_conn *c); /* all of them */
bool ib_has_lanes(const struct ib_conn *c);

/* setup.c */
int ib_offer(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_writer *w,
	     struct kv_error *err);
int ib_start(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_reader *r,
	     struct kv_error *err);
int ib_setup_put(struct tr_conn *conn, struct wire_writer *w, struct kv_error *err);
int ib_setup_get(struct tr_conn *conn, struct wire_reader *r, struct kv_error *err);
void ib_stop(struct tr_conn *conn, void *priv);

/* post.c */
void ib_chain_build(struct ib_chain *chain, enum ibv_wr_opcode opcode);
void ib_op_begin(struct tr_op *op);
long ib_op_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
	       const struct tr_span *spans, size_t n, struct kv_error *err);
int ib_op_commit(struct tr_op *op, unsigned int flags, uint64_t value, struct kv_error *err);
/* Posts one work request that is not part of a chain. */
int ib_post_one(struct ib_lane *lane, struct ibv_send_wr *wr, enum ib_kind kind, uint16_t op,
		struct kv_error *err);

/* notify.c */
bool ib_notify_room(const struct ib_conn *c, uint64_t lanes);
int ib_notify_post(struct ib_conn *c, struct tr_op *op, uint64_t lanes, uint64_t value,
		   struct kv_error *err);
void ib_notify_arrived(struct ib_lane *lane, const struct ibv_wc *wc);
int ib_inbox_deliver(struct ib_conn *c);

/* msg.c */
int ib_msg(struct tr_conn *conn, const void *buf, size_t len, bool wake, struct kv_error *err);
void ib_msg_arrived(struct ib_lane *lane, const struct ibv_wc *wc, uint32_t buffer);
void ib_credits_return(struct ib_conn *c);
/* False: the peer gives back more than was used. */
bool ib_credits_take(struct ib_lane *lane, uint16_t credits);

/* the same file: TR_PROVEN */
bool ib_proof_room(const struct ib_conn *c, uint64_t lanes);
int ib_proof_post(struct ib_conn *c, struct tr_op *op, uint64_t lanes, struct kv_error *err);
bool ib_ask(struct tr_conn *conn);

/* poll.c */
int ib_poll(struct ib_conn *c);
int ib_progress(struct tr_conn *conn);
int ib_arm(struct tr_conn *conn);
void ib_op_settle(struct ib_conn *c, uint16_t index); /* reports its end if it has come */

/* stop.c */
void ib_op_cancel(struct tr_op *op, int64_t deadline_ns);
int ib_fence(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err);
void ib_break(struct ib_conn *c, const struct kv_error *cause);
void ib_break_step(struct ib_conn *c);
void ib_stop_step(struct ib_conn *c);
void ib_cut(struct tr_conn *conn);
void ib_cut_step(struct ib_conn *c);

/* slow_verbs.c */
/* From any thread; nothing where a job is under way or no thread can be had. */
void ib_slow_start(struct ib_conn *c, void (*job)(struct ib_conn *c));
bool ib_slow_busy(struct ib_conn *c); /* a job is under way */
/*
 * true: the job was done. false: it, or another one, is under way; the same job may be run again.
 */
bool ib_slow_run(struct ib_conn *c, void (*job)(struct ib_conn *c));
void ib_slow_leave(struct ib_conn *c); /* frees the connection, now or after its job */
/* false: a device still holds its queue pairs; the context is never freed. */
bool ib_slow_close(struct ib_ctx *ctx);

/* status.c */
int ib_wc_code(enum ibv_wc_status status, bool port_down); /* pure */
void ib_wc_cause(const struct ib_lane *lane, const struct ibv_wc *wc, struct kv_error *err);
void ib_async_cause(const struct ib_lane *lane, int type, struct kv_error *err);
void ib_name_peer(const struct ib_conn *c, const struct ib_rail *rail, struct kv_error *err);

/* dump.c */
int ib_dump(const struct tr_conn *conn, char *buf, size_t cap);

#endif
