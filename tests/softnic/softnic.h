/* SPDX-License-Identifier: Apache-2.0 */
/*
 * softnic.h -- a software RDMA device as a drop-in libibverbs.so.1: the objects of this process,
 * and those that all processes of the world see
 *
 * Each process that opens it is a host with a device of its own; one file in /dev/shm is the wire
 * between them (world.c): which queue pair is where, which keys open what, and the receive requests
 * of each queue pair. What a work request does is done by the process that posted it, in its call
 * (wire.c): bytes go to the other process by process_vm_writev, a completion into the receive
 * request that it used. The receiver turns those into completions when it polls. So there is no
 * thread, but for one case: late.c.
 *
 * In SOFTNIC_MODE=null and model the payload of plain WRITEs is dropped: what is left of one is
 * what a driver does, a 64-byte record in the send queue, and one doorbell a post. Inline WRITEs,
 * SENDs, WRITEs with an immediate and READs work as always; but small ones of the former lie in the
 * receive request that they use until the receiver polls, as a system call for each would cost the
 * sender what no driver costs. README.md: what a program can set.
 */
#ifndef SOFTNIC_H
#define SOFTNIC_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model.h"

enum {
	SN_HOSTS = 250,
	SN_DEVICES = 4,
	SN_QPS = 4096,
	SN_CQS = 8192,
	SN_SRQS = 256,
	SN_MRS = 1 << 16,
	SN_UNIT = 64,	      /* bytes of a work request in the send queue */
	SN_RETRY_NS = 100000, /* between two tries of what was not answered, if nobody polls */
};

/* ---------------------------------------------------------------- what all processes see */

/* Its holder may have been killed: then the next one takes it over. */
struct sn_lock {
	atomic_int owner;
};

struct sn_shared_recv {
	uint64_t wr_id;
	uint32_t num_sge;
	struct ibv_sge sge[MODEL_SGES];
	/* filled by the sender */
	uint32_t byte_len, imm, src_qp, qpn;
	uint16_t status;
	bool written; /* a WRITE with an immediate used it */
	bool has_imm;
	uint64_t due; /* when it has arrived */
	/* a small payload, that the receiver's process puts there before its user sees this */
	uint32_t carried;
	uint64_t to;
	uint8_t bytes[MODEL_INLINE];
};

/* Receive requests, of one queue pair or of several. */
struct sn_shared_rq {
	struct sn_lock taking;	     /* of several: whose message is next */
	_Atomic uint32_t tail, head; /* posted, used; free-running */
	uint32_t mask;
	struct sn_shared_recv recv[MODEL_DEPTH];
};

struct sn_shared_srq {
	atomic_int host; /* + 1; 0 = free */
	struct sn_shared_rq rq;
};

/* What a sleeper is woken by. Every message that comes counts as solicited. */
enum sn_armed { SN_BY_NOTHING, SN_BY_SOLICITED, SN_BY_ALL };

struct sn_shared_cq {
	atomic_int host;	   /* + 1; 0 = free */
	_Atomic uint32_t arrivals; /* something happened to a queue pair of it */
	atomic_int armed; /* enum sn_armed */
	atomic_int events;
	_Atomic uint32_t channel; /* 0 = none */
};

struct sn_shared_qp {
	struct sn_lock inbound; /* what arrives: one at a time, and not while it is taken down */
	_Atomic uint32_t qpn;	/* 0 = free */
	atomic_int state;
	int host, device;
	uint32_t pd, async, send_cq, recv_cq;
	uint32_t dest_qpn, sq_psn, rq_psn, mtu;
	unsigned int access;
	uint32_t srq; /* + 1; 0: its receive requests are its own */
	struct sn_shared_rq rq;
};

struct sn_shared_mr {
	_Atomic uint32_t lkey; /* 0 = free */
	uint32_t rkey, pd;
	int host;
	unsigned int access;
	uint64_t iova, addr, len;
	atomic_int users;
};

struct sn_world {
	uint64_t magic;
	_Atomic uint32_t next_qp, next_mr, next_cq, next_srq, next_pd, next_name;
	atomic_int host[SN_HOSTS]; /* pid, 0 = free */
	struct sn_shared_cq cq[SN_CQS];
	struct sn_shared_mr mr[SN_MRS];
	struct sn_shared_srq srq[SN_SRQS];
	struct sn_shared_qp qp[SN_QPS];
};

/* ---------------------------------------------------------------- what is this process's own */

enum sn_mode { SN_COPY, SN_NULL, SN_MODEL };

