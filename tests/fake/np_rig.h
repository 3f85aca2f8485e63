/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_rig.h -- the NCCL plugin over eight fake devices, each setting in a process of its own: the
 * plugin finds its devices once in a process
 */
#ifndef NP_RIG_H
#define NP_RIG_H

#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include "check.h"
#include "fake.h"
#include "np.h"

extern const ncclNet_v12_t ncclNetPlugin_v12;
extern const ncclNet_v11_t ncclNetPlugin_v11;
extern const ncclNet_v10_t ncclNetPlugin_v10;

enum { NP_RIG_DEVICES = 8, NP_RIG_LOG = 65536 };

/*
 * Runs `body` in a process with these variables ("NAME=value", NULL at the end); what it leaves on
 * a device is a failure.
 */
void np_rig_process(const char *const *variables, void (*body)(void));

/* What the plugin has logged, and the logger that keeps it. */
extern char np_rig_log[NP_RIG_LOG];
void np_rig_logger(ncclDebugLogLevel level, unsigned long flags, const char *file, int line,
		   const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/* A context and a connection of it with itself. */
struct np_loop {
	void *ctx, *listen, *send, *recv;
};
struct np_loop np_rig_join(int traffic_class, int dev);
void np_rig_part(struct np_loop *l);

#endif
