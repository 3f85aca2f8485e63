/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hold.c -- the users of a region: operations, a ring's receiver, connections whose device still
 * holds it
 *
 * A region that is used is not deregistered (BUSY). Every use is counted on its own region, however
 * many an operation has, so that one operation never keeps a region that it does not use.
 */
#include <stdlib.h>

#include "base/fault.h"
#include "base/error.h"
#include "memory.h"

static struct tr_mem *at_slot(const struct tr_memory *m, uint32_t slot)
{
	_Atomic(struct tr_mem *) *chunk = atomic_load(&m->chunk[slot / MEM_CHUNK]);

	return chunk ? atomic_load(&chunk[slot % MEM_CHUNK]) : NULL;
}

/*
 * Without the one that is being given back. Where other owners keep the region, a device that still
 * works for a closed connection may reach it; where none does, deregistering it takes it from the
 * device. The operations of this owner have ended, or it would not give the region back; those of
 * the others are theirs.
 */
bool mem_is_used(const struct tr_mem *mem)
{
	if (mem->refs)
		return mem->left;
	return atomic_load(&mem->in_flight) || atomic_load(&mem->readers);
}

/* ---------------------------------------------------------------- operations */

/* The regions of an operation past TR_OP_MEMS, by their slots. */
struct tr_op_wide {
	uint64_t some[TR_MEMS_MAX / 64 / 64]; /* words of `bit` that are not 0 */
	uint64_t bit[TR_MEMS_MAX / 64];
	struct tr_op_wide *next;
};

/* One that an earlier operation of the connection has used, or the first time a new one. */
static struct tr_op_wide *take_wide(struct conn_data *data)
{
	struct tr_op_wide *wide = data->wide;

	if (!wide)
		return kv_fault(TR_OP_WIDE) ? NULL : calloc(1, sizeof(*wide));
	data->wide = wide->next;
	return wide;
}

static int hold_wide(struct tr_op *op, struct tr_mem *mem, struct kv_error *err)
{
	uint32_t slot = mem->id % TR_MEMS_MAX;
	uint64_t bit = UINT64_C(1) << slot % 64;

	if (!op->wide)
		op->wide = take_wide(op->conn->data);
	if (!op->wide)
		return kv_fail(err, KV_ERR_NOMEM, "add",
			       "cannot allocate the list of an operation's regions");
	if (op->wide->bit[slot / 64] & bit)
		return 0;
	op->wide->bit[slot / 64] |= bit;
	op->wide->some[slot / 64 / 64] |= UINT64_C(1) << slot / 64 % 64;
	atomic_fetch_add_explicit(&mem->in_flight, 1, memory_order_relaxed);
	return 0;
}

int op_hold(struct tr_op *op, struct tr_mem *mem, struct kv_error *err)
{
	for (int i = op->mems - 1; i >= 0; i--)
		if (op->mem[i] == mem)
			return 0;
	if (op->mems == TR_OP_MEMS)
		return hold_wide(op, mem, err);
	op->mem[op->mems++] = mem;
	atomic_fetch_add_explicit(&mem->in_flight, 1, memory_order_relaxed);
	return 0;
}

/* Calls back for each region past TR_OP_MEMS; `clear`: the list is empty then. */
static void each_wide(struct tr_op *op, bool clear, void (*f)(void *arg, struct tr_mem *mem),
		      void *arg)
{
	struct tr_op_wide *wide = op->wide;

	for (uint32_t s = 0; wide && s < TR_MEMS_MAX / 64 / 64; s++)
		for (uint64_t words = wide->some[s]; words; words &= words - 1) {
			uint32_t word = s * 64 + (uint32_t)__builtin_ctzll(words);

			for (uint64_t bits = wide->bit[word]; bits; bits &= bits - 1) {
				uint32_t slot = word * 64 + (uint32_t)__builtin_ctzll(bits);
				struct tr_mem *mem = at_slot(op->conn->tr->memory, slot);

				if (mem) /* always: a region that is used keeps its slot */
					f(arg, mem);
			}
			if (clear)
				wide->bit[word] = 0;
		}
	for (uint32_t s = 0; clear && wide && s < TR_MEMS_MAX / 64 / 64; s++)
		wide->some[s] = 0;
}

static void end_use(void *arg, struct tr_mem *mem)
{
	/* release: the operation's accesses come before the thread that frees the memory. */
	atomic_fetch_sub_explicit(&mem->in_flight, 1, memory_order_release);
}

void op_let_go(struct tr_op *op)
{
	while (op->mems)
		end_use(NULL, op->mem[--op->mems]);
	if (op->wide) {
		each_wide(op, true, end_use, NULL);
		op->wide->next = op->conn->data->wide;
		op->conn->data->wide = op->wide;
		op->wide = NULL;
	}
}

void op_free_wide(struct conn_data *data)
{
	while (data->wide) {
		struct tr_op_wide *wide = data->wide;

		data->wide = wide->next;
		free(wide);
	}
}

/* ---------------------------------------------------------------- a ring's receiver */

struct tr_mem *tr_mem_get(struct tr *tr, uint32_t id)
{
	struct tr_mem *mem = at_slot(tr->memory, id % TR_MEMS_MAX);

	if (!mem)
		return NULL;
	/*
	 * seq_cst on both sides: either this count is seen by the thread that deregisters the
	 * region (mem.c, withdraw), or the slot is seen empty here. The record itself is never
	 * freed before the context, so that counting in one that has just gone is harmless.
	 */
	atomic_fetch_add(&mem->readers, 1);
	if (at_slot(tr->memory, id % TR_MEMS_MAX) == mem && mem->id == id &&
	    atomic_load(&mem->ready))
		return mem;
	tr_mem_put(mem);
	return NULL;
}

