/* SPDX-License-Identifier: Apache-2.0 */
/* faults.h -- what goes wrong in a world of fake devices */
#ifndef SIM_FAULTS_H
#define SIM_FAULTS_H

#include "sim.h"

extern const struct sim_kind sim_faults[];
extern const struct sim_kind sim_host_faults[]; /* without a device */
void faults_begin(int hosts, int devices, bool in_storm);
/* A device of the host may still be at a queue pair that is to be destroyed. */
bool faults_device_is_slow(int host);
/*
 * A device has not returned from posts since then, and was slow to break queue pairs: how long one
 * of them took, at most. 0: no device did both.
 */
int64_t faults_held_ms(int64_t since_ns);
bool faults_were_slow(void); /* some device was, at some time */
/* Nothing is wrong any more. */
void faults_heal(void);

#endif
