/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver.c -- from the card to a program: kernel modules, device nodes, user-space libraries
 */
#include "doctor.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LIST = 360 };

static void append(char *list, const char *what)
{
	size_t used = strlen(list);

	snprintf(list + used, LIST - used, "%s%s", used ? ", " : "", what);
}

/* ---------------------------------------------------------------- modules */

/* Lists the cards of a vendor whose cards all do RDMA that have no RDMA device. */
static void look_at_card(struct doctor *d, const char *path, void *arg)
{
	char vendor[16], class[16], driver[32];

	doctor_read(d, vendor, sizeof(vendor), "%s/vendor", path);
	doctor_read(d, class, sizeof(class), "%s/class", path);
	if (strcmp(vendor, "0x15b3") ||
	    (strncmp(class, "0x0200", 6) && strncmp(class, "0x0207", 6)))
		return;
	doctor_link(d, driver, sizeof(driver), "%s/driver", path);
	if (!strcmp(driver, "vfio-pci") || doctor_exists(d, "%s/infiniband", path))
		return;
	append(arg, strrchr(path, '/') + 1);
}

static void add_device(struct doctor *d, const char *path, void *arg)
{
	char driver[32], text[96];

	doctor_link(d, driver, sizeof(driver), "%s/device/driver", path);
	snprintf(text, sizeof(text), "%.40s (%.32s)", strrchr(path, '/') + 1,
		 *driver ? driver : "software");
	append(arg, text);
}

void check_driver(struct doctor *d)
{
	char devices[LIST] = "", idle[LIST] = "";

	doctor_each(d, "/sys/class/infiniband/*", add_device, devices);
	doctor_each(d, "/sys/bus/pci/devices/*", look_at_card, idle);
	if (*idle) {
		doctor_note(d, CHECK_DRIVER, *devices ? DOCTOR_WARN : DOCTOR_FAIL, "",
			    "%s%sthe cards at %s have no RDMA device", devices,
			    *devices ? "; " : "", idle);
		doctor_fix(d, "modprobe mlx5_ib (ConnectX-3: mlx4_ib)");
	} else if (*devices) {
		doctor_note(d, CHECK_DRIVER, DOCTOR_OK, "", "%s", devices);
	} else {
		doctor_note(
			d, CHECK_DRIVER, DOCTOR_WARN, "",
			"this machine has no RDMA device: shared memory on one host, TCP between hosts");
		doctor_fix(d,
			   "install the card and its driver, or for a test: modprobe rdma_rxe && "
			   "rdma link add rxe0 type rxe netdev eth0");
	}
}

/* ---------------------------------------------------------------- device nodes */

struct nodes {
	char missing[LIST],
		closed[LIST]; /* devices without a node, and with one that does not open */
	int error;	      /* why not */
	size_t good;
};

