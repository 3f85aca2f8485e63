/* SPDX-License-Identifier: Apache-2.0 */
/* kv_steps.h -- what the applications of a world do */
#ifndef SIM_KV_STEPS_H
#define SIM_KV_STEPS_H

#include "sim.h"

extern const struct sim_kind kv_steps[], kv_storm_steps[];
/* One write from an engine to another; its code. */
int kv_step_try(int from, int to);

#endif
