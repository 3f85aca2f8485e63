/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pci.h -- where a device stands on PCIe, and how far two of them are apart
 *
 * Read from the folders of sysfs, whose names are the way from the host bridge to the device: that
 * is all the question needs, so no topology library is opened for it. `root` is the folder that
 * /sys and /proc are looked for in ("" = this machine).
 */
#ifndef BASE_PCI_H
#define BASE_PCI_H

#include <stdbool.h>
#include <stddef.h>

/* NCCL's and nvidia-smi's names, nearest first. */
enum pci_distance {
	PCI_PIX = 0, /* below one PCIe switch, or functions of one card */
	PCI_PXB,     /* several switches, no host bridge */
	PCI_PHB,     /* the same host bridge */
	PCI_NODE,    /* several host bridges of one NUMA node */
	PCI_SYS,     /* another NUMA node, or not known */
	PCI_DISTANCES,
};

enum { PCI_DEPTH_MAX = 16 };

struct pci_place {
	char address[16];	      /* "0000:18:00.0"; "" = not on PCIe */
	char step[PCI_DEPTH_MAX][16]; /* host bridge first ("pci0000:15"), the device last */
	int depth;
	int numa_node; /* -1 = the kernel does not know */
};

/*
 * The place of what `link` below /sys leads to ("class/infiniband/mlx5_0/device"). False, and an
 * empty place, if that is not a PCI device.
 */
bool pci_place_find(const char *root, const char *link, struct pci_place *place);

enum pci_distance pci_between(const struct pci_place *a, const struct pci_place *b);
const char *pci_distance_name(enum pci_distance distance);

/*
 * "0000:18:00.0" from any way of writing it ("00000000:18:00.0", capital letters); false if it is
 * not a PCI address.
 */
bool pci_address_parse(const char *text, char *address, size_t cap);

/*
 * The GPU that a word names: a PCI address, or a number or UUID of the NVIDIA driver (its numbers
 * follow the addresses, as nvidia-smi's do). False if there is none such here.
 */
bool pci_gpu_find(const char *root, const char *word, struct pci_place *place);
/* The driver's GPU number `index`, counted from 0; its UUID may be NULL. False past the last. */
bool pci_gpu_get(const char *root, size_t index, char *address, size_t cap, char *uuid,
		 size_t uuid_cap);

#endif
