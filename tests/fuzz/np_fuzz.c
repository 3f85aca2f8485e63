/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_fuzz.c -- a communicator of the NCCL plugin whose other end says whatever the input says: the
 * handshake, descriptions of memory, clear-to-sends, messages ahead, notifies; while NCCL
 * registers, sends, receives, tests and deregisters
 *
 * Rules: bytes land in regions of receives only; a send is of bytes that were given, to a region
 * that is described just then; a request is done once, and only where the other end has said so;
 * what is open can be closed, and nothing is left.
 */
#include <string.h>

#include "np.h"
#include "rig.h"

enum { MEMORY = 4096, REGIONS = 4, REQUESTS = 8 };

struct request {
	void *handle; /* NULL: none, or it was done */
	unsigned int n;
	size_t size[NP_GROUP];
};

static struct {
	struct np_context *ctx;
	void *listener;
	uint8_t handle[NCCL_HANDLE_MAX];
	void *comm; /* NULL: none */
	bool sends;
	struct np_mr *region[REGIONS]; /* of a quarter of the memory each */
	bool named[REGIONS];	       /* by a receive, which has it described */
	struct request request[REQUESTS];
	unsigned int seq;     /* of the peer's next clear-to-send */
	unsigned int answers; /* rows that the peer can have filled, or sends that it allowed */
	unsigned int done;
	unsigned int calls, words;
	unsigned int moves;
	const struct step *first;
} n;

static uint8_t memory[MEMORY], given[MEMORY]; /* given: bytes of some receive */

static void no_log(ncclDebugLogLevel level, unsigned long flags, const char *file, int line,
		   const char *fmt, ...)
{
	FUZZ_CHECK(*fmt);
}

/* ---------------------------------------------------------------- the handshake */

static void far_moves(void)
{
	uint8_t upper[NP_NONCE + 8] = { 1, 1 };
	size_t len = n.sends ? 1 : NP_NONCE;
	struct np_handle handle;

	if (!n.sends && np_handle_get(n.handle, &handle))
		memcpy(upper, handle.nonce, NP_NONCE);
	if (n.first->how & 1)
		upper[0] ^= (uint8_t)n.first->d;
	if (n.first->how & 2)
		len = n.first->c % sizeof(upper);
	switch (n.moves) {
	case 0:
		if (!far.connecting && !far_hear())
			return;
		far_hello(TR_UPPER_NCCL, NP_WIRE_VERSION, upper, len);
		break;
	case 1:
		if (!far_hear())
			return;
		far_setup(upper, n.first->how & 4 ? n.first->b % sizeof(upper) : 0);
		break;
	case 2:
		if (!far.connecting || !far_hear())
			return;
		far_send(FRAME_READY, NULL, 0);
		break;
	default:
		return;
	}
	n.moves++;
}

static void connect_out(void)
{
	np_handle_put(n.handle, &(struct np_handle){ .port = 4711, .host = "127.0.0.1" });
	if (n.first->how & 0x80) /* what another rank says that it is */
		n.handle[n.first->c % NCCL_HANDLE_MAX] ^= (uint8_t)n.first->d;
	for (int i = 0; i < 6 && !n.comm; i++) {
		if (np_connect(n.ctx, 0, n.handle, &n.comm, NULL))
			return;
		far_moves();
	}
}

static void connect_in(void)
{
	if (np_listen(n.ctx, 0, n.handle, &n.listener))
		return;
	far_connect();
	for (int i = 0; i < 6 && !n.comm; i++) {
		if (np_accept(n.listener, &n.comm, NULL))
			return;
		far_moves();
	}
}

/* ---------------------------------------------------------------- what the product's end does */

/* A send's bytes lie in what NCCL gave. */
static void spans(const struct tr_op *op, const struct tr_mem *lmem, const struct tr_rmem *rmem,
		  const struct tr_span *span)
{
	const uint8_t *at = lmem->addr + span->local;

	FUZZ_CHECK(op->kind == TR_WRITE && n.sends);
	FUZZ_CHECK(at >= memory && at + span->len <= memory + MEMORY);
}

/* ---------------------------------------------------------------- the peer's words */

static void say(const void *buf, size_t len)
{
	n.words++;
	rig_say(buf, len);
}

static void say_region(const struct step *s)
{
	uint8_t description[TR_MEM_PACK_MAX] = { 0 }, buf[TR_MSG_MAX];
	size_t len = far_region(description, 1 + s->b % 4u, TR_REMOTE_WRITE, 64u << s->how % 8);
	struct np_mem_piece piece = { .slot = s->a % 3 };

	if (s->how & 0x80)
		piece.slot = s->c;
	if (s->how & 0x40)
		len = 1 + s->d % sizeof(description);
	if (s->how & 0x20)
		description[s->e % len] ^= (uint8_t)s->f;
	piece.total = (uint16_t)len;
	/* In one piece, or in two, or one of them. */
	piece.at = s->how & 0x10 ? (uint16_t)(s->c % len) : 0;
	piece.bytes = description + piece.at;
	piece.len = len - piece.at < NP_MEM_PIECE ? len - piece.at : NP_MEM_PIECE;
	if (s->how & 8)
		piece.len = 1 + s->d % piece.len;
	say(buf, np_mem_piece_put(buf, sizeof(buf), &piece));
}

