/* SPDX-License-Identifier: Apache-2.0 */
/* scrape.h -- asks for metrics as Prometheus does, and sums their samples */
#ifndef SCRAPE_H
#define SCRAPE_H

#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "test.h"

static inline int scrape_dial(uint32_t port)
{
	struct sockaddr_in at = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(connect(fd, (struct sockaddr *)&at, sizeof(at)), 0);
	return fd;
}

/* All that comes until the other end closes. */
static inline void scrape_ask(uint32_t port, const char *question, char *text, size_t cap)
{
	int fd = scrape_dial(port);
	size_t len = 0;
	ssize_t n;

	assert_int_equal(send(fd, question, strlen(question), MSG_NOSIGNAL), strlen(question));
	while ((n = recv(fd, text + len, cap - 1 - len, 0)) > 0)
		len += (size_t)n;
	text[len] = 0;
	close(fd);
}

static inline void scrape_metrics(uint32_t port, char *text, size_t cap)
{
	scrape_ask(port, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", text, cap);
	assert_int_equal(strncmp(text, "HTTP/1.0 200 OK\r\n", 17), 0);
}

/*
 * The sum of a family's samples whose line has both words; fails if there is none. `name` is the
 * whole name.
 */
static inline double scrape_sum(const char *text, const char *name, const char *word,
				const char *other)
{
	double sum = 0;
	int lines = 0;

	for (const char *at = text; (at = strstr(at, name)); at++) {
		const char *end = strchr(at, '\n'), *value;
		char line[512];

		if ((at != text && at[-1] != '\n') || at[strlen(name)] != '{' ||
		    end - at >= (ptrdiff_t)sizeof(line))
			continue;
		snprintf(line, sizeof(line), "%.*s", (int)(end - at), at);
		value = strrchr(line, ' ');
		if (!strstr(line, word) || !strstr(line, other) || !value)
			continue;
		sum += strtod(value, NULL);
		lines++;
	}
	if (!lines)
		fail_msg("no sample of %s with %s and %s in:\n%s", name, word, other, text);
	return sum;
}

#endif
