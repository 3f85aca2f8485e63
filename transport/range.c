/* SPDX-License-Identifier: Apache-2.0 */
/*
 * range.c -- the range cache: the regions that a new registration may share, found by address
 *
 * A region of 2^k bytes or more, and less than twice that, stands in the bucket of its beginning
 * in units of 2^k. One that covers an address then begins in the unit of the address or in one of
 * the two before it: three buckets to look at for each size that there is, however many regions
 * there are (NCCL registers tens of thousands).
 */
#include "memory.h"

static unsigned int class_of(size_t len)
{
	return 63 - (unsigned int)__builtin_clzll(len);
}

static struct tr_mem **bucket_of(struct tr_memory *m, unsigned int class, uint64_t unit)
{
	uint64_t x = (unit ^ (uint64_t) class << 56) * UINT64_C(0x9e3779b97f4a7c15);

	return &m->range[x >> 32 & (MEM_BUCKETS - 1)];
}

void range_add(struct tr_memory *m, struct tr_mem *mem)
{
	unsigned int class = class_of(mem->len);
	struct tr_mem **bucket = bucket_of(m, class, (uint64_t)(uintptr_t)mem->addr >> class);

	mem->range_next = *bucket;
	mem->range_prev = bucket;
	if (mem->range_next)
		mem->range_next->range_prev = &mem->range_next;
	*bucket = mem;
	m->class_used[class]++;
}

void range_remove(struct tr_memory *m, struct tr_mem *mem)
{
	if (!mem->range_prev)
		return;
	*mem->range_prev = mem->range_next;
	if (mem->range_next)
		mem->range_next->range_prev = mem->range_prev;
	mem->range_prev = NULL;
	m->class_used[class_of(mem->len)]--;
}

static bool covers(const struct tr_mem *mem, const struct tr_mem *wanted)
{
	return mem->kind == wanted->kind && (mem->access & wanted->access) == wanted->access &&
	       !((mem->access ^ wanted->access) & TR_RELAXED) && wanted->addr >= mem->addr &&
	       wanted->len <= mem->len &&
	       (size_t)(wanted->addr - mem->addr) <= mem->len - wanted->len;
}

struct tr_mem *range_find(struct tr_memory *m, const struct tr_mem *wanted)
{
	uint64_t addr = (uint64_t)(uintptr_t)wanted->addr;

	for (unsigned int class = class_of(wanted->len); class < MEM_CLASSES; class ++)
		for (uint64_t back = 0; m->class_used[class] && back <= 2; back++)
			for (struct tr_mem *mem = *bucket_of(m, class, (addr >> class) - back); mem;
			     mem = mem->range_next)
				if (covers(mem, wanted))
					return mem;
	return NULL;
}
