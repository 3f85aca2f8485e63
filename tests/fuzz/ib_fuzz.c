/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_fuzz.c -- a connection over a NIC whose other end says whatever the input says: in its offer
 * and setup, in descriptions of memory, in messages, notify records, immediates and credits, and
 * with bare writes and reads; while this end writes, reads, sends and cancels, and its device fails
 *
 * Rules: nothing lands beside the region that was described, or in it without the right; nothing
 * beside it is read to the peer; a lie ends the connection with a code and a cause; an operation
 * ends once, and as written only with its bytes in the peer's memory; no object of a device, no
 * descriptor, no byte of heap is left.
 */
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/option.h"
#include "fake_world.h"
#include "ib_world.h"

struct world w;
uint8_t memory[GUARD + REGION + GUARD], hall[HALL];

/* What is random is so in each run alike. */
static uint64_t random_state;

ssize_t getrandom(void *buf, size_t len, unsigned int flags)
{
	for (size_t i = 0; i < len; i++) {
		random_state = random_state * UINT64_C(6364136223846793005) + 1442695040888963407;
		((uint8_t *)buf)[i] = (uint8_t)(random_state >> 56);
	}
	return (ssize_t)len;
}

/* ---------------------------------------------------------------- the product's end */

/* Its bytes are in the peer's memory, which never has THEIRS of its own accord. */
static void check_written(const struct own_op *own)
{
	fake_land();
	for (unsigned int i = 0; i < own->spans && !w.lied && !w.reads; i++)
		for (uint64_t k = 0; k < own->span[i].len; k++)
			FUZZ_CHECK(hall[HALL_REGION + own->span[i].remote + k] != THEIRS);
}

static void op_ended(const struct tr_event *event)
{
	struct own_op *own = w.op;

	while (own < w.op + OPS && (!own->op || own->user != event->user))
		own++;
	FUZZ_CHECK(own < w.op + OPS); /* or it has ended before */
	own->op = NULL;
	if (event->kind == TR_WRITTEN)
		check_written(own);
}

static void poll_conn(void)
{
	struct tr_event event[8];
	int n = tr_poll(w.conn, event, 8);

	for (int i = 0; i < n; i++) {
		switch (event[i].kind) {
		case TR_MSG:
			FUZZ_CHECK(event[i].len <= TR_MSG_MAX);
			break;
		case TR_NOTIFIED:
			break;
		case TR_PEER_LOST:
			FUZZ_CHECK(event[i].status < 0 && event[i].status != KV_ERR_INTERNAL);
			for (int k = 0; k < OPS; k++)
				FUZZ_CHECK(!w.op[k].op);
			break;
		default:
			FUZZ_CHECK(event[i].kind != TR_IN_DOUBT ||
				   (event[i].status < 0 && event[i].status != KV_ERR_INTERNAL));
			op_ended(&event[i]);
		}
	}
}

static void begin(struct own_op *own, bool reads)
{
	struct kv_error err;

	*own = (struct own_op){ .user = ++w.ops };
	w.reads |= reads;
	if (tr_op_begin(w.conn, reads ? TR_READ_OP : TR_WRITE, own->user, &own->op, &err))
		own->op = NULL;
}

static void add_span(struct own_op *own, const struct step *s)
{
	struct tr_span *span = &own->span[own->spans];
	struct kv_error err;
	long n;

	if (own->op->state != TR_OP_OPEN || own->spans == SPANS - 1)
		return;
	if (!own->partly) /* else the call begins with what the last one left */
		*span = (struct tr_span){ s->c % REGION, s->d % REGION, 1 + s->e % REGION };
	n = tr_op_add(own->op, w.upper.mem, w.upper.rmem, span, 1, &err);
	FUZZ_CHECK(n >= 0 || (err.code == n && err.message[0]));
	own->partly = !n;
	own->spans += n > 0;
}

static void operate(const struct step *s)
{
	struct own_op *own = &w.op[s->a % OPS];
	struct kv_error err;

	if (!w.upper.rmem || w.conn->stage != CONN_READY)
		return;
	if (!own->op) {
		begin(own, s->how & 1);
	} else if (s->how % 4 < 2) {
		add_span(own, s);
	} else if (s->how % 4 == 2) {
		if (own->op->state == TR_OP_OPEN && !own->partly)
			tr_op_commit(own->op, s->how >> 2 & (TR_NOTIFY | TR_PROVEN | TR_LANDED),
				     s->f, &err);
	} else {
		tr_op_cancel(own->op, kv_deadline_ns(s->b), &err);
	}
}

