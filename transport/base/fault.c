/* SPDX-License-Identifier: Apache-2.0 */
/* fault.c -- counters and one armed pass per point; empty without KVRAIL_FAULTS */
#include "fault.h"

#ifdef KVRAIL_FAULTS
#include <stdatomic.h>

static struct {
	_Atomic uint64_t passes;
	_Atomic uint64_t fail_at; /* pass number, 0 = never */
	atomic_bool fired;
} points[KV_FAULT_POINTS];

static const char *const names[KV_FAULT_POINTS] = {
#define FAULT(id, what) #id,
#include "fault.def"
#undef FAULT
};

bool kv_fault_hit(enum kv_fault_point point)
{
	uint64_t pass = atomic_fetch_add(&points[point].passes, 1) + 1;

	if (pass != atomic_load(&points[point].fail_at))
		return false;
	atomic_store(&points[point].fired, true);
	return true;
}

void kv_fault_arm(enum kv_fault_point point, uint32_t nth)
{
	atomic_store(&points[point].fired, false);
	atomic_store(&points[point].fail_at, nth ? atomic_load(&points[point].passes) + nth : 0);
}

uint64_t kv_fault_passes(enum kv_fault_point point)
{
	return atomic_load(&points[point].passes);
}

bool kv_fault_fired(enum kv_fault_point point)
{
	return atomic_load(&points[point].fired);
}

const char *kv_fault_name(enum kv_fault_point point)
{
	return names[point];
}
#else
typedef int kv_fault_c_is_empty_without_faults;
#endif
