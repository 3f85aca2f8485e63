/* SPDX-License-Identifier: Apache-2.0 */
/* pattern.c -- test data: fill and check */
#include "pattern.h"

#include <string.h>

#include "util.h"

enum { GROUP = 16 }; /* words that the compiler may take together */

uint64_t pattern_key(const struct pattern *p)
{
	uint64_t h = mix64(p->seed ^ PATTERN_STEP);

	h = mix64(h + p->request);
	h = mix64(h + p->block);
	h = mix64(h + p->epoch);
	return mix64(h + ((uint64_t)p->layer << 32 | p->tensor));
}

void pattern_fill(void *dst, size_t len, uint64_t key)
{
	unsigned char *out = dst;
	uint64_t group[GROUP];
	size_t i;

	for (; len >= sizeof(group); len -= sizeof(group), out += sizeof(group)) {
		for (i = 0; i < GROUP; i++)
			group[i] = key + i * PATTERN_STEP;
		memcpy(out, group, sizeof(group));
		key += GROUP * PATTERN_STEP;
	}
	for (i = 0; i < GROUP; i++)
		group[i] = key + i * PATTERN_STEP;
	memcpy(out, group, len);
}

/*
 * Both are `len` bytes; called only for the few bytes around a difference and at the end of a
 * block.
 */
static size_t count_wrong(const unsigned char *got, const unsigned char *want, size_t len,
			  size_t base, size_t *first)
{
	size_t i, wrong = 0;

	for (i = 0; i < len; i++) {
		if (got[i] == want[i])
			continue;
		if (wrong++ == 0 && *first == SIZE_MAX)
			*first = base + i;
	}
	return wrong;
}

size_t pattern_check(const void *src, size_t len, uint64_t key, size_t *first_p)
{
	const unsigned char *in = src;
	uint64_t got[GROUP], want[GROUP], differ;
	size_t first = SIZE_MAX, wrong = 0, at, i;

	for (at = 0; len - at >= sizeof(got); at += sizeof(got)) {
		memcpy(got, in + at, sizeof(got));
		differ = 0;
		for (i = 0; i < GROUP; i++)
			differ |= got[i] ^ (key + i * PATTERN_STEP);
		if (__builtin_expect(differ != 0, 0)) {
			pattern_fill(want, sizeof(want), key);
			wrong += count_wrong(in + at, (unsigned char *)want, sizeof(want), at,
					     &first);
		}
		key += GROUP * PATTERN_STEP;
	}
	pattern_fill(want, len - at, key);
	wrong += count_wrong(in + at, (unsigned char *)want, len - at, at, &first);
	if (first_p)
		*first_p = wrong ? first : 0;
	return wrong;
}
