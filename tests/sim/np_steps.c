/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_steps.c -- ranks of the NCCL plugin: messages, and memory that is given back with requests
 * under way
 *
 * Each rank is connected with itself twice and registers its two buffers with both connections, so
 * that one of them keeps a region which the other gives back. A buffer is quiet while no request
 * under way may touch it: then not one byte of it changes, whatever devices still do.
 */
#include "np_steps.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fake.h"
#include "np.h"
#include "schedule.h"

enum {
	RANKS = 4,
	PAIRS = 2,
	ROW = 2048,
	ROWS = 8,
	BYTES = ROW * ROWS,
	JOIN_NS = 1000000000, /* and then it is given up */
	DONE_NS = 500000000,
	CLOSE_S = 200,	/* of trying to give memory back */
	CALL_MS = 6000, /* that a close may take */
};

extern const ncclNet_v12_t ncclNetPlugin_v12;
static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

struct pair {
	void *listen, *send, *recv;
	void *from_mh, *to_mh;
};
struct rank {
	int number;
	void *ctx;
	struct pair pair[PAIRS];
	uint8_t *from, *to;
	bool quiet; /* `to` is all `mark` */
	uint8_t mark;
	uint64_t stamp;
};
static struct rank ranks[RANKS];
static int count;

static uint32_t draw(struct sim_actor *actor, uint32_t n)
{
	return sim_below(&actor->random, n);
}

static void logger(ncclDebugLogLevel level, unsigned long flags, const char *file, int line,
		   const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	sim_say("%d %s:%d %s", (int)level, file, line, text);
}

/* ---------------------------------------------------------------- memory */

