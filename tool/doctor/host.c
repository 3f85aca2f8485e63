/* SPDX-License-Identifier: Apache-2.0 */
/* host.c -- what belongs to no device: limits, permissions, containers, packet filters */
#include "doctor.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MEMLOCK_GOOD_KB = 1 << 20, MEMORY_GOOD_MB = 1024, RDMA_OBJECTS_GOOD = 4096 };

/* The kernel asks for CAP_IPC_LOCK of the machine, not of a user namespace. */
static bool in_user_namespace(const struct doctor *d)
{
	unsigned int inside, outside, count;
	char line[64];

	return doctor_read(d, line, sizeof(line), "/proc/self/uid_map") &&
	       sscanf(line, "%u %u %u", &inside, &outside, &count) == 3 &&
	       (inside || outside || count != 4294967295u);
}

/* In KiB; -1 = unlimited. */
static long long memlock(const struct doctor *d)
{
	char value[96];

	doctor_field(d, "/proc/self/limits", "Max locked memory", value, sizeof(value));
	return strncmp(value, "unlimited", 9) ? strtoll(value, NULL, 10) / 1024 : -1;
}

void check_memlock(struct doctor *d)
{
	long long kb = memlock(d);
	bool lock = doctor_capable(d, CAP_IPC_LOCK), inside = in_user_namespace(d);

	if (kb < 0)
		doctor_note(d, CHECK_MEMLOCK, DOCTOR_OK, "", "unlimited");
	else if (lock && !inside)
		doctor_note(d, CHECK_MEMLOCK, DOCTOR_OK, "",
			    "%lld KiB, which CAP_IPC_LOCK of this process overrides", kb);
	else if (!d->ports)
		doctor_note(d, CHECK_MEMLOCK, DOCTOR_OK, "",
			    "%lld KiB; there is no device that needs more", kb);
	else
		doctor_note(d, CHECK_MEMLOCK, kb < MEMLOCK_GOOD_KB ? DOCTOR_FAIL : DOCTOR_WARN, "",
			    "%lld KiB: no larger cache can be registered with a device%s", kb,
			    lock ? "; CAP_IPC_LOCK of a user namespace does not count" : "");
	doctor_fix(d, "ulimit -l unlimited (for good: \"* - memlock unlimited\" in "
		      "/etc/security/limits.conf; LimitMEMLOCK=infinity in a service; "
		      "--ulimit memlock=-1 for a container)");
}

void check_ptrace(struct doctor *d)
{
	static const char *const who[] = { "every process of this user", "its own children only",
					   "processes with CAP_SYS_PTRACE only", "nobody" };
	bool able = doctor_capable(d, CAP_SYS_PTRACE);
	char text[16];
	long scope;

	if (!doctor_read(d, text, sizeof(text), "/proc/sys/kernel/yama/ptrace_scope")) {
		doctor_note(d, CHECK_PTRACE, DOCTOR_OK, "",
			    "this kernel has no yama: memory that is not from kv_alloc is moved "
			    "directly on one host");
		return;
	}
	scope = strtol(text, NULL, 10);
	scope = scope < 0 || scope > 3 ? 3 : scope;
	if (!scope || (scope < 3 && able))
		doctor_note(d, CHECK_PTRACE, DOCTOR_OK, "",
			    "%ld%s: memory that is not from kv_alloc is moved directly on one host",
			    scope, scope ? ", which CAP_SYS_PTRACE of this process overrides" : "");
	else
		doctor_note(d, CHECK_PTRACE, DOCTOR_WARN, "",
			    "%ld: a process may be written to by %s, so memory that is not from "
			    "kv_alloc goes through a ring on one host, more slowly",
			    scope, who[scope]);
	doctor_fix(d, "allocate caches with kv_alloc (needs no such right), or %s",
		   scope == 3 ? "set kernel.yama.ptrace_scope=0 in /etc/sysctl.d and boot again"
			      : "sysctl kernel.yama.ptrace_scope=0");
}

static const char *container_name(const struct doctor *d)
{
	char line[256];

	if (doctor_exists(d, "/var/run/secrets/kubernetes.io"))
		return "Kubernetes";
	if (doctor_exists(d, "/.dockerenv"))
		return "Docker";
	if (doctor_exists(d, "/run/.containerenv"))
		return "Podman";
	doctor_read(d, line, sizeof(line), "/proc/1/cgroup");
	return strstr(line, "docker") || strstr(line, "kubepods") || strstr(line, "lxc")
		       ? "a container"
		       : NULL;
}

void check_container(struct doctor *d)
{
	const char *name = container_name(d);
	bool inside = in_user_namespace(d), limited = d->ports && memlock(d) >= 0;

	doctor_note(d, CHECK_CONTAINER, inside && limited ? DOCTOR_WARN : DOCTOR_OK, "",
		    "%s%s; CAP_IPC_LOCK %s, CAP_SYS_PTRACE %s", name ? name : "none seen",
		    inside ? ", in a user namespace" : "",
		    doctor_capable(d, CAP_IPC_LOCK) ? "yes" : "no",
		    doctor_capable(d, CAP_SYS_PTRACE) ? "yes" : "no");
	doctor_fix(d,
		   "capabilities of a user namespace do not lift the limit on locked memory: raise "
		   "it outside (--ulimit memlock=-1), or --userns=host");
}

