/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_rig.h -- the conformance rig (net_side.h) over eight fake devices, each setting in a process
 * of its own: the plugin finds its devices once in a process
 */
#ifndef NP_RIG_H
#define NP_RIG_H

#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include "lib/check.h"
#include "fake.h"
#include "net_side.h"
#include "np.h"

extern const ncclNet_v12_t ncclNetPlugin_v12;
extern const ncclNet_v11_t ncclNetPlugin_v11;
extern const ncclNet_v10_t ncclNetPlugin_v10;

enum { NP_RIG_DEVICES = 8 };

/*
 * Runs `body` in a process with these variables ("NAME=value", NULL at the end); what it leaves on
 * a device is a failure.
 */
void np_rig_process(const char *const *variables, void (*body)(void));
/* Waits for a child process, which must have ended well. */
void np_rig_await(pid_t pid);

/* A context of one end, and one that has a connection with itself and buffers of so many bytes. */
struct side np_rig_init(int traffic_class, int dev);
struct side np_rig_join(int traffic_class, int dev, size_t bytes);
void np_rig_part(struct side *s);
/* What NCCL of another version than the newest does until it has both ends. */
void np_rig_join_old(const ncclNetCommConfig_v10_t *config, bool connects_first, struct loop *l);

#endif
