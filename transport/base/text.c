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