static void act(const struct step *s)
{
	char text[512];
	struct kv_error err;

	switch (s->how % 8) {
	case 0:
	case 1:
		if (w.conn->stage == CONN_READY)
			tr_msg(w.conn, memory + GUARD, s->c % TR_MSG_MAX, &err);
		break;
	case 2:
		if (!(w.flags & TR_POLLED)) /* else its owner never sleeps */
			tr_conn_arm(w.conn);
		break;
	case 3:
		tr_fence(w.conn, 0, &err);
		break;
	case 4:
		time_passes(s->c % 2000);
		break;
	case 5:
		far_close();
		break;
	case 6:
		tr_conn_cut(w.conn);
		break;
	default:
		tr_conn_dump(w.conn, text, sizeof(text));
		if (w.conn->stage == CONN_READY)
			w.conn->provider->ask(w.conn);
	}
}

/* ---------------------------------------------------------------- its device */

/*
 * A completion that nobody asked for. It may name what is under way only to say that it failed: a
 * device that says that a write was done which was not cannot be found out.
 */
static void complete(const struct step *s)
{
	const struct ib_conn *c = w.conn->stage == CONN_READY ? ib_conn_of(w.conn) : NULL;
	bool recv = s->how & 1, good = s->how & 2;
	uint16_t generation = c ? c->generation : 0;
	struct ibv_wc wc = { .status = good ? IBV_WC_SUCCESS : (enum ibv_wc_status)(1 + s->b % 21),
			     .opcode = s->how & 4 ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV,
			     .byte_len = s->c,
			     .imm_data = s->e,
			     .vendor_err = s->d };

	if (s->how & 8 || (good && !recv))
		generation = (uint16_t)(generation + 1 + s->d);
	wc.wr_id =
		IB_WR_ID((uint64_t)(recv ? IB_KIND_RECV : s->a % 10), s->b % 3, generation, s->f);
	fake_spurious(0, recv, &wc);
}

static void device(const struct step *s)
{
	static const enum fake_verb verbs[] = { FAKE_poll_cq, FAKE_req_notify_cq, FAKE_post_send,
						FAKE_post_recv, FAKE_modify_qp };

	switch (s->how % 8) {
	case 0:
		fake_mute(s->a & 1, s->b & 1);
		break;
	case 1:
		fake_hold_answers(s->b & 1);
		break;
	case 2:
		fake_fail_completion(1 + s->a % 16, (enum ibv_wc_status)(1 + s->b % 21), s->d);
		break;
	case 3:
		fake_link(s->a & 1, s->a >> 1 & (w.devices - 1), s->b & 1);
		break;
	case 4:
		fake_fail_verb(verbs[s->a % 5], 1 + s->b % 8, s->c & 1 ? ENOMEM : EIO);
		break;
	case 5:
		fake_fail_wr(1 + s->a % 16);
		break;
	case 6:
		far_breaks(s);
		break;
	default:
		if (s->b & 1)
			fake_device_fatal(s->a & 1, 0);
		else
			fake_step(s->c % 512);
	}
}

static void heal(void)
{
	fake_hold_answers(false);
	fake_fail_completion(0, IBV_WC_SUCCESS, 0);
	fake_fail_wr(0);
	for (int v = 0; v < FAKE_VERB_COUNT; v++)
		fake_fail_verb((enum fake_verb)v, 0, 0);
	for (int host = 0; host < 2; host++)
		fake_mute(host, false);
}

static void run_step(const struct step *s)
{
	uint8_t buf[TR_MEM_PACK_MAX];
	struct tr_rmem *rmem;
	struct kv_error err;
	size_t len;

	switch (s->what % 14) {
	case 0:
	case 1:
		far_says(s);
		break;
	case 2:
	case 3:
		far_notes(s);
		break;
	case 4:
		far_reaches(s);
		break;
	case 5:
		far_takes(s);
		break;
	case 6:
	case 7:
		operate(s);
		break;
	case 8:
		act(s);
		break;
	case 9: /* a region more */
		len = far_describes(s, buf);
		if (w.conn->stage == CONN_READY && !tr_mem_open(w.conn, buf, len, &rmem, &err))
			tr_mem_close(rmem);
		break;
	case 10:
		complete(s);
		break;
	case 11:
		device(s);
		break;
	default:
		poll_conn();
	}
}

