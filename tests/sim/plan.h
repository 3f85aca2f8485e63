/* SPDX-License-Identifier: Apache-2.0 */
/* plan.h -- what a seed does */
#ifndef SIM_PLAN_H
#define SIM_PLAN_H

#include "sim.h"

/*
 * Of seed, schedule, way and storm, which are there. `schedule` 0: the seed's own; others
 * interleave the same steps differently.
 */
void plan_make(const struct sim *sim, struct sim_plan *plan);

#endif
