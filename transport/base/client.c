/* SPDX-License-Identifier: Apache-2.0 */
/* client.c -- one question from a client of a socket, and the answer, by a deadline */
#include "client.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "clock.h"

enum { LONGEST_MS = 60000 };

static bool client_is_ready(int fd, short events, int64_t deadline_ns)
{
	struct pollfd pfd = { .fd = fd, .events = events };

	return poll(&pfd, 1, kv_poll_ms(deadline_ns, LONGEST_MS)) == 1;
}

bool kv_client_question(int fd, char *buf, size_t cap, bool line, int64_t deadline_ns)
{
	size_t len = 0;

	while (len < cap - 1 && client_is_ready(fd, POLLIN, deadline_ns)) {
		ssize_t n = recv(fd, buf + len, cap - 1 - len, 0);

		if (n <= 0)
			return false;
		len += (size_t)n;
		buf[len] = 0;
		if (line ? strchr(buf, '\n') != NULL
			 : strstr(buf, "\r\n\r\n") || strstr(buf, "\n\n"))
			return true;
	}
	return false;
}

void kv_client_send(int fd, const char *p, size_t len, int64_t deadline_ns)
{
	while (len && client_is_ready(fd, POLLOUT, deadline_ns)) {
		ssize_t n = send(fd, p, len, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		p += n;
		len -= (size_t)n;
	}
}
