/* SPDX-License-Identifier: Apache-2.0 */
/* cases_data.c -- cases 5, 20 to 23, 26 to 28 and 30: messages one by one */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net_side.h"

static ncclResult_t profiler(void **event, int type, void *phandle, int64_t plugin_id, void *data)
{
	(void)event;
	(void)type;
	(void)phandle;
	(void)plugin_id;
	(void)data;
	return ncclSuccess;
}

/* Sends `size` into a receive of `room`; both sides are told `want`. */
static int one(struct side *s, void *comm, struct buffer *b, size_t size, size_t room, size_t want,
	       uint64_t seed)
{
	int told = -1;
	void *request;

	if (s->sender) {
		side_fill(b->bytes, size, seed);
		TRY(side_isend(s, comm, b->bytes, size, 3, b->mhandle, &request));
		TRY(side_wait(s, request, &told));
		REQUIRE(s, told == (int)want, "%zu bytes into %zu: the send is told %d", size, room,
			told);
		return PASS;
	}
	side_poison(b);
	TRY(side_irecv1(s, comm, b, room, 3, &request));
	TRY(side_wait(s, request, &told));
	REQUIRE(s, told == (int)want, "%zu bytes into %zu: the receive is told %d", size, room,
		told);
	return side_check(s, b, want, seed);
}

static const size_t table_of_sizes[] = { 0,   1,    7,	  8,	 63,	64,	 127,	 128,
					 129, 4095, 4096, 65536, 70001, 1 << 20, 3000001 };

static int run_sizes(struct side *s, bool told)
{
	size_t max = s->quick ? 1 << 20 : (size_t)64 << 20;
	struct buffer b;
	void *comm;

	TRY(side_start(s));
	if (told)
		TRY(side_tell(s));
	TRY(side_link(s, &comm));
	TRY(side_buffer(s, comm, max < 3000065 ? 3000065 : max, &b));
	for (size_t i = 0; i < sizeof(table_of_sizes) / sizeof(*table_of_sizes); i++) {
		size_t size = table_of_sizes[i];

		TRY(one(s, comm, &b, size, size, size, i));
		TRY(one(s, comm, &b, size, size + 64, size, 100 + i));
	}
	TRY(one(s, comm, &b, max, max, max, 1000));
	TRY(side_barrier(s));
	TRY(side_buffer_free(s, comm, &b));
	TRY(side_unlink(s, comm));
	return side_stop(s);
}

static int sizes(struct side *s)
{
	return run_sizes(s, false);
}

static int sizes_told(struct side *s)
{
	return run_sizes(s, true);
}

/* All devices as one, and messages over it. */
static int striped(struct side *s)
{
	ncclNetVDeviceProps_v12_t parts = { 0 };
	ncclNetProperties_v12_t p;
	struct buffer b;
	void *comm;
	int ndev;

	TRY(side_start(s));
	OK(s, s->net->devices(&ndev));
	if (ndev < 2 || !s->net->makeVDevice)
		return side_skip(s, "%d device", ndev);
	parts.ndevs = ndev > NCCL_DEVS_V12 ? NCCL_DEVS_V12 : ndev;
	for (int i = 0; i < parts.ndevs; i++)
		parts.devs[i] = i;
	OK(s, s->net->makeVDevice(&s->dev, &parts));
	OK(s, s->net->getProperties(s->dev, &p));
	REQUIRE(s, p.vProps.ndevs == parts.ndevs, "%d devices in %s", p.vProps.ndevs, p.name);
	TRY(side_link(s, &comm));
	TRY(side_buffer(s, comm, 3000065, &b));
	for (size_t i = 0; i < sizeof(table_of_sizes) / sizeof(*table_of_sizes); i++)
		TRY(one(s, comm, &b, table_of_sizes[i], table_of_sizes[i] + 64, table_of_sizes[i],
			i));
	TRY(side_barrier(s));
	TRY(side_buffer_free(s, comm, &b));
	TRY(side_unlink(s, comm));
	snprintf(s->reason, sizeof(s->reason), "over %s", p.name);
	return side_stop(s);
}

static int large(struct side *s)
{
	struct buffer b;
	void *comm;

	if (s->quick)
		return side_skip(s, "needs 2 GiB; --long runs it");
	TRY(side_start(s));
	TRY(side_link(s, &comm));
	TRY(side_buffer(s, comm, (size_t)1 << 30, &b));
	TRY(one(s, comm, &b, (size_t)1 << 30, (size_t)1 << 30, (size_t)1 << 30, 1));
	TRY(side_barrier(s));
	TRY(side_unlink(s, comm));
	return side_stop(s);
}

