/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib.h -- the objects of the ib provider and which file does what with them
 *
 *   rail   one port of one device: its own verbs context and protection domain    device.c
 *          which ports become rails, at once and later                            rails.c, late.c
 *          who uses one, so that it is not closed                                 users.c
 *   path   a rail of ours joined with a rail of the peer                          rail_match.c
 *          out of which port the route to the peer's address goes (librdmacm)     route.c
 *          how its packets are addressed                                          address.c
 *          its numbers, sent to the peer                                          setup.c
 *          its memory and completion queues                                       conn_mem.c
 *   lane   one RC queue pair of a path                                            qp.c
 *          taken down without waiting for its device                              slow_verbs.c
 *   chain  prebuilt work requests; only addresses, lengths and keys change        post.c
 *          which lane it goes to                                                  turn.c
 *          goes to the device in lists, each by one doorbell                      doorbell.c
 *   slot   what a lane remembers of each post until all of it is finished         poll.c
 *
 * What comes into a GPU that does not order it is flushed by flush_gpu.c. What no NIC reaches goes
 * through pinned memory: slot.h.
 *
 * An operation is begun, committed, cancelled and ended by op.c. A connection that fails goes
 * through break.c, its fence and its end are stop.c.
 *
 * The path of a byte: post.c (spans to work requests) -> doorbell.c -> poll.c (completions) ->
 * notify.c (the peer gets a notify).
 *
 * Everything of a connection is used under its caller's lock. Shared between connections are only
 * the rails; what changes in them (dead, down) is atomic.
 */
#ifndef IB_IB_H
#define IB_IB_H

#include "rail.h"

struct ib_conn;
struct ib_match;
struct ib_staged;
struct kv_text;

enum ib_kind {
	IB_KIND_WRITE = 1,
	IB_KIND_READ,
	IB_KIND_NOTIFY,
	IB_KIND_PROOF, /* the READ behind the last WRITE */
	IB_KIND_STAGED, /* the WRITE of a slot (slot.h); of no operation, as those behind it */
	IB_KIND_ASK,	/* the READ that asks whether the peer is there */
	IB_KIND_MSG,
	IB_KIND_CREDIT,
	IB_KIND_RECV,
};

struct ib_rmr {
	uint64_t addr; /* of the region in the peer */
	uint64_t first;
	uint64_t slice_bytes;
	uint32_t slices; /* 0: it is staged */
	unsigned int shift;
	uint32_t rkey[]; /* [path * slices + slice] */
};

/* The work requests of one doorbell: all of one kind, and of one operation. */
struct ib_slot {
	uint32_t end; /* the number of the request behind its last one */
	uint16_t op;  /* of the kinds WRITE, READ, NOTIFY and PROOF */
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
	bool held;	  /* the first one: ib_conn.held goes before what it posts next */
	atomic_int async; /* enum ibv_event_type + 1 of the queue pair's last bad event, 0 = none */
	uint32_t posted;  /* work requests posted, */
	uint32_t retired; /* and known to be finished; free-running */
	uint32_t ctl_posted; /* notifies, messages and credits: users of the source buffers */
	uint32_t ctl_retired;
	uint16_t credits;   /* the peer's receive requests that this side may use */
	uint16_t owed;	    /* ours that were used and not yet given back */
	uint32_t cells_out; /* notifies sent, */
	uint32_t cells_in;  /* and received: the number of the peer's and of our next cell */
	uint32_t psn;
	uint32_t peer_qpn, peer_psn;
	uint32_t slots_in, slots_out; /* free-running, as `posted` and `retired` */
	struct ib_slot *slot;	      /* ctx->sq_depth of them: each has a request at least */
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
	uint16_t lid;	 /* that packets to it carry */
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
	uint8_t rail_index;	   /* here, */
	uint8_t sent_index;	   /* and as sent to the peer */
	uint32_t weight;	   /* share of the bytes, as IB_WEIGHT is the fastest path's; */
	uint16_t turn;		   /* of its lanes, */
	uint64_t load;		   /* and what it has carried, by its weight */
	struct ib_address address; /* the rail's, when this connection was made */
	struct ib_record record;
	uint16_t pkey, pkey_index;
	const char *chosen; /* by what */
	struct ibv_comp_channel *channel;
	struct ibv_cq *scq, *rcq;
	/* Events that were asked for: of the queue's next completion, or of an error. */
	enum ib_wakes { IB_WAKES_NOT, IB_WAKES_ERROR, IB_WAKES_NEXT } wakes_s, wakes_r;
	uint8_t events; /* whose completions have come */
	uint8_t quiet;	/* it was armed so often since a completion; QUIET at most */
	struct ibv_mr *mr_cells, *mr_probe, *mr_private;
	struct ib_end peer;
	bool watched, watched_async;
	bool deaf; /* its completion queues cannot be polled any more */
};