/* ---------------------------------------------------------------- */

static void open_transport(const struct step *s)
{
	static const char *const list[] = { "KVCACHE_TRANSPORT=ib", "KVCACHE_IB_LANES=2", NULL };
	static struct kv_option_set *options;
	struct fake_config config = { .devices = w.devices,
				      .infiniband = s->a & 2,
				      .no_cm = s->a & 4,
				      .prompt = s->a & 8,
				      .seed = 1 + (s->a >> 4) };
	struct tr_config tr = { 0 };
	struct kv_error err;

	if (!options)
		FUZZ_CHECK(!kv_option_read(list, &options, &err));
	tr.options = options;
	fake_begin(&config);
	ib_test_hook.sysroot = "/nowhere";
	ib_test_hook.slice_bytes = 4096;
	ib_test_hook.sq_depth = s->b & 0x10 ? 16 : 64;
	FUZZ_CHECK(!tr_open(&tr, &w.tr, &err));
	far_open_devices();
	FUZZ_CHECK(!tr_mem_reg(w.tr, memory + GUARD, REGION, TR_MEM_HOST, w.access, &w.upper.mem,
			       &err));
}

static void handshake(bool connecting)
{
	struct tr_conn_config config = { .ops = &upper_ops, .arg = &w.upper, .flags = w.flags };
	struct kv_error err;

	if (connecting) {
		FUZZ_CHECK(!tr_listen(w.tr, NULL, 0, &w.listener, &err));
		far_connect();
		w.over = tr_accept(w.listener, &config, &w.conn, &err);
	} else {
		w.over = tr_connect(w.tr, "far", 1, &config, &w.conn, &err);
	}
	for (int i = 0; i < 12 && !w.over; i++) {
		int ret = tr_conn_step(w.conn, &err);

		w.over |= rig_failed(ret, &err);
		if (!ret)
			break;
		if (!w.over)
			far_moves();
	}
}

static void close_all(void)
{
	struct kv_error err;

	rig_fault(0);
	heal();
	tr_conn_close(w.conn);
	tr_listener_close(w.listener);
	FUZZ_CHECK(!tr_mem_dereg(w.upper.mem, &err));
	tr_close(w.tr);
	far_close_devices();
	for (int i = 0; i < GUARD; i++)
		FUZZ_CHECK(memory[i] == BESIDE && memory[GUARD + REGION + i] == BESIDE);
	for (int i = 0; i < REGION && !(w.access & TR_REMOTE_WRITE) && !w.reads; i++)
		FUZZ_CHECK(memory[GUARD + i] == OURS);
	for (int i = 0; i < REGION && !w.reads; i++)
		FUZZ_CHECK(hall[HALL_REGION + i] != BESIDE);
	FUZZ_CHECK(fake_end());
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct step steps[STEPS_MAX];
	size_t n = steps_of(data, size, steps);

	if (!n)
		return 0;
	rig_begin();
	random_state = 0;
	memset(&w, 0, sizeof(w));
	memset(memory, BESIDE, sizeof(memory));
	memset(memory + GUARD, OURS, REGION);
	memset(hall, 0, sizeof(hall));
	memset(hall + HALL_REGION, THEIRS, REGION);
	w.first = &steps[0];
	w.devices = 1 + (steps[0].a & 1);
	w.access = steps[0].what >> 2 & 3;
	w.flags = steps[0].what >> 4 & (TR_LINE_ORDER | TR_POLLED);
	open_transport(&steps[0]);
	rig_heap_from_here();
	rig_fault(steps[0].f);
	handshake(steps[0].what & 1);
	for (size_t i = 1; i < n && !w.over && w.conn->stage >= CONN_READY; i++)
		run_step(&steps[i]);
	FUZZ_CHECK(rig_heap() < (8 << 20));
	close_all();
	rig_end();
	return 0;
}
