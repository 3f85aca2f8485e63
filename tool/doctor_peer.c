/* SPDX-License-Identifier: Apache-2.0 */
/*
 * doctor_peer.c -- one verified write to another machine: resolve, connect, write and read back;
 * and the other end of it
 */
#include "doctor_cache.h"

#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>

enum { WAIT_MS = 5000 };

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static bool resolve(struct doctor *d, const char *host)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	struct addrinfo *list;
	char text[NI_MAXHOST];
	int ret = getaddrinfo(host, NULL, &hints, &list);

	if (ret) {
		doctor_note(d, CHECK_RESOLVE, DOCTOR_FAIL, "", "%s: %s", host, gai_strerror(ret));
		doctor_fix(d,
			   "the address itself (kvrail doctor --peer 10.0.0.2), or getent hosts %s",
			   host);
		return false;
	}
	if (getnameinfo(list->ai_addr, list->ai_addrlen, text, sizeof(text), NULL, 0,
			NI_NUMERICHOST))
		snprintf(text, sizeof(text), "?");
	doctor_note(d, CHECK_RESOLVE, DOCTOR_OK, "", "%s is %s", host, text);
	freeaddrinfo(list);
	return true;
}

static struct kv_peer *connect_to(struct doctor *d, struct doctor_cache *c, const char *host,
				  uint32_t port)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_peer *peer;
	struct kv_error err;

	if (!kv_connect(c->engine, host, port, WAIT_MS, &peer, &err)) {
		kv_peer_info(peer, &info, NULL);
		doctor_note(d, CHECK_CONNECT, DOCTOR_OK, info.transport, "%s, %s", info.address,
			    info.path);
		return peer;
	}
	doctor_note_error(d, CHECK_CONNECT, &err);
	if (err.code == KV_ERR_PEER_LOST || err.code == KV_ERR_TIMEOUT)
		doctor_fix(d,
			   "there: kvrail doctor --listen %s --port %u; a firewall must let TCP "
			   "port %u in",
			   host, port, port);
	return NULL;
}

static int write_and_read(const struct doctor_cache *c, struct kv_peer *peer, double *write_s,
			  struct kv_error *err)
{
	static const int64_t first = 0, second = 1;
	const struct kv_layers all = { 0 };
	double began = seconds();
	int ret;

	ret = kv_write_blocks(peer, c->handle, all, &first, &first, 1, NULL, err);
	*write_s = seconds() - began;
	if (!ret)
		ret = kv_read_blocks(peer, c->handle, all, &second, &first, 1, NULL, err);
	return ret;
}

static void fill(unsigned char *block)
{
	for (size_t done = 0; done < BLOCK_BYTES; done += 256)
		if (getrandom(block + done, 256, 0) != 256)
			memset(block + done, (int)(done >> 8), 256);
}

void doctor_peer(struct doctor *d, const char *host, uint32_t port)
{
	struct doctor_cache c = { 0 };
	struct kv_peer *peer;
	struct kv_error err;
	double took;

	if (!resolve(d, host))
		return;
	if (doctor_cache_open(NULL, &c, &err)) {
		doctor_note_error(d, CHECK_CONNECT, &err);
		return;
	}
	fill(c.memory);
	peer = connect_to(d, &c, host, port);
	if (peer) {
		if (write_and_read(&c, peer, &took, &err)) {
			doctor_note_error(d, CHECK_WRITE, &err);
		} else if (memcmp(c.memory, c.memory + BLOCK_BYTES, BLOCK_BYTES)) {
			doctor_note(d, CHECK_WRITE, DOCTOR_FAIL, "",
				    "the bytes read back are not those written");
			doctor_fix(d, "report this with kvrail doctor --json of both hosts");
		} else {
			doctor_note(d, CHECK_WRITE, DOCTOR_OK, "",
				    "%d bytes written in %.2f ms and read back alike", BLOCK_BYTES,
				    1e3 * took);
		}
		kv_peer_close(peer, WAIT_MS, NULL);
	}
	kv_engine_close(c.engine);
}

int doctor_listen(const char *host, uint32_t port, int limit)
{
	double until = seconds() + limit;
	struct doctor_cache c = { 0 };
	struct kv_arrival arrival;
	struct kv_error err;
	char line[1024];
	int ret;

	ret = doctor_cache_open(NULL, &c, &err);
	if (!ret) {
		ret = kv_listen(c.engine, host, port, &port, &err);
		if (ret)
			kv_engine_close(c.engine);
	}
	if (ret) {
		kv_error_format(&err, line, sizeof(line));
		fprintf(stderr, "kvrail doctor: %s\n", line);
		return 1;
	}
	printf("listening on %s port %u; there: kvrail doctor --peer %s --port %u\n", host, port,
	       host, port);
	fflush(stdout);
	while (seconds() < until) {
		struct pollfd fd = { .fd = kv_arrivals_fd(c.engine), .events = POLLIN };

		poll(&fd, 1, 200);
		while (kv_poll_arrivals(c.engine, &arrival, 1, NULL) > 0)
			if (arrival.kind == KV_ARRIVAL_PEER_LOST)
				kv_peer_close(arrival.peer, WAIT_MS, NULL);
	}
	kv_engine_close(c.engine);
	return 0;
}
