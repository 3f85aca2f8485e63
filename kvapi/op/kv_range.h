/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_range.h -- ranges of NVTX from an operation's slot to its end, for Nsight Systems and the like
 *
 * Domain "kvrail", the kind as name, the bytes as payload. Without <nvtx3/nvToolsExt.h> at build
 * time there are none; while no profiler is in the process, each costs a branch.
 */
#ifndef KV_RANGE_H
#define KV_RANGE_H

#ifdef KVRAIL_NVTX
#include "kv_op.h"

extern bool kv_ranges; /* a profiler is there: set before the first engine is open */
void kv_ranges_look(void);
void kv_range_start(struct kv_op *op);
void kv_range_stop(struct kv_op *op);
#define KV_RANGES_LOOK() kv_ranges_look()
#define KV_RANGE_START(op)                  \
	do {                                \
		if (kv_ranges)              \
			kv_range_start(op); \
	} while (0)
#define KV_RANGE_STOP(op)                  \
	do {                               \
		if (kv_ranges)             \
			kv_range_stop(op); \
	} while (0)
#else
#define KV_RANGES_LOOK()
#define KV_RANGE_START(op)
#define KV_RANGE_STOP(op)
#endif

#endif
