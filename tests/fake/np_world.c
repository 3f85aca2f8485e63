/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_world.c -- linked into the NCCL plugin it puts eight fake devices under it: one host that
 * talks to itself, in one process. A plugin that leaves something on a device when it is unloaded
 * ends its process.
 */
#include <stdlib.h>

#include "fake.h"

static void __attribute__((constructor)) begin(void)
{
	fake_begin(&(struct fake_config){ .hosts = 1, .devices = 8, .dmabuf = true });
}

/* The priority makes it run after the plugin's own destructor. */
static void __attribute__((destructor(101))) end(void)
{
	if (!fake_end())
		abort();
}
