/* SPDX-License-Identifier: Apache-2.0 */
/* call_time.c -- the bare C call, timed in C: what call.py, which compiles this, compares with */
#include <time.h>

#include <kvrail/kv.h>

typedef int (*write_blocks)(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			    const int64_t *local_ids, const int64_t *remote_ids, size_t n,
			    const struct kv_options *opts, struct kv_error *err);

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

int64_t call_time(write_blocks call, struct kv_peer *peer, struct kv_cache *cache,
		  const int64_t *local, const int64_t *remote, size_t n);

/* Nanoseconds of one kv_write_blocks of layer 0, or its error. */
int64_t call_time(write_blocks call, struct kv_peer *peer, struct kv_cache *cache,
		  const int64_t *local, const int64_t *remote, size_t n)
{
	struct kv_layers first = { .first = 0, .count = 1 };
	int64_t start = now_ns();
	int rc = call(peer, cache, first, local, remote, n, NULL, NULL);

	return rc ? rc : now_ns() - start;
}
