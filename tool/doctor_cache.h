/* SPDX-License-Identifier: Apache-2.0 */
/* doctor_cache.h -- the small cache that the doctor registers, writes from and reads back into */
#ifndef KVRAIL_DOCTOR_CACHE_H
#define KVRAIL_DOCTOR_CACHE_H

#include "doctor.h"

enum { BLOCKS = 2, BLOCK_BYTES = 1 << 20 };

struct doctor_cache {
	struct kv_engine *engine;
	struct kv_cache *handle;
	unsigned char *memory;
};

/* An engine with the cache registered; `options` as kv_engine_config has them. */
int doctor_cache_open(const char *const *options, struct doctor_cache *c, struct kv_error *err);
void doctor_note_error(struct doctor *d, enum doctor_check check, const struct kv_error *err);

#endif
