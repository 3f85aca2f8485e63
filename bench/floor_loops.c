/* SPDX-License-Identifier: Apache-2.0 */
/* floor_loops.c -- which blocks go where, and the barest loops that move them */
#include "floor.h"

#include <stdlib.h>
#include <sys/uio.h>

#include "copy.h"

enum { IOVECS = 256 };

/* ---------------------------------------------------------------- plan */

void plan_make(struct plan *p, size_t size)
{
	uint64_t random = 0x9e3779b97f4a7c15u;

	free(p->from);
	free(p->to);
	p->size = size;
	p->blocks = (uint32_t)(cfg.pool / size);
	p->from = malloc(p->blocks * sizeof(uint32_t));
	p->to = malloc(p->blocks * sizeof(uint32_t));
	PAIR_CHECK(p->from && p->to && p->blocks >= cfg.batch);
	for (uint32_t i = 0; i < p->blocks; i++)
		p->from[i] = p->to[i] = i;
	for (uint32_t i = p->blocks - 1; i; i--) {
		uint32_t a = (uint32_t)(pair_random(&random) % (i + 1));
		uint32_t b = (uint32_t)(pair_random(&random) % (i + 1));
		uint32_t t = p->from[i];

		p->from[i] = p->from[a];
		p->from[a] = t;
		t = p->to[i];
		p->to[i] = p->to[b];
		p->to[b] = t;
	}
}

/* ---------------------------------------------------------------- the loops */

static void floor_copy(struct bench *b, copy_fn *copy)
{
	const struct plan *p = &b->plan;
	uint32_t k = plan_slot(p, b->next, 0), next;

	for (uint32_t i = 0; i < cfg.batch; i++, k = next) {
		next = plan_slot(p, b->next, i + 1);
		copy(b->floor_dst + (size_t)p->to[k] * p->size,
		     b->s->base + (size_t)p->from[k] * p->size, p->size,
		     b->floor_dst + (size_t)p->to[next] * p->size,
		     b->s->base + (size_t)p->from[next] * p->size);
	}
	copy_fence();
}

static void floor_cma(struct bench *b)
{
	const struct plan *p = &b->plan;
	struct iovec ours[IOVECS], theirs[IOVECS];

	for (uint32_t i = 0; i < cfg.batch;) {
		uint32_t n = cfg.batch - i < IOVECS ? cfg.batch - i : IOVECS;

		for (uint32_t j = 0; j < n; j++, i++) {
			uint32_t k = plan_slot(p, b->next, i);

			ours[j] = (struct iovec){ b->s->base + (size_t)p->from[k] * p->size,
						  p->size };
			theirs[j] = (struct iovec){
				(void *)(uintptr_t)(b->peer_base + (uint64_t)p->to[k] * p->size),
				p->size
			};
		}
		PAIR_CHECK(process_vm_writev(b->s->other, ours, n, theirs, n, 0) ==
			   (ssize_t)(n * p->size));
	}
}

void floor_batch(struct bench *b, enum way way)
{
	const char *name;
	copy_fn *stream = copy_stream(b->plan.size, &name);

	if (way == FLOOR_TCP)
		floor_tcp_batch(b);
	else if (way == FLOOR_CMA)
		floor_cma(b);
	else
		floor_copy(b, way == FLOOR_NT && stream ? stream : copy_plain);
}