static int too_long(struct side *s)
{
	struct buffer b;
	void *comm;

	TRY(side_start(s));
	TRY(side_link(s, &comm));
	TRY(side_buffer(s, comm, 100000, &b));
	TRY(one(s, comm, &b, 5000, 1000, 1000, 1));
	TRY(one(s, comm, &b, 100000, 1, 1, 2));
	TRY(one(s, comm, &b, 10, 0, 0, 3));
	TRY(one(s, comm, &b, 4096, 4096, 4096, 4));
	TRY(side_barrier(s));
	TRY(side_buffer_free(s, comm, &b));
	TRY(side_unlink(s, comm));
	snprintf(s->reason, sizeof(s->reason), "cut to the receive, both sides are told so");
	return side_stop(s);
}

enum { SLOTS = NCCL_REQUESTS_MAX, SLOT_BYTES = 512 };

/* With 32 under way: a request or none, never an error. The sender follows suit. */
static int one_more(struct side *s, void *comm, struct buffer *b, void **more)
{
	void *data = b->bytes + SLOTS * SLOT_BYTES, *phandle = NULL;
	size_t size = SLOT_BYTES;
	char given = 0;
	int tag = 0;

	if (s->sender) {
		TRY(side_get(s, &given, 1));
		return given ? side_isend(s, comm, data, size, tag, b->mhandle, more) : PASS;
	}
	OK(s, s->net->irecv(comm, 1, &data, &size, &tag, &b->mhandle, &phandle, more));
	given = *more != NULL;
	return side_put(s, &given, 1);
}

/* All slots full, several times around; the one more gives a request or NULL, never an error. */
static int all_slots(struct side *s)
{
	enum { ROUNDS = 3 * 256 / SLOTS + 1 };
	void *comm, *request[SLOTS], *more = NULL;
	struct buffer b;

	TRY(side_start(s));
	TRY(side_link(s, &comm));
	TRY(side_buffer(s, comm, (SLOTS + 1) * SLOT_BYTES, &b));
	for (uint64_t round = 0; round < ROUNDS; round++) {
		for (size_t i = 0; i < SLOTS; i++) {
			void *data = b.bytes + i * SLOT_BYTES;
			size_t size = SLOT_BYTES;
			int tag = 0;

			if (s->sender) {
				side_fill(data, size, round * SLOTS + i);
				TRY(side_isend(s, comm, data, size, tag, b.mhandle, &request[i]));
			} else {
				TRY(side_irecv(s, comm, 1, &data, &size, &tag, &b.mhandle,
					       &request[i]));
			}
		}
		if (!round)
			TRY(one_more(s, comm, &b, &more));
		for (size_t i = 0; i < SLOTS; i++)
			TRY(side_wait(s, request[i], NULL));
		if (!round && more)
			TRY(side_wait(s, more, NULL));
		for (size_t i = 0; !s->sender && i < SLOTS; i++)
			TRY(side_check_at(s, b.bytes + i * SLOT_BYTES, SLOT_BYTES,
					  round * SLOTS + i));
	}
	TRY(side_barrier(s));
	TRY(side_buffer_free(s, comm, &b));
	TRY(side_unlink(s, comm));
	return side_stop(s);
}

/* The same numbers in both processes. */
static uint32_t draw(uint32_t *state)
{
	*state = *state * 1664525u + 1013904223u;
	return *state >> 8;
}

/*
 * Many under way, of all sizes, the receiver late, early or in bursts: the k-th send is the k-th
 * receive.
 */
static int strict_order(struct side *s)
{
	enum { MESSAGES = 2000, ROOM = 20000, DEEP = 16 };
	void *comm, *request[DEEP] = { 0 };
	size_t want[DEEP];
	uint32_t state = 42;
	struct buffer b;

	TRY(side_start(s));
	TRY(side_link(s, &comm));
	TRY(side_buffer(s, comm, DEEP * ROOM, &b));
	for (uint64_t k = 0; k < MESSAGES + DEEP; k++) {
		uint64_t at = k % DEEP;
		void *data = b.bytes + at * ROOM;
		int told = -1, tag = 0;
		size_t room = ROOM;

		if (k >= DEEP) {
			TRY(side_wait(s, request[at], &told));
			REQUIRE(s, told == (int)want[at], "message %d has %d bytes, %zu were sent",
				(int)(k - DEEP), told, want[at]);
			if (!s->sender)
				TRY(side_check_at(s, data, want[at], k - DEEP));
		}
		if (k >= MESSAGES)
			continue;
		want[at] = draw(&state) % 4 ? draw(&state) % 200 : draw(&state) % ROOM;
		if (s->sender) {
			side_fill(data, want[at], k);
			TRY(side_isend(s, comm, data, want[at], tag, b.mhandle, &request[at]));
		} else {
			TRY(side_irecv(s, comm, 1, &data, &room, &tag, &b.mhandle, &request[at]));
		}
	}
	TRY(side_barrier(s));
	TRY(side_buffer_free(s, comm, &b));
	TRY(side_unlink(s, comm));
	return side_stop(s);
}

