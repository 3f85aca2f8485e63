/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fault.h -- make the n-th pass of a named point fail, for the sweep "fail each point once"
 *
 * Points are named in fault.def. In a build without KVRAIL_FAULTS the macro is the constant 0 and
 * no code remains.
 *
 *     fd = kv_fault(SHM_MEMFD) ? (errno = ENOMEM, -1) : memfd_create(...);
 */
#ifndef BASE_FAULT_H
#define BASE_FAULT_H

#include <stdbool.h>
#include <stdint.h>

enum kv_fault_point {
#define FAULT(id, what) KV_FAULT_##id,
#include "fault.def"
#undef FAULT
	KV_FAULT_POINTS
};

#ifdef KVRAIL_FAULTS
#define kv_fault(id) __builtin_expect(kv_fault_hit(KV_FAULT_##id), 0)
bool kv_fault_hit(enum kv_fault_point point);
/* The nth pass (1 = the next) of `point` fails, once. nth 0 disarms. */
void kv_fault_arm(enum kv_fault_point point, uint32_t nth);
uint64_t kv_fault_passes(enum kv_fault_point point); /* since the start of the process */
bool kv_fault_fired(enum kv_fault_point point);	     /* since it was armed */
const char *kv_fault_name(enum kv_fault_point point);
#else
#define kv_fault(id) 0
#endif

#endif
