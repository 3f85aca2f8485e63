/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slow.h -- one factor for the deadlines of tests on a machine that is slow
 *
 * KVRAIL_TEST_SLOW=10 (an emulated machine) gives every short deadline ten times its time, and
 * every upper bound that a test asserts of it. Unset it is 1, and the tests assert what they say.
 */
#ifndef SLOW_H
#define SLOW_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static inline int64_t slow_ms(int64_t ms)
{
	const char *factor = getenv("KVRAIL_TEST_SLOW");

	return factor ? ms * strtol(factor, NULL, 10) : ms;
}

/* "NAME=MS" of that many, for a list of options. Returns text. */
static inline const char *slow_setting(char text[64], const char *name, int64_t ms)
{
	snprintf(text, 64, "%s=%lld", name, (long long)slow_ms(ms));
	return text;
}

#endif
