/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np.h -- what the parts of the plugin share: contexts, devices, communicators, requests
 *
 * A context is one NCCL communicator's init; a communicator here is one direction between two ranks
 * and owns one transport connection: the connecting side sends, the accepting side receives.
 *
 *   irecv   takes a slot, describes its memory to the sender once, sends a clear-to-send message
 *           (np_wire.h)
 *   isend   waits for a row of the oldest clear-to-send that has its tag, writes the bytes with a
 *           notify that names slot, row and size
 *   test    polls the connection and looks at the request
 *
 * Where to look, from NCCL's side inwards
 *   np_versions.c       the tables that NCCL finds: v12, and the older ones by adapters
 *   np_init.c           init, finalize; np_context.c a context and its transports
 *   np_device.c         the devices; np_env.c NCCL's variables
 *   np_connect.c        listen, connect, accept; np_address.c where a listener is
 *   np_comm.c           the life of a communicator, and the one place that polls its connection
 *   np_close.c          its end with requests under way
 *   np_reg.c            regMr; np_mem.c how the sender comes to know the receiver's memory
 *   np_recv.c           irecv, iflush; np_send.c isend; np_test.c test
 *   np_ahead.c          small sends that do not wait for their receive
 *   np_wire.c           bytes between two plugins; np_name.c NCCL's lists of names
 *   np_log.c            NCCL's logger, and its codes for our errors; np_metrics.c for Prometheus
 *   np_view.c           what kvrail dump says of communicators
 *
 * Threads  NCCL's progress thread owns a communicator's data path; its service thread connects,
 *          closes and registers memory meanwhile. So a communicator's regions have a lock, and
 *          nothing else of it has.
 * Memory   Nothing is allocated after connect, except the first time that a region is named to a
 *          sender.
 */
#ifndef NP_H
#define NP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/log.h"
#include "base/option.h"
#include "nccl_abi.h"
#include "np_wire.h"
#include "tr.h"

enum np_limits {
	NP_RECVS = NCCL_REQUESTS_MAX,
	NP_SENDS = NP_RECVS * NP_GROUP,
	NP_AHEADS = 16,		  /* small sends that may be ahead of their receives */
	NP_PIECE = 128 << 10,	  /* that one call copies: there are receives to look at, too */
	NP_DEVICES_MAX = 64,	  /* with virtual ones */
	NP_CONNECTING_MAX = 1024, /* connects of one context that have not finished */
	NP_GIVEN_UP_MS = 30000,	  /* after the last call for it a connect is given up */
	NP_HASTE_MS = 2000,	  /* the same where there are too many, or no descriptors */
	NP_PATIENCE_MS = 2000,	  /* a connect that waits longer steps this end's listeners, too */
	NP_HANDSHAKE_MS = 60000,  /* a peer's service thread may be busy elsewhere for long */
	NP_SIZE_MAX = 0x7fffff80, /* a size is reported as an int */
};

_Static_assert((int)NP_SENDS <= (int)TR_OPS_MAX, "every send is one operation");

/* ---------------------------------------------------------------- np_log.c */

void np_log_set(ncclDebugLogger_t logger);
void np_log_sink(void *arg, int level, const char *line); /* for kv_log_open */
void np_log_line(ncclDebugLogLevel level, unsigned long subsystem, const char *file, int line,
		 const char *fmt, ...) __attribute__((format(printf, 5, 6)));
#define np_warn(...) np_log_line(NCCL_LOG_WARN, NCCL_NET, __FILE__, __LINE__, __VA_ARGS__)
#define np_info(...) \
	np_log_line(NCCL_LOG_INFO, NCCL_INIT | NCCL_NET, __FILE__, __LINE__, __VA_ARGS__)
#define np_trace(...) np_log_line(NCCL_LOG_INFO, NCCL_NET, __FILE__, __LINE__, __VA_ARGS__)

