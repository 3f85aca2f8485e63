/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_mem.c -- registered memory of a communicator, and how the sender comes to know the receiver's
 *
 * Registering needs no connection and may run beside the data path. The description travels when a
 * receive first names the region, from the thread that owns the connection.
 */
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "np.h"

/* ----------------------------------------------------- slots: numbers of the receiver's regions */

enum { SLOT_WORDS = (NP_MEM_SLOTS + 63) / 64 };

/* Under mr_lock. The lowest free one: the sender's table stays as small as it can be. */
static int take_slot(struct np_recv *r, uint16_t *slot_p, struct kv_error *err)
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

static void give_slot(struct np_recv *r, uint16_t slot)
{
	r->slot_used[slot / 64] &= ~(UINT64_C(1) << slot % 64);
}

/* ---------------------------------------------------------------- regMr, deregMr */

/* What NCCL registers. */
struct range {
	void *data;
	size_t size;
	bool is_gpu;
	int fd; /* its DMA-BUF, or -1 */
	uint64_t offset;
};

static int register_range(struct np_comm *comm, const struct range *range, unsigned int access,
			  struct tr_mem **mem_p, struct kv_error *err)
{
	return range->fd < 0
		       ? tr_mem_reg(comm->tr, range->data, range->size,
				    range->is_gpu ? TR_MEM_DEVICE : TR_MEM_HOST, access, mem_p, err)
		       : tr_mem_reg_dmabuf(comm->tr, range->data, range->size, range->fd,
					   range->offset, access, mem_p, err);
}

static int register_region(struct np_comm *comm, const struct range *range, struct np_mr **mr_p,
			   struct kv_error *err)
{
	unsigned int access = comm->is_send ? 0 : TR_REMOTE_WRITE;
	struct np_mr *mr = kv_fault(NP_MR) ? NULL : calloc(1, sizeof(*mr));
	int ret;

	if (!mr)
		return kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate a region's record");
	mr->is_gpu = range->is_gpu;
	ret = register_range(comm, range, access, &mr->mem, err);
	if (ret)
		goto free_mr;
	ret = tr_mem_usable(comm->conn, mr->mem, err);
	if (ret)
		goto dereg;
	pthread_mutex_lock(&comm->mr_lock);
	if (!comm->is_send)
		ret = take_slot(np_recv_of(comm), &mr->slot, err);
	if (!ret) {
		mr->serial = ++comm->serials;
		mr->next = comm->mrs;
		mr->prev = &comm->mrs;
		if (mr->next)
			mr->next->prev = &mr->next;
		comm->mrs = mr;
	}
	pthread_mutex_unlock(&comm->mr_lock);
	if (!ret) {
		*mr_p = mr;
		return 0;
	}
dereg:
	tr_mem_dereg(mr->mem, NULL);
free_mr:
	free(mr);
	return ret;
}

static ncclResult_t reg(struct np_comm *comm, const struct range *range, int offered,
			void **mhandle, const char *what)
{
	struct np_mr *mr;
	struct kv_error err;

	np_end_step();
	if (!comm || !mhandle)
		return np_misuse("%s: a pointer is NULL", what);
	if (!(comm->ptr_support & offered))
		return np_misuse("%s: memory of type %d was not offered", what, offered);
	if (register_region(comm, range, &mr, &err))
		return np_fail(&err, what);
	*mhandle = mr;
	return ncclSuccess;
}

ncclResult_t np_reg(void *comm, void *data, size_t size, int type, void **mhandle)
{
	struct range range = {
		.data = data, .size = size, .is_gpu = type != NCCL_PTR_HOST, .fd = -1
	};

	return reg(comm, &range, type & (NCCL_PTR_HOST | NCCL_PTR_CUDA), mhandle, "regMr");
}

ncclResult_t np_reg_dmabuf(void *comm, void *data, size_t size, int type, uint64_t offset, int fd,
			   void **mhandle)
{
	struct range range = {
		.data = data, .size = size, .is_gpu = true, .fd = fd, .offset = offset
	};

	(void)type; /* of the address; the descriptor says more */
	if (fd < 0)
		return np_misuse("regMrDmaBuf: descriptor %d", fd);
	return reg(comm, &range, NCCL_PTR_DMABUF, mhandle, "regMrDmaBuf");
}

/* Under mr_lock: those that no request names any more. */
static void free_gone(struct np_comm *comm)
{
	struct np_mr **at = &comm->gone;

	while (*at) {
		struct np_mr *mr = *at;

		if (atomic_load_explicit(&mr->held, memory_order_acquire)) {
			at = &mr->next;
			continue;
		}
		*at = mr->next;
		free(mr);
	}
}

ncclResult_t np_dereg(void *c, void *mhandle)
{
	struct np_comm *comm = c;
	struct np_mr *mr = mhandle;
	struct kv_error err;
	ncclResult_t result;
	unsigned int held;

	np_end_step();
	if (!comm)
		return np_misuse("deregMr: a pointer is NULL");
	if (!mr)
		return ncclSuccess;
	/* With requests under way this is the communicator's end: NCCL frees the memory next. */
	held = atomic_load_explicit(&mr->held, memory_order_relaxed);
	result = held ? np_end_use(comm, mr, "deregMr") : ncclSuccess;
	if (result)
		return result;
	if (tr_mem_dereg(mr->mem, &err))
		return np_fail(&err, "deregMr");
	pthread_mutex_lock(&comm->mr_lock);
	if (!comm->is_send)
		give_slot(np_recv_of(comm), mr->slot);
	*mr->prev = mr->next;
	if (mr->next)
		mr->next->prev = mr->prev;
	mr->next = comm->gone;
	comm->gone = mr;
	free_gone(comm);
	pthread_mutex_unlock(&comm->mr_lock);
	return ncclSuccess;
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
	if (!comm->is_send)
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
