/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_fuzz.c -- an engine whose peer says whatever the input says: hello, setup, messages in any
 * order, commits, bytes; while its application opens, writes, reads, receives, cancels, revokes
 *
 * Rules: no byte is placed outside a block that is open just then; what a write posts lies in
 * blocks that the peer has opened; an operation ends once, and with 0 only if the peer has said so;
 * a message costs little memory and few answers; everything can be closed, and nothing is left.
 */
#include <string.h>

#include "kv_world.h"

enum { NO_TIME = 0 };

/* ---------------------------------------------------------------- the application */

static void check_code(int ret, const struct kv_error *err)
{
	w.calls++;
	FUZZ_CHECK(ret >= 0 || (err->code == ret && err->message[0] && ret != KV_ERR_INTERNAL));
}

static void look_at_op(struct own_op *own)
{
	struct kv_error err;
	int ret = kv_test(own->op, &err);
	bool over = atomic_load(&own->op->ended) == KV_OP_ENDED;

	FUZZ_CHECK(!own->ended || ret == own->result);
	if (own->ended || !over)
		return;
	own->ended = true;
	own->result = ret;
	if (own->lease >= 0)
		w.lease[own->lease].open = false;
	if (ret != KV_ACKED || !own->writes)
		return;
	for (int i = 0; i < OPS; i++)
		if (w.acked[i] == own->op->id)
			return;
	FUZZ_CHECK(w.acks > OPS); /* or nobody has acknowledged it */
}

static void look_at_ops(void)
{
	for (int i = 0; i < OPS; i++)
		if (w.op[i].op)
			look_at_op(&w.op[i]);
}

static struct own_lease *free_lease(void)
{
	for (int i = 0; i < LEASES; i++)
		if (!w.lease[i].lease && !w.lease[i].open)
			return &w.lease[i];
	return NULL;
}

static uint32_t blocks_of(const int64_t *ids, size_t n)
{
	uint32_t blocks = 0;

	for (size_t i = 0; i < n; i++)
		blocks |= 1u << ids[i];
	return blocks;
}

static void fill_ids(int64_t ids[IDS], unsigned int first, unsigned int step)
{
	for (unsigned int i = 0; i < IDS; i++)
		ids[i] = (first + i * step) % (BLOCKS + 1);
}

static void open_blocks(const struct step *s)
{
	struct own_lease *own = free_lease();
	size_t n = 1 + s->b % IDS;
	int64_t ids[IDS];
	struct kv_error err;
	int ret;

	if (!own)
		return;
	fill_ids(ids, s->c, 1 + s->d % 3);
	ret = kv_blocks_open(w.peer, w.cache, ids, n, s->a % 4, 1 + s->d % 50, &own->lease, &err);
	check_code(ret, &err);
	if (ret) {
		own->lease = NULL;
		return;
	}
	own->id = kv_lease_id(own->lease);
	own->open = true;
	own->blocks = blocks_of(ids, n);
	own->layers = (struct kv_layers){ 0, LAYERS };
}

static void revoke_blocks(const struct step *s)
{
	struct own_lease *own = &w.lease[s->a % LEASES];
	struct kv_error err;
	int ret;

	if (!own->lease)
		return;
	ret = kv_revoke(own->lease, s->b % 8, &err);
	check_code(ret, &err);
	if (ret)
		return;
	own->lease = NULL;
	own->open = false;
}

