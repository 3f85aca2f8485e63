/* SPDX-License-Identifier: Apache-2.0 */
/* fake_world.h -- the objects behind fake.h; all of them under world.lock */
#ifndef FAKE_WORLD_H
#define FAKE_WORLD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#include "fake.h"
#include "model.h"

enum {
	HOSTS_MAX = 4,
	DEVICES_MAX = 12,
	MRS_MAX = 4096,
	QPS_MAX = 1024,
	WINDOW = 16,	   /* requests of a queue pair under way */
	TIMEOUT_STEPS = 8, /* between two tries of a request that is not answered */
	RNR_STEPS = 4,
	PIECE = 512, /* bytes placed at once, at most */
	ASYNC_MAX = 64,
	WRITES_KEPT = 4096,
};

struct fake_device {
	struct ibv_device device;
	int host, index;
	bool up, dead, fatal;
	enum fake_sickness sick;
	uint16_t lid;
	struct fake_port port;
	uint64_t carried, busy_until;
	struct fake_qp *late; /* NULL, or its `place` is on its way into a GPU */
	struct ibv_gid_entry gid[MODEL_GIDS];
};

struct fake_context {
	struct ibv_context context;
	struct fake_device *device;
	struct ibv_async_event event[ASYNC_MAX];
	unsigned int event_head, event_tail;
	int users, unacked;
	bool gone; /* the device has failed since it was opened: it stays of no use */
	struct fake_context *next;
};

struct fake_pd {
	struct ibv_pd pd;
	int users;
};

struct fake_mr {
	struct ibv_mr mr;
	unsigned int access;
	uint8_t *bytes; /* where mr.addr really is: the same, or elsewhere for memory of a GPU */
	void *map;	/* of a DMA-BUF, */
	size_t map_len;
	/* Pages that its user has unmapped: a copy of all, for this part of it. */
	uint8_t *pinned;
	uint64_t gone_at, gone_end;
};

struct fake_channel {
	struct ibv_comp_channel channel;
	struct fake_cq *event[ASYNC_MAX];
	unsigned int event_head, event_tail;
	int users;
};

struct fake_wc {
	struct ibv_wc wc;
	uint32_t position; /* of the work request in its queue */
	bool recv, spurious;
};

struct fake_cq {
	struct ibv_cq cq;
	struct fake_wc *wc;
	uint32_t head, tail, size;
	bool armed, overrun;
	bool for_errors; /* armed for nothing else; no message here is solicited */
	int users, unacked;
};

struct fake_wr {
	uint64_t wr_id;
	int opcode;
	unsigned int flags;
	uint32_t imm, rkey;
	uint64_t raddr;
	struct ibv_sge sge[MODEL_SGES];
	int num_sge;
	uint8_t inlined[MODEL_INLINE];
	uint32_t len;
	/* while it is under way */
	bool executed;
	enum ibv_wc_status status;
	uint32_t vendor_err;
	int tries, rnr_tries;
	uint64_t wait_until;
	uint8_t *data; /* of a READ, until it lands */
};

struct fake_recv {
	uint64_t wr_id;
	struct ibv_sge sge[MODEL_SGES];
	int num_sge;
};

/* Bytes that the responder has accepted and not yet written to memory. */
struct fake_place {
	uint8_t *to;
	uint32_t len;
	bool relaxed, acked;
	uint32_t requester_position;
	struct fake_place *next;
	uint8_t data[];
};

/* A packet of a queue pair that is no more. */
struct fake_ghost {
	uint32_t to_qp, from_qp, psn;
	int opcode;
	uint64_t raddr;
	uint32_t rkey, len;
	struct fake_ghost *next;
	uint8_t data[];
};

struct fake_qp {
	struct ibv_qp qp;
	struct fake_device *device;
	struct ibv_qp_cap cap;
	struct ibv_qp_attr attr;
	bool sq_sig_all;
	bool forced, flushing; /* by its user into the error state; flushes from here on */
	struct fake_wr *sq;
	uint32_t sq_tail, sq_exec, sq_done,
		sq_polled; /* posted, executed, completed, completions taken */
	struct fake_recv *rq;
	uint32_t rq_tail, rq_head, rq_polled;
	struct fake_place *place, **place_last;
	struct fake_qp *next; /* in the next slot that is taken */
};

struct fake_fault {
	uint64_t calls;
	int left, error;
	bool fired;
};

/* Faults of the next world. */
struct fake_ahead {
	struct fake_fault fault[FAKE_VERB_COUNT];
	int fail_wr;
};

struct fake_world {
	pthread_mutex_t lock;
	struct fake_config config;
	uint64_t rng, clock;
	struct fake_device device[HOSTS_MAX][DEVICES_MAX];
	struct fake_sa sa;
	struct fake_context *contexts;
	struct fake_mr *mr[MRS_MAX];
	struct {
		uint8_t *addr, *bytes;
		size_t len;
	} peermem;
	bool gpu_late;
	struct fake_qp *qp[QPS_MAX];
	struct fake_qp *qps; /* the same, in the order of their slots */
	uint32_t next_mr, next_qp;
	uint8_t *corrupt; /* fake_corrupt */
	struct fake_ghost *ghosts;
	struct fake_counts counts;
	struct fake_stats stats;
	int misuses;
	struct fake_write write[WRITES_KEPT];
	size_t writes; /* since they were looked at */
	struct fake_fault fault[FAKE_VERB_COUNT];
	atomic_int slow_teardown_ms[HOSTS_MAX];
	atomic_bool stuck[HOSTS_MAX], mute[HOSTS_MAX];
	atomic_int sticking;
	atomic_int refuse_destroy[HOSTS_MAX];
	int fork_inits;
	atomic_bool hold_reg;
	atomic_int reg_waits;
	int fail_wr;
	int fail_completion;
	bool hold_answers;
	enum ibv_wc_status fail_status;
	uint32_t fail_vendor;
};

