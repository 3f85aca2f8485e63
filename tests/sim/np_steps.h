/* SPDX-License-Identifier: Apache-2.0 */
/* np_steps.h -- what the ranks of a world do with the NCCL plugin */
#ifndef SIM_NP_STEPS_H
#define SIM_NP_STEPS_H

#include "sim.h"

extern const struct sim_kind np_steps[];
void np_world_open(int ranks);
/* When nothing is wrong any more every rank moves a message. */
void np_world_recover(void);
void np_world_close(void);

#endif