static void say_clear(const struct step *s)
{
	struct np_cts cts = { .slot = s->a % 32,
			      .n = 1 + s->b % (NP_GROUP + 1),
			      .any_order = s->how & 1,
			      .seq = (uint16_t)(n.seq++ & NP_SEQ_MASK) };
	uint8_t buf[TR_MSG_MAX];

	if (s->how & 2)
		cts.seq = s->f & 0xffff;
	for (unsigned int i = 0; i < cts.n && i < NP_GROUP; i++)
		cts.row[i] = (struct np_row){ .offset = s->c % 300,
					      .size = s->d % 300,
					      .tag = (int32_t)((s->how >> 4) + (i & s->a)),
					      .mem = s->e % 4 };
	if (s->how & 4) {
		cts.row[0].offset = (uint64_t)s->e << 32 | s->f;
		cts.row[0].size = (uint64_t)s->f << 32 | s->e;
	}
	if (cts.n > NP_GROUP) {
		cts.n = NP_GROUP;
		np_cts_put(buf, sizeof(buf), &cts);
		buf[2] = (uint8_t)s->e;
		say(buf, TR_MSG_MAX);
		return;
	}
	n.answers += cts.n;
	say(buf, np_cts_put(buf, sizeof(buf), &cts));
}

static void say_ahead(const struct step *s)
{
	static const uint8_t bytes[NP_AHEAD_BYTES] = { 9, 8, 7 };
	struct np_ahead ahead = { .seq = (uint16_t)(s->a % 8),
				  .tag = s->how >> 4,
				  .bytes = bytes,
				  .len = s->c % (NP_AHEAD_BYTES + 1) };
	uint8_t buf[TR_MSG_MAX];

	if (s->how & 2)
		ahead.seq = (uint16_t)s->f;
	n.answers++;
	say(buf, np_ahead_put(buf, sizeof(buf), &ahead));
}

static void notify(const struct step *s)
{
	uint64_t value = np_notify_put(s->a % 4, s->b % NP_GROUP, s->c % 8, s->d % 300);

	n.words++;
	n.answers++;
	rig_commit(s->how & 1 ? (uint64_t)s->f << 32 | s->e : value);
}

static void say_broken(const struct step *s)
{
	uint8_t buf[TR_MSG_MAX];

	memset(buf, s->b, sizeof(buf));
	buf[0] = s->a % 5;
	memcpy(buf + 1, &s->c, 12);
	say(buf, s->how % (TR_MSG_MAX + 1));
}

/* Bytes of the peer, where the transport would place them. */
static void place(const struct step *s)
{
	struct np_mr *mr = n.region[s->a % REGIONS];
	struct np_comm *comm = n.comm;
	uint64_t offset, len;

	if (!mr || n.sends || comm->failed || comm->conn->stage != CONN_READY)
		return;
	offset = s->c % tr_mem_len(mr->mem);
	len = s->d % (tr_mem_len(mr->mem) - offset);
	if (!n.named[s->a % REGIONS])
		FUZZ_CHECK(tr_conn_may(comm->conn, mr->mem, offset, len, TR_REMOTE_WRITE, 0) !=
			   TR_PLACE);
}

/* ---------------------------------------------------------------- NCCL */

static void register_region(const struct step *s)
{
	unsigned int i = s->a % REGIONS;
	size_t part = MEMORY / REGIONS;

	n.calls++;
	if (!n.region[i])
		np_reg(n.comm, memory + i * part, part, NCCL_PTR_HOST, (void **)&n.region[i]);
	else if (!np_dereg(n.comm, n.region[i])) {
		n.region[i] = NULL;
		n.named[i] = false;
	}
}

static struct request *free_request(void)
{
	for (int i = 0; i < REQUESTS; i++)
		if (!n.request[i].handle)
			return &n.request[i];
	return NULL;
}

static void send_one(const struct step *s)
{
	struct request *r = free_request();
	unsigned int i = s->a % REGIONS;
	size_t size = s->c % 400;

	n.calls++;
	if (!r || !n.region[i])
		return;
	r->n = 1;
	r->size[0] = size;
	np_isend(n.comm, memory + i * (MEMORY / REGIONS) + s->d % 600, size, s->b % 4, n.region[i],
		 NULL, &r->handle);
}