extern struct fake_world world;

static inline void fake_lock(void)
{
	pthread_mutex_lock(&world.lock);
}

static inline void fake_unlock(void)
{
	pthread_mutex_unlock(&world.lock);
}

/* fake_world.c */
uint32_t fake_random(uint32_t below);
bool fake_fault(enum fake_verb verb); /* counts the call; true: it is to fail, errno is set */
/* The same for a verb of this device, which may be sick. */
bool fake_fails(const struct fake_device *device, enum fake_verb verb);
int fake_misuse(const char *what);    /* EBUSY, and fake_end is false */
int fake_current_host(void);
extern const struct ib_verbs fake_table;

/* fake_cm.c */
extern const struct ib_cm fake_cm_table;

/* fake_device.c */
struct ibv_device **fake_get_device_list(int *n);
void fake_free_device_list(struct ibv_device **list);
const char *fake_get_device_name(struct ibv_device *device);
struct ibv_context *fake_open_device(struct ibv_device *device);
int fake_close_device(struct ibv_context *context);
int fake_query_device(struct ibv_context *context, struct ibv_device_attr *attr);
int fake_query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr);
ssize_t fake_query_gid_table(struct ibv_context *context, struct ibv_gid_entry *entries,
			     size_t max);
int fake_query_pkey(struct ibv_context *context, uint8_t port, int index, __be16 *pkey);
struct ibv_pd *fake_alloc_pd(struct ibv_context *context);
int fake_dealloc_pd(struct ibv_pd *pd);
struct ibv_mr *fake_reg_mr(struct ibv_pd *pd, void *addr, size_t len, unsigned int access);
struct ibv_mr *fake_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t len, uint64_t iova,
				  int fd, int access);
int fake_dereg_mr(struct ibv_mr *mr);
void fake_device_init(struct fake_device *device, int host, int index);
struct fake_context *fake_context_of(struct ibv_context *context);
struct fake_mr *fake_find_mr(uint32_t key, uint64_t addr, uint64_t len, const struct ibv_pd *pd);
static inline uint8_t *fake_at(const struct fake_mr *mr, uint64_t addr)
{
	uint64_t at = addr - (uint64_t)(uintptr_t)mr->mr.addr;

	return (at >= mr->gone_at && at < mr->gone_end ? mr->pinned : mr->bytes) + at;
}
struct fake_device *fake_find_peer(const struct fake_qp *qp);
bool fake_port_takes(const struct fake_device *device, const struct ibv_qp_attr *attr, int mask);
bool fake_hears(const struct fake_qp *to, const struct fake_qp *from);

/* fake_cq.c */
struct ibv_comp_channel *fake_create_comp_channel(struct ibv_context *context);
int fake_destroy_comp_channel(struct ibv_comp_channel *channel);
struct ibv_cq *fake_create_cq(struct ibv_context *context, int cqe, void *cq_context,
			      struct ibv_comp_channel *channel, int comp_vector);
int fake_destroy_cq(struct ibv_cq *cq);
int fake_poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc);
int fake_req_notify_cq(struct ibv_cq *cq, int solicited_only);
int fake_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cq_context);
void fake_ack_cq_events(struct ibv_cq *cq, unsigned int n);
int fake_get_async_event(struct ibv_context *context, struct ibv_async_event *event);
void fake_ack_async_event(struct ibv_async_event *event);
void fake_push_wc(struct fake_cq *cq, const struct fake_wc *wc);
void fake_push_async(struct ibv_context *context, const struct ibv_async_event *event);
struct fake_cq *fake_cq_of(struct ibv_cq *cq);

/* fake_qp.c */
struct ibv_qp *fake_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr);
int fake_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask);
int fake_destroy_qp(struct ibv_qp *qp);
int fake_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
int fake_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
struct fake_qp *fake_find_qp(uint32_t qp_num);
/* The first queue pair in that slot or behind it; NULL: there is none. */
struct fake_qp *fake_first_qp(uint32_t slot);
void fake_qp_error(struct fake_qp *qp);
/* Asynchronous events of a queue pair or completion queue that is about to go. Under the lock. */
void fake_forget_events(struct ibv_context *context, const void *element);

/* fake_place.c */
void fake_accept(struct fake_qp *responder, uint8_t *to, const uint8_t *data, uint32_t len,
		 bool relaxed, uint32_t position);
void fake_place_some(struct fake_qp *qp);
void fake_place_all(struct fake_qp *qp);
void fake_place_mr(const struct fake_mr *mr);

/* fake_wire.c */
bool fake_wire_step(void); /* one thing happens; false: there is nothing to do */
void fake_ghosts_of(struct fake_qp *qp);

#endif
