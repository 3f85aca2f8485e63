/* SPDX-License-Identifier: Apache-2.0 */
/* send.c -- fills what receivers order, in every way that the API has, and cancels some of it */
#include "peer.h"

#include <string.h>

enum { TASKS = 24 };
enum way { AT_ONCE, BY_LAYER, BLOCKING, GROUP, WRONG_BLOCK, IGNORED, WAYS };

struct task {
	struct link *link; /* NULL: unused */
	struct order order;
	int64_t ids[N_MAX]; /* blocks of this end, which hold what was ordered */
	struct kv_op *op[LAYERS_MAX];
	uint32_t ops;
	bool failed;
	int64_t cancel_ms, end_ms; /* the time of its operations is up */
};
static struct task tasks[TASKS];
static bool finishing;

static bool choose_blocks(struct task *t)
{
	for (uint64_t i = 0; i < t->order.n; i++) {
		uint64_t at = chance(&options.random, cache.shape.blocks), tries = 0;

		while (cache.landed[at] && ++tries <= cache.shape.blocks)
			at = (at + 1) % cache.shape.blocks;
		if (cache.landed[at]) {
			while (i)
				cache.landed[t->ids[--i]] = 0;
			return false;
		}
		t->ids[i] = (int64_t)at;
		block_fill(&cache, t->ids[i], seed_of(t->order.seed, i));
		cache.landed[at] = 1; /* in use */
	}
	return true;
}

/* Nobody reads the blocks any more; they must be as they were. */
static void end_task(struct task *t)
{
	for (uint64_t i = 0; i < t->order.n; i++) {
		if (!options.soak)
			block_check(&cache, t->ids[i]);
		cache.landed[t->ids[i]] = 0;
	}
	for (uint32_t i = 0; i < t->ops; i++)
		if (t->op[i])
			CALL(may_never, 0, kv_op_free(t->op[i], &error));
	if (t->failed)
		status->failed++;
	else
		status->good[t->order.receiver % IDS]++;
	t->link = NULL;
}

static void note_end(struct task *t, int ret, int scope)
{
	if (!ret)
		return;
	t->failed = true;
	if (scope >= KV_SCOPE_PEER && scope < KV_SCOPE_DEVICE)
		link_drop(t->link);
}

static struct kv_options options_of(const struct task *t, int64_t timeout_ms)
{
	struct kv_options opts = KV_INIT(kv_options);

	opts.timeout_ms = timeout_ms;
	opts.tag = t->order.tag;
	opts.lease = t->order.lease;
	return opts;
}

static void start(struct task *t, struct kv_layers layers, struct kv_group *group)
{
	struct kv_options opts = options_of(t, OP_MS);
	const struct order *o = &t->order;
	int ret;

	opts.group = group;
	if (o->lease)
		ret = CALL(may_end, OP_MS,
			   kv_write_blocks_async(t->link->peer, cache.handle, layers, t->ids,
						 o->ids, o->n, &opts, &t->op[t->ops], &error));
	else
		ret = CALL(may_end, OP_MS,
			   kv_send_blocks_async(t->link->peer, cache.handle, layers, t->ids, o->n,
						o->tag, &opts, &t->op[t->ops], &error));
	if (!ret)
		t->ops++;
	note_end(t, ret, error.scope);
}

static void start_layers(struct task *t, struct kv_group *group)
{
	for (uint32_t l = 0; l < cache.shape.layers && !t->failed; l++)
		start(t, (struct kv_layers){ l, 1 }, group);
}

static void start_group(struct task *t)
{
	struct kv_group *group;
	int ret;

	if (CALL(may_open, 0, kv_group_start(engine, &group, &error))) {
		t->failed = true;
		return;
	}
	start_layers(t, group);
	ret = CALL(may_end, CALL_MS, kv_group_end(group, CALL_MS, NULL, &error));
	note_end(t, ret, error.scope);
}

static void write_now(struct task *t)
{
	struct kv_options opts = options_of(t, CALL_MS);
	const struct order *o = &t->order;
	int ret;

	if (o->lease)
		ret = CALL(may_end, CALL_MS,
			   kv_write_blocks(t->link->peer, cache.handle, all_layers, t->ids, o->ids,
					   o->n, &opts, &error));
	else
		ret = CALL(may_end, CALL_MS,
			   kv_send_blocks(t->link->peer, cache.handle, all_layers, t->ids, o->n,
					  o->tag, &opts, &error));
	note_end(t, ret, error.scope);
}

