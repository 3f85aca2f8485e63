/* SPDX-License-Identifier: Apache-2.0 */
/* rank.c -- the rank's side: collectives through the parent */
#include "rank.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

static int move_full(int fd, const void *out, void *in, size_t len)
{
	size_t done = 0;
	ssize_t n;

	while (done < len) {
		n = out ? send(fd, (const char *)out + done, len - done, MSG_NOSIGNAL)
			: recv(fd, (char *)in + done, len - done, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		done += (size_t)n;
	}
	return 0;
}

int rank_recv_full(int fd, void *data, size_t len)
{
	return move_full(fd, NULL, data, len);
}

int rank_send(int fd, const struct rank_head *head, const void *data)
{
	if (move_full(fd, head, NULL, sizeof(*head)))
		return -1;
	return head->len ? move_full(fd, data, NULL, head->len) : 0;
}

int rank_allgather(void *arg, const void *mine, void *all, size_t len)
{
	struct rank *r = arg;
	struct rank_head head = { .kind = RANK_GATHER, .len = (uint32_t)len };

	if (len > RANK_MESSAGE_MAX / RANK_MAX || rank_send(r->fd, &head, mine))
		return -1;
	if (rank_recv_full(r->fd, &head, sizeof(head)) || head.kind != RANK_GATHER || !head.ok ||
	    head.len != len * r->size)
		return -1;
	return rank_recv_full(r->fd, all, head.len);
}

int rank_arrive(struct rank *r)
{
	const struct rank_head head = { .kind = RANK_ARRIVE };

	return rank_send(r->fd, &head, NULL);
}

int rank_arrived(struct rank *r, int timeout_ms)
{
	struct pollfd p = { .fd = r->fd, .events = POLLIN };
	struct rank_head head;
	int n = poll(&p, 1, timeout_ms);

	if (n == 0 || (n < 0 && errno == EINTR))
		return 0;
	if (n < 0 || rank_recv_full(r->fd, &head, sizeof(head)) || head.kind != RANK_ARRIVE)
		return -1;
	return 1;
}

int rank_result(struct rank *r, const void *result, size_t len)
{
	const struct rank_head head = { .kind = RANK_RESULT, .len = (uint32_t)len };

	return rank_send(r->fd, &head, result);
}

const char *const *rank_engine_options(const struct rank *r)
{
	static const char *const no_spin[] = { "KVCACHE_SPIN_US=0", NULL };
	const char *text = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
	unsigned long here = text ? strtoul(text, NULL, 10) : r->size;
	long cores = sysconf(_SC_NPROCESSORS_ONLN);

	if (getenv("KVCACHE_SPIN_US") || cores < 1 || here <= (unsigned long)cores)
		return NULL;
	return no_spin;
}