struct sn_counts {
	uint64_t posts, work_requests, doorbells, signalled, completions, polls, bytes, ns;
};

/* The NIC's clock: 1/1024 ns, so that a message of 5 ns has no rounding to speak of. */
struct sn_clock {
	pthread_mutex_t lock;
	uint64_t free; /* when the port has sent what it was given */
};

struct sn_device {
	struct ibv_device device;
	int index;
	struct sn_clock clock;
	volatile uint64_t doorbell; /* its register */
};

struct sn_self {
	int pid, host; /* who is attached */
	int devices;
	bool infiniband;
	enum sn_mode mode;
	uint64_t byte_cost, message_cost, qp_cost; /* in the clock's unit */
	uint64_t latency_ns, doorbell_ns;
	bool timed; /* counts.ns is wanted */
	const char *stats;
	int wire; /* a socket that wakes other processes */
	struct sn_world *world;
	struct sn_device device[SN_DEVICES];
	pthread_mutex_t lock; /* the list of completion queues, and what is counted */
	struct sn_cq *cqs;
	struct sn_qp *qp[SN_QPS];
	struct sn_counts counts; /* of what is destroyed */
};
extern struct sn_self sn;

struct sn_context {
	struct sn_device *device;
	uint32_t async;
	struct verbs_context verbs; /* last */
};

struct sn_pd {
	struct ibv_pd pd;
	uint32_t number;
};

struct sn_channel {
	struct ibv_comp_channel channel;
	uint32_t name;
	struct sn_cq *cqs; /* linked by `beside` */
};

struct sn_entry {
	struct ibv_wc wc;
	uint64_t due;
	struct sn_qp *qp;
	uint32_t position; /* of the work request in its queue */
	bool recv;
};

/* Order of locks: sn.lock, a queue's `scan`, a queue pair's, a queue's `lock`. */
struct sn_cq {
	struct ibv_cq cq;
	struct sn_shared_cq *shared;
	uint32_t number;
	pthread_mutex_t scan; /* its queue pairs */
	struct sn_qp *senders, *receivers;
	uint32_t seen;	      /* arrivals */
	atomic_int pending;   /* queue pairs with work that could not be done at once */
	pthread_mutex_t lock; /* its entries */
	struct sn_entry *entry;
	uint32_t head, tail, size;
	uint64_t completions, polls, ns;
	struct sn_cq *next;
	struct sn_cq *beside; /* the next one of its channel */
};

/* Receive requests, as their owner sees them. */
struct sn_rq {
	pthread_mutex_t lock;
	struct sn_shared_rq *shared;
	uint32_t max_wr, max_sge;
	uint32_t seen;		 /* made into completions */
	_Atomic uint32_t polled; /* whose place is free again */
};

struct sn_srq {
	struct ibv_srq srq;
	struct sn_rq rq;
	uint32_t number;
	atomic_int users;
};

/* As a driver writes one: control, remote address and up to two pointers, 64 bytes. */
struct sn_record {
	uint32_t opcode_index, qpn_ds, flags, imm;
	uint64_t raddr;
	uint32_t rkey, reserved;
	struct sn_pointer {
		uint32_t len, lkey;
		uint64_t addr;
	} pointer[2];
};
_Static_assert(sizeof(struct sn_record) == SN_UNIT, "one unit of the send queue");

/* What does not fit the unit: further ones of a real queue. */
union sn_more {
	struct sn_pointer pointer[MODEL_SGES];
	uint8_t inlined[MODEL_INLINE];
};

/* What a driver keeps of a work request for its completion. */
struct sn_kept {
	uint64_t wr_id;
	uint32_t len;
	uint32_t more; /* its place there, if it has something */
	uint8_t opcode, sges;
	bool signalled, is_inline;
	bool dropped; /* nothing of it but its completion is left */
};

struct sn_qp {
	struct ibv_qp_ex ex; /* first */
	struct sn_device *device;
	struct sn_shared_qp *shared;
	struct ibv_qp_init_attr init;
	struct ibv_qp_attr attr;
	struct sn_qp *next_sender, *next_receiver;
	pthread_mutex_t lock; /* sending */
	struct sn_record *record;
	union sn_more *more;
	struct sn_kept *kept;
	uint32_t sq_mask, sq_tail, sq_done; /* posted, done */
	uint32_t mores;			    /* of the requests that had some; free-running */
	_Atomic uint32_t sq_polled;	    /* its completion was taken */
	bool pending, reached;
	uint64_t retry_until; /* 0 = nothing is tried again */
	uint64_t clock;	      /* when it is done with what it was given */
	volatile uint32_t doorbell_record;
	struct sn_counts counts;
	struct { /* between ibv_wr_start and ibv_wr_complete */
		uint32_t from;
		int error;
		bool built;
		struct ibv_send_wr wr;
		struct ibv_sge sge[MODEL_SGES];
	} build;
	struct sn_rq own, *rq; /* its own, or those that it shares */
};

