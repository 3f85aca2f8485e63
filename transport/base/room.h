/* SPDX-License-Identifier: Apache-2.0 */
/* room.h -- how much more memory this process may take before the kernel kills for it */
#ifndef BASE_ROOM_H
#define BASE_ROOM_H

#include <stdint.h>

struct kv_room {
	uint64_t bytes; /* a thirty-second part of each limit is kept back */
	char limit[256]; /* whose it is: "MemAvailable", or a cgroup's file */
};

/* root: "", or where else proc/ and sys/ are. What cannot be read limits nothing. */
void kv_room(const char *root, struct kv_room *room);

#endif
