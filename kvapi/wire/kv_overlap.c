/* SPDX-License-Identifier: Apache-2.0 */
/* kv_overlap.c -- whether blocks of a cache share bytes */
#include "kv_overlap.h"

__extension__ typedef unsigned __int128 wide;

#define NEVER UINT64_MAX

/*
 * The smallest k with low <= a * k mod m <= high, or NEVER. ASSUMPTION: low <= high < m, a < m. If
 * no multiple of a lies between low and high, some multiple of m has to bring one there: the same
 * question modulo a, so that the numbers shrink as in Euclid's algorithm.
 */
static uint64_t first_hit(uint64_t a, uint64_t m, uint64_t low, uint64_t high)
{
	uint64_t k, turns;

	if (!low)
		return 0;
	if (!a)
		return NEVER;
	k = low / a + !!(low % a);
	if ((wide)k * a <= high)
		return k;
	turns = first_hit(m % a, a, a - high % a, a - low % a);
	if (turns == NEVER)
		return NEVER;
	return (uint64_t)(((wide)m * turns + low + a - 1) / a);
}

/*
 * Block i of x and block j of y meet if -x.len < x.at + i * x.stride - y.at - j * y.stride < y.len.
 * With start = i * x.stride + x.len - 1 - (y.at - x.at), the bytes from y's first one to the last
 * one of block i, that is: start modulo y.stride is at most x.len + y.len - 2, for an i whose start
 * is not negative and for which j is below y.n.
 */
bool kv_rows_meet(const struct kv_row *x, const struct kv_row *y)
{
	uint64_t ahead, reach, last, i, start, low;

	if (x->at > y->at)
		return kv_rows_meet(y, x);
	ahead = y->at - x->at;
	reach = x->len + y->len - 2;
	/* The first block of x that ends behind y's first byte, the last one that begins in y. */
	i = ahead < x->len ? 0 : (ahead - x->len) / x->stride + 1;
	last = (ahead + (y->n - 1) * y->stride + y->len - 1) / x->stride;
	last = last < x->n ? last : x->n - 1;
	if (i > last)
		return false;
	start = (i * x->stride + x->len - 1 - ahead) % y->stride;
	if (start <= reach || reach >= y->stride)
		return true;
	low = y->stride - start;
	return first_hit(x->stride % y->stride, y->stride, low, low + reach) <= last - i;
}
