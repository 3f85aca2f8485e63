/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slot.h -- what slots.c, gather.c, scatter.c, staged.c and kernels.c know of each other: memory of
 * a GPU that the NIC of either end does not reach
 *
 * Each end of a connection has slots of pinned, registered memory for each direction, made when
 * the first operation needs them. A slot belongs to one operation. It is filled here, by a kernel
 * (../stage.h) or a CPU, written into the same slot of the peer by one RDMA write on the first
 * lane, and announced by a message behind it. The peer places its bytes, by a kernel or a CPU, and
 * says how many slots it has taken. Messages and notifies have one order (msg.c), and none is
 * delivered before the slots that were announced before it are placed. So the receiver looks at the
 * region, its bounds and the lease before each span is placed, and a notify follows the bytes,
 * whatever lanes carry it.
 *
 * A slot in the peer: its table, 16 bytes for each span, little-endian (u32 region, u32 length, u64
 * offset); then the bytes of the spans. Written by the sender's device, read after the message's
 * completion.
 *   WRITE   the table, and the bytes that go there
 *   READ    the table of what is asked for
 *   ANSWER  no table; the next bytes of the oldest READ that is not answered
 *
 * A message, little-endian: u8 kind, u8 0, u16 spans, u32 bytes, u64 word, u32 number
 *   OPEN    word, number: address and key of the sender's slots for what comes in. Answered by the
 *           same if it was not sent yet
 *   WRITE, READ, ANSWER  spans and bytes of the next slot; WRITE: word is the grant (tr_op_grant)
 *   TAKEN   number: slots that were taken since the beginning, and may be filled again
 */
#ifndef IB_SLOT_H
#define IB_SLOT_H

#include "gpu/gpu.h"
#include "ib.h"
#include "stage.h"

enum staged_kind {
	STAGED_OPEN = 1,
	STAGED_WRITE,
	STAGED_READ,
	STAGED_ANSWER,
	STAGED_TAKEN,
};

enum {
	STAGED_SLOTS = 4, /* half of them are gathered while the others are on their way */
	STAGED_BYTES = 512 << 10,
	STAGED_SPANS = 512,
	STAGED_SPAN = 16, /* bytes of a span in the table */
	STAGED_SLOT = STAGED_SPANS * STAGED_SPAN + STAGED_BYTES,
	STAGED_HALF = STAGED_SLOTS * STAGED_SLOT, /* one direction */
	STAGED_READS = 1024, /* spans that were asked for and have not come, per side */
	STAGED_ASK = 1 << 30, /* bytes of one of them */
	STAGED_TEXT = 20,
	STAGED_NO_OP = UINT16_MAX,
};
_Static_assert((int)STAGED_SPANS < (int)GPU_ROOM, "one kernel takes what one slot has");
_Static_assert((int)STAGED_TEXT <= (int)TR_MSG_MAX, "a message holds it");

struct staged_message {
	uint8_t kind;
	uint16_t spans;
	uint32_t bytes;
	uint64_t word;
	uint32_t number;
};

struct staged_slot {
	struct staged_message message;
	uint16_t op;
};

/* A span that we read, or a piece of it. Answers come in the order of the requests. */
struct staged_read {
	uint8_t *dst; /* NULL: cancelled, the bytes go nowhere */
	struct tr_mem *mem;
	uint32_t left;
	uint16_t op;
};

/* A span that the peer reads. */
struct staged_answer {
	uint32_t mem, left;
	uint64_t offset;
};

struct ib_staged {
	uint8_t *bytes; /* STAGED_HALF to gather into, and as much for the peer to write into */
	struct ibv_mr *mr_out, *mr_in;
	bool mapped; /* for good: a kernel runs on */
	bool sent_open; /* OPEN was sent, */
	bool open; /* and has come: */
	uint64_t peer;
	uint32_t rkey;
	/* Out. All counts are free-running. */
	struct stage *gather; /* NULL: no GPU's memory has gone this way */
	struct staged_slot slot[STAGED_SLOTS];
	uint32_t begun, posted, taken;
	bool filling; /* the last that was begun takes more */
	struct staged_answer answer[STAGED_READS];
	uint32_t answer_head, answer_tail;
	/* In. */
	struct stage *scatter;
	uint32_t placed, placed_sent; /* slots */
	uint16_t span;		      /* of the one that is being placed: the next, */
	uint32_t at;		      /* and the bytes before it */
	struct staged_read read[STAGED_READS];
	/* before read_next: all bytes are on their way */
	uint32_t read_ended, read_next, read_tail;
};

static inline uint8_t *staged_out(const struct ib_staged *s, uint32_t number)
{
	return s->bytes + (size_t)(number % STAGED_SLOTS) * STAGED_SLOT;
}

static inline uint8_t *staged_in(const struct ib_staged *s, uint32_t number)
{
	return staged_out(s, number) + STAGED_HALF;
}

/* slots.c */
/* The slots of this end, made at first use. */
int ib_staged_make(struct ib_conn *c, struct kv_error *err);
/* tr_provider.mem_usable: UNSUPPORTED where the connection keeps the order of lines. */
int ib_mem_usable(const struct tr_conn *conn, const struct tr_mem *mem, struct kv_error *err);
/* Before bytes of that region are gathered (out), or scattered: nothing to do for a host's. */
int ib_staged_open(struct ib_conn *c, struct tr_mem *mem, bool out, struct kv_error *err);
void ib_staged_break(struct ib_conn *c, const struct kv_error *why); /* the connection fails */
int ib_staged_say(struct ib_conn *c, const struct staged_message *message); /* as ib_msg */

/* gather.c */
/* Answers, and slots whose bytes are there, go out: how many. */
int ib_gather_push(struct ib_conn *c);
/* The peer has taken so many slots: false if that is impossible. */
bool ib_gather_taken(struct ib_conn *c, uint32_t taken);

/* scatter.c */
/* The peer's next slot. 0: it is placed; TR_AGAIN: come again; or the connection's failure. */
int ib_scatter_slot(struct ib_conn *c, const struct staged_message *message, struct kv_error *err);

#endif