/* test() says no until the bytes are here, never twice yes, and moves the others meanwhile. */
static int test_contract(struct side *s)
{
	struct buffer a, b;
	void *comm, *first, *second;
	int done = 0, told = -1;

	TRY(side_start(s));
	TRY(side_link(s, &comm));
	TRY(side_buffer(s, comm, 1 << 20, &a));
	TRY(side_buffer(s, comm, 1 << 20, &b));
	if (s->sender) {
		TRY(side_barrier(s));
		for (uint64_t i = 0; i < 2; i++) {
			struct buffer *from = i ? &b : &a;

			side_fill(from->bytes, 1 << 20, i);
			TRY(side_isend(s, comm, from->bytes, 1 << 20, 0, from->mhandle,
				       i ? &second : &first));
		}
		TRY(side_wait(s, first, NULL));
		TRY(side_wait(s, second, &told));
	} else {
		TRY(side_irecv1(s, comm, &a, 1 << 20, 0, &first));
		TRY(side_irecv1(s, comm, &b, 1 << 20, 0, &second));
		for (int i = 0; i < 1000; i++) {
			OK(s, s->net->test(first, &done, &told));
			REQUIRE(s, !done, "done before anything was sent");
		}
		TRY(side_barrier(s));
		/* Only the second is tested; it brings the first along. */
		TRY(side_wait(s, second, NULL));
		TRY(side_check(s, &b, 1 << 20, 1));
		TRY(side_wait(s, first, &told));
		TRY(side_check(s, &a, 1 << 20, 0));
	}
	REQUIRE(s, told == 1 << 20, "told %d bytes", told);
	TRY(side_barrier(s));
	TRY(side_buffer_free(s, comm, &a));
	TRY(side_buffer_free(s, comm, &b));
	TRY(side_unlink(s, comm));
	return side_stop(s);
}

static int optional_completion(struct side *s)
{
	struct buffer b;
	void *comm;

	TRY(side_start(s));
	TRY(side_link(s, &comm));
	TRY(side_buffer(s, comm, 4096, &b));
	for (uint64_t i = 0; i < 100; i++) {
		void *request = NCCL_NET_OPTIONAL_RECV_COMPLETION;
		int64_t end = side_ms() + SIDE_WAIT_MS;

		if (s->sender) {
			side_fill(b.bytes, 4096, i);
			TRY(side_isend(s, comm, b.bytes, 4096, 0, b.mhandle, &request));
			TRY(side_wait(s, request, NULL));
			TRY(side_barrier(s));
			continue;
		}
		side_poison(&b);
		for (bool posted = false; !posted;) {
			void *data = b.bytes, *phandle = NULL;
			size_t size = 4096;
			int tag = 0;

			request = NCCL_NET_OPTIONAL_RECV_COMPLETION;
			OK(s, s->net->irecv(comm, 1, &data, &size, &tag, &b.mhandle, &phandle,
					    &request));
			REQUIRE(s, request != NCCL_NET_OPTIONAL_RECV_COMPLETION,
				"the hint was left in place of a request");
			REQUIRE(s, side_ms() < end, "no request");
			posted = request != NULL;
		}
		TRY(side_wait(s, request, NULL));
		TRY(side_barrier(
			s)); /* it may be done before the bytes are here; the send is not */
		TRY(side_check(s, &b, 4096, i));
	}
	TRY(side_buffer_free(s, comm, &b));
	TRY(side_unlink(s, comm));
	return side_stop(s);
}

static int watched_irecv(struct side *s, void *comm, struct buffer *b, size_t size, bool hint,
			 void **request)
{
	int64_t end = side_ms() + SIDE_WAIT_MS;
	void *data = b->bytes, *phandle = NULL;
	int tag = 0;

	do {
		*request = hint ? NCCL_NET_OPTIONAL_RECV_COMPLETION : NULL;
		OK(s, s->net->irecv(comm, 1, &data, &size, &tag, &b->mhandle, &phandle, request));
		REQUIRE(s, side_ms() < end, "no request");
	} while (!*request);
	return PASS;
}

/*
 * The first word that is old in a line whose last word is new, or -1. The bytes change meanwhile;
 * that is the point.
 */
