/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_world.h -- what the two halves of ib_fuzz know: the product's end, on host 0 of a world of
 * fake devices, and the peer on host 1, which is the input with verbs of its own
 */
#ifndef IB_WORLD_H
#define IB_WORLD_H

#include "ib/ib.h"
#include "rig.h"
#include "upper.h"

enum {
	GUARD = 4096,
	REGION = 6000, /* two slices of a page, in part */
	OPS = 4,
	SPANS = 4,
	DEVICES = 2,
	LANES = 4, /* two of each device at most */
	HALL = 8 * 4096, /* the peer's memory */
	HALL_PROBE = 2 * 4096, /* in it, behind the cells: */
	HALL_REGION = 3 * 4096, /* what is described to the product */
	HALL_LAND = 5 * 4096 - 512, /* for the peer's reads */
	HALL_SENDS = 5 * 4096,
	HALL_RECVS = 6 * 4096,
	SEND_BYTES = 512, /* a message that is too long, too */
	SENDS = 8,
};
enum { OURS = 0x22, BESIDE = 0x33, THEIRS = 0x44, SENT = 0x55 };

struct own_op {
	struct tr_op *op; /* NULL: none, or it has ended */
	uint64_t user;
	bool partly; /* the span behind the last one was not taken whole */
	unsigned int spans;
	struct tr_span span[SPANS];
};

/* A region of the product as it described it. */
struct far_region {
	uint64_t addr, len;
	uint32_t rkey;
};

struct far_lane {
	struct ibv_qp *qp;
	uint32_t to_qpn, to_psn;
	uint32_t cells; /* notifies that were sent */
	uint16_t owed;	/* credits */
};

struct world {
	struct tr *tr;
	struct tr_listener *listener;
	struct tr_conn *conn;
	struct upper upper;
	unsigned int access, flags;
	bool over, reads; /* a read of this end may have changed the region */
	bool lied;	  /* about its region: bytes of a write may be anywhere in the hall */
	struct own_op op[OPS];
	uint64_t ops;
	/* The peer. */
	const struct step *first;
	unsigned int moves;
	int devices, paths, per_path, lanes;
	struct ibv_context *context[DEVICES];
	struct ibv_pd *pd[DEVICES];
	struct ibv_cq *cq[DEVICES];
	struct ibv_mr *mr[DEVICES];
	struct far_lane lane[LANES];
	uint32_t sequence, sends;
	uint64_t cells, probe; /* of the product's first path */
	uint32_t cells_key[DEVICES], probe_key;
	uint8_t rail[DEVICES], to_rail[DEVICES], mtu[DEVICES];
	uint16_t lid[DEVICES];
	union ibv_gid gid[DEVICES];
	struct far_region region;
};
extern struct world w;
extern uint8_t memory[GUARD + REGION + GUARD], hall[HALL];

/* ib_far.c */
void far_open_devices(void);
void far_close_devices(void);
void far_moves(void); /* the next move of its part of the handshake */
size_t far_describes(const struct step *s, uint8_t buf[TR_MEM_PACK_MAX]);
void far_says(const struct step *s);   /* a message */
void far_notes(const struct step *s);  /* a notify */
void far_reaches(const struct step *s); /* a bare write or read */
void far_takes(const struct step *s);  /* its completions */
void far_breaks(const struct step *s); /* its queue pair */

#endif
