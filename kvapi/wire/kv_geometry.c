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

static int check_tensor(const struct kv_geometry *g, uint32_t i, const char *op,
			struct kv_error *err)
{
	const struct kv_geometry_tensor *t = &g->tensor[i];
	bool split = !(t->flags & KV_TENSOR_REPLICATED);
	uint32_t heads = split && g->kv_heads > g->tp_size ? g->kv_heads / g->tp_size : 1;

	if (!t->name[0])
		return kv_fail(err, KV_ERR_ARG, op, "tensor[%u].name is empty", i);
	if (!t->block_bytes || t->block_bytes > UINT64_MAX / KV_BLOCKS_MAX)
		return kv_fail(err, KV_ERR_ARG, op,
			       "tensor[%u].block_bytes is %llu; it must be 1..2^36 - 1", i,
			       (unsigned long long)t->block_bytes);
	if (t->flags & ~(uint32_t)KV_TENSOR_REPLICATED)
		return kv_fail(err, KV_ERR_ARG, op,
			       "tensor[%u].flags is 0x%x; this version knows 0x%x", i, t->flags,
			       (unsigned int)KV_TENSOR_REPLICATED);
	if (t->order > KV_ORDER_NHD)
		return kv_fail(err, KV_ERR_ARG, op,
			       "tensor[%u].order is %u; this version knows 0..%d", i, t->order,
			       KV_ORDER_NHD);
	if (t->block_bytes % heads)
		return kv_fail(
			err, KV_ERR_ARG, op,
			"tensor[%u].block_bytes is %llu, not a multiple of the rank's %u heads", i,
			(unsigned long long)t->block_bytes, heads);
	if (t->order == KV_ORDER_NHD && g->block_tokens && t->block_bytes % g->block_tokens)
		return kv_fail(err, KV_ERR_ARG, op,
			       "tensor[%u].block_bytes is %llu, not a multiple of block_tokens %u",
			       i, (unsigned long long)t->block_bytes, g->block_tokens);
	return 0;
}

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
	if (g->kv_heads && g->kv_heads % g->tp_size && g->tp_size % g->kv_heads)
		return kv_fail(err, KV_ERR_ARG, op,
			       "kv_heads is %u and tp_size %u; one must divide the other",
			       g->kv_heads, g->tp_size);
	if (g->flags & ~(uint32_t)(KV_CACHE_OPEN | KV_CACHE_READABLE))
		return kv_fail(err, KV_ERR_ARG, op, "flags is 0x%x; this version knows 0x%x",
			       g->flags, (unsigned int)(KV_CACHE_OPEN | KV_CACHE_READABLE));
	for (uint32_t i = 0; i < g->tensors; i++) {
		int ret = check_tensor(g, i, op, err);

		if (ret)
			return ret;
	}
	return 0;
}

struct report {
	char text[sizeof(((struct kv_error *)0)->message)];
	size_t len;
	unsigned int fields, unnamed;
};

static void __attribute__((format(printf, 2, 3))) differ(struct report *r, const char *fmt, ...)
{
	char one[128];
	va_list ap;
	size_t n;

	va_start(ap, fmt);
	vsnprintf(one, sizeof(one), fmt, ap);
	va_end(ap);
	n = strlen(one) + 2;
	r->fields++;
	/* Room is kept for the head of the sentence and for "and N more". */
	if (r->unnamed || r->len + n > sizeof(r->text) - 64) {
		r->unnamed++;
		return;
	}
	r->len += (size_t)snprintf(r->text + r->len, sizeof(r->text) - r->len, "%s%s",
				   r->len ? "; " : "", one);
}

/* With fewer heads than ranks several ranks hold the same part of a block. */
struct share {
	uint32_t parts, index;
};

static struct share head_share(const struct kv_geometry *g, uint32_t kv_heads)
{
	uint32_t same = kv_heads && kv_heads < g->tp_size ? g->tp_size / kv_heads : 1;

	return (struct share){ g->tp_size / same, g->tp_rank / same };
}

/* A value that one of two caches may leave out: the other's counts. */
static uint32_t either(uint32_t local, uint32_t remote)
{
	return local ? local : remote;
}

static bool heads_fit(uint32_t kv_heads, uint32_t tp_size)
{
	return !kv_heads || !(kv_heads % tp_size) || !(tp_size % kv_heads);
}

static bool splits(const struct kv_geometry *g)
{
	for (uint32_t i = 0; i < g->tensors; i++)
		if (!(g->tensor[i].flags & KV_TENSOR_REPLICATED))
			return true;
	return false;
}

static const char *const order_names[] = { "not given", "HND", "NHD" };

/* Whole blocks fit if both orders are the same; parts only if the order says where they lie. */
static void compare_order(struct report *r, uint32_t i, const struct kv_geometry *l,
			  const struct kv_geometry *m, bool parts)
{
	uint32_t a = l->tensor[i].order, b = m->tensor[i].order;
	bool known = a && b;

	if (known ? a != b : parts)
		differ(r, "tensor %u (%s) order here %s, peer %s%s", i, l->tensor[i].name,
		       order_names[a], order_names[b],
		       known ? "" : " (needed, as tp_size differs)");
	else if (parts && a == KV_ORDER_NHD && !(l->block_tokens && m->block_tokens))
		differ(r, "block_tokens here %u, peer %u (needed by tensor %u (%s), which is NHD)",
		       l->block_tokens, m->block_tokens, i, l->tensor[i].name);
}

