/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shortage.c -- why a device has no room for more memory
 *
 * ENOMEM and EAGAIN from a registration do not say why. What can be looked up is: the limit on
 * locked memory against what is pinned already, and the rdma controller of the process's cgroup.
 * Only one of those that is exhausted is blamed; otherwise the candidates are named, likeliest
 * first.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/error.h"
#include "ib.h"

enum { LINE = 512 };

/* Bytes that the kernel counts as pinned or locked by this process; 0 if it does not say. */
static uint64_t pinned_bytes(const struct ib_ctx *ctx)
{
	unsigned long long kib, most = 0;
	char path[160], line[LINE];
	FILE *file;

	snprintf(path, sizeof(path), "%s/proc/self/status", ctx->sysroot);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file))
		if ((sscanf(line, "VmPin: %llu kB", &kib) == 1 ||
		     sscanf(line, "VmLck: %llu kB", &kib) == 1) &&
		    kib > most)
			most = kib;
	if (file)
		fclose(file);
	return most * 1024;
}

/* "0::/system.slice/engine.service": the group in the one hierarchy, or in that of rdma. */
static bool find_group(const struct ib_ctx *ctx, char *group, size_t cap)
{
	char path[160], line[LINE];
	bool found = false;
	FILE *file;

	snprintf(path, sizeof(path), "%s/proc/self/cgroup", ctx->sysroot);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file)) {
		char *controllers = strchr(line, ':');
		char *name = controllers ? strchr(controllers + 1, ':') : NULL;
		bool old = controllers && !strncmp(controllers, ":rdma:", 6);

		if (!name || (!old && strncmp(controllers, "::", 2)))
			continue;
		name[1 + strcspn(name + 1, "\n")] = 0;
		snprintf(group, cap, "%s/sys/fs/cgroup%s%s", ctx->sysroot, old ? "/rdma" : "",
			 name + 1);
		found = true;
		if (old)
			break;
	}
	if (file)
		fclose(file);
	return found;
}

/* "mlx5_0 hca_handle=2 hca_object=2000": the objects of the device; -1 = no limit, or not said. */
static long long objects(const char *group, const char *file_name, const char *device)
{
	char path[LINE + 32], line[LINE];
	size_t len = strcspn(device, ":");
	long long n = -1;
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", group, file_name);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file)) {
		const char *at = strstr(line, "hca_object=");

		if (at && !strncmp(line, device, len) && line[len] == ' ' &&
		    strncmp(at + 11, "max", 3))
			n = strtoll(at + 11, NULL, 10);
	}
	if (file)
		fclose(file);
	return n;
}

static bool blame_group(const struct ib_ctx *ctx, const struct ib_rail *rail, size_t len,
			struct kv_error *err)
{
	char group[LINE];
	long long most = -1, now = 0;

	/* A group's parents limit it, too. */
	if (!find_group(ctx, group, sizeof(group)))
		return false;
	for (char *end = strrchr(group, '/'); end && strstr(group, "/cgroup");
	     *end = 0, end = strrchr(group, '/')) {
		most = objects(group, "rdma.max", rail->name);
		now = objects(group, "rdma.current", rail->name);
		if (most >= 0 && now >= most)
			break;
		most = -1;
	}
	if (most < 0)
		return false;
	kv_fail(err, KV_ERR_DEVICE, "register",
		"%s cannot register %zu bytes: the cgroup %s allows %lld of its objects, and %lld "
		"are in use",
		rail->name, len, strstr(group, "/cgroup") + 7, most, now);
	kv_error_hint(err, "raise hca_object in rdma.max of the cgroup");
	return true;
}

int ib_mem_short(const struct ib_ctx *ctx, const struct ib_rail *rail, size_t len, int why,
		 struct kv_error *err)
{
	struct rlimit limit = { .rlim_cur = RLIM_INFINITY };
	uint64_t pinned = pinned_bytes(ctx);
	int ret = KV_ERR_DEVICE;

	getrlimit(RLIMIT_MEMLOCK, &limit);
	if (limit.rlim_cur != RLIM_INFINITY &&
	    (why == EPERM || pinned > limit.rlim_cur || len > limit.rlim_cur - pinned)) {
		ret = kv_fail(err, KV_ERR_MEMLOCK, "register",
			      "%s cannot lock %zu bytes: RLIMIT_MEMLOCK is %llu bytes, of which "
			      "%llu are locked (%s)",
			      rail->name, len, (unsigned long long)limit.rlim_cur,
			      (unsigned long long)pinned, kv_errno_text(why));
		kv_error_hint(err, "ulimit -l unlimited, LimitMEMLOCK=infinity in the service, or "
				   "--ulimit memlock=-1 for a container");
	} else if (!blame_group(ctx, rail, len, err)) {
		kv_fail(err, ret, "register",
			"%s has no room to register %zu bytes (%s): not the limit on locked memory",
			rail->name, len, kv_errno_text(why));
		kv_error_hint(err, "in this order: the device's table of memory regions or pages "
				   "is full (dmesg), the host is out of memory, the cgroup of "
				   "the container limits rdma or memory");
	}
	if (err)
		err->sys_errno = why;
	return ret;
}
