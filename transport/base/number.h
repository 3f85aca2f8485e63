/* SPDX-License-Identifier: Apache-2.0 */
/* number.h -- an integer that a person wrote: decimal, or hexadecimal after 0x; "020" is twenty */
#ifndef KVRAIL_BASE_NUMBER_H
#define KVRAIL_BASE_NUMBER_H

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

/* false: not a number, or one that does not fit. *end_p is behind it. */
static inline bool kv_number(const char *text, long long *number_p, const char **end_p)
{
	const char *digits = text + (*text == '-' || *text == '+');
	bool hex = digits[0] == '0' && (digits[1] == 'x' || digits[1] == 'X');
	char *end;

	if (!isdigit((unsigned char)*digits) || (hex && !isxdigit((unsigned char)digits[2])))
		return false;
	errno = 0;
	*number_p = strtoll(text, &end, hex ? 16 : 10);
	*end_p = end;
	return !errno;
}

#endif
