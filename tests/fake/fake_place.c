/* SPDX-License-Identifier: Apache-2.0 */
/* fake_place.c -- bytes that a responder has accepted, on their way to memory */
#include <stdlib.h>
#include <string.h>

#include "fake_world.h"

/*
 * As a NIC writes: ascending, so that the last bytes of a line come last. memcpy promises no order,
 * and glibc's for AVX stores bytes 96..127 of 128 before bytes 64..95. A program that watches a
 * line, as NCCL's LL128 does, then sees its flag before its data, once in many thousand looks.
 */
void fake_store(uint8_t *to, const uint8_t *data, size_t len)
{
	for (; len && ((uintptr_t)to & 7); len--)
		__atomic_store_n(to++, *data++, __ATOMIC_RELEASE);
	for (; len >= 8; len -= 8, to += 8, data += 8) {
		uint64_t word;

		memcpy(&word, data, 8);
		__atomic_store_n((uint64_t *)(void *)to, word, __ATOMIC_RELEASE);
	}
	while (len--)
		__atomic_store_n(to++, *data++, __ATOMIC_RELEASE);
}

static void place_one(struct fake_qp *qp, struct fake_place **at)
{
	struct fake_place *p = *at;

	if (world.corrupt >= p->to && world.corrupt < p->to + p->len) {
		p->data[world.corrupt - p->to] ^= 1;
		world.corrupt = NULL;
	}
	fake_store(p->to, p->data, p->len);
	world.stats.bytes += p->len;
	world.stats.late += p->acked;
	*at = p->next;
	if (!*at)
		qp->place_last = at;
	free(p);
}

void fake_corrupt(uint8_t *at)
{
	pthread_mutex_lock(&world.lock);
	world.corrupt = at;
	pthread_mutex_unlock(&world.lock);
}

void fake_place_all(struct fake_qp *qp)
{
	while (qp->place)
		place_one(qp, &qp->place);
}

/* What still goes into a region is written before the region is gone. */
void fake_place_mr(const struct fake_mr *mr)
{
	const uint8_t *first = mr->bytes, *end = first + mr->mr.length;

	for (struct fake_qp *qp = world.qps; qp; qp = qp->next)
		for (const struct fake_place *p = qp->place; p; p = p->next)
			if (p->to < end && p->to + p->len > first) {
				fake_place_all(qp);
				break;
			}
}

/* The next bytes in order, or any if nothing orders them. */
void fake_place_some(struct fake_qp *qp)
{
	struct fake_place **at = &qp->place;

	while ((*at)->relaxed && (*at)->next && (*at)->next->relaxed && fake_random(2))
		at = &(*at)->next;
	place_one(qp, at);
}

/* Pieces end at 128-byte lines, or anywhere in relaxed regions. */
void fake_accept(struct fake_qp *responder, uint8_t *to, const uint8_t *data, uint32_t len,
		 bool relaxed, uint32_t position)
{
	while (len) {
		uint32_t n = 1 + fake_random(PIECE);
		struct fake_place *p;

		if (!relaxed)
			n = (n & ~127u) + 128 - (uint32_t)((uintptr_t)to & 127);
		n = n < len ? n : len;
		p = calloc(1, sizeof(*p) + n);
		p->to = to;
		p->len = n;
		p->relaxed = relaxed;
		p->requester_position = position;
		memcpy(p->data, data, n);
		*responder->place_last = p;
		responder->place_last = &p->next;
		to += n;
		data += n;
		len -= n;
	}
}
