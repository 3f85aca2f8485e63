/* SPDX-License-Identifier: Apache-2.0 */
/* listener_rig.h -- an engine in a process of its own, so that its memory and descriptors are */
#ifndef LISTENER_RIG_H
#define LISTENER_RIG_H

#include "kv_rig.h"

#include <sys/resource.h>

struct server_config {
	rlim_t descriptors; /* 0: as it is */
	const char *options[4];
};

struct tiny {
	struct kv_engine *engine;
	struct kv_cache *cache;
};

void tiny_open(struct tiny *t, const char *const *options);

/* Commands: 'c' + port: connect there and tell the result; 's': the statistics; 'q': end. */
uint32_t start_server(struct child *child, const struct server_config *config);
struct kv_stats stats_of(const struct child *child);

#endif
