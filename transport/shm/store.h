/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store.h -- the copy loops of the pool path: the instructions that put bytes into a peer's memory
 */
#ifndef SHM_STORE_H
#define SHM_STORE_H

#include <stddef.h>
#include <stdint.h>

/* The span that will be copied soon, to prefetch it; of about the same length. Any addresses do. */
struct store_ahead {
	const uint8_t *src;
	uint8_t *dst;
};

typedef void store_fn(uint8_t *dst, const uint8_t *src, size_t n, struct store_ahead ahead);

/* Non-temporal stores with the widest registers of this CPU, or plain where there are none. */
store_fn *store_nt(const char **name_p);
#if defined(__x86_64__)
store_fn store_nt_avx512, store_nt_avx2, store_nt_sse2;
#endif
store_fn store_plain;
/*
 * 128-byte lines of the destination ascending, each complete before the next, its last 8 bytes
 * last.
 */
store_fn store_ordered;

/* After non-temporal stores: they are not ordered by a release store without it. */
void store_drain(void);

#endif
