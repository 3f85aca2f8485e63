/* SPDX-License-Identifier: Apache-2.0 */
/* kv_layout.c -- checks the layout of a cache, and finds where its tensors lie */
#include "kv_layout.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "kv_overlap.h"

static int take_tensor(const struct kv_layout *layout, uint32_t i, struct kv_geometry_tensor *g,
		       uint64_t *stride, struct kv_error *err)
{
	const struct kv_tensor *t = &layout->tensor[i];

	if (!t->name || strlen(t->name) >= sizeof(g->name))
		return kv_fail(err, KV_ERR_ARG, "register",
			       "tensor[%u].name is NULL or longer than %zu bytes", i,
			       sizeof(g->name) - 1);
	for (const char *c = t->name; *c; c++)
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			return kv_fail(err, KV_ERR_ARG, "register",
				       "tensor[%u].name holds a control character", i);
	snprintf(g->name, sizeof(g->name), "%s", t->name);
	g->block_bytes = t->block_bytes;
	g->flags = t->flags;
	g->order = t->order;
	*stride = t->stride ? t->stride : t->block_bytes;
	if (*stride < t->block_bytes)
		return kv_fail(err, KV_ERR_ARG, "register",
			       "tensor[%u].stride is %llu, less than block_bytes %llu", i,
			       (unsigned long long)t->stride, (unsigned long long)t->block_bytes);
	for (uint32_t l = 0; t->layer_base && l < layout->layers; l++)
		if (!t->layer_base[l])
			return kv_fail(err, KV_ERR_ARG, "register",
				       "tensor[%u].layer_base[%u] is NULL", i, l);
	if (!t->layer_base && !t->base)
		return kv_fail(err, KV_ERR_ARG, "register",
			       "tensor[%u] has neither base nor layer_base", i);
	if (!t->layer_base && !t->layer_stride && layout->layers > 1) {
		kv_fail(err, KV_ERR_ARG, "register",
			"tensor[%u].layer_stride is 0: its %u layers would share their bytes", i,
			layout->layers);
		kv_error_hint(err,
			      "set it to the bytes from one layer to the next, or set layer_base");
		return KV_ERR_ARG;
	}
	return 0;
}

int kv_layout_take(const struct kv_layout *layout, struct kv_geometry *g,
		   uint64_t stride[KV_TENSORS_MAX], struct kv_error *err)
{
	int ret;

	/* The field was added later: a caller compiled before that has the smaller struct. */
	if (!layout || (layout->size != sizeof(*layout) &&
			layout->size != offsetof(struct kv_layout, kv_heads)))
		return kv_fail(err, KV_ERR_ARG, "register",
			       "kv_layout is NULL or its size is not %zu", sizeof(*layout));
	*g = (struct kv_geometry){
		.cache_id = layout->cache_id,
		.layers = layout->layers,
		.tensors = layout->tensors,
		.blocks = layout->blocks,
		.tp_size = layout->tp_size ? layout->tp_size : 1,
		.tp_rank = layout->tp_rank,
		.block_tokens = layout->block_tokens,
		.dtype = layout->dtype,
		.flags = layout->flags,
		.kv_heads = layout->size == sizeof(*layout) ? layout->kv_heads : 0,
	};
	if (layout->tensors > KV_TENSORS_MAX || layout->layers > KV_LAYERS_MAX)
		return kv_geometry_check(g, "register", err);
	if (layout->tensors && !layout->tensor)
		return kv_fail(err, KV_ERR_ARG, "register", "tensor is NULL");
	for (uint32_t i = 0; i < layout->tensors; i++) {
		ret = take_tensor(layout, i, &g->tensor[i], &stride[i], err);
		if (ret)
			return ret;
	}
	return kv_geometry_check(g, "register", err);
}

/* ---------------------------------------------------------------- where it lies */

static int by_address(const void *a, const void *b)
{
	const struct kv_extent *x = a, *y = b;

	return x->addr < y->addr ? -1 : x->addr > y->addr;
}

static int find_extents(const struct kv_layout *layout, const struct kv_geometry *g,
			const uint64_t *stride, struct kv_extent *extents, struct kv_error *err)
{
	for (uint32_t l = 0; l < g->layers; l++)
		for (uint32_t i = 0; i < g->tensors; i++) {
			const struct kv_tensor *t = &layout->tensor[i];
			uint64_t addr, step, len, end;
			bool over = __builtin_mul_overflow(t->layer_stride, l, &step);

			addr = (uintptr_t)(t->layer_base ? t->layer_base[l] : t->base);
			if (!t->layer_base)
				over |= __builtin_add_overflow(addr, step, &addr);
			else
				over = false;
			over |= __builtin_mul_overflow(stride[i], g->blocks - 1, &len);
			over |= __builtin_add_overflow(len, g->tensor[i].block_bytes, &len);
			over |= __builtin_add_overflow(addr, len, &end);
			if (over)
				return kv_fail(err, KV_ERR_ARG, "register",
					       "tensor[%u] of layer %u ends past the address space",
					       i, l);
			extents[l * g->tensors + i] = (struct kv_extent){
				.addr = addr, .len = len, .slab = l * g->tensors + i
			};
		}
	return 0;
}

static struct kv_row row_of(const struct kv_extent *extent, const struct kv_geometry *g,
			    const uint64_t *stride)
{
	uint32_t i = extent->slab % g->tensors;

	return (struct kv_row){ .at = extent->addr,
				.stride = stride[i],
				.len = g->tensor[i].block_bytes,
				.n = g->blocks };
}

static int refuse_overlap(const struct kv_geometry *g, uint32_t a, uint32_t b, struct kv_error *err)
{
	uint32_t first = a < b ? a : b, second = a < b ? b : a;

	kv_fail(err, KV_ERR_ARG, "register",
		"tensor[%u] (%s) of layer %u and tensor[%u] (%s) of layer %u share bytes",
		first % g->tensors, g->tensor[first % g->tensors].name, first / g->tensors,
		second % g->tensors, g->tensor[second % g->tensors].name, second / g->tensors);
	kv_error_hint(
		err,
		"move base, layer_base, layer_stride or stride so that each block has bytes of "
		"its own; blocks may lie between those of another tensor or layer");
	return KV_ERR_ARG;
}

/* Neighbours that only lie between each other's blocks are compared, all others are not. */
static int check_apart(const struct kv_geometry *g, const uint64_t *stride,
		       const struct kv_extent *extents, struct kv_error *err)
{
	size_t n = (size_t)g->layers * g->tensors;

	for (size_t i = 0; i < n; i++) {
		struct kv_row row = row_of(&extents[i], g, stride);

		for (size_t k = i + 1; k < n && extents[k].addr < extents[i].addr + extents[i].len;
		     k++) {
			struct kv_row other = row_of(&extents[k], g, stride);

			if (kv_rows_meet(&row, &other))
				return refuse_overlap(g, extents[i].slab, extents[k].slab, err);
		}
	}
	return 0;
}

int kv_layout_place(const struct kv_layout *layout, const struct kv_geometry *g,
		    const uint64_t stride[KV_TENSORS_MAX], struct kv_extent *extents,
		    struct kv_error *err)
{
	int ret = find_extents(layout, g, stride, extents, err);

	if (ret)
		return ret;
	qsort(extents, (size_t)g->layers * g->tensors, sizeof(*extents), by_address);
	return check_apart(g, stride, extents, err);
}