/* A block that the receiver has not opened: it must be refused, and nothing of it land. */
static void write_elsewhere(struct task *t)
{
	struct kv_options opts = options_of(t, CALL_MS);
	int64_t wrong = 0;
	int ret;

	for (uint64_t i = 0; i < t->order.n; i++)
		if (t->order.ids[i] == wrong) {
			wrong++;
			i = (uint64_t)-1;
		}
	if (t->order.lease) {
		ret = CALL(may_end, CALL_MS,
			   kv_write_blocks(t->link->peer, cache.handle, all_layers, t->ids, &wrong,
					   1, &opts, &error));
		note_end(t, ret, error.scope);
		if (!ret) {
			tell("WRONG: a block outside of its lease was written");
			status->wrong++;
		}
	}
	t->failed = true;
}

static enum way choose_way(void)
{
	static const enum way often[] = { AT_ONCE, BY_LAYER, BLOCKING, GROUP };
	uint64_t dice = chance(&options.random, 80);

	if (options.soak || dice > 1)
		return often[dice % 4];
	return dice ? WRONG_BLOCK : IGNORED;
}

static void begin(struct task *t)
{
	enum way way = choose_way();

	t->ops = 0;
	t->failed = way == IGNORED;
	t->cancel_ms = INT64_MAX;
	t->end_ms = lived_ms() + OP_MS + SLACK_MS;
	if (!options.soak && !chance(&options.random, 16))
		t->cancel_ms = lived_ms() + (int64_t)chance(&options.random, 3) * 10;
	if (way == AT_ONCE)
		start(t, all_layers, NULL);
	else if (way == BY_LAYER)
		start_layers(t, NULL);
	else if (way == BLOCKING)
		write_now(t);
	else if (way == GROUP)
		start_group(t);
	else if (way == WRONG_BLOCK)
		write_elsewhere(t);
}

static void arrival(struct link *link, const struct kv_arrival *a)
{
	struct task *t = tasks;

	while (t->link)
		if (++t == tasks + TASKS)
			return; /* the receiver takes its blocks back */
	memcpy(&t->order, mail_mem[a->tag % MAIL_SLOTS], sizeof(t->order));
	/* A receiver that gave up has the next order written over this one. */
	if (t->order.check != order_check(&t->order) || t->order.n > N_MAX ||
	    t->order.receiver != link->id || finishing || !choose_blocks(t))
		return;
	t->link = link;
	begin(t);
}

static void look_at_op(struct task *t, uint32_t i)
{
	int ret = CALL(may_end, 0, kv_test(t->op[i], &error));

	if (ret >= 0 && ret < KV_ACKED) {
		if (lived_ms() > t->end_ms) {
			tell("WRONG: an operation has not ended at its deadline");
			status->overdue++;
			t->end_ms = INT64_MAX;
		}
		if (lived_ms() < t->cancel_ms ||
		    CALL(may_close, STOP_MS, kv_cancel(t->op[i], STOP_MS, &error)))
			return;
		ret = CALL(may_end, 0, kv_test(t->op[i], &error));
	}
	note_end(t, ret < 0 ? ret : 0, error.scope);
	CALL(may_never, 0, kv_op_free(t->op[i], &error));
	t->op[i] = NULL;
}

static bool step(void)
{
	static int64_t next;
	bool any = false;

	for (struct task *t = tasks; t < tasks + TASKS; t++) {
		bool open = false;

		if (!t->link)
			continue;
		for (uint32_t i = 0; i < t->ops; i++) {
			if (t->op[i])
				look_at_op(t, i);
			open |= t->op[i] != NULL;
		}
		if (!open)
			end_task(t);
		any |= !open;
	}
	if (!options.soak)
		block_check(&cache, next++ % cache.shape.blocks);
	return any;
}

static void closed(struct link *link)
{
	for (struct task *t = tasks; t < tasks + TASKS; t++)
		if (t->link == link) {
			t->failed = true;
			end_task(t);
		}
}

static bool idle(void)
{
	for (struct task *t = tasks; t < tasks + TASKS; t++)
		if (t->link)
			return false;
	return true;
}

static void finish(void)
{
	finishing = true;
}

const struct role sender = { step, arrival, closed, idle, finish };
