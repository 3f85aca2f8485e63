/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_load.h -- opens any NCCL network plugin, of any version from 6 to 12, and shows it as a v12
 * table
 *
 * One plugin at a time in a process: the adapters keep what they opened in static storage.
 */
#ifndef NET_LOAD_H
#define NET_LOAD_H

#include <stdbool.h>

#include "../../net_plugin/nccl_abi.h"

struct net_source {
	const char *path;   /* of the library */
	const char *symbol; /* NULL, or a table that is not exported: "ncclNetIb" of libnccl.so */
	int version;	    /* of the interface; 0 = the newest that the library has */
};

/* NULL: could not be opened, why_p says why. */
const ncclNet_v12_t *net_load(const struct net_source *source, int *version_p, const char **why_p);
void net_unload(void); /* dlclose */

/* The version's own table, to look at its slots, and how many pointers it has. */
const void *net_raw_table(int version, size_t *pointers_p);

/* Calls back with every name that the file exports; false if it cannot be read. */
bool net_exports(const char *path, void (*each)(void *arg, const char *name), void *arg);

#endif