/* What a filter forbids is seen only by trying it. */
void check_seccomp(struct doctor *d)
{
	char mode[8], from = 1, to = 0;
	struct iovec local = { &from, 1 }, remote = { &to, 1 };
	int fd, memfd_error = 0, writev_error = 0;

	if (!doctor_field(d, "/proc/self/status", "Seccomp:", mode, sizeof(mode)) ||
	    !strcmp(mode, "0")) {
		doctor_note(d, CHECK_SECCOMP, DOCTOR_OK, "", "no filter");
		return;
	}
	if (!d->copy) {
		fd = memfd_create("kvrail doctor", MFD_CLOEXEC);
		memfd_error = fd < 0 ? errno : 0;
		if (fd >= 0)
			close(fd);
		if (process_vm_writev(getpid(), &local, 1, &remote, 1, 0) != 1)
			writev_error = errno;
	}
	if (memfd_error)
		doctor_note(d, CHECK_SECCOMP, DOCTOR_FAIL, "",
			    "a filter is on and memfd_create is refused (%s): kv_alloc cannot work",
			    strerror(memfd_error));
	else
		doctor_note(d, CHECK_SECCOMP, writev_error ? DOCTOR_WARN : DOCTOR_OK, "",
			    "a filter is on; %s",
			    writev_error ? "it refuses process_vm_writev, so memory that is not "
					   "from kv_alloc goes through a ring on one host"
			    : d->copy	 ? "what it forbids cannot be tried in a copy"
					 : "memfd_create and process_vm_writev pass it");
	doctor_fix(d,
		   "allow %s in the container's seccomp profile, or --security-opt "
		   "seccomp=unconfined",
		   memfd_error ? "memfd_create" : "process_vm_writev");
}

/* ---------------------------------------------------------------- control groups */

/* Lowers *least_mb (-1 = none) to what the file says. */
static void lower(const struct doctor *d, long long *least_mb, const char *group, const char *file)
{
	unsigned long long bytes;
	char value[64];

	if (!doctor_read(d, value, sizeof(value), "/sys/fs/cgroup%s/%s", group, file) ||
	    !strcmp(value, "max"))
		return;
	bytes = strtoull(value, NULL, 10);
	if (bytes >> 50) /* how version 1 says "none" */
		return;
	if (*least_mb < 0 || (long long)(bytes >> 20) < *least_mb)
		*least_mb = (long long)(bytes >> 20);
}

/* The smallest limit from this process's group up to the root, in MiB; -1 = none. */
static long long memory_limit(const struct doctor *d)
{
	static const char *const file[] = { "memory.max", "memory.limit_in_bytes" };
	static const char *const tree[] = { "", "/memory" }; /* version 2, version 1 */
	char group[256], path[272];
	long long least = -1;

	for (int v = 0; v < 2; v++) {
		if (!doctor_group(d, v ? "memory" : "", group, sizeof(group)))
			continue;
		for (char *slash = group + strlen(group); slash; slash = strrchr(group, '/')) {
			*slash = '\0';
			snprintf(path, sizeof(path), "%s%s", tree[v], group);
			lower(d, &least, path, file[v]);
		}
	}
	return least;
}

void check_cgroup(struct doctor *d)
{
	char group[256], rdma[128] = "", memory[48] = "no limit on memory";
	long long mb = memory_limit(d);
	const char *objects;
	bool few;

	doctor_group(d, "", group, sizeof(group));
	if (!doctor_read(d, rdma, sizeof(rdma), "/sys/fs/cgroup%s/rdma.max", group))
		doctor_read(d, rdma, sizeof(rdma), "/sys/fs/cgroup/rdma.max");
	objects = strstr(rdma, "hca_object=");
	few = objects && strncmp(objects + 11, "max", 3) &&
	      strtol(objects + 11, NULL, 10) < RDMA_OBJECTS_GOOD;
	if (mb >= 0)
		snprintf(memory, sizeof(memory), "memory is limited to %lld MiB", mb);
	doctor_note(d, CHECK_CGROUP,
		    few || (mb >= 0 && mb < MEMORY_GOOD_MB) ? DOCTOR_WARN : DOCTOR_OK, "",
		    "%s; RDMA objects: %s", memory, *rdma ? rdma : "no limit");
	if (few)
		doctor_fix(d, "echo \"DEVICE hca_handle=max hca_object=max\" > "
			      "/sys/fs/cgroup/GROUP/rdma.max (each peer, and each layer's tensor, "
			      "takes some)");
	else
		doctor_fix(d, "caches from kv_alloc count: give the container their size and more "
			      "(docker --memory, Kubernetes resources.limits.memory)");
}

/*
 * The rules themselves are for root, in a language of their own; a card's RDMA packets do not pass
 * them.
 */
void check_firewall(struct doctor *d)
{
	static const char *const filters[] = { "nf_tables", "iptable_filter", "ip6table_filter" };
	const char *found = NULL;

	for (size_t i = 0; i < sizeof(filters) / sizeof(filters[0]); i++)
		if (!found && doctor_exists(d, "/sys/module/%s", filters[i]))
			found = filters[i];
	if (!found) {
		doctor_note(d, CHECK_FIREWALL, DOCTOR_OK, "",
			    "no packet filter is loaded as a module");
		return;
	}
	doctor_note(
		d, CHECK_FIREWALL, DOCTOR_WARN, "",
		"a packet filter is loaded (%s); its rules cannot be seen here. The listener's TCP "
		"port must pass, for Soft-RoCE also UDP port 4791",
		found);
	doctor_fix(d, "try it: kvrail doctor --peer HOST; see it: %s",
		   strcmp(found, "nf_tables") ? "iptables -S INPUT" : "nft list ruleset");
}