static uint8_t *map_at(int number, int which)
{
	void *at = (void *)(uintptr_t)(SIM_MEMORY + ((uint64_t)number * 2 + (uint64_t)which) *
							    (UINT64_C(1) << 32));

	return mmap(at, BYTES, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
}

static void check_quiet(void)
{
	sim_result->checks++;
	for (int i = 0; i < count; i++) {
		const struct rank *r = &ranks[i];

		if (!r->quiet || (r->to[0] == r->mark && !memcmp(r->to, r->to + 1, BYTES - 1)))
			continue;
		for (int b = 0; b < BYTES; b++)
			if (r->to[b] != r->mark)
				sim_fail(
					"byte %d of rank %d is 0x%02x; its memory was given back, and "
					"0x%02x everywhere",
					b, i, r->to[b], r->mark);
	}
}

/* The memory is the rank's again: from here on nothing lands in it. */
static void given_back(struct rank *r)
{
	r->mark++;
	memset(r->to, r->mark, BYTES);
	r->quiet = true;
}

static uint64_t word_of(uint64_t stamp, size_t at)
{
	uint64_t x = stamp << 20 | at;

	return sim_random(&x);
}

static void fill(struct rank *r)
{
	r->stamp++;
	for (size_t at = 0; at < BYTES; at += 8) {
		uint64_t word = word_of(r->stamp << 8 | (uint64_t)r->number, at);

		memcpy(r->from + at, &word, 8);
	}
}

/* Row `to` holds the first bytes of row `from`, as they were when the stamp was this. */
static void expect(const struct rank *r, uint64_t stamp, int to, int from, size_t size)
{
	for (size_t at = 0; at + 8 <= size; at += 8) {
		uint64_t word = word_of(stamp << 8 | (uint64_t)r->number, (size_t)from * ROW + at);

		if (memcmp(r->to + to * ROW + at, &word, 8))
			sim_fail("rank %d received wrong bytes at %zu of %zu of row %d, and both "
				 "ends reported success",
				 r->number, at, size, to);
	}
	sim_result->blocks++;
}

/* ---------------------------------------------------------------- connections */

static ncclResult_t timed(ncclResult_t (*call)(void *), void *arg, const char *what)
{
	struct sched_counts before, after;
	ncclResult_t ret;
	int64_t ms;

	sched_counts(&before);
	ret = call(arg);
	sched_counts(&after);
	ms = (after.now_ns - before.now_ns - (after.stalled_ns - before.stalled_ns)) / 1000000;
	if (ms > CALL_MS)
		sim_fail("%s took %lld ms", what, (long long)ms);
	return ret;
}

/* Until it has: what cannot be given back now is in time. */
static void close_end(ncclResult_t (*call)(void *), void **comm, const char *what)
{
	int64_t until_ns = sched_now_ns() + CLOSE_S * 1000000000LL;

	while (*comm && timed(call, *comm, what)) {
		if (sched_now_ns() > until_ns)
			sim_fail("%s does not succeed", what);
		check_quiet();
		sched_sleep(20000000);
	}
	*comm = NULL;
}

static void dereg(void *comm, void **mh)
{
	int64_t until_ns = sched_now_ns() + CLOSE_S * 1000000000LL;

	while (*mh && net->deregMr(comm, *mh)) {
		if (sched_now_ns() > until_ns)
			sim_fail("deregMr does not succeed");
		check_quiet();
		sched_sleep(20000000);
	}
	*mh = NULL;
}

static void close_recv(struct rank *r, struct pair *p)
{
	close_end(net->closeRecv, &p->recv, "closeRecv");
	p->to_mh = NULL;
	given_back(r);
}

static void close_send(struct rank *r, struct pair *p)
{
	close_end(net->closeSend, &p->send, "closeSend");
	p->from_mh = NULL;
	memset(r->from, 0xdd, BYTES); /* what is read now is this */
}

static void part(struct rank *r, struct pair *p, bool recv_first)
{
	if (recv_first)
		close_recv(r, p);
	check_quiet();
	close_send(r, p);
	if (!recv_first)
		close_recv(r, p);
	if (p->listen)
		net->closeListen(p->listen);
	p->listen = NULL;
	check_quiet();
}

static bool reg(struct rank *r, struct pair *p)
{
	return (p->from_mh || !net->regMr(p->send, r->from, BYTES, NCCL_PTR_HOST, &p->from_mh)) &&
	       (p->to_mh || !net->regMr(p->recv, r->to, BYTES, NCCL_PTR_HOST, &p->to_mh));
}

static bool join(struct rank *r, struct pair *p)
{
	uint8_t handle[NCCL_HANDLE_MAX] = { 0 };
	int64_t until_ns = sched_now_ns() + JOIN_NS;
	bool good;

	if (p->send && p->recv && reg(r, p))
		return true;
	part(r, p, true);
	good = !net->listen(r->ctx, 0, handle, &p->listen);
	while (good && (!p->send || !p->recv) && sched_now_ns() < until_ns) {
		ncclNetDeviceHandle_v7_t *device = NULL;

		if (!p->send)
			good = !net->connect(r->ctx, 0, handle, &p->send, &device);
		if (good && !p->recv)
			good = !net->accept(p->listen, &p->recv, &device);
		sched_sleep(20000);
	}
	if (p->send && p->recv && reg(r, p))
		return true;
	part(r, p, true);
	return false;
}

/* ---------------------------------------------------------------- messages */

struct message {
	int rows, row[ROWS]; /* row i of the receive comes from row[i] */
	size_t size[ROWS];
	uint64_t stamp;
	void *in, *out[ROWS];
};

static bool post_recv(struct sim_actor *actor, struct rank *r, struct pair *p, struct message *m)
{
	void *data[ROWS], *mhs[ROWS];
	int tags[ROWS];

	r->quiet = false;
	memset(r->to, r->mark, BYTES);
	for (int i = 0; i < m->rows; i++) {
		data[i] = r->to + i * ROW;
		mhs[i] = p->to_mh;
		tags[i] = i;
		m->size[i] = 8 * (1 + draw(actor, ROW / 8));
	}
	m->in = draw(actor, 2) ? NCCL_NET_OPTIONAL_RECV_COMPLETION : NULL;
	sim_result->operations++;
	return !net->irecv(p->recv, m->rows, data, m->size, tags, mhs, NULL, &m->in) && m->in;
}

static bool post_sends(struct rank *r, struct pair *p, struct message *m)
{
	for (int i = 0; i < m->rows; i++) {
		if (net->isend(p->send, r->from + m->row[i] * ROW, m->size[i], i, p->from_mh, NULL,
			       &m->out[i]))
			return false;
		sim_result->operations++;
	}
	return true;
}

/* One look at all that is under way; false: a connection has failed. */
static bool look(struct message *m, bool *done_p, int *sizes)
{
	int done = 0;

	*done_p = true;
	if (m->in && net->test(m->in, &done, sizes))
		return false;
	if (done)
		m->in = NULL;
	for (int i = 0; i < m->rows; i++) {
		int sent = 0, size;

		if (m->out[i] && net->test(m->out[i], &sent, &size))
			return false;
		if (sent)
			m->out[i] = NULL;
		*done_p &= !m->out[i];
	}
	*done_p &= !m->in;
	return true;
}

static void begin_message(struct sim_actor *actor, struct rank *r, struct message *m)
{
	memset(m, 0, sizeof(*m));
	fill(r);
	m->stamp = r->stamp;
	m->rows = draw(actor, 2) ? 1 : 1 + (int)draw(actor, ROWS);
	for (int i = 0; i < m->rows; i++)
		m->row[i] = (i * 3 + 1) % ROWS;
}

/* False: it did not come to its end, and the connection is to be closed. */
static bool exchange(struct sim_actor *actor, struct rank *r, struct pair *p)
{
	int64_t until_ns = sched_now_ns() + DONE_NS;
	struct message m;
	int sizes[ROWS];
	bool done = false;

	begin_message(actor, r, &m);
	if (!post_recv(actor, r, p, &m) || !post_sends(r, p, &m))
		return false;
	while (!done && sched_now_ns() < until_ns) {
		if (!look(&m, &done, sizes))
			return false;
		if (!done)
			sched_yield_point();
	}
	if (!done)
		return false;
	for (int i = 0; i < m.rows; i++)
		expect(r, m.stamp, i, m.row[i], m.size[i]);
	given_back(r);
	return true;
}

/* ---------------------------------------------------------------- steps */

static struct rank *rank_of(const struct sim_actor *actor)
{
	return &ranks[actor->number];
}

static struct pair *some_pair(struct sim_actor *actor, struct rank *r)
{
	struct pair *p = &r->pair[draw(actor, PAIRS)];

	return join(r, p) ? p : NULL;
}

static void play_exchange(struct sim_actor *actor)
{
	struct rank *r = rank_of(actor);
	struct pair *p = some_pair(actor, r);

	for (int i = 1 + (int)draw(actor, 6); p && i; i--)
		if (!exchange(actor, r, p)) {
			part(r, p, draw(actor, 2));
			break;
		}
	check_quiet();
}

/* Requests are under way, and then one end or the other is closed. */
static void play_abort(struct sim_actor *actor)
{
	struct rank *r = rank_of(actor);
	struct pair *p = some_pair(actor, r);
	struct message m;
	bool done = false;
	int sizes[ROWS];

	if (!p)
		return;
	begin_message(actor, r, &m);
	if (draw(actor, 4))
		post_recv(actor, r, p, &m);
	else
		for (int i = 0; i < m.rows; i++)
			m.size[i] = ROW;
	post_sends(r, p, &m);
	for (int i = (int)draw(actor, 12); i && !done && look(&m, &done, sizes); i--)
		;
	if (draw(actor, 3) == 0)
		dereg(p->recv, &p->to_mh);
	if (draw(actor, 3) == 0)
		dereg(p->send, &p->from_mh);
	part(r, p, draw(actor, 4));
	fake_step((int)draw(actor, 400));
	check_quiet();
}

/*
 * A send waits for its receive, and its memory is given back. Other memory comes to the same
 * address and is registered with the other connection: nobody sees what was there before, and the
 * send that waited does not see what is there now.
 */
static void play_remap(struct sim_actor *actor)
{
	struct rank *r = rank_of(actor);
	struct pair *p = &r->pair[0], *other = &r->pair[1];
	struct message m, late;
	bool done = false;
	int sizes[ROWS];

	if (!join(r, p) || !join(r, other))
		return;
	begin_message(actor, r, &m);
	m.rows = 1;
	m.size[0] = ROW;
	if (!post_sends(r, p, &m))
		m.out[0] = NULL;
	dereg(p->send, &p->from_mh);
	dereg(other->send, &other->from_mh);
	munmap(r->from, BYTES);
	r->from = map_at(r->number, 0);
	memset(r->from, 0xee, BYTES);
	if (join(r, other) && !exchange(actor, r, other))
		part(r, other, true);
	/* The one that waited has ended; where it has not, it has its own bytes. */
	late = m;
	if (m.out[0] && post_recv(actor, r, p, &late)) {
		late.out[0] = m.out[0];
		for (int i = 0; i < 200 && !done && look(&late, &done, sizes); i++)
			sched_yield_point();
		if (!late.in)
			expect(r, m.stamp, 0, m.row[0], late.size[0] < ROW ? late.size[0] : ROW);
	}
	part(r, p, true);
}

static void play_close(struct sim_actor *actor)
{
	struct rank *r = rank_of(actor);

	part(r, &r->pair[draw(actor, PAIRS)], draw(actor, 2));
}

const struct sim_kind np_steps[] = {
	{ "exchange", 10, play_exchange },
	{ "abort", 8, play_abort },
	{ "remap", 3, play_remap },
	{ "close", 1, play_close },
	{ 0 },
};

/* ---------------------------------------------------------------- life */

void np_world_open(int n)
{
	memset(ranks, 0, sizeof(ranks));
	count = n;
	for (int i = 0; i < n; i++) {
		struct rank *r = &ranks[i];

		r->number = i;
		r->from = map_at(i, 0);
		r->to = map_at(i, 1);
		given_back(r);
		if (net->init(&r->ctx, (uint64_t)i + 1, &(ncclNetCommConfig_v10_t){ -1 }, logger,
			      NULL))
			sim_fail("init of rank %d", i);
		net->setNetAttr(r->ctx, &(ncclNetAttr_v11_t){ 0 });
	}
}

void np_world_recover(void)
{
	for (int i = 0; i < count; i++) {
		struct sim_actor actor = { .number = i, .random = 1 };
		bool good = false;

		for (int tries = 0; !good && tries < 8; tries++) {
			good = join(&ranks[i], &ranks[i].pair[0]) &&
			       exchange(&actor, &ranks[i], &ranks[i].pair[0]);
			if (!good) {
				part(&ranks[i], &ranks[i].pair[0], true);
				sched_sleep(1000000000);
			}
		}
		if (!good)
			sim_fail("rank %d moves no message although nothing is wrong", i);
	}
}

void np_world_close(void)
{
	for (int i = 0; i < count; i++) {
		for (int p = 0; p < PAIRS; p++)
			part(&ranks[i], &ranks[i].pair[p], true);
		if (net->finalize(ranks[i].ctx))
			sim_fail("finalize of rank %d", i);
	}
	check_quiet();
	for (int i = 0; i < count; i++) {
		munmap(ranks[i].from, BYTES);
		munmap(ranks[i].to, BYTES);
	}
}
