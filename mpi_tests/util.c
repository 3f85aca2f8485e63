/* SPDX-License-Identifier: Apache-2.0 */
/* util.c -- sizes and memory of the two programs */
#include "util.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void *need_calloc(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size ? size : 1);

	if (!p) {
		fprintf(stderr, "out of memory: %zu items of %zu bytes\n", n, size);
		exit(3);
	}
	return p;
}

int size_parse(const char *text, uint64_t *value_p)
{
	static const char suffixes[] = "KMGT";
	unsigned int shift = 0;
	unsigned long long v;
	const char *suffix;
	char *end;

	if (text[0] < '0' || text[0] > '9')
		return -1;
	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno)
		return -1;
	if (*end) {
		suffix = strchr(suffixes, *end >= 'a' ? *end - 'a' + 'A' : *end);
		if (!suffix || end[1])
			return -1;
		shift = 10u * (unsigned int)(suffix - suffixes + 1);
	}
	if (v > UINT64_MAX >> shift)
		return -1;
	*value_p = (uint64_t)v << shift;
	return 0;
}

const char *size_text(uint64_t bytes, char *buf, size_t cap)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	double v = (double)bytes;
	size_t u = 0;

	while (v >= 1024 && u < 4) {
		v /= 1024;
		u++;
	}
	snprintf(buf, cap, u ? "%.2f %s" : "%.0f %s", v, units[u]);
	return buf;
}
