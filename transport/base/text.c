/* SPDX-License-Identifier: Apache-2.0 */
/* text.c -- a text that is put together piece by piece, and the first line of a small file */
#include "text.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void kv_text_add(struct kv_text *text, const char *fmt, ...)
{
	bool room = text->len < text->cap;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(room ? text->buf + text->len : NULL, room ? text->cap - text->len : 0, fmt,
		      ap);
	va_end(ap);
	if (n > 0)
		text->len += (size_t)n;
}

unsigned int kv_utf8_length(const unsigned char *p)
{
	unsigned int more = p[0] >= 0xf0 && p[0] <= 0xf4  ? 3
			    : p[0] >= 0xe0 && p[0] < 0xf0 ? 2
			    : p[0] >= 0xc2 && p[0] < 0xe0 ? 1
							  : 0;

	if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
	    (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
		return 0;
	for (unsigned int i = 1; i <= more; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	return p[0] < 0x80 ? 1 : more ? more + 1 : 0;
}

bool kv_file_line(char *line, size_t cap, const char *path_fmt, ...)
{
	char path[PATH_MAX];
	va_list ap;
	FILE *file;
	bool found;

	va_start(ap, path_fmt);
	vsnprintf(path, sizeof(path), path_fmt, ap);
	va_end(ap);
	file = fopen(path, "re");
	found = file && fgets(line, (int)cap, file);
	if (file)
		fclose(file);
	line[found ? strcspn(line, "\n") : 0] = '\0';
	return found;
}

char kv_process_state(int pid)
{
	char line[512];
	const char *at =
		kv_file_line(line, sizeof(line), "/proc/%d/stat", pid) ? strrchr(line, ')') : NULL;

	return at && at[1] ? at[2] : 0;
}