/* 0, or the errno of opening; a copy can only be asked whether the node is there. */
static int try_node(const struct doctor *d, const char *path)
{
	int fd;

	if (d->copy || !doctor_exists(d, "%s", path))
		return doctor_exists(d, "%s", path) ? 0 : ENOENT;
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

static void look_at_node(struct doctor *d, const char *path, void *arg)
{
	struct nodes *nodes = arg;
	char device[64], node[64];
	int error;

	doctor_read(d, device, sizeof(device), "%s/ibdev", path);
	snprintf(node, sizeof(node), "/dev/infiniband/%.32s", strrchr(path, '/') + 1);
	error = try_node(d, node);
	if (!error) {
		nodes->good++;
	} else if (error == ENOENT) {
		append(nodes->missing, device);
	} else {
		append(nodes->closed, node);
		nodes->error = error;
	}
}

void check_nodes(struct doctor *d)
{
	struct nodes nodes = { 0 };
	size_t n = doctor_each(d, "/sys/class/infiniband_verbs/uverbs*", look_at_node, &nodes);
	enum doctor_status bad = nodes.good ? DOCTOR_WARN : DOCTOR_FAIL;

	if (!n) {
		doctor_note(d, CHECK_NODES, DOCTOR_FAIL, "", "the module ib_uverbs is not loaded");
		doctor_fix(d, "modprobe ib_uverbs");
	} else if (*nodes.closed) {
		doctor_note(d, CHECK_NODES, bad, "", "%s cannot be opened: %s", nodes.closed,
			    strerror(nodes.error));
		if (nodes.error == EPERM)
			doctor_fix(d, "the container's device list forbids it: "
				      "--device=/dev/infiniband");
		else
			doctor_fix(d, "chmod 666 %s (for good: the udev rules of rdma-core)",
				   strchr(nodes.closed, ',') ? "/dev/infiniband/uverbs*"
							     : nodes.closed);
	} else if (*nodes.missing) {
		doctor_note(d, CHECK_NODES, bad, "", "no node in /dev/infiniband for %s",
			    nodes.missing);
		doctor_fix(d,
			   "for a container: --device=/dev/infiniband, or an RDMA device plugin; "
			   "on a host: udevadm trigger");
	} else {
		doctor_note(d, CHECK_NODES, DOCTOR_OK, "",
			    d->copy ? "%zu /dev/infiniband/uverbs*"
				    : "%zu /dev/infiniband/uverbs*, all can be opened",
			    n);
	}
}

void check_rdma_cm(struct doctor *d)
{
	static const char path[] = "/dev/infiniband/rdma_cm";
	void *library = d->copy ? NULL : dlopen("librdmacm.so.1", RTLD_NOW | RTLD_LOCAL);
	int error = try_node(d, path);

	if (!error && (library || d->copy))
		doctor_note(d, CHECK_RDMA_CM, DOCTOR_OK, "", "%s%s", path,
			    d->copy ? "" : " and librdmacm.so.1");
	else
		doctor_note(d, CHECK_RDMA_CM, DOCTOR_WARN, "",
			    "%s: %s; ports are joined with the peer's in their order, not by route",
			    error ? path : "librdmacm.so.1",
			    error ? strerror(error) : "is missing");
	if (!error)
		doctor_fix(d, "apt-get install librdmacm1, in the container too");
	else
		doctor_fix(d, "%s; for a container: --device=%s",
			   error == ENOENT ? "modprobe rdma_ucm"
					   : "chmod 666 /dev/infiniband/rdma_cm",
			   path);
	if (library)
		dlclose(library);
}

/* ---------------------------------------------------------------- user space */

/* Kernel drivers whose user-space half is known by name. */
static const struct {
	const char *kernel, *user;
} halves[] = {
	{ "mlx5_core", "mlx5" }, { "mlx4_core", "mlx4" }, { "bnxt_en", "bnxt_re" },
	{ "ice", "irdma" },	 { "i40e", "irdma" },	  { "efa", "efa" },
	{ "hns3", "hns" },	 { "qede", "qedr" },
};

static bool has_provider(struct doctor *d, const char *name)
{
	static const char *const places[] = { "/usr/lib/*/libibverbs", "/usr/lib64/libibverbs",
					      "/usr/local/lib*/libibverbs" };
	char pattern[PATH_MAX];
	size_t found = 0;

	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]) && !found; i++) {
		snprintf(pattern, sizeof(pattern), "%s/lib%s-rdmav*.so", places[i], name);
		found = doctor_each(d, pattern, NULL, NULL);
	}
	return found;
}

static void look_for_provider(struct doctor *d, const char *path, void *arg)
{
	const char *device = strrchr(path, '/') + 1, *name = NULL;
	char driver[32];

	if (doctor_link(d, driver, sizeof(driver), "%s/device/driver", path)) {
		for (size_t i = 0; i < sizeof(halves) / sizeof(halves[0]); i++)
			if (!strcmp(driver, halves[i].kernel))
				name = halves[i].user;
	} else if (doctor_exists(d, "%s/parent", path)) {
		name = "rxe";
	}
	if (name && !has_provider(d, name))
		append(arg, device);
}

void check_library(struct doctor *d)
{
	char lacking[LIST] = "";
	void *verbs = d->copy ? NULL : dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
	bool dmabuf = verbs && dlsym(verbs, "ibv_reg_dmabuf_mr");

	doctor_each(d, "/sys/class/infiniband/*", look_for_provider, lacking);
	if (!verbs && !d->copy) {
		doctor_note(d, CHECK_LIBRARY, DOCTOR_FAIL, "", "libibverbs.so.1 is missing");
	} else if (*lacking) {
		doctor_note(d, CHECK_LIBRARY, DOCTOR_FAIL, "",
			    "the user-space driver is missing for %s", lacking);
	} else if (d->copy) {
		doctor_note(d, CHECK_LIBRARY, DOCTOR_OK, "",
			    "a user-space driver for every device");
	} else {
		doctor_note(d, CHECK_LIBRARY, DOCTOR_OK, "",
			    "libibverbs.so.1 with a user-space driver for every device; "
			    "ibv_reg_dmabuf_mr: %s",
			    dmabuf ? "yes" : "no");
	}
	doctor_fix(d, "apt-get install rdma-core ibverbs-providers, in the container too");
	if (verbs)
		dlclose(verbs);
}
