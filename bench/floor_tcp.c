/* SPDX-License-Identifier: Apache-2.0 */
/*
 * floor_tcp.c -- the barest program that moves a batch over a TCP socket: one header that names
 * every block, then the blocks, from where they lie to where they belong; one byte back
 */
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "floor.h"

struct floor_header {
	uint32_t blocks, size;
	uint32_t to[]; /* ids */
};

static int ends[2] = { -1, -1 }; /* the writer's and the receiver's socket */

/* Before the fork. */
void floor_tcp_open(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;

	ends[0] = socket(AF_INET, SOCK_STREAM, 0);
	PAIR_CHECK(listener >= 0 && ends[0] >= 0 && !bind(listener, (struct sockaddr *)&sa, len) &&
		   !listen(listener, 1) && !getsockname(listener, (struct sockaddr *)&sa, &len) &&
		   !connect(ends[0], (struct sockaddr *)&sa, len));
	ends[1] = accept(listener, NULL, NULL);
	PAIR_CHECK(ends[1] >= 0);
	for (int i = 0; i < 2; i++)
		setsockopt(ends[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	close(listener);
}

/* All of them, by as few calls as the kernel takes. */
static void move_all(int fd, struct iovec *iov, size_t n, bool out)
{
	while (n) {
		struct msghdr msg = { .msg_iov = iov, .msg_iovlen = n < IOV_MAX ? n : IOV_MAX };
		ssize_t done = out ? sendmsg(fd, &msg, MSG_NOSIGNAL) : recvmsg(fd, &msg, 0);

		PAIR_CHECK(done > 0);
		while (n && (size_t)done >= iov->iov_len) {
			done -= (ssize_t)iov->iov_len;
			iov++;
			n--;
		}
		if (n) {
			iov->iov_base = (uint8_t *)iov->iov_base + done;
			iov->iov_len -= (size_t)done;
		}
	}
}

void floor_tcp_batch(struct bench *b)
{
	const struct plan *p = &b->plan;
	size_t bytes = sizeof(struct floor_header) + cfg.batch * sizeof(uint32_t);
	static struct floor_header *header;
	static struct iovec *iov;
	char byte;

	if (!header) {
		header = malloc(bytes);
		iov = malloc((cfg.batch + 1) * sizeof(*iov));
		PAIR_CHECK(header && iov);
	}
	header->blocks = cfg.batch;
	header->size = (uint32_t)p->size;
	iov[0] = (struct iovec){ header, bytes };
	for (uint32_t i = 0; i < cfg.batch; i++) {
		uint32_t k = plan_slot(p, b->next, i);

		header->to[i] = p->to[k];
		iov[i + 1] = (struct iovec){ b->s->base + (size_t)p->from[k] * p->size, p->size };
	}
	move_all(ends[0], iov, cfg.batch + 1, true);
	PAIR_CHECK(recv(ends[0], &byte, 1, 0) == 1);
}

static void *place_batches(void *base)
{
	struct floor_header head, *header = NULL;
	struct iovec *iov = NULL;

	while (recv(ends[1], &head, sizeof(head), MSG_WAITALL) == sizeof(head)) {
		size_t ids = head.blocks * sizeof(uint32_t);

		if (!header) {
			header = malloc(sizeof(head) + ids);
			iov = malloc(head.blocks * sizeof(*iov));
			PAIR_CHECK(header && iov);
		}
		PAIR_CHECK(recv(ends[1], header->to, ids, MSG_WAITALL) == (ssize_t)ids);
		for (uint32_t i = 0; i < head.blocks; i++)
			iov[i] =
				(struct iovec){ (uint8_t *)base + (size_t)header->to[i] * head.size,
						head.size };
		move_all(ends[1], iov, head.blocks, false);
		PAIR_CHECK(send(ends[1], "", 1, MSG_NOSIGNAL) == 1);
	}
	free(header);
	free(iov);
	return NULL;
}

/* In the receiving process: a thread that sleeps in recv, as the engine's does in poll. */
void floor_tcp_serve(struct pair_side *s)
{
	pthread_t thread;

	if (ends[1] < 0)
		return;
	close(ends[0]);
	PAIR_CHECK(!pthread_create(&thread, NULL, place_batches, s->base));
	pthread_detach(thread);
}

void floor_tcp_end(void)
{
	close(ends[0]);
}
