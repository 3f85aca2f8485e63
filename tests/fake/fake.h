/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake.h -- a software RC device behind the verbs table: a world of hosts with devices, in one
 * process
 *
 * It moves bytes between the memory of its users as real devices do: state machine, domains, keys,
 * bounds, queue depths, receiver-not-ready, retries, flushes. Everything random comes from one
 * seed, and time is a number of steps: completions appear only when somebody polls, sleeps
 * (ibv_req_notify_cq: the world runs until it is idle) or calls fake_step.
 *
 * What it is meaner about than most hardware: a requester's completion may come before the bytes
 * are in the responder's memory; those of one work request arrive in pieces; after a queue pair was
 * put into the error state accepted bytes still land, until it is destroyed; packets of a dead
 * queue pair may arrive late.
 */
#ifndef FAKE_H
#define FAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "ib/verbs_load.h"

struct fake_config {
	int hosts;	       /* 0 = 2 */
	int devices;	       /* of each host, 0 = 1 */
	bool infiniband;       /* link layer */
	bool soft;	       /* calls itself Soft-RoCE */
	uint64_t seed;	       /* 0 = 1 */
	int steps_per_poll;    /* 0 = 3 */
	bool prompt;	       /* bytes are placed before the requester's completion */
	int max_inline;	       /* -1 = none, 0 = 256 */
	uint32_t max_mr_bytes; /* reg_mr of more fails with ENOMEM; 0 = no limit */
	int mr_errno;	       /* or with this */
	uint64_t max_mr_size;  /* as ibv_device_attr says it; 0 = it does not */
	bool no_cm;	       /* librdmacm is not installed */
	bool dmabuf;	       /* the driver takes DMA-BUFs; a memfd stands in for one */
	/* slow verbs in threads of their own (transport/ib/slow_verbs.c): no two runs are alike */
	bool threads;
};

enum { FAKE_PKEYS = 4 };

/* What a test may change about a device's port before it is opened. */
struct fake_port {
	enum ibv_mtu mtu;     /* device 0: 1024, the others 4096 */
	uint8_t width, speed; /* as ibv_port_attr has them: 4x, 50 Gb/s */
	uint32_t max_msg; /* 8 MiB */
	uint8_t lmc;
	bool grh_required;
	uint16_t pkey[FAKE_PKEYS]; /* 0xffff, then empty */
	int slow;		   /* steps that each work request takes */
	/*
	 * As librdmacm tells it: the device + 1 of each host out of which the route to this port
	 * goes; no route at all.
	 */
	int routed_from[4];
	bool unreachable;
};

/* The subnet manager's path records, and what the fabric does. */
struct fake_sa {
	bool dead;	   /* does not answer */
	uint8_t path_bits; /* LIDs of the path: the port's and this */
	uint16_t pkey;	   /* 0 = the one that was asked for */
	uint8_t sl, rate, hop_limit;
	uint8_t mtu;	/* 0 = 4096 */
	bool strict_sl; /* packets with another service level get lost */
};

/*
 * Begins a new world and puts its table in the place of libibverbs. Everything of the old one must
 * be closed.
 */
void fake_begin(const struct fake_config *config);
/*
 * Takes the table away again; true if nothing was left behind and nothing was misused (the reasons
 * are printed).
 */
bool fake_end(void);

/* Whose devices ibv_get_device_list lists from now on, in this thread. */
void fake_host(int host);

struct fake_port *fake_port(int host, int device);
uint16_t fake_lid(int host, int device); /* InfiniBand: the port's first */
/*
 * The subnet manager gives the port others, 2^lmc from this one on; queue pairs keep the
 * addresses they have.
 */
void fake_lid_moves(int host, int device, uint16_t lid, uint8_t lmc);
struct fake_sa *fake_sa(void);
/* Row 0..3 of the GID table is this IPv6 address, RoCE v2, or (NULL) empty. */
void fake_address(int host, int device, int row, const char *address);
/* The subnet of all of a host's InfiniBand ports: upper half of their GIDs. */
void fake_subnet(int host, uint8_t number);

/*
 * What nvidia_peermem does: plain registration of [addr, addr + len) reaches these bytes instead.
 * NULL ends it.
 */
void fake_peermem(void *addr, size_t len, uint8_t *bytes);

/* Lets n steps pass; returns how many did something. */
int fake_step(int n);
/* Until nothing is left to do. */
void fake_settle(void);
/*
 * What a device writes into a GPU (a DMA-BUF, or fake_peermem's) is on its way until that device
 * reads from a GPU, or fake_land: no completion orders it.
 */
void fake_gpu_late(bool late);
/* Bytes that responders have accepted are in memory. */
void fake_land(void);

/*
 * [addr, addr + len) is about to be unmapped: regions that lie there keep their pages, as pinned
 * ones do. What is mapped at these addresses next is not what such a region reaches.
 */
void fake_unmaps(void *addr, size_t len);

/* The byte that is written to this address next arrives with another value; NULL: none. */
void fake_corrupt(uint8_t *at);

/* How the device writes to memory. */
void fake_store(uint8_t *to, const uint8_t *data, size_t len);