__attribute__((no_sanitize("thread"))) static int torn_line(const volatile uint64_t *words,
							    size_t lines, uint64_t round)
{
	for (size_t line = 0; line < lines; line++)
		for (size_t i = 0; words[line * 16 + 15] == round && i < 15; i++)
			if (words[line * 16 + i] != round)
				return (int)(line * 16 + i);
	return -1;
}

/*
 * As a GPU does with LL128: the receiver looks at the last 8 bytes of each 128-byte line while the
 * message is under way. When they are new, the rest of the line must be, too.
 */
static int watch_lines(struct side *s, bool as_nccl)
{
	enum { LINES = 512, ROUNDS = 300 };
	struct buffer b;
	void *comm;

	TRY(side_start(s));
	if (as_nccl)
		TRY(side_tell(s));
	TRY(side_link(s, &comm));
	TRY(side_buffer(s, comm, LINES * 128, &b));
	for (uint64_t round = 1; round <= ROUNDS; round++) {
		volatile uint64_t *words = (volatile uint64_t *)b.bytes;
		int64_t end = side_ms() + SIDE_WAIT_MS;
		int done = 0;
		void *request;

		if (s->sender) {
			for (size_t i = 0; i < LINES * 16; i++)
				words[i] = round;
			TRY(side_isend(s, comm, b.bytes, LINES * 128, 0, b.mhandle, &request));
			TRY(side_wait(s, request, NULL));
			continue;
		}
		TRY(watched_irecv(s, comm, &b, LINES * 128, as_nccl, &request));
		while (!done) {
			int torn = torn_line(words, LINES, round);

			REQUIRE(s, torn < 0, "line %d has its flag but not word %d", torn / 16,
				torn % 16);
			OK(s, s->net->test(request, &done, NULL));
			REQUIRE(s, side_ms() < end, "no end");
		}
	}
	TRY(side_barrier(s));
	TRY(side_buffer_free(s, comm, &b));
	TRY(side_unlink(s, comm));
	return side_stop(s);
}

static int line_order(struct side *s)
{
	return watch_lines(s, false);
}

static int line_order_as_nccl(struct side *s)
{
	return watch_lines(s, true);
}

static int with_profiler(struct side *s)
{
	int unused[4] = { 0 };
	struct buffer b;
	void *comm, *request = NULL;

	TRY(side_start(s));
	TRY(side_stop(s));
	OK(s, s->net->init(&s->ctx, 2, &(ncclNetCommConfig_v10_t){ -1 }, side_logger, profiler));
	TRY(side_link(s, &comm));
	TRY(side_buffer(s, comm, 64, &b));
	while (!request) {
		void *data = b.bytes, *phandle = unused;
		size_t size = 64;
		int tag = 0;

		if (s->sender)
			OK(s, s->net->isend(comm, data, size, tag, b.mhandle, phandle, &request));
		else
			OK(s, s->net->irecv(comm, 1, &data, &size, &tag, &b.mhandle, &phandle,
					    &request));
	}
	TRY(side_wait(s, request, NULL));
	TRY(side_barrier(s));
	TRY(side_buffer_free(s, comm, &b));
	TRY(side_unlink(s, comm));
	return side_stop(s);
}

const struct net_case data_cases[] = {
	{ "5.11", "v11: sizes as in 20", 2, 11, sizes },
	{ "5.10", "v10: sizes as in 20", 2, 10, sizes },
	{ "5.9", "v9: sizes as in 20", 2, 9, sizes },
	{ "5.8", "v8: sizes as in 20", 2, 8, sizes },
	{ "5.7", "v7: sizes as in 20", 2, 7, sizes },
	{ "5.6", "v6: sizes as in 20", 2, 6, sizes },
	{ "20", "sizes from 0 bytes up; what both sides are told; bytes around", 2, 0, sizes },
	{ "20c", "the same after setNetAttr", 2, 0, sizes_told },
	{ "9b", "a virtual device of all devices, sizes as in 20", 2, 0, striped },
	{ "20b", "1 GiB", 2, 0, large },
	{ "21", "a send longer than the receive", 2, 0, too_long },
	{ "22", "32 receives under way, one more, around all slots", 2, 0, all_slots },
	{ "23", "strict order of 2000 messages", 2, 0, strict_order },
	{ "26", "test: not before, once, and for all", 2, 0, test_contract },
	{ "27", "the hint that nobody waits for a receive", 2, 0, optional_completion },
	{ "28", "a line's last bytes never before its first (LL128)", 2, 0, line_order },
	{ "28b", "the same as NCCL does it: attributes told, receives marked", 2, 0,
	  line_order_as_nccl },
	{ "30", "profiler callback and handles", 2, 0, with_profiler },
	{ 0 },
};
