/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_stuck_world.c -- linked into the NCCL plugin it puts a fake device under it that takes long to
 * destroy a queue pair, longer than a communicator's end waits for it
 */
#include "fake.h"
#include "np_stuck.h"

static void __attribute__((constructor)) begin(void)
{
	fake_begin(&(struct fake_config){ .hosts = 1, .threads = true });
	fake_slow_teardown(0, NP_STUCK_MS);
}
