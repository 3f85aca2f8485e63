/* SPDX-License-Identifier: Apache-2.0 */
/* plan.h -- what a seed does */
#ifndef SIM_PLAN_H
#define SIM_PLAN_H

#include "sim.h"

/*
 * `schedule` 0: the seed's own; others interleave the same steps differently. `way`: as in
 * sim_plan.
 */
void plan_make(const struct sim *sim, uint64_t seed, uint64_t schedule, const char *way,
	       struct sim_plan *plan);

#endif
