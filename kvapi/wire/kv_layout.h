/* SPDX-License-Identifier: Apache-2.0 */
/* kv_layout.h -- the application's description of a cache's memory, checked; pure */
#ifndef KV_LAYOUT_H
#define KV_LAYOUT_H

#include "kv_geometry.h"

/* The memory of one tensor of one layer, with the gaps between its blocks. */
struct kv_extent {
	uintptr_t addr;
	uint64_t len;
	uint32_t slab; /* layer * tensors + tensor */
};

/*
 * Fills the shape and the bytes from block to block from the layout. ARG names the field at fault.
 */
int kv_layout_take(const struct kv_layout *layout, struct kv_geometry *g,
		   uint64_t stride[KV_TENSORS_MAX], struct kv_error *err);

/*
 * All layers * tensors extents, in the order of their addresses. ARG if one passes the end of the
 * address space, or if blocks of two share a byte. ASSUMPTION: kv_layout_take accepted the layout.
 */
int kv_layout_place(const struct kv_layout *layout, const struct kv_geometry *g,
		    const uint64_t stride[KV_TENSORS_MAX], struct kv_extent *extents,
		    struct kv_error *err);

#endif
