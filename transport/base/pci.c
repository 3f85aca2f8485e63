/* SPDX-License-Identifier: Apache-2.0 */
/* pci.c -- where a device stands on PCIe, and how far two of them are apart */
#include "pci.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

static const char *const names[PCI_DISTANCES] = { "PIX", "PXB", "PHB", "NODE", "SYS" };

const char *pci_distance_name(enum pci_distance distance)
{
	return names[distance];
}

bool pci_address_parse(const char *text, char *address, size_t cap)
{
	unsigned int domain, bus, device, function;
	int end = 0;

	if (sscanf(text, "%8x:%2x:%2x.%1x%n", &domain, &bus, &device, &function, &end) != 4 ||
	    text[end])
		return false;
	snprintf(address, cap, "%04x:%02x:%02x.%x", domain, bus, device, function);
	return true;
}

/* "…/pci0000:15/0000:15:01.0/0000:16:00.0[/what stands on it]": the steps that are PCI's. */
static void split(const char *real, struct pci_place *place)
{
	unsigned int domain, bus;
	char address[sizeof(place->address)];

	for (const char *p = real; *p; p += strcspn(p, "/")) {
		int len;

		p += *p == '/';
		len = (int)strcspn(p, "/");
		snprintf(address, sizeof(address), "%.*s", len, p);
		if (!place->depth && sscanf(address, "pci%x:%x", &domain, &bus) != 2)
			continue;
		if (place->depth == PCI_DEPTH_MAX ||
		    (place->depth && !pci_address_parse(address, address, sizeof(address))))
			return;
		snprintf(place->step[place->depth++], sizeof(place->step[0]), "%s", address);
	}
}

bool pci_place_find(const char *root, const char *link, struct pci_place *place)
{
	char path[PATH_MAX], real[PATH_MAX];

	memset(place, 0, sizeof(*place));
	place->numa_node = -1;
	snprintf(path, sizeof(path), "%s/sys/%s", root, link);
	if (realpath(path, real))
		split(real, place);
	if (place->depth < 2) {
		place->depth = 0;
		return false;
	}
	memcpy(place->address, place->step[place->depth - 1], sizeof(place->address));
	if (!kv_file_line(path, sizeof(path), "%s/sys/bus/pci/devices/%s/numa_node", root,
			  place->address) ||
	    sscanf(path, "%d", &place->numa_node) != 1)
		place->numa_node = -1;
	return true;
}

enum pci_distance pci_between(const struct pci_place *a, const struct pci_place *b)
{
	int common = 0;

	if (!a->depth || !b->depth)
		return PCI_SYS;
	while (common < a->depth && common < b->depth && !strcmp(a->step[common], b->step[common]))
		common++;
	if (!common)
		return a->numa_node == b->numa_node ? PCI_NODE : PCI_SYS;
	if (common == 1)
		return PCI_PHB;
	/*
	 * A switch is two steps: its upstream port, which is common, and a downstream port above
	 * each device.
	 */
	return a->depth - common <= 2 && b->depth - common <= 2 ? PCI_PIX : PCI_PXB;
}

/* ---------------------------------------------------------------- the NVIDIA driver's GPUs */

static void read_uuid(const char *root, const char *name, char *uuid, size_t cap)
{
	static const char key[] = "GPU UUID:";
	char path[PATH_MAX], line[128];
	FILE *file;

	*uuid = '\0';
	snprintf(path, sizeof(path), "%s/proc/driver/nvidia/gpus/%s/information", root, name);
	file = fopen(path, "re");
	if (!file)
		return;
	while (!*uuid && fgets(line, sizeof(line), file)) {
		const char *value = line + strlen(key);

		if (strncmp(line, key, strlen(key)))
			continue;
		value += strspn(value, " \t");
		snprintf(uuid, cap, "%.*s", (int)strcspn(value, " \t\n"), value);
	}
	fclose(file);
}

bool pci_gpu_get(const char *root, size_t index, char *address, size_t cap, char *uuid,
		 size_t uuid_cap)
{
	char path[PATH_MAX];
	struct dirent **list;
	bool found = false;
	int n;

	snprintf(path, sizeof(path), "%s/proc/driver/nvidia/gpus", root);
	n = scandir(path, &list, NULL, alphasort);
	if (n < 0)
		return false;
	for (int i = 0; i < n; i++) {
		if (!found && pci_address_parse(list[i]->d_name, address, cap) && !index--) {
			found = true;
			if (uuid)
				read_uuid(root, list[i]->d_name, uuid, uuid_cap);
		}
		free(list[i]);
	}
	free(list);
	return found;
}

bool pci_gpu_find(const char *root, const char *word, struct pci_place *place)
{
	char address[sizeof(place->address)], uuid[64], link[64];
	bool found = pci_address_parse(word, address, sizeof(address));
	char *end;
	unsigned long number = strtoul(word, &end, 10);
	bool numbered = *word && !*end;

	for (size_t i = 0; !found; i++) {
		if (!pci_gpu_get(root, i, address, sizeof(address), uuid, sizeof(uuid)))
			break;
		found = numbered ? i == number : !strcmp(uuid, word);
	}
	memset(place, 0, sizeof(*place));
	if (!found)
		return false;
	snprintf(link, sizeof(link), "bus/pci/devices/%s", address);
	return pci_place_find(root, link, place);
}