/* tr_op.priv */
struct ib_op {
	uint32_t in_flight; /* work requests posted and not retired */
	uint64_t lanes;	    /* used by it */
	bool busy, committed, stopping;
	bool proof_due; /* stopping: the READs behind its bytes are not posted yet */
	bool flushes;	/* it reads into a GPU that ib_conn.scratch is for */
	bool failed;	/* one of its work requests ended with an error: never TR_WRITTEN */
	bool staged;	/* some of it is: in slots before this one, */
	uint32_t staged_to;
	uint32_t reads; /* and so many spans of a read have not come */
	int64_t began_ns;
	int64_t deadline_ns; /* of stopping */
	uint32_t share;	     /* bytes of a chain of its last spans */
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
	bool staged; /* a message of staged.c */
	uint8_t msg; /* index of its copy */
};

struct ib_chain {
	struct ib_request {
		struct ibv_send_wr wr;
		struct ibv_sge sge[IB_SGES];
	} request[IB_CHAIN];
	struct ib_lane *lane; /* NULL: no chain is begun */
	const struct tr_op *op;
	uint32_t n, room;     /* work requests in it, and how many the lane takes */
	uint32_t path;	      /* of the lane */
	uint64_t id;	      /* of its requests, without their number, */
	uint32_t number;      /* which is this for the first */
	uint64_t bytes;
	uint64_t end; /* of the last one, in the peer */
	/* Requests that have one pointer with this length and these keys, from their last use. */
	struct ib_alike {
		uint32_t from, to;
		uint32_t len, lkey, rkey;
	} alike;
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
	int paths, lanes_per_path, lanes;
	uint32_t rails; /* of the paths: a bit for each, */
	uint32_t uses;	/* and those that it is a user of: until the paths are chosen all */
	struct ib_path path[IB_RAILS_MAX];
	struct ib_lane *lane;

	/* Sending and receiving, while it is IB_LIVE. */
	bool line_order;
	bool uneven; /* the paths are not equally fast */
	struct ib_slot *slots; /* where the tables begin: conn_mem.c */
	size_t tables_len;
	uint32_t chunk;		   /* bytes of a chain, */
	uint32_t message;	   /* and of one work request */
	uint32_t turn;		   /* of the lanes: post.c */
	atomic_int posting;	   /* the lane that requests were posted on last */
	struct ib_chain *chain[2]; /* by enum tr_op_kind */
	/* What waits for the next doorbell, or for ib_flush: a chain that is begun, a message. */
	struct ib_chain *open;
	struct ib_request held;
	/* Control region: cells (the peer writes), probe (the peer reads), private. */
	uint8_t *region;
	size_t region_len, probe_off, private_off;
	uint32_t seq_out, seq_in;
	uint32_t inbox_mask;
	struct ib_inbox *inbox;
	uint8_t (*msgs)[TR_MSG_MAX];
	uint32_t msgs_in;
	struct tr_mem *scratch[IB_FLUSH_GPUS]; /* of GPUs to flush: flush_gpu.c */
	unsigned int scratches;
	struct ib_staged *staged; /* NULL: nothing was */
	bool staged_ends;	  /* an operation that is may have ended */
	bool asking;	   /* an IB_KIND_ASK is under way */
	uint32_t busy;	   /* operations that have begun and not ended; */
	uint32_t stopping; /* those of them that are being cancelled */
	bool refused;	   /* a call returned TR_AGAIN because the queue was full */
	bool room; /* space appeared since; no event may follow, so poll again before sleeping */
	uint32_t idle;
	atomic_bool cq_error; /* a device has reported one for a queue of this connection */
	uint64_t stale;	      /* completions of another life, counted and ignored */

