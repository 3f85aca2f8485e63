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
#include <stdint.h>
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

/*
 * Connections that come to the listener on this port from now on lose each packet that carries
 * exactly `bytes`.
 */
static inline int deaf_to_size(uint32_t port, uint32_t bytes)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 12), /* the length of the TCP header, in words */
		BPF_STMT(BPF_ALU | BPF_RSH | BPF_K, 4),
		BPF_STMT(BPF_ALU | BPF_LSH | BPF_K, 2),
		BPF_STMT(BPF_MISC | BPF_TAX, 0),
		BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0),
		BPF_STMT(BPF_ALU | BPF_SUB | BPF_X, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, bytes, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 0),
		BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };
	int done = 0;

	for (int fd = 0; fd < 1024; fd++) {
		struct sockaddr_in local;
		socklen_t len = sizeof(local);

		if (!getsockname(fd, (struct sockaddr *)&local, &len) &&
		    local.sin_family == AF_INET && local.sin_port == htons((uint16_t)port))
			done += !setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program,
					    sizeof(program));
	}
	return done;
}

#endif