static void begin_op(const struct step *s, enum kv_op_kind kind)
{
	struct own_op *own = &w.op[s->a % OPS];
	struct kv_layers layers = { s->how & 1, s->how >> 1 & 3 };
	struct kv_options opts = KV_INIT(kv_options);
	struct own_lease *lease = kind == KV_OP_RECV ? free_lease() : NULL;
	size_t n = 1 + s->b % IDS;
	struct kv_error err;
	int ret;

	if (own->op || (kind == KV_OP_RECV && !lease))
		return;
	opts.timeout_ms = 1 + s->d % 100;
	opts.tag = s->a >> 4 & 3;
	opts.group = kind == KV_OP_RECV ? NULL : w.group;
	opts.lease = s->how & 0x10 ? w.grant_id[s->how >> 5 & 3] : 0;
	fill_ids(own->local, s->c, 1 + s->d % 2);
	fill_ids(own->remote, s->e, 1 + s->f % 2);
	own->writes = kind == KV_OP_WRITE || kind == KV_OP_SEND;
	if (kind == KV_OP_WRITE)
		ret = kv_write_blocks_async(w.peer, w.cache, layers, own->local, own->remote, n,
					    &opts, &own->op, &err);
	else if (kind == KV_OP_READ)
		ret = kv_read_blocks_async(w.peer, w.cache, layers, own->local, own->remote, n,
					   &opts, &own->op, &err);
	else if (kind == KV_OP_SEND)
		ret = kv_send_blocks_async(w.peer, w.cache, layers, own->local, n, opts.tag, &opts,
					   &own->op, &err);
	else
		ret = kv_recv_blocks_async(w.peer, w.cache, layers, own->local, n, opts.tag, &opts,
					   &own->op, &err);
	check_code(ret, &err);
	own->ended = false;
	own->lease = -1;
	if (ret) {
		own->op = NULL;
		return;
	}
	if (!lease || !own->op->lease)
		return;
	own->lease = (int)(lease - w.lease);
	lease->id = own->op->lease->id;
	lease->open = true;
	lease->blocks = blocks_of(own->local, n);
	lease->layers = own->op->layers;
}

static void end_op(const struct step *s)
{
	struct own_op *own = &w.op[s->a % OPS];
	struct kv_error err;
	int ret;

	if (!own->op)
		return;
	if (s->how % 3 == 0) {
		ret = kv_wait(own->op, KV_SENT + s->b % 3, s->c % 8, &err);
	} else if (s->how % 3 == 1) {
		ret = kv_cancel(own->op, s->c % 8, &err);
	} else {
		look_at_op(own);
		ret = kv_op_free(own->op, &err);
		if (!ret)
			own->op = NULL;
	}
	check_code(ret, &err);
}

static void group(const struct step *s)
{
	struct kv_error err;
	int ret;

	if (!w.group) {
		if (kv_group_start(w.engine, &w.group, &err))
			w.group = NULL;
		return;
	}
	ret = kv_group_end(w.group, s->a % 8, NULL, &err);
	w.group = NULL;
	FUZZ_CHECK(ret <= 0);
}

static void take_arrivals(void)
{
	struct kv_arrival arrival[4];
	struct kv_error err;
	int n = kv_poll_arrivals(w.engine, arrival, 4, &err);

	check_code(n, &err);
	for (int i = 0; i < n; i++)
		FUZZ_CHECK(arrival[i].kind != KV_ARRIVAL_BLOCKS ||
			   (arrival[i].cache == w.cache && arrival[i].blocks <= BLOCKS &&
			    arrival[i].layers.first + arrival[i].layers.count <= LAYERS));
}

static void look_around(void)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_error err;
	char text[4096];

	FUZZ_CHECK(kv_dump(w.engine, text, sizeof(text)) > 0);
	if (w.peer)
		check_code(kv_peer_info(w.peer, &info, &err), &err);
}

static void adopt(void)
{
	FUZZ_CHECK(kv_claim_try(&w.peer->claim));
	if (kv_peer_is_waif(w.peer))
		kv_peer_adopt(w.peer);
	kv_peer_release(w.peer);
}

/* ---------------------------------------------------------------- one step */

static void world(const struct step *s)
{
	switch (s->how % 8) {
	case 0:
		time_passes(s->c % 3000);
		break;
	case 1:
		rig.refuses = !rig.refuses;
		break;
	case 2:
		rig.holds = !rig.holds;
		break;
	case 3:
		rig.busy = !rig.busy;
		break;
	case 4:
		rig.places = !rig.places;
		break;
	case 5:
		far_close();
		break;
	case 6:
		if (is_alive() && w.peer->state == KV_PEER_UP)
			rig_lose(w.peer->conn);
		break;
	default:
		look_around();
	}
}

