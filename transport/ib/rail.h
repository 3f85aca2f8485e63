/* SPDX-License-Identifier: Apache-2.0 */
/* rail.h -- a context of the ib provider: its limits, its rails, the memory registered with them */
#ifndef IB_RAIL_H
#define IB_RAIL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/pci.h"
#include "provider.h"
#include "verbs_load.h"

struct ib_conn;
struct kv_option_set;

enum ib_limits {
	IB_RAILS_MAX = 8,
	IB_PORTS_MAX = 64,   /* looked at; the best IB_RAILS_MAX of them are used */
	IB_WEIGHT = 256,     /* of the fastest path; others have less */
	IB_ILL_MS = 5000,    /* a device that could not make a connection's objects is left alone */
	IB_LATE_MS = 1000,   /* between two looks at ports that could not be used */
	IB_MSG_LEAST = 4096, /* bytes of a message that a port must take */
	IB_LANES_MAX = 64,   /* of a connection: the width of a lane mask */
	IB_SQ_DEPTH = 512,   /* work requests of a lane; a power of two */
	IB_SQ_NOTIFY = 8,    /* of them kept free of data: for notifies, messages and credits, */
	IB_SQ_MSG = 4,	     /* for messages and credits, */
	IB_SQ_CREDIT = 2,    /* for credits */
	IB_RECV_DATA = 64,   /* receive requests of a lane that notifies and messages may use */
	IB_RECV_CREDIT = 2, /* and those that credit messages use; msg.c proves that 2 are enough */
	IB_RECV_MSG = 8,    /* of the first lane's IB_RECV_DATA, those that only messages may use */
	IB_RECVS = IB_RECV_DATA + IB_RECV_CREDIT,
	IB_CHAIN = 64, /* work requests of one doorbell, of which the last one is signalled */
	/* bytes of one work request, and of one chain before the next lane's turn */
	IB_CHUNK = 256 << 10,
	IB_SHARE = 64 << 10, /* the least that is worth another path */
	IB_LINE = 128,	     /* pieces are cut at remote addresses that are multiples of it */
	IB_SGES = 2,	     /* of a work request: two fit the smallest work queue element */
	IB_INLINE = 32,	     /* a notify record */
	IB_MSG_HEADER = 16,
	IB_BUFFER = IB_MSG_HEADER + TR_MSG_MAX,
	IB_CELL = 32,	   /* bytes of a notify record */
	IB_LANDING = 8,	   /* bytes of a READ of the probe */
	IB_RD_ATOMIC = 16, /* reads under way on a lane */
	IB_POLL = 32,	   /* completions taken at once */
	IB_BREAK_MS = 500, /* how long a broken connection waits for its flushed work */
	/* a fenced one, before that, for its last messages, one of them sent again */
	IB_LINGER_MS = 300,
	IB_SLOW_MS = 1,	       /* a verb that may take long is waited for this long in the call */
	IB_LOOP_MS = 100,      /* a read by which a NIC flushes its writes into a GPU */
	IB_FLUSH_GPUS = 16,    /* of one process that one connection flushes */
	IB_CLOSE_MS = 1000,    /* and this long when the context is closed */
	IB_AGAIN_MS = 32,      /* between two tries to destroy what a device refuses to, at most */
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
	uint8_t mtu;  /* enum ibv_mtu */
	uint16_t lid; /* InfiniBand: the first of 2^lmc */
	uint8_t lmc;
	char reason[160]; /* why this entry of the GID table */
};

/* A queue pair that is connected to itself: flush_gpu.c. */
struct ib_loop {
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	struct ibv_mr *mr;
	uint64_t landing;
};

struct ib_rail {
	struct ibv_context *context;
	struct ibv_pd *pd;
	uint8_t port;
	bool ethernet;
	char name[32]; /* "mlx5_0:1" */
	struct ibv_device_attr attr;
	struct ibv_port_attr port_attr;
	unsigned int gigabits;	   /* a second; 0 = not known */
	struct ib_address address; /* when it was opened */
	struct pci_place place;
	atomic_bool dead; /* the device has failed: nothing but destroying works */
	atomic_bool down; /* the port is down */
	atomic_bool ill;  /* verbs fail; new connections do without it until they work again */
	_Atomic int64_t ill_until_ns; /* not even tried before */
	atomic_bool lame; /* it could not register memory: it is used no more, a new one may come */
	struct ib_loop *loop; /* NULL until one is needed; under loop_lock */
	bool noted;	  /* it has failed, and is looked for again: late.c */
	unsigned int users; /* connections, registrations: it is not closed under them */
};

/* It is of no use any more; the device may be, opened anew. */
static inline bool ib_rail_failed(const struct ib_rail *rail)
{
	return atomic_load(&rail->dead) || atomic_load(&rail->lame);
}

/* A port that could not be used when it was last tried. */
struct ib_absent {
	char device[32];
	uint8_t port;
	bool told; /* that it works, but not for all registered memory */
};

