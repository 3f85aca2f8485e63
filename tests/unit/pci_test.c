/* SPDX-License-Identifier: Apache-2.0 */
/* pci_test.c -- places and distances in a made-up /sys, and the GPUs of a made-up driver */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/pci.h"
#include "lib/test.h"

static char root[] = "/tmp/kvrail-pci-XXXXXX";

/* mkdir -p of the folder that a path below the root is in. */
static void make_folder(const char *path, char full[512])
{
	snprintf(full, 512, "%s/%s", root, path);
	for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); p++) {
		*p = '\0';
		mkdir(full, 0755);
		*p = '/';
	}
}

static void make_file(const char *path, const char *text)
{
	char full[512];
	FILE *file;

	make_folder(path, full);
	file = fopen(full, "w");
	assert_non_null(file);
	fputs(text, file);
	fclose(file);
}

static void make_device(const char *way, const char *node)
{
	const char *address = strrchr(way, '/') + 1;
	char path[256], to[512], full[512];

	snprintf(path, sizeof(path), "sys/devices/%s/numa_node", way);
	make_file(path, node);
	snprintf(path, sizeof(path), "sys/bus/pci/devices/%s", address);
	make_folder(path, full);
	snprintf(to, sizeof(to), "../../../devices/%s", way);
	assert_int_equal(symlink(to, full), 0);
}

static void make_nic(const char *name, const char *way)
{
	char path[256], to[512], full[512];

	snprintf(path, sizeof(path), "sys/devices/%s/infiniband/%s/node_type", way, name);
	make_file(path, "1: CA\n");
	snprintf(path, sizeof(path), "sys/class/infiniband/%s", name);
	make_folder(path, full);
	snprintf(to, sizeof(to), "../../devices/%s/infiniband/%s", way, name);
	assert_int_equal(symlink(to, full), 0);
	snprintf(path, sizeof(path), "sys/devices/%s/infiniband/%s/device", way, name);
	make_folder(path, full);
	assert_int_equal(symlink("../..", full), 0);
}

static void make_gpu(const char *address, const char *uuid)
{
	char path[128], text[128];

	snprintf(path, sizeof(path), "proc/driver/nvidia/gpus/%s/information", address);
	snprintf(text, sizeof(text), "Model: \t\t A GPU\nGPU UUID: \t %s\nBus Type: \t PCIe\n",
		 uuid);
	make_file(path, text);
}

#define BRIDGE_A "pci0000:15/0000:15:01.0"
#define SWITCH_A BRIDGE_A "/0000:16:00.0"

static int setup(void **state)
{
	if (!mkdtemp(root))
		return -1;
	make_device(SWITCH_A "/0000:17:00.0/0000:18:00.0", "0\n"); /* the GPU */
	make_device(SWITCH_A "/0000:17:01.0/0000:19:00.0", "0\n"); /* beside it */
	make_device(SWITCH_A "/0000:17:02.0/0000:1a:00.0/0000:1b:00.0/0000:1c:00.0", "0\n");
	make_device("pci0000:15/0000:15:02.0/0000:1d:00.0", "0\n");
	make_device("pci0000:2a/0000:2a:01.0/0000:2b:00.0", "0\n");
	make_device("pci0000:9a/0000:9a:01.0/0000:9b:00.0", "1\n");
	make_device("pci0000:9a/0000:9a:01.0/0000:9b:00.1", "1\n");
	make_nic("near0", SWITCH_A "/0000:17:01.0/0000:19:00.0");
	make_nic("twin0", "pci0000:9a/0000:9a:01.0/0000:9b:00.0");
	make_file("sys/devices/virtual/infiniband/soft0/node_type", "1: CA\n");
	make_gpu("0000:18:00.0", "GPU-aaaa");
	make_gpu("0000:2b:00.0", "GPU-bbbb");
	return 0;
}

static int teardown(void **state)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -r %s", root);
	return system(command);
}

static const char *between(const char *a, const char *b)
{
	struct pci_place x, y;
	char link[64];

	snprintf(link, sizeof(link), "bus/pci/devices/%s", a);
	assert_true(pci_place_find(root, link, &x));
	snprintf(link, sizeof(link), "bus/pci/devices/%s", b);
	assert_true(pci_place_find(root, link, &y));
	assert_int_equal(pci_between(&x, &y), pci_between(&y, &x));
	return pci_distance_name(pci_between(&x, &y));
}

CASE(each_distance_has_nccls_name)
{
	assert_string_equal(between("0000:18:00.0", "0000:19:00.0"), "PIX");
	assert_string_equal(between("0000:9b:00.0", "0000:9b:00.1"), "PIX");
	assert_string_equal(between("0000:18:00.0", "0000:1c:00.0"), "PXB");
	assert_string_equal(between("0000:18:00.0", "0000:1d:00.0"), "PHB");
	assert_string_equal(between("0000:18:00.0", "0000:2b:00.0"), "NODE");
	assert_string_equal(between("0000:18:00.0", "0000:9b:00.0"), "SYS");
}

CASE(an_rdma_device_is_found_through_its_class_folder)
{
	struct pci_place place;

	assert_true(pci_place_find(root, "class/infiniband/near0/device", &place));
	assert_string_equal(place.address, "0000:19:00.0");
	assert_int_equal(place.numa_node, 0);
	assert_true(pci_place_find(root, "class/infiniband/twin0/device", &place));
	assert_int_equal(place.numa_node, 1);
}

CASE(what_is_not_on_pcie_is_as_far_as_can_be)
{
	struct pci_place soft, gpu;

	assert_false(pci_place_find(root, "class/infiniband/soft0/device", &soft));
	assert_string_equal(soft.address, "");
	assert_true(pci_gpu_find(root, "0", &gpu));
	assert_int_equal(pci_between(&soft, &gpu), PCI_SYS);
	assert_int_equal(pci_between(&soft, &soft), PCI_SYS);
}

CASE(a_gpu_is_found_by_number_uuid_and_any_writing_of_its_address)
{
	static const char *const second[] = { "1", "GPU-bbbb", "0000:2b:00.0", "00000000:2B:00.0" };
	struct pci_place place;

	for (size_t i = 0; i < sizeof(second) / sizeof(second[0]); i++) {
		assert_true(pci_gpu_find(root, second[i], &place));
		assert_string_equal(place.address, "0000:2b:00.0");
	}
	assert_false(pci_gpu_find(root, "2", &place));
	assert_false(pci_gpu_find(root, "GPU-cccc", &place));
	assert_false(pci_gpu_find(root, "0000:77:00.0", &place));
	assert_false(pci_gpu_find(root, "", &place));
	assert_false(pci_gpu_find(root, "-1", &place));
	assert_false(pci_gpu_find("/nonexistent", "0", &place));
}

CASE(an_address_with_anything_around_it_is_none)
{
	char address[16];

	assert_true(pci_address_parse("0000:2b:00.0", address, sizeof(address)));
	assert_false(pci_address_parse("0000:2b:00.0x", address, sizeof(address)));
	assert_false(pci_address_parse("2b:00.0", address, sizeof(address)));
	assert_false(pci_address_parse("mlx5_0", address, sizeof(address)));
}

int main(void)
{
	return run_cases(setup, teardown);
}
