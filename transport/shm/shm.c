/* SPDX-License-Identifier: Apache-2.0 */
/* shm.c -- the shm provider: not written yet */
#include "base/error.h"
#include "provider.h"

static int not_here(struct tr *tr, void **ctx_p, struct kv_error *err)
{
	(void)tr;
	(void)ctx_p;
	return kv_fail(err, KV_ERR_UNSUPPORTED, "open",
		       "the shm transport is not part of this build");
}

const struct tr_provider tr_shm_provider = { .name = "shm",
					     .id = TR_PROVIDER_SHM,
					     .open = not_here };