/* NCCL's code for an error, which is logged as a warning. */
ncclResult_t np_fail(const struct kv_error *err, const char *what);
ncclResult_t np_misuse(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---------------------------------------------------------------- np_env.c */

enum { NP_OPTIONS_MAX = 16, NP_OPTION_TEXT = 320 };

/* A list for kv_option_read. */
struct np_options {
	const char *list[NP_OPTIONS_MAX + 1];
	char text[NP_OPTIONS_MAX][NP_OPTION_TEXT];
	int n;
};

/* What the NCCL_IB_* variables ask for; a bad value is warned about and left out. */
void np_env_options(struct np_options *options);
void np_options_set(struct np_options *options, const char *name, const char *value);
/* Unless the list has it or the environment sets NAME itself. */
void np_options_add(struct np_options *options, const char *name, const char *value);
void np_env_log_unused(void); /* logs what is set to no effect */
/* Does the launcher say that the job has ranks on other hosts? why: which variables */
bool np_env_is_on_several_hosts(char *why, size_t cap);
bool np_env_wants_host(void); /* shared memory is asked for by name */
/* NCCL_IB_HCA, NCCL_SOCKET_IFNAME, ...: "" if not set */
const char *np_env_text(const char *name);

/* ---------------------------------------- np_name.c: NCCL's lists of device and interface names */

/* "[^][=]name[:port],..."; port 0 = the name has none. An empty list matches all. */
bool np_name_matches(const char *list, const char *name, int port);

/* ---------------------------------------------------------------- np_address.c */

/*
 * The address that listeners bind to, as text; why = how it was chosen. `is_host`: only peers of
 * this host can come.
 */
struct ifaddrs;
/* The best of a list of getifaddrs, or NULL. list: NCCL_SOCKET_IFNAME's; family 0: any */
const struct ifaddrs *np_address_best(const struct ifaddrs *all, const char *list, int family);
int np_address_choose(bool is_host, char *host, size_t cap, const char **why_p,
		      struct kv_error *err);

/* ---------------------------------------------------------------- np_device.c */

struct np_device {
	char name[128];	    /* "shm", "mlx5_0:1", "mlx5_0:1+mlx5_1:1" */
	char pci_path[256]; /* "" if it has none */
	uint64_t guid;
	int speed_mbps;
	int port;
	char link[16];	 /* "RoCE", "InfiniBand" */
	bool is_host;	 /* shared memory: ranks of this host only */
	int ptr_support; /* NCCL_PTR_*: the memory that it reaches */
	int ndevs;
	int devs[NCCL_DEVS_V12];
};

/* Finds the devices at the first call; the table lives as long as the library. */
int np_devices_find(struct kv_error *err);
int np_devices_count(void);
const struct np_device *np_device_get(int dev); /* NULL: there is no such device */
/* The value of KVCACHE_RDMA_NICS that means this device. */
void np_device_nics(const struct np_device *device, char *buf, size_t cap);
ncclResult_t np_properties(int dev, ncclNetProperties_v12_t *props);
ncclResult_t np_make_vdevice(int *dev, ncclNetVDeviceProps_v12_t *props);

/* ---------------------------------------------------------------- contexts */

struct kv_report;

/* One device as one context uses it. */
struct np_rail {
	struct kv_option_set *options;
	struct kv_log *log;
	struct tr *tr;
	int ptr_support; /* the device's */
	struct np_metrics *metrics; /* NULL: not asked for */
};

struct np_context {
	pthread_mutex_t lock;
	unsigned int refs; /* NCCL's init, each listener, each communicator */
	int traffic_class; /* -1: not given */
	bool hints_off;	   /* NCCL_NET_OPTIONAL_RECV_COMPLETION=0 */
	atomic_bool hints; /* the caller is known to mark the receives that need line order */
	struct np_rail rail[NP_DEVICES_MAX];
	struct np_listener *listeners;
	/* np_connecting_report */
	void (*connecting_report)(struct np_context *ctx, const struct np_metrics *m,
				  struct kv_report *r);
	struct np_context *listens; /* where those are that a long connect steps */
	struct np_comm *connecting;
	unsigned int connectings;
	uint64_t next_cookie;
	atomic_bool finalized;
	bool shared; /* of an NCCL before v11: it ends when the library is unloaded */
};

/* np_context.c */
/* The transport of a device, opened at its first use. The caller gets a reference on ctx. */
int np_rail_get(struct np_context *ctx, int dev, struct np_rail **rail_p, struct kv_error *err);
void np_context_put(struct np_context *ctx);

/*
 * np_metrics.c. Where it cannot, the log says so, and the device goes without: then `m` is NULL,
 * and nothing is counted.
 */
struct np_comm;
struct np_request;
void np_metrics_start(struct np_context *ctx, struct np_rail *rail,
		      const struct np_device *device);
void np_metrics_hide(struct np_rail *rail); /* no thread looks at it any more */
void np_metrics_stop(struct np_rail *rail);
void np_metrics_done(struct np_metrics *m, const struct np_request *request);
void np_metrics_open(struct np_metrics *m, int more); /* communicators: 1, -1 */
void np_metrics_failed(struct np_metrics *m, const struct np_comm *comm,
		       const struct kv_error *cause);
struct np_view *np_metrics_view(struct np_metrics *m); /* NULL, if m is */

/*
 * np_view.c: the communicators of a device that are connected, as kvrail dump shows them. It waits
 * for no thread of NCCL's for long: what it shows of requests may be half old, and a connection is
 * described by the thread that polls it, if one does.
 */
struct np_view {
	pthread_mutex_t lock; /* of the list: what stands in it stays while it is held */
	struct np_comm *first;
	pthread_mutex_t asking;
	pthread_cond_t answered;
	struct np_comm *asked; /* NULL: it has answered */
	struct kv_report *to;
};
void np_view_init(struct np_view *view);
void np_view_free(struct np_view *view);
void np_view_add(struct np_comm *comm);
void np_view_remove(struct np_comm *comm);
void np_view_answer(struct np_comm *comm); /* by the thread that polls it, when it is asked */
void np_view_report(struct np_view *view, struct kv_report *r); /* fields of an item */

/* np_init.c */
/* version: of the interface that NCCL took. config may be NULL. */
ncclResult_t np_init(int version, void **ctx, const ncclNetCommConfig_v10_t *config,
		     ncclDebugLogger_t logger);
ncclResult_t np_devices(int *ndev);
ncclResult_t np_finalize(void *ctx);
ncclResult_t np_set_attr(void *ctx, ncclNetAttr_v11_t *attr);

/* ---------------------------------------------------------------- communicators */

/* A registration of one communicator: what NCCL calls mhandle. */
struct np_mr {
	struct tr_mem *mem;
	bool is_gpu;	      /* no CPU touches it */
	atomic_uint held;     /* by requests under way; changed by the data path only */
	uint16_t slot;	      /* receiving side: its number in messages */
	bool described;	      /* the sender knows it; progress thread only */
	size_t described_len; /* bytes of the description sent so far */
	uint64_t serial;      /* of the communicator's regions, from 1 on */
	struct np_mr *next, **prev;
};

/* What differs between the two directions: np_send.c, np_recv.c. */
struct np_side {
	const char *what; /* it does, for errors */
	bool is_send;
	size_t size; /* of the communicator */
	void (*init)(struct np_comm *comm);
	int (*event)(struct np_comm *comm, const struct tr_event *event, struct kv_error *err);
	int (*push)(struct np_comm *comm, struct kv_error *err); /* what waits; NULL: nothing can */
};
extern const struct np_side np_sending, np_receiving;

struct np_comm {
	const struct np_side *side;
	struct np_context *ctx;
	struct tr *tr;
	struct np_metrics *metrics; /* the device's */
	/* np_view.c */
	struct np_comm *beside;
	bool shown;
	atomic_bool asked;
	int ptr_support;
	struct tr_conn *conn;
	bool failed;
	bool left;	     /* the failure: the peer closed in good order */
	ncclResult_t result; /* of every call after the failure */
	pthread_mutex_t mr_lock;
	struct np_mr *mrs;
	uint64_t serials;
	uint64_t describing; /* the region whose description was sent last; progress thread only */
	struct np_mr *gone;  /* deregistered, but a request that has not been tested names it */
	bool is_shm;	     /* the transport */
	/* np_close.c */
	bool closed; /* NCCL has closed it, and got an error because it has not ended */
	bool ending; /* it stands in the list of those; then under its lock */
	int64_t linger_ns;
	bool ended; /* nothing touches its memory any more */
	/* while connecting */
	uint64_t cookie;
	uint8_t nonce[NP_NONCE];
	int64_t patience_ns;
	int64_t asked_ns;     /* the last call of connect */
	struct np_comm *next; /* while connecting, and while ending */
};

enum np_request_kind { NP_FREE = 0, NP_SEND, NP_RECV };

struct np_request {
	struct np_comm *comm;
	uint8_t kind; /* enum np_request_kind */
	uint8_t n;    /* rows */
	uint8_t left; /* bit i: row i has not ended */
	uint16_t seq; /* NP_RECV: of the clear-to-send */
	uint16_t index;
	int64_t waits_ns; /* since NCCL asked for it in vain; 0: it has not */
	size_t size[NP_GROUP];
	struct np_mr *mr[NP_GROUP]; /* NULL: no bytes */
	bool any_order;		    /* no line is read before the notify */
	/* NP_SEND */
	bool bound; /* it has its row */
	bool ahead; /* its bytes are at the receiver already */
	int tag;
	struct tr_op *op;
	struct tr_rmem *rmem; /* held */
	struct tr_span span;
	uint64_t value;
	struct np_request *next;
};

struct np_queue {
	struct np_request *first, **last;
};

/* Clear-to-send groups that wait for sends, in order. */
struct np_group {
	struct np_cts cts;
	uint8_t taken; /* bit i: row i has its send */
};

struct np_send {
	struct np_comm comm;
	struct np_group group[NP_RECVS];
	unsigned int group_head, group_tail;
	struct tr_rmem **rmem; /* by slot */
	unsigned int rmems;
	uint8_t description[TR_MEM_PACK_MAX]; /* being received */
	uint16_t description_slot;
	size_t description_len;
	uint16_t next_seq;	    /* of the next group */
	size_t piece;		    /* bytes of one tr_op_add at most */
	struct np_queue early;	    /* wait for a row */
	unsigned int aheads, waits; /* of these: sent ahead, and not */
	bool may_ahead;		    /* the receiver takes messages ahead */
	struct np_queue pending;    /* have one, not yet taken by the transport */
	struct np_request request[NP_SENDS];
	uint16_t free[NP_SENDS];
	unsigned int frees;
};

struct np_landing {
	uint8_t *data;
	int tag;
};

/* A message that came ahead of its receive. */
struct np_kept {
	int tag;
	uint16_t len;
	uint8_t bytes[NP_AHEAD_BYTES];
};

struct np_recv {
	struct np_comm comm;
	uint16_t seq;
	uint64_t *slot_used; /* bit map of memory slots; under mr_lock */
	struct np_request request[NP_RECVS];
	struct np_landing landing[NP_RECVS][NP_GROUP];
	struct np_kept kept[NP_AHEADS];
	unsigned int keeps;
};

/* np_connect.c */
ncclResult_t np_listen(void *ctx, int dev, void *handle, void **comm);
ncclResult_t np_connect(void *ctx, int dev, void *handle, void **comm,
			ncclNetDeviceHandle_v7_t **device);
ncclResult_t np_close_listen(void *comm);
ncclResult_t np_accept(void *listen, void **comm, ncclNetDeviceHandle_v7_t **device);
/* Frees connects that NCCL has not asked for since; returns how many others there are. */
unsigned int np_connecting_end(struct np_context *ctx, int64_t asked_before_ns);
/* What has not been connected, and listeners, as lists of an item. */
void np_connecting_report(struct np_context *ctx, const struct np_metrics *m, struct kv_report *r);

/* np_comm.c */
struct np_comm *np_comm_new(struct np_context *ctx, const struct np_rail *rail,
			    const struct np_side *side, struct kv_error *err);
/* With its connection and registrations; puts the context. */
void np_comm_free(struct np_comm *comm);
ncclResult_t np_comm_fail(struct np_comm *comm, const struct kv_error *cause, const char *what);
ncclResult_t np_progress(struct np_comm *comm);

/* np_close.c */
ncclResult_t np_close_send(void *comm);
ncclResult_t np_close_recv(void *comm);
/*
 * Requests that use the region (NULL: any) end with the communicator; an error, which is logged:
 * they have not yet.
 */
ncclResult_t np_end_use(struct np_comm *comm, const struct np_mr *mr, const char *what);
void np_end_step(void);			 /* moves those that NCCL has closed already */
void np_end_all(struct np_context *ctx); /* those of a context, at its end */

/* np_reg.c */
ncclResult_t np_reg(void *comm, void *data, size_t size, int type, void **mhandle);
ncclResult_t np_reg_dmabuf(void *comm, void *data, size_t size, int type, uint64_t offset, int fd,
			   void **mhandle);
ncclResult_t np_dereg(void *comm, void *mhandle);

/* np_mem.c */
/* A number for a region of the receiver; both under mr_lock. */
int np_mem_take_slot(struct np_recv *r, uint16_t *slot_p, struct kv_error *err);
void np_mem_give_slot(struct np_recv *r, uint16_t slot);
void np_mem_free_all(struct np_comm *comm);
/* Describes a region to the sender, once: 0, TR_AGAIN or the error. */
int np_mem_describe(struct np_comm *comm, struct np_mr *mr, struct kv_error *err);
/* Is [data, data + size) in the region? NULL holds the empty range. */
bool np_mem_holds(const struct np_mr *mr, const void *data, size_t size);
/* A region that is held is not deregistered; NULL: none. */
static inline void np_mr_hold(struct np_mr *mr, int by)
{
	if (mr) /* one writer, so no read-modify-write */
		atomic_store_explicit(&mr->held,
				      atomic_load_explicit(&mr->held, memory_order_relaxed) +
					      (unsigned int)by,
				      memory_order_release);
}
/* What the sender does with a description. */
int np_mem_described(struct np_send *s, struct wire_reader *r, struct kv_error *err);

/* np_send.c, np_recv.c */
ncclResult_t np_isend(void *comm, void *data, size_t size, int tag, void *mhandle, void *phandle,
		      void **request);
ncclResult_t np_irecv(void *comm, int n, void **data, size_t *sizes, int *tags, void **mhandles,
		      void **phandles, void **request);
ncclResult_t np_iflush(void *comm, int n, void **data, int *sizes, void **mhandles, void **request);
void np_send_ready(struct np_send *s, const struct np_rail *rail); /* connected */
void np_send_release(struct np_request *request);
void np_recv_release(struct np_request *request);

/* np_ahead.c */
/* 0, TR_AGAIN: it has to wait for its row, or the error. */
int np_ahead_send(struct np_send *s, struct np_request *request, const void *data,
		  struct kv_error *err);
int np_ahead_event(struct np_recv *r, struct wire_reader *reader, struct kv_error *err);
/* What waited for this receive. */
void np_ahead_land(struct np_recv *r, struct np_request *request);

/* np_test.c */
ncclResult_t np_test(void *request, int *done, int *sizes);

static inline struct np_send *np_send_of(struct np_comm *comm)
{
	return (struct np_send *)comm;
}

static inline struct np_recv *np_recv_of(struct np_comm *comm)
{
	return (struct np_recv *)comm;
}

#endif