	struct { /* IB_SETUP: setup.c, rail_match.c */
		bool accepting;
		/* connecting side, until the paths are chosen */
		struct ib_match *match;
		/* accepting side: the rails that were offered, in the peer's numbers */
		struct ib_offered {
			uint8_t rail_index;
			struct ib_address address;
		} offered[IB_RAILS_MAX];
		int offers;
	} setup;

	struct { /* IB_BREAKING, IB_DOWN: break.c, stop.c, slow_verbs.c */
		struct kv_error cause;
		bool cause_is_flush;	   /* a consequence; the cause may still be found */
		int64_t break_deadline_ns; /* 0: not in the error state yet */
		atomic_bool cut; /* by another thread; it can do that no more after this */
		bool reset;	 /* what did not flush in time */
		int64_t linger_deadline_ns; /* 0: no fence yet */
		atomic_int slow;	    /* of the job in its own thread: see slow_verbs.c */
		pthread_t slow_thread;
		void (*job)(struct ib_conn *c);
		void (*left_job)(struct ib_conn *c);
		struct tr_left *left; /* what its thread's queue pairs may reach */
		struct ib_conn *next_left;
	} end;
};

static inline struct ib_conn *ib_conn_of(const struct tr_conn *conn)
{
	return tr_conn_priv(conn);
}

static inline struct ib_op *ib_op_of(const struct tr_op *op)
{
	return op->priv;
}

static inline struct ib_op *ib_op_at(const struct ib_conn *c, unsigned int index)
{
	return ib_op_of(tr_conn_op(c->conn, index));
}