static void compare_tensor(struct report *r, uint32_t i, const struct kv_geometry *l,
			   const struct kv_geometry *m)
{
	const struct kv_geometry_tensor *a = &l->tensor[i], *b = &m->tensor[i];
	bool split = !(a->flags & KV_TENSOR_REPLICATED);
	uint32_t heads = either(l->kv_heads, m->kv_heads);
	uint32_t parts_a = split ? head_share(l, heads).parts : 1;
	uint32_t parts_b = split ? head_share(m, heads).parts : 1;
	uint64_t whole_a, whole_b; /* bytes of the block of all ranks together */

	if (strcmp(a->name, b->name))
		differ(r, "tensor %u name here %s, peer %s", i, a->name, b->name);
	if (a->flags != b->flags) {
		differ(r, "tensor %u flags here 0x%x, peer 0x%x", i, a->flags, b->flags);
		return;
	}
	compare_order(r, i, l, m, parts_a != parts_b);
	if (!__builtin_mul_overflow(a->block_bytes, parts_a, &whole_a) &&
	    !__builtin_mul_overflow(b->block_bytes, parts_b, &whole_b) && whole_a == whole_b)
		return;
	if (parts_a == parts_b)
		differ(r, "tensor %u (%s) block_bytes here %llu, peer %llu", i, a->name,
		       (unsigned long long)a->block_bytes, (unsigned long long)b->block_bytes);
	else
		differ(r,
		       "tensor %u (%s) block_bytes here %llu at tp_size %u, peer %llu at tp_size %u",
		       i, a->name, (unsigned long long)a->block_bytes, l->tp_size,
		       (unsigned long long)b->block_bytes, m->tp_size);
}

static void compare_tp(struct report *r, const struct kv_geometry *l, const struct kv_geometry *m)
{
	uint32_t heads = either(l->kv_heads, m->kv_heads);
	uint32_t a = head_share(l, heads).parts, b = head_share(m, heads).parts;

	if (l->kv_heads && m->kv_heads && l->kv_heads != m->kv_heads)
		differ(r, "kv_heads here %u, peer %u", l->kv_heads, m->kv_heads);
	else if (!heads_fit(heads, l->tp_size) || !heads_fit(heads, m->tp_size))
		differ(r, "tp_size here %u, peer %u with %u kv_heads (one must divide the other)",
		       l->tp_size, m->tp_size, heads);
	else if (splits(l) && a % b && b % a)
		differ(r, "tp_size here %u, peer %u (one must divide the other)", l->tp_size,
		       m->tp_size);
}

int kv_geometry_compare(const struct kv_geometry *local, const struct kv_geometry *remote,
			struct kv_error *err)
{
	struct report r = { .len = 0 };

	if (local->layers != remote->layers)
		differ(&r, "layers here %u, peer %u", local->layers, remote->layers);
	if (local->tensors != remote->tensors)
		differ(&r, "tensors here %u, peer %u", local->tensors, remote->tensors);
	if (local->block_tokens && remote->block_tokens &&
	    local->block_tokens != remote->block_tokens)
		differ(&r, "block_tokens here %u, peer %u", local->block_tokens,
		       remote->block_tokens);
	if (local->dtype && remote->dtype && local->dtype != remote->dtype)
		differ(&r, "dtype here %u, peer %u", local->dtype, remote->dtype);
	compare_tp(&r, local, remote);
	for (uint32_t i = 0; i < local->tensors && i < remote->tensors; i++)
		compare_tensor(&r, i, local, remote);
	if (!r.fields)
		return 0;
	if (r.unnamed)
		snprintf(r.text + r.len, sizeof(r.text) - r.len, " and %u more", r.unnamed);
	kv_fail(err, KV_ERR_GEOMETRY, "connect", "cache %u differs: %s", local->cache_id, r.text);
	if (local->tp_size == remote->tp_size)
		kv_error_hint(err, "both engines must register cache %u with the same shape",
			      local->cache_id);
	else
		kv_error_hint(err,
			      "for tp_size %u and %u both engines must give each tensor's order, "
			      "block_tokens where it is NHD, and kv_heads if a rank has a copy of "
			      "another's head",
			      local->tp_size, remote->tp_size);
	return KV_ERR_GEOMETRY;
}

bool kv_geometry_parts(const struct kv_geometry *local, const struct kv_geometry *remote,
		       struct kv_part part[KV_TENSORS_MAX])
{
	uint32_t heads = either(local->kv_heads, remote->kv_heads);
	struct share a = head_share(local, heads), b = head_share(remote, heads);
	bool finer = a.parts > b.parts; /* our blocks are parts of theirs */
	uint32_t ratio = finer ? a.parts / b.parts : b.parts / a.parts;
	bool meets = finer ? a.index / ratio == b.index : b.index / ratio == a.index;

	for (uint32_t i = 0; i < local->tensors; i++) {
		bool split = !(local->tensor[i].flags & KV_TENSOR_REPLICATED) && ratio > 1;
		uint32_t rows =
			split && local->tensor[i].order == KV_ORDER_NHD ? local->block_tokens : 1;
		uint64_t mine = local->tensor[i].block_bytes / rows;
		uint64_t theirs = remote->tensor[i].block_bytes / rows;

		part[i] = (struct kv_part){ .len = mine < theirs ? mine : theirs,
					    .local_row = mine,
					    .remote_row = theirs,
					    .rows = rows };
		if (split && finer)
			part[i].remote_skip = a.index % ratio * mine;
		else if (split)
			part[i].local_skip = b.index % ratio * theirs;
	}
	return meets || !splits(local);
}