static inline struct sn_qp *sn_qp_of(struct ibv_qp *qp)
{
	return (struct sn_qp *)qp;
}

static inline struct sn_srq *sn_srq_of(struct ibv_srq *srq)
{
	return (struct sn_srq *)srq;
}

static inline struct sn_cq *sn_cq_of(struct ibv_cq *cq)
{
	return (struct sn_cq *)cq;
}

static inline struct sn_context *sn_context_of(struct ibv_context *context)
{
	return (struct sn_context *)((char *)context - offsetof(struct sn_context, verbs.context));
}

/* world.c */
bool sn_attach(void); /* this process is in the world; false: errno, and why was printed */
/*
 * Zeroed, or NULL. All of a device's queues are shared memory, as the world is: RssAnon of the
 * process is its program's.
 */
void *sn_map(size_t len);
void sn_unmap(void *at, size_t len);
void sn_lock_take(struct sn_lock *lock);
void sn_lock_give(struct sn_lock *lock);
/*
 * Makes a free one of `n` places of the world this process's, by the word `host` of the first; the
 * next one's is `size` bytes on. false with ENOMEM: all are taken.
 */
bool sn_take(_Atomic uint32_t *next, uint32_t n, atomic_int *host, size_t size, uint32_t *number_p);
int sn_socket(uint32_t *name_p); /* bound to a new name */
/* One datagram to it. */
void sn_tell(uint32_t name, const void *what, size_t len);
void sn_count(struct sn_counts *to, const struct sn_counts *from);

/* device.c */
void sn_tell_async(const struct sn_shared_qp *qp, enum ibv_event_type type);
struct sn_shared_mr *sn_mr_find(uint32_t key, bool remote);
/* Where the bytes are, if the key opens all of them with this right; 0: it does not. */
uint64_t sn_mr_at(const struct sn_shared_mr *mr, int host, uint32_t pd, uint64_t addr, uint64_t len,
		  unsigned int access);

/* cq.c */
void sn_push(struct sn_cq *cq, const struct sn_entry *entry);
void sn_fire(struct sn_shared_cq *cq); /* wakes who sleeps on it, once */
void sn_scan(struct sn_cq *cq);
/*
 * Whether a completion is due that wakes who sleeps; *due_p: when the first such one is if it is
 * not yet, 0 = none is there.
 */
bool sn_wakes(struct sn_cq *cq, uint64_t now, uint64_t *due_p);
int sn_poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc);
int sn_req_notify_cq(struct ibv_cq *cq, int solicited_only);

/* qp.c */
int sn_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
uint32_t sn_power_of_two(uint32_t least);
int sn_record_put(struct sn_qp *qp, const struct ibv_send_wr *wr);
void sn_doorbell(struct sn_qp *qp);
struct ibv_qp *sn_create_qp_ex(struct ibv_context *context, struct ibv_qp_init_attr_ex *attr);

/* rq.c */
void sn_rq_init(struct sn_rq *rq, struct sn_shared_rq *shared, uint32_t max_wr, uint32_t max_sge);
void sn_rq_reset(struct sn_rq *rq);
int sn_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
int sn_post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
void sn_collect(struct sn_qp *qp);
void sn_collect_all(void); /* what is carried to this process is in its memory */

/* wr.c */
void sn_wr_init(struct sn_qp *qp);

/* wire.c */
void sn_run(struct sn_qp *qp); /* as much as can be done now */
void sn_qp_error(struct sn_shared_qp *qp);

/* late.c */
void sn_late(void); /* somebody sleeps, and something is not done yet */
uint64_t sn_now(void);
/* What the port takes for so many bytes, in the clock's unit. */
static inline uint64_t sn_port_cost(uint32_t len)
{
	uint64_t bytes = len * sn.byte_cost >> 10;

	return bytes > sn.message_cost ? bytes : sn.message_cost;
}
/* When the modelled NIC has sent n messages that cost its port so much; its clock is locked. */
uint64_t sn_clock_sends(struct sn_qp *qp, uint32_t n, uint64_t port_cost, uint64_t now);

#endif
