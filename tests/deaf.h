/* SPDX-License-Identifier: Apache-2.0 */
/*
 * deaf.h -- TCP connections of this process that lose every packet that comes, and hear again: a
 * filter on the socket, for which no right is needed
 */
#ifndef DEAF_H
#define DEAF_H

#include <linux/filter.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>

static inline bool deaf_socket(int fd, bool on)
{
	struct sock_filter drop = BPF_STMT(BPF_RET | BPF_K, 0);
	struct sock_fprog program = { 1, &drop };
	int unused = 0;

	return !setsockopt(fd, SOL_SOCKET, on ? SO_ATTACH_FILTER : SO_DETACH_FILTER,
			   on ? (void *)&program : (void *)&unused,
			   on ? sizeof(program) : sizeof(unused));
}

/* Every connected one; returns how many. */
static inline int deaf_all(bool on)
{
	int done = 0;

	for (int fd = 0; fd < 1024; fd++) {
		struct sockaddr_storage peer;
		socklen_t len = sizeof(peer);

		if (!getpeername(fd, (struct sockaddr *)&peer, &len) &&
		    (peer.ss_family == AF_INET || peer.ss_family == AF_INET6))
			done += deaf_socket(fd, on);
	}
	return done;
}

#endif