static inline enum ib_kind ib_kind_of(const struct tr_op *op)
{
	return op->kind == TR_WRITE ? IB_KIND_WRITE : IB_KIND_READ;
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
	uint32_t used = lane->posted + lane->held - lane->retired + keep;
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

/* Where things of a connection lie in its memory: see conn_mem.c. */

static inline uint8_t *ib_conn_cell(struct ib_conn *c, const struct ib_lane *lane, uint32_t number)
{
	return c->region + ((size_t)lane->index * IB_RECV_DATA + number % IB_RECV_DATA) * IB_CELL;
}

/* The same cell in the peer, whose lanes are numbered alike. */
static inline uint64_t ib_peer_cell(const struct ib_lane *lane, uint32_t number)
{
	return lane->path->peer.cells +
	       ((uint64_t)lane->index * IB_RECV_DATA + number % IB_RECV_DATA) * IB_CELL;
}

/* Messages go on the first lane alone; the others carry notifies and credits. */
static inline size_t ib_buffer_len(uint32_t lane)
{
	return lane ? (size_t)IB_CELL : (size_t)IB_BUFFER;
}
_Static_assert(IB_MSG_HEADER <= IB_CELL, "a message of credits fits the buffer of any lane");

/* The bytes of so many lanes' buffers: where those of the next lane begin. */
static inline size_t ib_conn_buffers(uint32_t lanes)
{
	size_t each = IB_RECV_DATA + IB_RECVS;

	return lanes ? each * IB_BUFFER + (lanes - 1) * each * IB_CELL : 0;
}

static inline uint8_t *ib_conn_source(struct ib_conn *c, const struct ib_lane *lane,
				      uint32_t number)
{
	return c->region + c->private_off + ib_conn_buffers(lane->index) +
	       number % IB_RECV_DATA * ib_buffer_len(lane->index);
}

static inline uint8_t *ib_conn_buffer(struct ib_conn *c, const struct ib_lane *lane,
				      uint32_t number)
{
	return c->region + c->private_off + ib_conn_buffers(lane->index) +
	       (IB_RECV_DATA + number) * ib_buffer_len(lane->index);
}

static inline uint8_t *ib_conn_landing(struct ib_conn *c, const struct ib_lane *lane)
{
	return c->region + c->private_off + ib_conn_buffers((uint32_t)c->lanes) +
	       (size_t)lane->index * IB_LANDING;
}

/* mem.c */
int ib_mem_pack(struct tr_conn *conn, struct tr_mem *mem, struct wire_writer *w,
		struct kv_error *err);
int ib_mem_open(struct tr_conn *conn, struct tr_rmem *rmem, struct wire_reader *r,
		struct kv_error *err);
void ib_mem_close(struct tr_conn *conn, struct tr_rmem *rmem);
/* Breaks the connection, which has a path without keys for the region. */
int ib_mem_lacks(struct ib_conn *c, const struct ib_mr *mr, struct kv_error *err);

/* gather.c, staged.c, kernels.c: memory that no NIC reaches */
/* Puts what there is room for into slots; advances the span. 0: all of it; or TR_AGAIN. */
int ib_staged_put(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem, struct tr_span *span,
		  struct kv_error *err);
/* 0: what was put is with the device; TR_AGAIN; or negative. */
int ib_staged_flush(struct ib_conn *c, const struct tr_op *op, struct kv_error *err);
void ib_staged_cancel(struct ib_conn *c, struct tr_op *op);
/* The peer has not taken all of it, or not all has come. */
bool ib_staged_holds(const struct ib_conn *c, const struct tr_op *op);
int ib_staged_push(struct ib_conn *c); /* what is due goes out: things done */
/* A message of the peer's, in its turn; false: it is not done, and what follows it waits. */
bool ib_staged_take(struct ib_conn *c, const uint8_t *text, size_t len);
bool ib_staged_runs(const struct ib_conn *c); /* a kernel does */
/* Waits a moment for kernels. false: one runs on. */
bool ib_staged_quit(struct ib_conn *c);
void ib_staged_stop(struct ib_conn *c); /* the same before the loss is reported */
void ib_staged_close(struct ib_conn *c); /* the stages; and the rest, without queue pairs: */
void ib_staged_free(struct ib_conn *c);
void ib_staged_dump(struct kv_text *t, const struct ib_conn *c);

/* flush_gpu.c */
/* From now on what comes into that GPU is flushed (tr_mem.flush of a region). */
int ib_gpu_add(struct ib_conn *c, const struct tr_mem *flush, struct kv_error *err);
void ib_gpus_forget(struct ib_conn *c);
/* What has come by these lanes is visible to kernels that start now; else the connection breaks. */
bool ib_gpus_flush(struct ib_conn *c, uint64_t lanes);

/* speed.c */
void ib_speed_weigh(struct ib_conn *c);

/* conn_mem.c: the control region, completion queues and lanes' memory of a connection */
/* *bad_p: the path whose device has failed, -1 = none */
int ib_conn_mem_make(struct ib_conn *c, int *bad_p, struct kv_error *err);
bool ib_conn_mem_free(struct ib_conn *c);

/*
 * rail_match.c: connecting side: which rails are joined. step: 0 = c->path is filled, TR_AGAIN, or
 * the error
 */
int ib_match_begin(struct ib_conn *c, struct wire_reader *r, struct kv_error *err);
int ib_match_step(struct ib_conn *c, struct kv_error *err);
void ib_match_end(struct ib_conn *c);

/* address.c: how the packets of a path are addressed */
int ib_path_check(struct ib_ctx *ctx, const struct ib_rail *rail,
		  const struct ib_address *own, const union ibv_gid *peer, struct kv_error *err);
int ib_path_partition(const struct ib_ctx *ctx, struct ib_path *path, uint16_t pkey,
		      struct kv_error *err);
int ib_path_agree(const struct ib_path *path, struct kv_error *err);
bool ib_path_wants_grh(const struct ib_path *path);
uint16_t ib_path_lid(const struct ib_path *path);
uint8_t ib_path_sl(const struct ib_path *path, const struct kv_option_set *options);
enum ibv_mtu ib_path_mtu(const struct ib_path *path);
static inline uint32_t ib_path_packet(const struct ib_path *path) /* bytes */
{
	return 128u << ib_path_mtu(path);
}
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
long ib_op_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
	       const struct tr_span *spans, size_t n, struct kv_error *err);
long ib_op_add_blocks(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		      const struct tr_blocks *blocks, size_t n, struct kv_error *err);
/* The rest of a span that was accepted in part, and the doorbell for it. */
int ib_post_rest(struct ib_conn *c, struct tr_op *op, struct kv_error *err);

/* turn.c */
struct ib_lane *ib_next_lane(struct ib_conn *c);
/* Begins a chain on the next lane that has room; false: none has. */
bool ib_chain_begin(struct ib_conn *c, struct ib_chain *chain, const struct tr_op *op);

/* doorbell.c */
/* Posts what the chain holds, and behind it one more request, of that kind and operation. */
int ib_chain_ring(struct ib_chain *chain, struct ibv_send_wr *more, enum ib_kind kind,
		  uint16_t more_op, struct kv_error *err);