static void application(const struct step *s)
{
	switch (s->what % 12) {
	case 0:
		open_blocks(s);
		break;
	case 1:
		revoke_blocks(s);
		break;
	case 2:
	case 3:
	case 4:
	case 5:
		begin_op(s, (enum kv_op_kind)(s->what % 12 - 2));
		break;
	case 6:
		end_op(s);
		break;
	case 7:
		group(s);
		break;
	case 8:
		take_arrivals();
		break;
	default:
		kv_progress(w.engine, s->a % 4, NULL);
		look_at_ops();
	}
}

/* `what`: below 128 the peer's, then the application's; the last few are the world's. */
static void run_step(const struct step *s)
{
	if (s->what >= 240)
		world(s);
	else if (!w.peer)
		return;
	else if (s->what < 128)
		far_says(s);
	else if (!w.comm)
		application(s);
	else if (s->what & 1)
		kv_progress(w.engine, NO_TIME, NULL);
	else if (is_alive())
		adopt();
	if (w.comm && !is_alive())
		w.peer = NULL;
	FUZZ_CHECK(!memcmp(memory, shadow, MEMORY));
}

/* ---------------------------------------------------------------- its end */

static void close_all(void)
{
	struct kv_stats stats = KV_INIT(kv_stats);
	struct kv_error err;

	rig_fault(0);
	rig.refuses = rig.holds = rig.busy = false;
	if (w.group)
		group(&(struct step){ 0 });
	if (w.peer && !w.comm)
		FUZZ_CHECK(!kv_peer_close(w.peer, 5000, &err));
	for (int i = 0; i < OPS; i++) {
		if (!w.op[i].op)
			continue;
		look_at_op(&w.op[i]);
		FUZZ_CHECK(w.op[i].ended && !kv_op_free(w.op[i].op, &err));
	}
	FUZZ_CHECK(!kv_stats(w.engine, &stats, &err));
	FUZZ_CHECK(!stats.in_flight && stats.writes + stats.reads + stats.sends + stats.recvs ==
					       stats.ok + stats.failed + stats.cancelled);
	FUZZ_CHECK(w.comm || !stats.leases_open);
	FUZZ_CHECK(w.comm || !atomic_load(&w.engine->charged));
	kv_engine_close(w.engine);
	FUZZ_CHECK(!memcmp(memory, shadow, MEMORY));
}

/* ---------------------------------------------------------------- bytes without an engine */

/* What is taken is the same bytes when it is written again. */
static void check_bytes(const uint8_t *data, size_t size)
{
	static struct kv_hello hello;
	uint8_t again[TR_HELLO_MAX];
	struct kv_msg msg;

	if (kv_wire_get(data, size, &msg))
		FUZZ_CHECK(kv_wire_put(&msg, again, sizeof(again)) == size &&
			   !memcmp(again, data, size));
	if (size <= sizeof(again) && kv_wire_get_hello(data, size, &hello))
		FUZZ_CHECK(kv_wire_put_hello(&hello, again, sizeof(again)) == size &&
			   !memcmp(again, data, size));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct step steps[STEPS_MAX];
	size_t n = steps_of(data, size, steps);

	if (!n)
		return 0;
	if (steps[0].what & 0x80) {
		check_bytes(data + 1, size - 1);
		return 0;
	}
	rig_begin();
	memset(&w, 0, sizeof(w));
	memset(memory, 0x11, MEMORY);
	memset(shadow, 0x11, MEMORY);
	w.flags = steps[0].a >> 2 & 3;
	w.comm = steps[0].a >> 4 & 1 && steps[0].what & 1 ? 77 : 0;
	end_open(&steps[0]);
	far_words(&steps[0]);
	rig_fault(steps[0].f);
	end_connect(steps[0].what & 1);
	for (size_t i = 1; i < n; i++)
		run_step(&steps[i]);
	FUZZ_CHECK(rig.said <= 4 * (w.calls + w.words) + 64);
	FUZZ_CHECK(rig_heap() < (1 << 20));
	close_all();
	rig_end();
	return 0;
}
