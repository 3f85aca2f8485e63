/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sockets.c -- TCP of a simulation: sockets of AF_UNIX under another name
 *
 * What is written to one can be read at the other end at once, so no thread depends on when the
 * kernel delivers it. Ports begin at PORT_FIRST in every run.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "schedule.h"
#include "sim.h"
#include "wrap.h"

enum { FDS = 4096, PORT_FIRST = 20000 };

static struct {
	bool tcp, joined;
	uint16_t port;
} sock[FDS];
static uint16_t next_port;

void sim_sockets_begin(void)
{
	memset(sock, 0, sizeof(sock));
	next_port = PORT_FIRST;
}

static bool is_tcp(int fd)
{
	return sched_is_on() && fd >= 0 && fd < FDS && sock[fd].tcp;
}

bool sim_fd_blocks(int fd)
{
	return !(fcntl(fd, F_GETFL) & O_NONBLOCK);
}

static socklen_t name_of(struct sockaddr_un *un, uint16_t port)
{
	int n;

	memset(un, 0, sizeof(*un));
	un->sun_family = AF_UNIX;
	n = snprintf(un->sun_path + 1, sizeof(un->sun_path) - 1, "kvrail-sim-%d-%u", (int)getpid(),
		     port);
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

/*
 * A name that the product draws at random is the seed's: two processes that play the same seed
 * would meet at one door.
 */
static socklen_t own_name(struct sockaddr_un *un, const struct sockaddr *sa, socklen_t len)
{
	size_t at = len - offsetof(struct sockaddr_un, sun_path);

	memset(un, 0, sizeof(*un));
	memcpy(un, sa, len < sizeof(*un) ? len : sizeof(*un));
	if (!sched_is_on() || sa->sa_family != AF_UNIX || un->sun_path[0])
		return len;
	return len + (socklen_t)snprintf(un->sun_path + at, sizeof(un->sun_path) - at, "-%d",
					 (int)getpid());
}

static uint16_t port_of(const struct sockaddr *sa)
{
	return ntohs(sa->sa_family == AF_INET6
			     ? ((const struct sockaddr_in6 *)(const void *)sa)->sin6_port
			     : ((const struct sockaddr_in *)(const void *)sa)->sin_port);
}

static void give_address(struct sockaddr *sa, socklen_t *len, uint16_t port)
{
	struct sockaddr_in in = { .sin_family = AF_INET,
				  .sin_port = htons(port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };

	if (!sa)
		return;
	memcpy(sa, &in, *len < sizeof(in) ? *len : sizeof(in));
	*len = sizeof(in);
}

int __wrap_socket(int family, int type, int protocol)
{
	bool tcp = sched_is_on() && (family == AF_INET || family == AF_INET6);
	int fd = __real_socket(tcp ? AF_UNIX : family, type, tcp ? 0 : protocol);

	if (tcp && fd >= 0) {
		sock[fd].tcp = true;
		sock[fd].joined = false;
		sock[fd].port = 0;
	}
	return fd;
}

int __wrap_bind(int fd, const struct sockaddr *sa, socklen_t len)
{
	struct sockaddr_un un;

	if (!is_tcp(fd)) {
		len = own_name(&un, sa, len);
		return __real_bind(fd, (struct sockaddr *)&un, len);
	}
	sock[fd].port = port_of(sa) ? port_of(sa) : next_port++;
	len = name_of(&un, sock[fd].port);
	return __real_bind(fd, (struct sockaddr *)&un, len);
}

int __wrap_connect(int fd, const struct sockaddr *sa, socklen_t len)
{
	struct sockaddr_un un;
	int ret;

	sched_point();
	if (!is_tcp(fd)) {
		len = own_name(&un, sa, len);
		return __real_connect(fd, (struct sockaddr *)&un, len);
	}
	len = name_of(&un, port_of(sa));
	ret = __real_connect(fd, (struct sockaddr *)&un, len);
	sock[fd].joined = !ret;
	sched_moved();
	return ret;
}

int __wrap_accept4(int fd, struct sockaddr *sa, socklen_t *len, int flags)
{
	int got;

	sched_point();
	if (!is_tcp(fd))
		return __real_accept4(fd, sa, len, flags);
	got = __real_accept4(fd, NULL, NULL, flags);
	if (got >= 0) {
		sock[got].tcp = sock[got].joined = true;
		sock[got].port = next_port++;
		give_address(sa, len, sock[got].port);
	}
	sched_moved();
	return got;
}

int __wrap_getsockname(int fd, struct sockaddr *sa, socklen_t *len)
{
	if (!is_tcp(fd))
		return __real_getsockname(fd, sa, len);
	give_address(sa, len, sock[fd].port);
	return 0;
}

int __wrap_getpeername(int fd, struct sockaddr *sa, socklen_t *len)
{
	if (!is_tcp(fd))
		return __real_getpeername(fd, sa, len);
	give_address(sa, len, sock[fd].port);
	return 0;
}

int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	if (is_tcp(fd) && level != SOL_SOCKET)
		return 0;
	return __real_setsockopt(fd, level, name, value, len);
}

/* The peer's host has always just acknowledged something: a host that is silent is tcp_cut's. */
int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	if (!is_tcp(fd) || level != IPPROTO_TCP)
		return __real_getsockopt(fd, level, name, value, len);
	memset(value, 0, *len);
	return 0;
}

int __wrap_close(int fd)
{
	int ret;

	sched_point();
	if (sched_is_on() && fd >= 0 && fd < FDS)
		sock[fd].tcp = false;
	ret = __real_close(fd);
	sched_moved();
	return ret;
}

bool sim_cut_tcp(uint64_t which)
{
	for (int i = 0; i < FDS; i++) {
		int fd = (int)((which + (uint64_t)i) % FDS);

		if (!sock[fd].tcp || !sock[fd].joined)
			continue;
		__real_shutdown(fd, SHUT_RDWR);
		sched_moved();
		return true;
	}
	return false;
}
