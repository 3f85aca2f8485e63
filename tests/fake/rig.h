/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rig.h -- two contexts and a connection between them in one thread, over the fake device or over
 * shm
 *
 * The rig polls both ends in turn; what tr_poll reports is kept in a list for each side, with a
 * copy of messages.
 */
#ifndef RIG_H
#define RIG_H

#include "fake.h"
#include "tr.h"

enum { RIG_EVENTS = 8192, RIG_OPTIONS = 12 };

struct rig_event {
	int32_t kind, status;
	uint64_t user, value;
	size_t len;
	uint8_t msg[TR_MSG_MAX];
	struct kv_error cause;
	bool taken;
};

struct rig_side {
	struct kv_option_set *options;
	struct tr *tr;
	struct tr_conn *conn;
	struct rig_event *event;
	int events;
};

struct rig {
	struct rig_side side[2]; /* 0 connects, 1 accepts */
	struct tr_listener *listener;
	unsigned int flags; /* enum tr_conn_flags of both ends */
	bool half;	    /* side 1 does not read the last frame of the handshake */
};

/*
 * "ib" over the fake (which must have begun), "shm", or "rxe": real verbs, side 0 on rxe0 and side
 * 1 on rxe1. NULL-terminated list of further options, or NULL; "1:NAME=value" is for side 1 only.
 */
int rig_open(struct rig *rig, const char *transport, const char *const *options,
	     struct kv_error *err);
int rig_connect(struct rig *rig, struct kv_error *err);
void rig_disconnect(struct rig *rig);
void rig_close(struct rig *rig);

/* Both in one; fails the test on an error. */
void rig_make(struct rig *rig, const char *transport, const char *const *options);

/* Polls both ends once. */
void rig_pump(struct rig *rig);
void rig_pump_side(struct rig *rig, int side);
/*
 * Pumps until an event of this kind that was not taken before is there; NULL after `budget` pumps.
 */
struct rig_event *rig_wait(struct rig *rig, int side, int kind, int budget);
struct rig_event *rig_find(struct rig *rig, int side, int kind);

struct tr_mem *rig_reg(struct rig *rig, int side, void *addr, size_t len, unsigned int access);
/* `mem` of the other side, as `side` sees it. */
struct tr_rmem *rig_see(struct rig *rig, int side, struct tr_mem *mem);

/*
 * A whole operation of `side`: begun, all spans added (pumping while credits are out), committed.
 */
int rig_try_op(struct rig *rig, int side, int kind, uint64_t user, struct tr_mem *lmem,
	       struct tr_rmem *rmem, const struct tr_span *spans, size_t n, unsigned int flags,
	       uint64_t value, struct tr_op **op_p, struct kv_error *err);
/* The same; fails the test on an error. */
struct tr_op *rig_op(struct rig *rig, int side, int kind, uint64_t user, struct tr_mem *lmem,
		     struct tr_rmem *rmem, const struct tr_span *spans, size_t n,
		     unsigned int flags, uint64_t value);

/* Test data: f(epoch, offset), so that a misplaced or stale byte never looks right. */
static inline uint8_t rig_byte(uint64_t epoch, uint64_t offset)
{
	uint64_t x = (epoch << 40 ^ offset) * UINT64_C(0x9e3779b97f4a7c15);

	return (uint8_t)(x >> 56 ^ x >> 23);
}

#endif
