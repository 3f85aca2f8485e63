/* SPDX-License-Identifier: Apache-2.0 */
/* progress.c -- a bar on stderr */
#include "progress.h"

#include <stdio.h>

enum { WIDTH = 40 };

void progress_show(const char *what, uint64_t done, uint64_t total, int last)
{
	char bar[WIDTH + 1];
	int i;

	if (last) {
		fprintf(stderr, "\r\033[K");
		return;
	}
	for (i = 0; i < WIDTH; i++)
		bar[i] = (uint64_t)i * total < done * WIDTH ? '=' : ' ';
	bar[WIDTH] = 0;
	fprintf(stderr, "\r[%s] %llu of %llu %s", bar, (unsigned long long)done,
		(unsigned long long)total, what);
	fflush(stderr);
}
