/* SPDX-License-Identifier: Apache-2.0 */
/* room.c -- how much more memory this process may take: of the machine and of its cgroups */
#include "room.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

/* The files of a cgroup, in version 2 and version 1. */
struct group_files {
	const char *mount, *controller, *max, *current, *cache[2];
};

static const struct group_files versions[] = {
	{ "sys/fs/cgroup", "", "memory.max", "memory.current", { "inactive_file", "active_file" } },
	{ "sys/fs/cgroup/memory",
	  "memory",
	  "memory.limit_in_bytes",
	  "memory.usage_in_bytes",
	  { "total_inactive_file", "total_active_file" } },
};

/* The number behind `key` on a line of its own, 0 if there is none. */
static uint64_t number_of(const char *path, const char *key)
{
	FILE *file = fopen(path, "re");
	uint64_t number = 0;
	char line[256];
	size_t len = strlen(key);

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, key, len) && strspn(line + len, ": \t")) {
			number = strtoull(line + len + strspn(line + len, ": \t"), NULL, 10);
			break;
		}
	if (file)
		fclose(file);
	return number;
}

static void lower(struct kv_room *room, uint64_t limit, uint64_t left, const char *name)
{
	left -= left < limit / 32 ? left : limit / 32;
	if (left >= room->bytes)
		return;
	room->bytes = left;
	snprintf(room->limit, sizeof(room->limit), "%.*s", (int)sizeof(room->limit) - 1, name);
}

/* Of one group: pages of files are given back before anything is killed. */
static void look_at_group(const struct group_files *v, const char *dir, struct kv_room *room)
{
	uint64_t limit, used, cache;
	char line[64], path[PATH_MAX + 32];

	if (!kv_file_line(line, sizeof(line), "%s/%s", dir, v->max) || !strcmp(line, "max"))
		return;
	limit = strtoull(line, NULL, 10);
	if (!kv_file_line(line, sizeof(line), "%s/%s", dir, v->current))
		return;
	used = strtoull(line, NULL, 10);
	snprintf(path, sizeof(path), "%s/memory.stat", dir);
	cache = number_of(path, v->cache[0]) + number_of(path, v->cache[1]);
	used -= cache < used ? cache : used;
	snprintf(path, sizeof(path), "%s/%s", dir, v->max);
	lower(room, limit, limit > used ? limit - used : 0, path);
}

/* This process's group of that hierarchy: "/a/b"; false: it is in none. */
static bool find_own_group(const char *root, const char *controller, char *group, size_t cap)
{
	char line[PATH_MAX + 64];
	bool found = false;
	FILE *file;

	snprintf(line, sizeof(line), "%s/proc/self/cgroup", root);
	file = fopen(line, "re");
	while (file && !found && fgets(line, sizeof(line), file)) {
		char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;

		if (!path)
			continue;
		*path++ = '\0';
		path[strcspn(path, "\n")] = '\0';
		found = !strcmp(names + 1, controller);
		if (found)
			snprintf(group, cap, "%s", path);
	}
	if (file)
		fclose(file);
	return found;
}

/* A container may not see its group's path: then its own stands at the top. */
static void look_at_groups(const struct group_files *v, const char *root, struct kv_room *room)
{
	char group[PATH_MAX], dir[PATH_MAX];

	if (!find_own_group(root, v->controller, group, sizeof(group)))
		return;
	for (char *end = group + strlen(group);; end = strrchr(group, '/')) {
		if (end)
			*end = '\0';
		if ((size_t)snprintf(dir, sizeof(dir), "%s/%s%s", root, v->mount, group) <
		    sizeof(dir))
			look_at_group(v, dir, room);
		if (!end || !*group)
			return;
	}
}

void kv_room(const char *root, struct kv_room *room)
{
	char path[PATH_MAX];
	uint64_t all;

	*room = (struct kv_room){ .bytes = UINT64_MAX };
	snprintf(path, sizeof(path), "%s/proc/meminfo", root);
	all = number_of(path, "MemTotal") << 10;
	if (all)
		lower(room, all, number_of(path, "MemAvailable") << 10, "MemAvailable");
	for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++)
		look_at_groups(&versions[i], root, room);
}
