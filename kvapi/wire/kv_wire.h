/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_wire.h -- the messages between two engines, and their bytes
 *
 * Every message is one tr_msg of at most TR_MSG_MAX bytes: a type byte, then the fields of its
 * struct in order, little endian, without padding. Messages of one connection arrive in the order
 * in which they were sent; a notify (the commit of an operation) may overtake the messages sent
 * before it.
 *
 *   BEGIN    writer -> receiver  before the blocks of an operation; its notify carries the same op
 *            id
 *   ACK      receiver -> writer  commits that were taken (status 0) or refused
 *   ABORT    writer -> receiver  the operation will not be committed; nothing of it is under way
 *            any more
 *   LEASE    receiver -> writer  blocks were opened; IDS messages with exactly n ids follow
 *   IDS      receiver -> writer  the next ids of a lease, as runs of consecutive blocks
 *   REVOKE   receiver -> writer  stop writing to the lease
 *   REVOKED  writer -> receiver  nothing of the lease is under way any more, it is forgotten
 *   ADOPTED  accepting ->        kv_comm_init has made the peer part of its communicator, and has
 *            connecting          all of its ranks
 *   DIGESTS  writer -> receiver  after the commit, where digests were agreed on: of the next
 *            blocks in the order layer, tensor, id; the last one makes the receiver answer
 *   WRONG    receiver -> writer  in the place of an ACK: the first block whose digest is another
 *   PROVE    reader -> owner     blocks were read; DIGESTS of what arrived follow, as of a write
 *   PING     both                a sign of life is wanted; PONG is one, and so is any other message
 *   BYE      both                the sender is about to close the connection; nothing follows
 *
 * A message whose fields cannot be, or that contradicts an earlier one (a BEGIN in a slot whose
 * operation is not over or was a later one, bytes that are not blocks x layers, an ABORT of what
 * was committed, an ACK of what was not, a lease out of the order of its numbers), costs the
 * connection: PROTOCOL. Nothing that the peer sent after it counts.
 */
#ifndef KV_WIRE_H
#define KV_WIRE_H

#include "kv_geometry.h"
#include "tr.h"

/* 2: the order of heads and tokens in a block, and kv_heads, in the hello */
enum { KV_WIRE_VERSION = 2 };

enum kv_msg_type {
	KV_MSG_BEGIN = 1,
	KV_MSG_ACK,
	KV_MSG_ABORT,
	KV_MSG_LEASE,
	KV_MSG_IDS,
	KV_MSG_REVOKE,
	KV_MSG_REVOKED,
	KV_MSG_BYE,
	KV_MSG_ADOPTED,
	KV_MSG_DIGESTS,
	KV_MSG_WRONG,
	KV_MSG_PROVE,
	KV_MSG_PING,
	KV_MSG_PONG,
};

enum {
	KV_ACKS_MAX = 20, /* of one message */
	KV_RUNS_MAX = 40,
	KV_DIGESTS_MAX = 30,
	KV_DIGESTS_BYTES = 256 << 10, /* of blocks in one message, unless it is one block */
};

/*
 * The id of an operation or a lease, made by one end and given back by the other: its place in a
 * table (16 bits), and which use of the place, or which lease, it is (32 bits).
 */
enum { KV_ID_PLACE_BITS = 16, KV_ID_BITS = 48 };

static inline uint64_t kv_id(uint32_t serial, unsigned int place)
{
	return (uint64_t)serial << KV_ID_PLACE_BITS | place;
}

static inline unsigned int kv_id_place(uint64_t id)
{
	return (unsigned int)(id & ((1u << KV_ID_PLACE_BITS) - 1));
}

static inline uint32_t kv_id_serial(uint64_t id)
{
	return (uint32_t)(id >> KV_ID_PLACE_BITS);
}

/* Bits of the hello's features. */
enum { KV_CAN_CHECK = 1 << 0, KV_WANTS_CHECK = 1 << 1, KV_SENDS_PONG = 1 << 2 };

/* Taken, but the queue of arrivals is full: 0 follows when there is room. */
enum { KV_ACK_VISIBLE = 1 };

/* kv_recv_blocks: each layer is committed once, the last one closes the lease. */
enum { KV_LEASE_ONCE = 1 << 0 };

struct kv_msg_begin {
	uint64_t op; /* kv_id: slot, generation */
	uint8_t cache;
	uint16_t first; /* layers */
	uint16_t count;
	uint32_t blocks;
	uint64_t bytes;
	uint64_t lease; /* 0: none */
	uint64_t tag;
};

struct kv_msg_ack {
	uint8_t count;
	struct kv_ack {
		uint64_t op;
		int32_t status; /* 0, KV_ACK_VISIBLE or KV_ERR_* */
	} ack[KV_ACKS_MAX];
};

struct kv_msg_abort {
	uint64_t op;
	uint64_t lease;
	int32_t status;
};

struct kv_msg_lease {
	uint64_t lease;
	uint64_t tag;
	uint8_t cache;
	uint8_t flags; /* KV_LEASE_* */
	uint16_t first, count;
	uint32_t blocks;
};

struct kv_msg_ids {
	uint64_t lease;
	uint32_t at; /* index of the first id in the lease */
	uint8_t runs;
	struct kv_run {
		uint32_t first;
		uint16_t count;
	} run[KV_RUNS_MAX];
};

struct kv_msg_digests {
	uint64_t op;
	uint8_t count;
	struct kv_block_digest {
		uint32_t block; /* the receiver's id */
		uint32_t digest; /* kv_digest.h */
	} block[KV_DIGESTS_MAX];
};

struct kv_msg_wrong {
	uint64_t op;
	uint16_t layer;
	uint8_t tensor;
	uint32_t block, index; /* the receiver's id, and which one of the operation's */
};

struct kv_msg_id {
	uint64_t lease;
};

struct kv_msg {
	uint8_t type;
	union {
		struct kv_msg_begin begin; /* BEGIN, PROVE */
		struct kv_msg_ack ack;
		struct kv_msg_abort abort;
		struct kv_msg_lease lease;
		struct kv_msg_ids ids;
		struct kv_msg_digests digests;
		struct kv_msg_wrong wrong;
		struct kv_msg_id id; /* REVOKE, REVOKED */
	};
};

/* Returns the length, or 0 if cap is too small (TR_MSG_MAX never is). */
size_t kv_wire_put(const struct kv_msg *msg, void *buf, size_t cap);
/*
 * false: no message of this version. Counts, layers and run lengths are within their limits; ids
 * are not checked.
 */
bool kv_wire_get(const void *buf, size_t len, struct kv_msg *msg);

/* The hello: the engine's name and the shape of its caches. */
struct kv_hello {
	char name[KV_NAME_MAX];
	uint64_t comm;	    /* kv_comm_init: which communicator, 0 = none */
	uint32_t comm_rank; /* and the rank of the connecting side */
	uint32_t caches;
	struct kv_geometry cache[KV_CACHES_MAX];
};
size_t kv_wire_put_hello(const struct kv_hello *hello, void *buf, size_t cap);
bool kv_wire_get_hello(const void *buf, size_t len, struct kv_hello *hello);

#endif