struct ib_ctx {
	struct tr *tr;
	const struct ib_verbs *v;
	uint64_t slice_bytes;
	uint32_t sq_depth;
	bool relaxed;
	bool inline_jobs; /* tests: no threads, so that a run can be repeated */
	pthread_mutex_t left_lock, loop_lock;
	struct ib_conn *left; /* closed, with a job under way */
	int gid_option;	      /* KVCACHE_RDMA_GID_INDEX */
	const char *sysroot;
	struct pci_place gpu; /* of KVCACHE_GPU; its address is "" where none is known */
	/*
	 * Places of rails, [0, rails) of them ever used. An empty one has no context. That of a
	 * failed rail is emptied when another needs it and it has no users (late.c), so what keeps
	 * the number of a rail, or looks into it, is a user of it.
	 */
	atomic_int rails;
	struct ib_rail rail[IB_PORTS_MAX];
	/* Held over no verb that may last. Under it: users, and what follows. */
	pthread_mutex_t lock;
	pthread_cond_t idle;
	uint32_t open;	 /* rails that connections may use: a bit for each; */
	uint32_t taking; /* those and one that is being added: registrations serve them */
	struct ib_mr *mrs;
	/* late.c */
	atomic_int late;
	pthread_t late_thread;
	int64_t late_next_ns;
	int absents;
	atomic_bool warned_staged; /* the log has why memory of a GPU is */
	struct ib_absent absent[IB_PORTS_MAX];
};

/* speed.c */
void ib_speed_find(const struct ib_ctx *ctx, struct ib_rail *rail);
void ib_speed_choose(struct ib_ctx *ctx, bool by_name, bool named, struct kv_log *log);
bool ib_speed_is_far_slower(const struct ib_ctx *ctx, const struct ib_rail *rail);

/* late.c */
void ib_late_note(struct ib_ctx *ctx, const char *device, uint8_t port);
void ib_late_look(struct ib_ctx *ctx); /* for a new connection; takes devices' events */
bool ib_late_busy(struct ib_ctx *ctx);

/* rails.c */
int ib_rails_near(struct ib_ctx *ctx, const char *word, struct kv_log *log, struct kv_error *err);
int ib_rails_open(struct ib_ctx *ctx, const char *nics, struct kv_log *log, struct kv_error *err);
void ib_rails_close(struct ib_ctx *ctx);

/* users.c */
/* The open rails, or those of them that have not failed: the caller is a user of each. */
uint32_t ib_rails_use(struct ib_ctx *ctx, bool failed);
/* The same for any rails that are there, under the lock. */
void ib_rails_hold(struct ib_ctx *ctx, uint32_t rails);
/* Not under it. */
void ib_rails_let_go(struct ib_ctx *ctx, uint32_t rails);
uint32_t ib_rails_working(const struct ib_ctx *ctx, uint32_t rails);

/* device.c */
void ib_rail_place(const struct ib_ctx *ctx, const char *device, struct pci_place *place);
/* ARG: there is no such port. UNSUPPORTED, UNREACHABLE: it is not active. */
int ib_rail_open(struct ib_ctx *ctx, struct ib_rail *rail, struct ibv_device *device, uint8_t port,
		 struct kv_error *err);
void ib_rail_close(struct ib_ctx *ctx, struct ib_rail *rail);
void ib_loop_close(const struct ib_ctx *ctx, struct ib_rail *rail);
/* Its verbs fail, and a warning says so once; they work (again). */
void ib_rail_is_ill(struct ib_ctx *ctx, struct ib_rail *rail, const struct kv_error *why);
void ib_rail_is_well(struct ib_ctx *ctx, struct ib_rail *rail);
int ib_rail_address(const struct ib_ctx *ctx, struct ib_rail *rail, const union ibv_gid *near,
		    struct ib_address *address_p, struct kv_error *err);
int ib_rail_ready(struct ib_ctx *ctx, struct ib_rail *rail, const union ibv_gid *near,
		  struct ib_address *address_p, struct kv_error *err);
bool ib_rails_have(struct ib_ctx *ctx, const union ibv_gid *gid);
void ib_rail_describe(const struct ib_rail *rail, char *buf, size_t cap);
void ib_async_drain(struct ib_ctx *ctx, uint32_t rails); /* of which the caller is a user */

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
	uint32_t slices; /* 0: no NIC has it, it is staged */
	unsigned int shift; /* see ib_slice_shift */
	/* Rails that have it: a bit for each; late.c adds and removes one while others use them. */
	_Atomic uint32_t have;
	bool busy;	    /* the job of late.c works on it */
	bool stages;	    /* kernels copy it, where the other end is staged */
	const struct tr_mem *mem;
	struct ib_mr *next, **prev;
	struct ibv_mr *mr[]; /* [rail * slices + slice], for IB_RAILS_MAX rails */
};

/*
 * An offset shifted right by this is its slice; so for a block nothing is divided. 0: the size of
 * the slices is not a power of two, as an earlier version has it for more than 100 GiB.
 */
static inline unsigned int ib_slice_shift(uint64_t slice_bytes, uint32_t slices)
{
	if (slices == 1)
		return 63;
	return slice_bytes & (slice_bytes - 1) ? 0 : (unsigned int)__builtin_ctzll(slice_bytes);
}

int ib_mem_reg(void *ctx, struct tr_mem *mem, void **handle_p, struct kv_error *err);
void ib_mem_dereg(void *ctx, void *handle);
int ib_gpu_reach(const struct ib_ctx *ctx, const struct ib_rail *rail); /* enum kv_gpu_reach */
/* With one rail more; without these. */
int ib_mr_add(struct ib_ctx *ctx, struct ib_mr *mr, int rail, struct kv_error *err);
void ib_mr_drop(struct ib_ctx *ctx, struct ib_mr *mr, uint32_t rails);
int ib_mem_short(const struct ib_ctx *ctx, const struct ib_rail *rail, size_t len, int why,
		 struct kv_error *err); /* shortage.c: why a device has no more room for memory */
int ib_mr_make(struct ib_ctx *ctx, struct ib_rail *rail, void *addr, size_t len,
	       unsigned int access, struct ibv_mr **mr_p, struct kv_error *err);

#endif
