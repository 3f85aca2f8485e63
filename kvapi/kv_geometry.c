/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_geometry.c -- checks a cache's shape, compares two, and finds the part of a block that two
 * ranks share
 */
#include "kv_geometry.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

int kv_geometry_check(const struct kv_geometry *g, const char *op, struct kv_error *err)
{
	if (g->cache_id >= KV_CACHES_MAX)
		return kv_fail(err, KV_ERR_ARG, op, "cache_id is %u; it must be below %d",
			       g->cache_id, KV_CACHES_MAX);
	if (!g->layers || g->layers > KV_LAYERS_MAX)
		return kv_fail(err, KV_ERR_ARG, op, "layers is %u; it must be 1..%d", g->layers,
			       KV_LAYERS_MAX);
	if (!g->tensors || g->tensors > KV_TENSORS_MAX)
		return kv_fail(err, KV_ERR_ARG, op, "tensors is %u; it must be 1..%d", g->tensors,
			       KV_TENSORS_MAX);
	if (!g->blocks || g->blocks > KV_BLOCKS_MAX)
		return kv_fail(err, KV_ERR_ARG, op, "blocks is %u; it must be 1..%d", g->blocks,
			       KV_BLOCKS_MAX);
	if (!g->tp_size || g->tp_rank >= g->tp_size)
		return kv_fail(err, KV_ERR_ARG, op, "tp_rank is %u; it must be below tp_size %u",
			       g->tp_rank, g->tp_size);
	if (g->flags & ~(uint32_t)(KV_CACHE_OPEN | KV_CACHE_READABLE))
		return kv_fail(err, KV_ERR_ARG, op, "flags is 0x%x; this version knows 0x%x",
			       g->flags, (unsigned int)(KV_CACHE_OPEN | KV_CACHE_READABLE));
	for (uint32_t i = 0; i < g->tensors; i++) {
		const struct kv_geometry_tensor *t = &g->tensor[i];

		if (!t->name[0])
			return kv_fail(err, KV_ERR_ARG, op, "tensor[%u].name is empty", i);
		if (!t->block_bytes || t->block_bytes > UINT64_MAX / KV_BLOCKS_MAX)
			return kv_fail(err, KV_ERR_ARG, op,
				       "tensor[%u].block_bytes is %llu; it must be 1..2^36 - 1", i,
				       (unsigned long long)t->block_bytes);
		if (t->flags & ~(uint32_t)KV_TENSOR_REPLICATED)
			return kv_fail(err, KV_ERR_ARG, op,
				       "tensor[%u].flags is 0x%x; this version knows 0x%x", i,
				       t->flags, (unsigned int)KV_TENSOR_REPLICATED);
	}
	return 0;
}

struct report {
	char text[sizeof(((struct kv_error *)0)->message)];
	size_t len;
	unsigned int fields, untold;
};

static void __attribute__((format(printf, 2, 3))) differ(struct report *r, const char *fmt, ...)
{
	char one[96];
	va_list ap;
	size_t n;

	va_start(ap, fmt);
	vsnprintf(one, sizeof(one), fmt, ap);
	va_end(ap);
	n = strlen(one) + 2;
	r->fields++;
	/* Room is kept for the head of the sentence and for "and N more". */
	if (r->untold || r->len + n > sizeof(r->text) - 64) {
		r->untold++;
		return;
	}
	r->len += (size_t)snprintf(r->text + r->len, sizeof(r->text) - r->len, "%s%s",
				   r->len ? ", " : "", one);
}

static void compare_tensor(struct report *r, uint32_t i, const struct kv_geometry *l,
			   const struct kv_geometry *m)
{
	const struct kv_geometry_tensor *a = &l->tensor[i], *b = &m->tensor[i];
	bool split = !(a->flags & KV_TENSOR_REPLICATED);
	uint64_t whole_a, whole_b; /* bytes of the block of all ranks together */

	if (strcmp(a->name, b->name))
		differ(r, "tensor %u name %s / %s", i, a->name, b->name);
	if (a->flags != b->flags) {
		differ(r, "tensor %u flags 0x%x / 0x%x", i, a->flags, b->flags);
		return;
	}
	if (__builtin_mul_overflow(a->block_bytes, split ? l->tp_size : 1, &whole_a) ||
	    __builtin_mul_overflow(b->block_bytes, split ? m->tp_size : 1, &whole_b) ||
	    whole_a != whole_b)
		differ(r, "tensor %u (%s) block_bytes %llu / %llu", i, a->name,
		       (unsigned long long)a->block_bytes, (unsigned long long)b->block_bytes);
}

int kv_geometry_compare(const struct kv_geometry *local, const struct kv_geometry *remote,
			struct kv_error *err)
{
	struct report r = { .len = 0 };

	if (local->layers != remote->layers)
		differ(&r, "layers %u / %u", local->layers, remote->layers);
	if (local->tensors != remote->tensors)
		differ(&r, "tensors %u / %u", local->tensors, remote->tensors);
	if (local->block_tokens && remote->block_tokens &&
	    local->block_tokens != remote->block_tokens)
		differ(&r, "block_tokens %u / %u", local->block_tokens, remote->block_tokens);
	if (local->dtype && remote->dtype && local->dtype != remote->dtype)
		differ(&r, "dtype %u / %u", local->dtype, remote->dtype);
	if (local->tp_size % remote->tp_size && remote->tp_size % local->tp_size)
		differ(&r, "tp_size %u / %u (one must divide the other)", local->tp_size,
		       remote->tp_size);
	for (uint32_t i = 0; i < local->tensors && i < remote->tensors; i++)
		compare_tensor(&r, i, local, remote);
	if (!r.fields)
		return 0;
	if (r.untold)
		snprintf(r.text + r.len, sizeof(r.text) - r.len, " and %u more", r.untold);
	kv_fail(err, KV_ERR_GEOMETRY, "connect", "cache %u differs (here / there): %s",
		local->cache_id, r.text);
	kv_error_hint(err, "both engines must register cache %u with the same shape",
		      local->cache_id);
	return KV_ERR_GEOMETRY;
}

bool kv_geometry_parts(const struct kv_geometry *local, const struct kv_geometry *remote,
		       struct kv_part part[KV_TENSORS_MAX])
{
	bool finer = local->tp_size > remote->tp_size; /* our blocks are parts of theirs */
	uint32_t ratio =
		finer ? local->tp_size / remote->tp_size : remote->tp_size / local->tp_size;
	bool meets = finer ? local->tp_rank / ratio == remote->tp_rank
			   : remote->tp_rank / ratio == local->tp_rank;
	bool any_split = false;

	for (uint32_t i = 0; i < local->tensors; i++) {
		uint64_t mine = local->tensor[i].block_bytes;
		uint64_t theirs = remote->tensor[i].block_bytes;

		part[i] = (struct kv_part){ .len = mine < theirs ? mine : theirs };
		if (local->tensor[i].flags & KV_TENSOR_REPLICATED)
			continue;
		any_split = true;
		if (finer)
			part[i].remote_skip = local->tp_rank % ratio * mine;
		else
			part[i].local_skip = remote->tp_rank % ratio * theirs;
	}
	return meets || !any_split;
}