/* ---------------------------------------------------------------- faults */

#define FAKE_VERBS(X)              \
	X(get_device_list)         \
	X(open_device)             \
	X(query_device)            \
	X(query_port)              \
	X(query_gid_table)         \
	X(query_pkey)              \
	X(alloc_pd)                \
	X(reg_mr)                  \
	X(reg_dmabuf_mr)           \
	X(create_comp_channel)     \
	X(create_cq)               \
	X(poll_cq)                 \
	X(req_notify_cq)           \
	X(create_qp)               \
	X(modify_qp)               \
	X(post_send)               \
	X(post_recv)               \
	X(cm_create_event_channel) \
	X(cm_create_id)            \
	X(cm_resolve_addr)         \
	X(cm_resolve_route)        \
	X(cm_get_cm_event)

enum fake_verb {
#define X(name) FAKE_##name,
	FAKE_VERBS(X)
#undef X
		FAKE_VERB_COUNT
};

const char *fake_verb_name(enum fake_verb verb);
/* The nth call from now on fails once with this errno; 0 disarms. */
void fake_fail_verb(enum fake_verb verb, int nth, int error);
bool fake_verb_fired(enum fake_verb verb);
/*
 * Each modify_qp to ERR or RESET and each destroy_qp of the host takes this long from now on, as on
 * a device in trouble; 0: no time.
 */
void fake_slow_teardown(int host, int ms);
/* Calls of ibv_fork_init that came before any region. */
int fake_fork_inits(void);
enum fake_sickness {
	FAKE_WELL = 0,
	FAKE_MAKES_NOTHING, /* queries answer; no region, queue or queue pair can be made */
	FAKE_SICK,	    /* every verb but those that destroy answers EIO */
};
void fake_sicken(int host, int device, enum fake_sickness sickness);
/* The host's next n calls of destroy_qp fail with EBUSY. */
void fake_refuse_destroy(int host, int n);
/*
 * While it is on, reg_mr does not return, as if pinning took long. fake_reg_waits: how many calls
 * wait there.
 */
void fake_hold_reg(bool on);
int fake_reg_waits(void);
/*
 * While it is on, what the host posts is neither answered nor given up: its packets get lost, and
 * no timeout has passed.
 */
void fake_mute(int host, bool on);
/*
 * While it is on, post_send of the host returns only when its queue pair is in the error state, as
 * Soft-RoCE's may.
 */
void fake_stick(int host, bool on);
int fake_sticking(void); /* threads that are in such a call */
uint64_t fake_verb_calls(enum fake_verb verb);
/*
 * The nth work request posted from now on is refused with ENOMEM; those before it in its list are
 * taken.
 */
void fake_fail_wr(int nth);
/* The same two, in the next world. */
void fake_fail_verb_ahead(enum fake_verb verb, int nth, int error);
void fake_fail_wr_ahead(int nth);
/* The nth work request executed from now on ends with this status. */
void fake_fail_completion(int nth, enum ibv_wc_status status, uint32_t vendor_err);
/*
 * Puts a completion that nobody asked for into the queue of the host's first queue pair; qp_num 0
 * is filled in.
 */
bool fake_spurious(int host, bool recv, const struct ibv_wc *wc);
/*
 * While true no acknowledgement packet arrives: requests are executed, and their completions wait.
 */
void fake_hold_answers(bool hold);
void fake_kill_host(int host);
void fake_link(int host, int device, bool up);
void fake_device_fatal(int host, int device);
void fake_device_back(int host, int device); /* it can be opened again; what is open stays dead */
/*
 * The port's address was removed and added again: it has another row of the GID table now, the old
 * one is empty.
 */
void fake_address_moves(int host, int device);

/* ---------------------------------------------------------------- looking at it */

struct fake_counts {
	int contexts, pds, mrs, channels, cqs, qps, cms;
};
void fake_counts(struct fake_counts *counts);

/* The attributes that the host's first queue pair was given; false: it has none. */
bool fake_host_qp(int host, struct ibv_qp_attr *attr);
/* Regions of the host that were registered with this right. */
int fake_regions(int host, unsigned int access);
/* Bytes that the device's queue pairs have sent or asked for. */
uint64_t fake_carried(int host, int device);

struct fake_stats {
	uint64_t steps, work_requests, doorbells, completions, bytes;
	uint64_t late;	 /* pieces placed after the requester's completion */
	uint64_t ghosts; /* work requests of dead queue pairs that arrived */
	uint64_t
		refused; /* posts refused: a user that learns by ENOMEM how much room there is */
	uint64_t overruns; /* of completion queues */
	uint64_t rnr;	   /* arrivals without a receive request */
	uint64_t async_asked; /* calls of get_async_event */
};
void fake_stats(struct fake_stats *stats);

/* The nth queue pair that exists, as its user has set it; false past the last. */
bool fake_qp_attr(int nth, struct ibv_qp_attr *attr);

/* A WRITE of at least one byte that was posted. */
struct fake_write {
	int device;
	uint64_t addr; /* remote */
	uint32_t len;
};
/* The last ones, at most max, and forgets them. */
size_t fake_writes(struct fake_write *writes, size_t max);

#endif
