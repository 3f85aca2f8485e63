/* SPDX-License-Identifier: Apache-2.0 */
/* np_stuck.h -- how long the device of np_stuck_world.c takes to end a queue pair */
#ifndef NP_STUCK_H
#define NP_STUCK_H

enum { NP_STUCK_MS = 4000 };

#endif
