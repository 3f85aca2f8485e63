/* SPDX-License-Identifier: Apache-2.0 */
/* run.h -- one plan in a process of its own */
#ifndef SIM_RUN_H
#define SIM_RUN_H

#include "sim.h"

/* False: it failed (sim_result says why), crashed or did not come to an end. */
bool run_plan(const struct sim *sim, const struct sim_plan *plan);
/* Puts steps out of a plan that fails as long as it fails in the same way. Returns what is left. */
int shrink_plan(const struct sim *sim, struct sim_plan *plan);
/* The same addresses in each run: begins the program again where it has others. */
void run_prepare(char **argv);

#endif
