/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port.h -- a port of 127.0.0.1 for what listens where a test says
 *
 * While the descriptor is open the kernel gives the port to nobody who names none. One that names
 * it and has SO_REUSEADDR, as every listener of ours has, may listen there.
 */
#ifndef PORT_H
#define PORT_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>

static inline int port_hold(uint32_t *port_p)
{
	struct sockaddr_in at = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(at);
	int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    bind(fd, (struct sockaddr *)&at, len) ||
	    getsockname(fd, (struct sockaddr *)&at, &len))
		abort();
	*port_p = ntohs(at.sin_port);
	return fd;
}

#endif