void tr_mem_put(struct tr_mem *mem)
{
	atomic_fetch_sub_explicit(&mem->readers, 1, memory_order_release);
}

/* ------------------------------------------ connections that their device still works for */

/*
 * The regions that were described to the peer of a connection: ids, because a region may go before
 * the connection does.
 */
struct tr_exposed {
	uint32_t n, cap;
	uint32_t last; /* found by conn_exposes */
	uint32_t id[];
};

/* Under the lock. */
static struct tr_mem *living(const struct tr_memory *m, uint32_t id)
{
	struct tr_mem *mem = at_slot(m, id % TR_MEMS_MAX);

	return mem && mem->id == id ? mem : NULL;
}

/* Room for one more: forgets regions that have gone, and grows if few have. */
static int make_room(struct tr_conn *conn, struct kv_error *err)
{
	struct tr_memory *m = conn->tr->memory;
	struct tr_exposed *e = conn->exposed;
	uint32_t kept = 0, cap = e ? e->cap : 0;

	if (e && e->n < cap)
		return 0;
	pthread_mutex_lock(&m->lock);
	for (uint32_t i = 0; e && i < e->n; i++)
		if (living(m, e->id[i]))
			e->id[kept++] = e->id[i];
	pthread_mutex_unlock(&m->lock);
	if (e && kept <= cap / 2) {
		e->n = kept;
		return 0;
	}
	cap = cap ? 2 * cap : 16;
	e = kv_fault(TR_EXPOSED) ? NULL : realloc(e, sizeof(*e) + cap * sizeof(e->id[0]));
	if (!e)
		return kv_fail(err, KV_ERR_NOMEM, "mem_pack",
			       "cannot remember a region that is described to the peer");
	e->n = kept;
	e->last = 0;
	e->cap = cap;
	conn->exposed = e;
	return 0;
}

int conn_expose(struct tr_conn *conn, const struct tr_mem *mem, struct kv_error *err)
{
	int ret = make_room(conn, err);

	if (!ret)
		conn->exposed->id[conn->exposed->n++] = mem->id;
	return ret;
}

bool conn_exposes(struct tr_conn *conn, const struct tr_mem *mem)
{
	struct tr_exposed *e = conn->exposed;

	if (e && e->n && e->id[e->last] == mem->id)
		return true;
	for (uint32_t i = 0; e && i < e->n; i++)
		if (e->id[i] == mem->id) {
			e->last = i;
			return true;
		}
	return false;
}

struct tr_mem *tr_mem_lent(struct tr_conn *conn, uint32_t id)
{
	struct tr_mem *mem = tr_mem_get(conn->tr, id);

	if (!mem || (mem->kind != TR_MEM_HOST && conn_exposes(conn, mem)))
		return mem;
	tr_mem_put(mem);
	return NULL;
}

/* What a connection held when it was closed; the memory's, and its device's job's. */
struct tr_left {
	atomic_int refs;
	atomic_bool done;
	struct tr_left *next;
	size_t n;
	struct tr_mem *mem[];
};

static void count_one(void *arg, struct tr_mem *mem)
{
	++*(size_t *)arg;
}

static void leave_one(void *arg, struct tr_mem *mem)
{
	struct tr_left *left = arg;

	mem->left++;
	left->mem[left->n++] = mem;
}

static void each_of_ops(struct tr_conn *conn, void (*f)(void *arg, struct tr_mem *mem), void *arg)
{
	for (unsigned int i = 0; conn->data && i < conn->data->ops; i++) {
		struct tr_op *op = conn_op(conn->data, i);

		if (op->state == TR_OP_FREE)
			continue;
		for (unsigned int k = 0; k < op->mems; k++)
			f(arg, op->mem[k]);
		each_wide(op, false, f, arg);
	}
}

struct tr_left *tr_conn_leave(struct tr_conn *conn)
{
	const struct tr_exposed *e = conn->exposed;
	struct tr_memory *m = conn->tr->memory;
	size_t n = e ? e->n : 0;
	struct tr_left *left;

	each_of_ops(conn, count_one, &n);
	left = kv_fault(TR_LEFT) ? NULL : calloc(1, sizeof(*left) + n * sizeof(left->mem[0]));
	if (!left)
		return NULL;
	atomic_init(&left->refs, 2);
	pthread_mutex_lock(&m->lock);
	for (uint32_t i = 0; e && i < e->n; i++)
		if (living(m, e->id[i]))
			leave_one(left, living(m, e->id[i]));
	each_of_ops(conn, leave_one, left);
	left->next = m->left;
	m->left = left;
	pthread_mutex_unlock(&m->lock);
	return left;
}

static void put_left(struct tr_left *left)
{
	if (atomic_fetch_sub(&left->refs, 1) == 1)
		free(left);
}

void tr_left_done(struct tr_left *left)
{
	atomic_store(&left->done, true);
	put_left(left);
}

void left_reap(struct tr_memory *m)
{
	struct tr_left **at = &m->left;

	while (*at) {
		struct tr_left *left = *at;

		if (!atomic_load(&left->done)) {
			at = &left->next;
			continue;
		}
		*at = left->next;
		for (size_t i = 0; i < left->n; i++)
			if (left->mem[i])
				left->mem[i]->left--;
		put_left(left);
	}
}

void left_forget(struct tr_memory *m, struct tr_mem *mem)
{
	for (struct tr_left *left = mem->left ? m->left : NULL; left; left = left->next)
		for (size_t i = 0; i < left->n; i++)
			if (left->mem[i] == mem)
				left->mem[i] = NULL;
	mem->left = 0;
}

/* The regions are gone already, and with them every right of the devices. */
void left_free_all(struct tr_memory *m)
{
	while (m->left) {
		struct tr_left *left = m->left;

		m->left = left->next;
		put_left(left);
	}
}
