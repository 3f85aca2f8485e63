/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_world.c -- linked into a test of the KV API it puts the fake device under it: both engines are
 * then on one host, and on one device of it, that talks to itself
 */
#include <stdlib.h>

#include "fake.h"

static void __attribute__((constructor)) begin(void)
{
	struct fake_config config = { .hosts = 1, .seed = 1, .dmabuf = true };

	fake_begin(&config);
	setenv("KVCACHE_TRANSPORT", "ib", 1);
}
