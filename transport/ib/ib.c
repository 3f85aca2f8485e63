/* SPDX-License-Identifier: Apache-2.0 */
/* ib.c -- the ib provider: not written yet */
#include "base/error.h"
#include "provider.h"

static int not_here(struct tr *tr, void **ctx_p, struct kv_error *err)
{
	(void)tr;
	(void)ctx_p;
	return kv_fail(err, KV_ERR_UNSUPPORTED, "open",
		       "the ib transport is not part of this build");
}

const struct tr_provider tr_ib_provider = { .name = "ib", .id = TR_PROVIDER_IB, .open = not_here };
