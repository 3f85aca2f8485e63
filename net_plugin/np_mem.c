/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_mem.c -- registered memory of a communicator as its two ends know it: the receiver's regions
 * have numbers, and a description travels to the sender when a receive first names the region, from
 * the thread that owns the connection
 */
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "np.h"

/* ----------------------------------------------------- slots: numbers of the receiver's regions */

enum { SLOT_WORDS = (NP_MEM_SLOTS + 63) / 64 };

/* The lowest free one: the sender's table stays as small as it can be. */
int np_mem_take_slot(struct np_recv *r, uint16_t *slot_p, struct kv_error *err)
{
	if (!r->slot_used)
		r->slot_used = kv_fault(NP_SLOTS) ? NULL : calloc(SLOT_WORDS, sizeof(uint64_t));
	if (!r->slot_used)
		return kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate the slot map");
	for (unsigned int i = 0; i < SLOT_WORDS; i++) {
		unsigned int slot;

		if (!~r->slot_used[i])
			continue;
		slot = i * 64 + (unsigned int)__builtin_ctzll(~r->slot_used[i]);
		if (slot >= NP_MEM_SLOTS)
			break;
		r->slot_used[i] |= UINT64_C(1) << slot % 64;
		*slot_p = (uint16_t)slot;
		return 0;
	}
	return kv_fail(err, KV_ERR_BUSY, "register", "%d regions of one communicator are in use",
		       NP_MEM_SLOTS);
}

void np_mem_give_slot(struct np_recv *r, uint16_t slot)
{
	r->slot_used[slot / 64] &= ~(UINT64_C(1) << slot % 64);
}

/* After the connection was closed: nothing uses them. */
void np_mem_free_all(struct np_comm *comm)
{
	while (comm->mrs) {
		struct np_mr *mr = comm->mrs;

		comm->mrs = mr->next;
		tr_mem_abandon(mr->mem);
		free(mr);
	}
	while (comm->gone) {
		struct np_mr *mr = comm->gone;

		comm->gone = mr->next;
		free(mr);
	}
	if (!comm->side->is_send)
		free(np_recv_of(comm)->slot_used);
}

bool np_mem_holds(const struct np_mr *mr, const void *data, size_t size)
{
	const uint8_t *base = mr ? tr_mem_addr(mr->mem) : NULL;
	size_t len = mr ? tr_mem_len(mr->mem) : 0;

	return !size || ((const uint8_t *)data >= base && size <= len &&
			 (size_t)((const uint8_t *)data - base) <= len - size);
}

/* ---------------------------------------------------------------- the description */

int np_mem_describe(struct np_comm *comm, struct np_mr *mr, struct kv_error *err)
{
	uint8_t bytes[TR_MEM_PACK_MAX], message[TR_MSG_MAX];
	size_t total = 0;
	int ret;

	if (mr->described)
		return 0;
	/*
	 * The sender puts the pieces of one description together at a time, so one that was broken
	 * off because there were no credits, when another receive came next, begins again.
	 */
	if (comm->describing != mr->serial)
		mr->described_len = 0;
	comm->describing = mr->serial;
	ret = tr_mem_pack(comm->conn, mr->mem, bytes, sizeof(bytes), &total, err);
	while (!ret && mr->described_len < total) {
		size_t left = total - mr->described_len;
		struct np_mem_piece piece = {
			.slot = mr->slot,
			.total = (uint16_t)total,
			.at = (uint16_t)mr->described_len,
			.bytes = bytes + mr->described_len,
			.len = left < NP_MEM_PIECE ? left : NP_MEM_PIECE,
		};

		ret = tr_msg(comm->conn, message,
			     np_mem_piece_put(message, sizeof(message), &piece), err);
		if (!ret)
			mr->described_len += piece.len;
	}
	mr->described = !ret;
	return ret;
}

static int grow_table(struct np_send *s, unsigned int slot, struct kv_error *err)
{
	unsigned int n = s->rmems ? s->rmems : 64;
	struct tr_rmem **table;

	if (slot < s->rmems)
		return 0;
	while (n <= slot)
		n *= 2;
	table = kv_fault(NP_RMEMS) ? NULL : realloc(s->rmem, n * sizeof(struct tr_rmem *));
	if (!table)
		return kv_fail(err, KV_ERR_NOMEM, "receive", "cannot grow the table of regions");
	memset(table + s->rmems, 0, (n - s->rmems) * sizeof(struct tr_rmem *));
	s->rmem = table;
	s->rmems = n;
	return 0;
}

int np_mem_described(struct np_send *s, struct wire_reader *r, struct kv_error *err)
{
	struct np_mem_piece piece;
	struct tr_rmem *rmem;
	int ret;

	if (!np_mem_piece_get(r, &piece) || piece.total > sizeof(s->description) ||
	    (piece.at && (piece.at != s->description_len || piece.slot != s->description_slot)))
		return kv_fail(err, KV_ERR_PROTOCOL, "receive",
			       "a description of memory does not fit together");
	memcpy(s->description + piece.at, piece.bytes, piece.len);
	s->description_slot = piece.slot;
	s->description_len = piece.at + piece.len;
	if (s->description_len < piece.total)
		return 0;
	s->description_len = 0;
	ret = grow_table(s, piece.slot, err);
	if (!ret)
		ret = tr_mem_open(s->comm.conn, s->description, piece.total, &rmem, err);
	if (ret)
		return ret;
	if (s->rmem[piece.slot]) /* a slot used again: what it named is deregistered over there */
		tr_mem_close(s->rmem[piece.slot]);
	s->rmem[piece.slot] = rmem;
	return 0;
}
