/* SPDX-License-Identifier: Apache-2.0 */
/* doctor_host.c -- what does not belong to a device: limits, permissions, capabilities, the GPU driver */
#include "doctor.h"

#include <glob.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

enum { CAP_IPC_LOCK_BIT = 14 };
static const rlim_t memlock_good = (rlim_t)1 << 30;

static bool has_capability(int bit)
{
	char line[256];
	unsigned long long mask = 0;
	FILE *file = fopen("/proc/self/status", "re");

	if (!file)
		return false;
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, "CapEff:", 7))
			mask = strtoull(line + 7, NULL, 16);
	fclose(file);
	return mask >> bit & 1;
}

static void check_memlock(struct doctor *d)
{
	static const char fix[] =
		"ulimit -l unlimited (limits.conf: memlock), LimitMEMLOCK=infinity in "
		"a service, --ulimit memlock=-1 or --cap-add IPC_LOCK for a container";
	struct rlimit limit = { 0 };

	getrlimit(RLIMIT_MEMLOCK, &limit);
	if (limit.rlim_cur == RLIM_INFINITY)
		doctor_note(d, DOCTOR_OK, "memlock", "", "", "unlimited");
	else if (has_capability(CAP_IPC_LOCK_BIT))
		doctor_note(d, DOCTOR_OK, "memlock", "", "",
			    "%llu KiB, which CAP_IPC_LOCK of this process overrides",
			    (unsigned long long)limit.rlim_cur / 1024);
	else
		doctor_note(d, limit.rlim_cur < memlock_good ? DOCTOR_FAIL : DOCTOR_WARN, "memlock",
			    "", fix, "%llu KiB: no larger cache can be registered with a device",
			    (unsigned long long)limit.rlim_cur / 1024);
}

static void check_ptrace(struct doctor *d)
{
	char text[64];

	if (doctor_read(text, sizeof(text), "/proc/sys/kernel/yama/ptrace_scope"))
		doctor_note(d, DOCTOR_OK, "ptrace_scope", "", "", "this kernel has no yama");
	else
		doctor_note(
			d, strcmp(text, "0") ? DOCTOR_WARN : DOCTOR_OK, "ptrace_scope", "",
			"allocate caches with kv_alloc (no process_vm_writev needed), or sysctl "
			"kernel.yama.ptrace_scope=0",
			"%s: memory that is not from kv_alloc is moved %s on one host", text,
			strcmp(text, "0") ? "through a ring, more slowly" : "directly");
}

static void check_container(struct doctor *d)
{
	char group[256];
	bool container = !access("/.dockerenv", F_OK) || !access("/run/.containerenv", F_OK) ||
			 getenv("KUBERNETES_SERVICE_HOST");

	doctor_read(group, sizeof(group), "/sys/fs/cgroup/rdma.max");
	doctor_note(d, DOCTOR_OK, "container", "", "", "%s%s; rdma.max %s",
		    container ? "in a container" : "none seen",
		    container && !has_capability(CAP_IPC_LOCK_BIT) ? ", without CAP_IPC_LOCK" : "",
		    *group ? group : "not set");
}

static void check_nodes(struct doctor *d)
{
	bool devices = !access("/sys/class/infiniband", F_OK);
	glob_t found = { 0 };
	size_t closed = 0;

	glob("/sys/class/infiniband/*", 0, NULL, &found);
	devices = devices && found.gl_pathc;
	globfree(&found);
	memset(&found, 0, sizeof(found));
	glob("/dev/infiniband/uverbs*", 0, NULL, &found);
	for (size_t i = 0; i < found.gl_pathc; i++)
		closed += access(found.gl_pathv[i], R_OK | W_OK) != 0;
	if (!devices)
		doctor_note(
			d, DOCTOR_WARN, "device nodes", "",
			"install the NIC's driver, or for a test: rdma link add rxe0 type rxe netdev eth0",
			"this machine has no RDMA device: shared memory only");
	else if (!found.gl_pathc)
		doctor_note(d, DOCTOR_FAIL, "device nodes", "",
			    "modprobe ib_uverbs; for a container: --device=/dev/infiniband",
			    "no /dev/infiniband/uverbs*");
	else if (closed)
		doctor_note(d, DOCTOR_FAIL, "device nodes", "",
			    "chmod 666 /dev/infiniband/uverbs*, or the udev rules of rdma-core",
			    "%zu of %zu /dev/infiniband/uverbs* may not be opened by this user",
			    closed, found.gl_pathc);
	else
		doctor_note(d, DOCTOR_OK, "device nodes", "", "",
			    "%zu /dev/infiniband/uverbs*, readable and writable", found.gl_pathc);
	globfree(&found);
}

static void check_gpu(struct doctor *d)
{
	unsigned int major = 0, minor = 0;
	struct utsname name;
	bool peermem, dmabuf;

	uname(&name);
	sscanf(name.release, "%u.%u", &major, &minor);
	dmabuf = major > 5 || (major == 5 && minor >= 12);
	peermem = !access("/sys/module/nvidia_peermem", F_OK) ||
		  !access("/sys/module/nv_peer_mem", F_OK);
	if (access("/sys/module/nvidia", F_OK))
		doctor_note(d, DOCTOR_OK, "gpu", "", "",
			    "no NVIDIA driver is loaded: caches are in host memory (kernel %s)",
			    name.release);
	else
		doctor_note(d, peermem || dmabuf ? DOCTOR_OK : DOCTOR_WARN, "gpu", "",
			    "modprobe nvidia_peermem",
			    "NVIDIA driver; nvidia_peermem %s, kernel %s %s DMA-BUF for RDMA",
			    peermem ? "loaded" : "not loaded", name.release,
			    dmabuf ? "has" : "is too old for");
}

void doctor_host(struct doctor *d)
{
	check_memlock(d);
	check_ptrace(d);
	check_container(d);
	check_nodes(d);
	check_gpu(d);
}