void ib_chain_forget(struct ib_chain *chain);
/* Posts what waits for a doorbell. */
int ib_flush(struct ib_conn *c, struct kv_error *err);
static inline bool ib_waits(const struct ib_conn *c)
{
	return c->open || c->lane[0].held;
}
/* Posts one work request that is not part of a chain, behind the one that its lane has begun. */
int ib_post_one(struct ib_lane *lane, struct ibv_send_wr *wr, enum ib_kind kind, uint16_t op,
		struct kv_error *err);

/* notify.c */
bool ib_notify_room(const struct ib_conn *c, uint64_t lanes);
int ib_notify_post(struct ib_conn *c, struct tr_op *op, uint64_t lanes, uint64_t value,
		   struct kv_error *err);
void ib_notify_arrived(struct ib_lane *lane, const struct ibv_wc *wc);
int ib_inbox_deliver(struct ib_conn *c);
bool ib_proof_room(const struct ib_conn *c, uint64_t lanes);
int ib_proof_post(struct ib_conn *c, struct tr_op *op, uint64_t lanes, struct kv_error *err);
bool ib_ask(struct tr_conn *conn);

/* msg.c */
int ib_msg(struct tr_conn *conn, const void *buf, size_t len, bool wake, struct kv_error *err);
/* One of staged.c: the same. */
int ib_msg_staged(struct ib_conn *c, const void *text, size_t len);
/* There is room for a message, and n work requests with it. */
bool ib_msg_room(const struct ib_conn *c, uint32_t n);
void ib_msg_arrived(struct ib_lane *lane, const struct ibv_wc *wc, uint32_t buffer);
void ib_credits_return(struct ib_conn *c);
/* False: the peer gives back more than was used. */
bool ib_credits_take(struct ib_lane *lane, uint16_t credits);

/* op.c */
void ib_op_begin(struct tr_op *op);
int ib_op_commit(struct tr_op *op, unsigned int flags, uint64_t value, struct kv_error *err);
void ib_op_cancel(struct tr_op *op, int64_t deadline_ns);
void ib_op_stop_step(struct ib_conn *c);
void ib_op_settle_staged(struct ib_conn *c);
void ib_op_settle(struct ib_conn *c, struct tr_op *op); /* reports its end if it has come */

/* poll.c */
int ib_poll(struct ib_conn *c);
int ib_progress(struct tr_conn *conn);
int ib_arm(struct tr_conn *conn);
int ib_hand_over(struct tr_conn *conn);

/* stop.c */
int ib_fence(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err);
void ib_conn_close(struct ib_conn *c); /* frees it, now or after its job */
/* false: a device still holds its queue pairs; the context is never freed. */
bool ib_left_close(struct ib_ctx *ctx);

/* break.c */
void ib_break(struct ib_conn *c, const struct kv_error *cause);
void ib_break_step(struct ib_conn *c);
void ib_cut(struct tr_conn *conn);
void ib_cut_step(struct ib_conn *c);

/* slow_verbs.c */
/* From any thread; false, and nothing, where a job is under way or no thread can be had. */
bool ib_slow_start(struct ib_conn *c, void (*job)(struct ib_conn *c));
bool ib_slow_busy(struct ib_conn *c); /* a job is under way */
/* Asked by a job: it has a thread of its own. */
bool ib_slow_aside(const struct ib_conn *c);
/*
 * true: the job was done. false: it, or another one, is under way; the same job may be run again.
 */
bool ib_slow_run(struct ib_conn *c, void (*job)(struct ib_conn *c));
/* true: a job is under way, and its thread calls `then` as the last that it does. */
bool ib_slow_leave(struct ib_conn *c, void (*then)(struct ib_conn *c));

/* status.c */
int ib_wc_code(enum ibv_wc_status status, bool port_down); /* pure */
void ib_wc_cause(const struct ib_lane *lane, const struct ibv_wc *wc, struct kv_error *err);
void ib_async_cause(const struct ib_lane *lane, int type, struct kv_error *err);
void ib_name_peer(const struct ib_conn *c, const struct ib_rail *rail, struct kv_error *err);

/* dump.c */
void ib_set_path(struct ib_conn *c); /* the words of kv_peer_info */
int ib_dump(const struct tr_conn *conn, char *buf, size_t cap);

#endif
