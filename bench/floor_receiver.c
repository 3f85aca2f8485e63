/* SPDX-License-Identifier: Apache-2.0 */
/* floor_receiver.c -- the receiving process: reads what arrived, or compares it with its source */
#include "floor.h"

#include <string.h>

#include "pattern.h"

static void sum_block(const uint8_t *p, size_t n, uint64_t *sum)
{
	const uint64_t *w = (const uint64_t *)(const void *)p;
	uint64_t a = 0;

	for (size_t i = 0; i < n / 8; i++)
		a += w[i];
	*sum += a;
}

static uint64_t wrong_blocks(const struct bench *b, uint32_t batch)
{
	const struct plan *p = &b->plan;
	uint64_t wrong = 0;

	for (uint32_t i = 0; i < cfg.batch; i++) {
		uint32_t k = plan_slot(p, batch, i);

		wrong += pattern_check(b->s->base + (size_t)p->to[k] * p->size, p->size,
				       pattern_key_at(POOL_KEY, (size_t)p->from[k] * p->size),
				       NULL) > 0;
	}
	return wrong;
}

static volatile uint64_t sink; /* what was read must be used */

static void read_batch(const struct bench *b, const uint8_t *base, uint32_t batch)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < cfg.batch; i++)
		sum_block(base + (size_t)b->plan.to[plan_slot(&b->plan, batch, i)] * b->plan.size,
			  b->plan.size, &sum);
	sink = sink + sum;
}

void receiver(struct pair_side *s)
{
	struct bench b = { .s = s, .floor_dst = shared_floor };
	struct command c = { 0 };

	pair_up(s);
	memset(s->base, 0, s->config->region);
	pair_say(s, (uintptr_t)s->base);
	floor_tcp_serve(s);
	for (unsigned int n = 1; c.kind != CMD_QUIT; n++) {
		while (s->msgs < n && !s->lost) /* a measurement may take long */
			pair_poll(s, 1000);
		PAIR_CHECK(s->msgs >= n);
		memcpy(&c, s->msg[(n - 1) % PAIR_EVENTS_MAX], sizeof(c));
		if (c.kind == CMD_PLAN)
			plan_make(&b.plan, c.value);
		else if (c.kind == CMD_READ_FLOOR)
			read_batch(&b, b.floor_dst, c.batch);
		else if (c.kind == CMD_READ)
			read_batch(&b, s->base, c.batch);
		else if (c.kind == CMD_CHECK)
			c.value = wrong_blocks(&b, c.batch);
		pair_send(s, &c, sizeof(c));
	}
	while (!s->lost)
		pair_poll(s, 1000);
	pair_down(s);
}