static void receive_some(const struct step *s)
{
	struct request *r = free_request();
	unsigned int region = s->a % REGIONS;
	void *data[NP_GROUP], *mhandles[NP_GROUP], *request = NULL;
	size_t sizes[NP_GROUP];
	int tags[NP_GROUP];

	n.calls++;
	if (!r || !n.region[region])
		return;
	r->n = 1 + s->b % NP_GROUP;
	for (unsigned int i = 0; i < r->n; i++) {
		sizes[i] = r->size[i] = s->c % 120;
		tags[i] = (int)(s->how >> 6) + (int)(i & s->d);
		data[i] = memory + region * (MEMORY / REGIONS) + i * 128;
		mhandles[i] = n.region[region];
	}
	if (s->how & 1)
		request = NCCL_NET_OPTIONAL_RECV_COMPLETION;
	n.named[region] = true;
	np_irecv(n.comm, (int)r->n, data, sizes, tags, mhandles, NULL, &request);
	r->handle = request;
	for (unsigned int i = 0; r->handle && i < r->n; i++)
		memset(given + ((uint8_t *)data[i] - memory), 1, sizes[i]);
}

static void test_one(const struct step *s)
{
	struct request *r = &n.request[s->a % REQUESTS];
	int done = 0, sizes[NP_GROUP] = { 0 };

	n.calls++;
	if (!r->handle)
		return;
	np_test(r->handle, &done, sizes);
	if (!done)
		return;
	for (unsigned int i = 0; i < r->n; i++)
		FUZZ_CHECK(sizes[i] >= 0 && (size_t)sizes[i] <= r->size[i]);
	n.done += r->n;
	FUZZ_CHECK(n.done <= n.answers);
	r->handle = NULL;
}

static void flush_one(const struct step *s)
{
	void *data = memory, *mhandle = n.region[s->a % REGIONS], *request;
	int size = 64;

	if (!n.sends && mhandle)
		np_iflush(n.comm, 1, &data, &size, &mhandle, &request);
}

/* ---------------------------------------------------------------- */

static void world(const struct step *s)
{
	struct np_comm *comm = n.comm;

	switch (s->how % 8) {
	case 0:
		time_passes(s->c % 3000);
		break;
	case 1:
	case 2:
		rig.refuses = !rig.refuses;
		break;
	case 3:
		rig.holds = !rig.holds;
		break;
	case 4:
		rig.busy = !rig.busy;
		break;
	case 5:
		far_close();
		break;
	case 6:
		if (comm->conn->stage == CONN_READY)
			rig_lose(comm->conn);
		break;
	default:
		np_set_attr(n.ctx, NULL);
	}
}

static void run_step(const struct step *s)
{
	switch (s->what % 16) {
	case 0:
		say_region(s);
		break;
	case 1:
	case 2:
		if (n.sends)
			say_clear(s);
		else
			say_ahead(s);
		break;
	case 3:
		notify(s);
		break;
	case 4:
		say_broken(s);
		break;
	case 5:
		place(s);
		break;
	case 6:
	case 7:
		register_region(s);
		break;
	case 8:
	case 9:
	case 10:
		if (n.sends)
			send_one(s);
		else
			receive_some(s);
		break;
	case 11:
	case 12:
	case 13:
		test_one(s);
		break;
	case 14:
		flush_one(s);
		break;
	default:
		world(s);
	}
}

static void open_context(void)
{
	struct np_rail *rail;
	struct kv_error err;

	setenv("KVCACHE_TRANSPORT", "shm", 1);
	FUZZ_CHECK(!np_init(12, (void **)&n.ctx, NULL, no_log));
	FUZZ_CHECK(!np_rail_get(n.ctx, 0, &rail, &err));
	rig_take(rail->tr);
	np_context_put(n.ctx); /* the reference of np_rail_get */
}

static void close_all(void)
{
	rig_fault(0);
	rig.refuses = rig.holds = rig.busy = false;
	if (n.comm)
		FUZZ_CHECK(!(n.sends ? np_close_send : np_close_recv)(n.comm));
	FUZZ_CHECK(!np_close_listen(n.listener));
	FUZZ_CHECK(!np_finalize(n.ctx));
	for (size_t i = 0; i < MEMORY; i++)
		FUZZ_CHECK(memory[i] == 0x11 || given[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct step steps[STEPS_MAX];
	size_t count = steps_of(data, size, steps);

	if (!count)
		return 0;
	rig_begin();
	memset(&n, 0, sizeof(n));
	memset(memory, 0x11, MEMORY);
	memset(given, 0, MEMORY);
	n.first = &steps[0];
	n.sends = steps[0].what & 1;
	rig.span = spans;
	open_context();
	rig_fault(steps[0].f);
	if (n.sends)
		connect_out();
	else
		connect_in();
	for (size_t i = 1; i < count && n.comm; i++)
		run_step(&steps[i]);
	FUZZ_CHECK(rig.said <= 12 * (n.calls + n.words) + 16);
	FUZZ_CHECK(rig_heap() < (2 << 20));
	close_all();
	rig_end();
	return 0;
}
