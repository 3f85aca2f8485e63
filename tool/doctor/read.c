/* SPDX-License-Identifier: Apache-2.0 */
/* read.c -- small files below the doctor's root */
#include "doctor.h"

#include <glob.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"

static void path_of(const struct doctor *d, char path[PATH_MAX], const char *fmt, va_list ap)
{
	int len = snprintf(path, PATH_MAX, "%s", d->root);

	vsnprintf(path + len, (size_t)(PATH_MAX - len), fmt, ap);
}

bool doctor_read(const struct doctor *d, char *buf, size_t cap, const char *fmt, ...)
{
	char path[PATH_MAX];
	va_list ap;

	va_start(ap, fmt);
	path_of(d, path, fmt, ap);
	va_end(ap);
	return kv_file_line(buf, cap, "%s", path);
}

bool doctor_exists(const struct doctor *d, const char *fmt, ...)
{
	char path[PATH_MAX];
	va_list ap;

	va_start(ap, fmt);
	path_of(d, path, fmt, ap);
	va_end(ap);
	return !access(path, F_OK);
}

bool doctor_link(const struct doctor *d, char *buf, size_t cap, const char *fmt, ...)
{
	char path[PATH_MAX], to[PATH_MAX];
	const char *slash;
	va_list ap;
	ssize_t len;

	va_start(ap, fmt);
	path_of(d, path, fmt, ap);
	va_end(ap);
	len = readlink(path, to, sizeof(to) - 1);
	to[len < 0 ? 0 : len] = '\0';
	slash = strrchr(to, '/');
	snprintf(buf, cap, "%s", slash ? slash + 1 : to);
	return len > 0;
}

bool doctor_field(const struct doctor *d, const char *path, const char *key, char *buf, size_t cap)
{
	char full[PATH_MAX], line[512];
	bool found = false;
	FILE *file;

	*buf = '\0';
	snprintf(full, sizeof(full), "%s%s", d->root, path);
	file = fopen(full, "re");
	if (!file)
		return false;
	while (!found && fgets(line, sizeof(line), file)) {
		found = !strncmp(line, key, strlen(key));
		line[strcspn(line, "\n")] = '\0';
		if (found)
			snprintf(buf, cap, "%s",
				 line + strlen(key) + strspn(line + strlen(key), " \t"));
	}
	fclose(file);
	return found;
}

bool doctor_group(const struct doctor *d, const char *controller, char *buf, size_t cap)
{
	char full[PATH_MAX], line[512], key[64];
	bool found = false;
	FILE *file;

	*buf = '\0';
	snprintf(full, sizeof(full), "%s/proc/self/cgroup", d->root);
	snprintf(key, sizeof(key), ":%s:", controller);
	file = fopen(full, "re");
	if (!file)
		return false;
	while (!found && fgets(line, sizeof(line), file)) {
		char *colon = strchr(line, ':');

		found = colon && !strncmp(colon, key, strlen(key));
		line[strcspn(line, "\n")] = '\0';
		if (found)
			snprintf(buf, cap, "%s", colon + strlen(key));
	}
	fclose(file);
	return found;
}

size_t doctor_each(struct doctor *d, const char *pattern,
		   void (*fn)(struct doctor *d, const char *path, void *arg), void *arg)
{
	char full[PATH_MAX];
	glob_t found = { 0 };
	size_t n;

	snprintf(full, sizeof(full), "%s%s", d->root, pattern);
	glob(full, 0, NULL, &found);
	n = found.gl_pathc;
	for (size_t i = 0; i < n && fn; i++)
		fn(d, found.gl_pathv[i] + strlen(d->root), arg);
	globfree(&found);
	return n;
}

bool doctor_capable(const struct doctor *d, unsigned int capability)
{
	char mask[32];

	return doctor_field(d, "/proc/self/status", "CapEff:", mask, sizeof(mask)) &&
	       strtoull(mask, NULL, 16) >> capability & 1;
}
