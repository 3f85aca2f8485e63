/* SPDX-License-Identifier: Apache-2.0 */
/*
 * staged_pair.h -- two ends over the fake device, which takes no DMA-BUF: each with memory of a
 * host or of a GPU
 */
#ifndef STAGED_PAIR_H
#define STAGED_PAIR_H

#include <stdlib.h>
#include <string.h>

#include "fake_cuda.h"
#include "ib/slot.h"
#include "lib/test.h"
#include "rig.h"

enum {
	ALLOCATED = STAGED_BYTES / 2 * 5 + 4096,
	LEN = ALLOCATED - 1234,
	BLANK = 0xee,
	TURNS = 1000,
	BUDGET = 400000,
	SMALL = 4096
};

/* A buffer, of a host or of a GPU. */
struct end {
	bool gpu;
	uint8_t *seen; /* by this test, */
	uint8_t *addr; /* and what the library is given */
	struct tr_mem *mem;
	struct tr_rmem *rmem; /* as the other side sees it */
};

struct pair {
	struct rig rig;
	struct end end[2];
};

static inline void make_end(struct pair *p, int side, bool gpu, struct end *e)
{
	struct kv_error err;

	*e = (struct end){ .gpu = gpu };
	e->seen = gpu ? fake_cuda_alloc(ALLOCATED, &e->addr) : malloc(LEN);
	e->addr = gpu ? e->addr : e->seen;
	assert_non_null(e->seen);
	memset(e->seen, BLANK, LEN);
	if (tr_mem_reg(p->rig.side[side].tr, e->addr, LEN, gpu ? TR_MEM_CUDA : TR_MEM_HOST,
		       TR_REMOTE_WRITE | TR_REMOTE_READ, &e->mem, &err))
		fail_msg("register: %s", err.message);
	e->rmem = rig_see(&p->rig, !side, e->mem);
}

static inline void free_end(struct end *e)
{
	assert_int_equal(tr_mem_dereg(e->mem, NULL), 0);
	if (!e->gpu)
		free(e->seen);
}

/* gpus: a bit for each side that has one. */
static inline void begin_seed(struct pair *p, int gpus, uint64_t seed, const char *const *options)
{
	struct fake_config config = { .seed = seed };

	memset(p, 0, sizeof(*p));
	fake_begin(&config);
	rig_make(&p->rig, "ib", options);
	for (int i = 0; i < 2; i++)
		make_end(p, i, gpus >> i & 1, &p->end[i]);
}

static inline void begin(struct pair *p, int gpus)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=3", NULL };

	begin_seed(p, gpus, 1, options);
}

static inline void finish(struct pair *p)
{
	rig_disconnect(&p->rig);
	fake_settle();
	for (int i = 0; i < 2; i++)
		free_end(&p->end[i]);
	rig_close(&p->rig);
	assert_true(fake_end());
	assert_int_equal(fake_cuda.open, 0);
	assert_int_equal(fake_cuda.contexts, 0);
	fake_cuda_reset();
}

static inline void fill(struct end *e, uint64_t epoch)
{
	for (size_t i = 0; i < LEN; i++)
		e->seen[i] = rig_byte(epoch, i);
}

static inline void turn(struct pair *p, int n)
{
	while (n--)
		rig_pump(&p->rig);
}

static inline struct tr_op *begin_op(struct pair *p, int side, int kind, size_t len)
{
	struct tr_span span = { 0, 0, len };
	struct kv_error err;
	struct tr_op *op;
	long added = 0;

	assert_int_equal(tr_op_begin(p->rig.side[side].conn, kind, 7, &op, &err), 0);
	while (!added) { /* the two tell each other where their slots are */
		added = tr_op_add(op, p->end[side].mem, p->end[!side].rmem, &span, 1, &err);
		rig_pump(&p->rig);
	}
	assert_int_equal(added, 1);
	return op;
}

static inline void commit(struct pair *p, struct tr_op *op, unsigned int flags)
{
	int ret;

	while ((ret = tr_op_commit(op, flags, 9, NULL)) == TR_AGAIN)
		rig_pump(&p->rig);
	assert_int_equal(ret, 0);
}

/* Spans in another order at each end, with gaps; the rest of the destination stays BLANK. */
static inline void move(struct pair *p, int kind, size_t len, size_t n, uint64_t epoch)
{
	struct end *from = &p->end[kind == TR_READ_OP], *to = &p->end[kind == TR_WRITE];
	struct tr_span *spans = calloc(n, sizeof(*spans));
	uint8_t *want = malloc(LEN);

	fill(from, epoch);
	memset(to->seen, BLANK, LEN);
	memset(want, BLANK, LEN);
	for (size_t i = 0; i < n; i++) {
		size_t at = 3 + i * (len + 5), there = 1 + (n - 1 - i) * (len + 3);

		spans[i] = (struct tr_span){ at, there, len };
		assert_true(at + len <= LEN && there + len <= LEN);
		memcpy(want + (kind == TR_WRITE ? there : at),
		       from->seen + (kind == TR_WRITE ? at : there), len);
	}
	rig_op(&p->rig, 0, kind, 5, p->end[0].mem, p->end[1].rmem, spans, n,
	       kind == TR_WRITE ? TR_NOTIFY : 0, 6);
	if (kind == TR_WRITE) {
		assert_non_null(rig_wait(&p->rig, 1, TR_NOTIFIED, BUDGET));
		assert_memory_equal(to->seen, want, LEN); /* the notify follows the bytes */
	}
	assert_non_null(rig_wait(&p->rig, 0, kind == TR_WRITE ? TR_WRITTEN : TR_READ, BUDGET));
	assert_memory_equal(to->seen, want, LEN);
	free(spans);
	free(want);
}

#endif
