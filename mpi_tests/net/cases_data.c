/* SPDX-License-Identifier: Apache-2.0 */
/* cases_data.c -- cases 5, 20 to 23, 26 to 28 and 30: messages one by one */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net_side.h"

static ncclResult_t profiler(void **event, int type, void *phandle, int64_t plugin_id, void *data)
{
	return ncclSuccess;
}

/* Sends `size` into a receive of `room`; both sides report the smaller one. */
static int one(struct side *s, void *comm, struct buffer *b, size_t size, size_t room,
	       uint64_t seed)
{
	size_t want = size < room ? size : room;
	int reported = -1;
	void *request;

	side_poison(b);
	TRY(side_post(s, comm, b, 0, s->sender ? size : room, seed, &request));
	TRY(side_wait(s, request, &reported));
	REQUIRE(s, reported == (int)want, "%zu bytes into %zu: %d are reported", size, room,
		reported);
	return s->sender ? PASS : side_check(s, b, want, seed);
}

enum { SIZES_MAX = 3000001 + 64, GIB = 1 << 30 };

static const size_t table_of_sizes[] = { 0,   1,    7,	  8,	 63,	64,	 127,	 128,
					 129, 4095, 4096, 65536, 70001, 1 << 20, 3000001 };

static int some_sizes(struct side *s, struct buffer *b)
{
	for (size_t i = 0; i < sizeof(table_of_sizes) / sizeof(*table_of_sizes); i++) {
		size_t size = table_of_sizes[i];

		TRY(one(s, s->comm, b, size, size, i));
		TRY(one(s, s->comm, b, size, size + 64, 100 + i));
	}
	return PASS;
}

static int sizes(struct side *s)
{
	size_t max = (size_t)64 << 20;
	struct buffer large;

	TRY(some_sizes(s, &s->b));
	if (s->quick)
		return one(s, s->comm, &s->b, 1 << 20, 1 << 20, 1000);
	TRY(side_buffer(s, s->comm, max, &large));
	TRY(one(s, s->comm, &large, max, max, 1000));
	return side_buffer_free(s, s->comm, &large);
}

/* All devices as one, and messages over it. */
static int striped(struct side *s)
{
	ncclNetVDeviceProps_v12_t parts = { 0 };
	ncclNetProperties_v12_t p;
	struct buffer b;
	int ndev;

	OK(s, s->net->devices(&ndev));
	if (ndev < 2 || !s->net->makeVDevice)
		return side_skip(s, "%d device", ndev);
	parts.ndevs = ndev > NCCL_DEVS_V12 ? NCCL_DEVS_V12 : ndev;
	for (int i = 0; i < parts.ndevs; i++)
		parts.devs[i] = i;
	OK(s, s->net->makeVDevice(&s->dev, &parts));
	OK(s, s->net->getProperties(s->dev, &p));
	REQUIRE(s, p.vProps.ndevs == parts.ndevs, "%d devices in %s", p.vProps.ndevs, p.name);
	TRY(side_link(s, &s->comm));
	TRY(side_buffer(s, s->comm, SIZES_MAX, &b));
	TRY(some_sizes(s, &b));
	TRY(side_barrier(s));
	TRY(side_buffer_free(s, s->comm, &b));
	TRY(side_unlink(s, s->comm));
	snprintf(s->reason, sizeof(s->reason), "over %s", p.name);
	return PASS;
}

static int large(struct side *s)
{
	struct buffer b;

	if (s->quick)
		return side_skip(s, "needs 2 GiB; --long runs it");
	TRY(side_buffer(s, s->comm, GIB, &b));
	TRY(side_message(s, s->comm, &b, GIB, 1));
	return side_buffer_free(s, s->comm, &b);
}

static int too_long(struct side *s)
{
	TRY(one(s, s->comm, &s->b, 5000, 1000, 1));
	TRY(one(s, s->comm, &s->b, 100000, 1, 2));
	TRY(one(s, s->comm, &s->b, 10, 0, 3));
	TRY(one(s, s->comm, &s->b, 4096, 4096, 4));
	snprintf(s->reason, sizeof(s->reason), "cut to the receive, and both sides report that");
	return PASS;
}

enum {
	SLOTS = NCCL_REQUESTS_MAX,
	SLOT_BYTES = 512,
	ROOM = 20000,
	DEEP = 16,
	ORDER_BYTES = DEEP * ROOM,
	LINES = 512
};

/* With 32 under way: a request or none, never an error. The sender follows suit. */
static int one_more(struct side *s, void **more)
{
	void *data = s->b.bytes + SLOTS * SLOT_BYTES, *phandle = NULL;
	size_t size = SLOT_BYTES;
	char given = 0;
	int tag = 0;

	if (s->sender) {
		TRY(side_get(s, &given, 1));
		return given ? side_isend(s, s->comm, data, size, tag, s->b.mhandle, more) : PASS;
	}
	OK(s, s->net->irecv(s->comm, 1, &data, &size, &tag, &s->b.mhandle, &phandle, more));
	given = *more != NULL;
	return side_put(s, &given, 1);
}

/* All slots full, several times around; the one more gives a request or NULL, never an error. */
static int all_slots(struct side *s)
{
	enum { ROUNDS = 3 * 256 / SLOTS + 1 };
	void *request[SLOTS], *more = NULL;

	for (uint64_t round = 0; round < ROUNDS; round++) {
		for (size_t i = 0; i < SLOTS; i++)
			TRY(side_post(s, s->comm, &s->b, i * SLOT_BYTES, SLOT_BYTES,
				      round * SLOTS + i, &request[i]));
		if (!round)
			TRY(one_more(s, &more));
		for (size_t i = 0; i < SLOTS; i++)
			TRY(side_wait(s, request[i], NULL));
		if (!round && more)
			TRY(side_wait(s, more, NULL));
		for (size_t i = 0; !s->sender && i < SLOTS; i++)
			TRY(side_check_at(s, s->b.bytes + i * SLOT_BYTES, SLOT_BYTES,
					  round * SLOTS + i));
	}
	return PASS;
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
	enum { MESSAGES = 2000 };
	void *request[DEEP] = { 0 };
	size_t want[DEEP];
	uint32_t state = 42;

	for (uint64_t k = 0; k < MESSAGES + DEEP; k++) {
		uint64_t slot = k % DEEP, at = slot * ROOM;
		int size = -1;

		if (k >= DEEP) {
			TRY(side_wait(s, request[slot], &size));
			REQUIRE(s, size == (int)want[slot],
				"message %d has %d bytes, %zu were sent", (int)(k - DEEP), size,
				want[slot]);
			if (!s->sender)
				TRY(side_check_at(s, s->b.bytes + at, want[slot], k - DEEP));
		}
		if (k >= MESSAGES)
			continue;
		want[slot] = draw(&state) % 4 ? draw(&state) % 200 : draw(&state) % ROOM;
		TRY(side_post(s, s->comm, &s->b, at, s->sender ? want[slot] : ROOM, k,
			      &request[slot]));
	}
	return PASS;
}

/* test() says no until the bytes are here, never twice yes, and moves the others meanwhile. */
static int test_contract(struct side *s)
{
	enum { BYTES = 1 << 20 };
	int done = 0, size = -1;
	void *first, *second;

	if (s->sender)
		TRY(side_barrier(s));
	TRY(side_post(s, s->comm, &s->b, 0, BYTES, 0, &first));
	TRY(side_post(s, s->comm, &s->b, BYTES, BYTES, 1, &second));
	if (s->sender) {
		TRY(side_wait(s, first, NULL));
		TRY(side_wait(s, second, &size));
	} else {
		for (int i = 0; i < 1000; i++) {
			OK(s, s->net->test(first, &done, &size));
			REQUIRE(s, !done, "done before anything was sent");
		}
		TRY(side_barrier(s));
		/* Only the second is tested; it brings the first along. */
		TRY(side_wait(s, second, NULL));
		TRY(side_check_at(s, s->b.bytes + BYTES, BYTES, 1));
		TRY(side_wait(s, first, &size));
		TRY(side_check_at(s, s->b.bytes, BYTES, 0));
	}
	REQUIRE(s, size == BYTES, "%d bytes are reported", size);
	return PASS;
}

static int watched_irecv(struct side *s, size_t size, bool hint, void **request)
{
	int64_t end = side_ms() + SIDE_WAIT_MS;
	void *data = s->b.bytes, *phandle = NULL;
	int tag = 0;

	do {
		*request = hint ? NCCL_NET_OPTIONAL_RECV_COMPLETION : NULL;
		OK(s,
		   s->net->irecv(s->comm, 1, &data, &size, &tag, &s->b.mhandle, &phandle, request));
		REQUIRE(s, *request != NCCL_NET_OPTIONAL_RECV_COMPLETION,
			"the hint was left in place of a request");
		REQUIRE(s, side_ms() < end, "no request");
	} while (!*request);
	return PASS;
}

static int optional_completion(struct side *s)
{
	for (uint64_t i = 0; i < 100; i++) {
		void *request;

		side_poison(&s->b);
		if (s->sender)
			TRY(side_post(s, s->comm, &s->b, 0, 4096, i, &request));
		else
			TRY(watched_irecv(s, 4096, true, &request));
		TRY(side_wait(s, request, NULL));
		/* It may be done before the bytes are here; the send is not. */
		TRY(side_barrier(s));
		TRY(side_check(s, &s->b, 4096, i));
	}
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
	enum { ROUNDS = 300 };

	for (uint64_t round = 1; round <= ROUNDS; round++) {
		volatile uint64_t *words = (volatile uint64_t *)s->b.bytes;
		int64_t end = side_ms() + SIDE_WAIT_MS;
		int done = 0;
		void *request;

		if (s->sender) {
			for (size_t i = 0; i < LINES * 16; i++)
				words[i] = round;
			TRY(side_isend(s, s->comm, s->b.bytes, LINES * 128, 0, s->b.mhandle,
				       &request));
			TRY(side_wait(s, request, NULL));
			continue;
		}
		TRY(watched_irecv(s, LINES * 128, as_nccl, &request));
		while (!done) {
			int torn = torn_line(words, LINES, round);

			REQUIRE(s, torn < 0, "line %d has its flag but not word %d", torn / 16,
				torn % 16);
			OK(s, s->net->test(request, &done, NULL));
			REQUIRE(s, side_ms() < end, "no end");
			sched_yield(); /* the sender may need this processor */
		}
	}
	return PASS;
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
	void *comm, *request = NULL;
	int unused[4] = { 0 };
	struct buffer b;

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
	return side_unlink(s, comm);
}

const struct net_case data_cases[] = {
	{ "5.11", "v11: sizes as in 20", 2, 11, sizes, WITH_LINK(SIZES_MAX) },
	{ "5.10", "v10: sizes as in 20", 2, 10, sizes, WITH_LINK(SIZES_MAX) },
	{ "5.9", "v9: sizes as in 20", 2, 9, sizes, WITH_LINK(SIZES_MAX) },
	{ "5.8", "v8: sizes as in 20", 2, 8, sizes, WITH_LINK(SIZES_MAX) },
	{ "5.7", "v7: sizes as in 20", 2, 7, sizes, WITH_LINK(SIZES_MAX) },
	{ "5.6", "v6: sizes as in 20", 2, 6, sizes, WITH_LINK(SIZES_MAX) },
	{ "20", "sizes from 0 bytes up; what both sides report; bytes around", 2, 0, sizes,
	  WITH_LINK(SIZES_MAX) },
	{ "20c", "the same after setNetAttr", 2, 0, sizes, WITH_LINK(SIZES_MAX),
	  .attributes = true },
	{ "9b", "a virtual device of all devices, sizes as in 20", 2, 0, striped, WITH_INIT },
	{ "20b", "1 GiB", 2, 0, large, WITH_LINK(0) },
	{ "21", "a send longer than the receive", 2, 0, too_long, WITH_LINK(100000) },
	{ "22", "32 receives under way, one more, around all slots", 2, 0, all_slots,
	  WITH_LINK((SLOTS + 1) * SLOT_BYTES) },
	{ "23", "strict order of 2000 messages", 2, 0, strict_order, WITH_LINK(ORDER_BYTES) },
	{ "26", "test: not before, once, and for all", 2, 0, test_contract, WITH_LINK(2 << 20) },
	{ "27", "the hint that nobody waits for a receive", 2, 0, optional_completion,
	  WITH_LINK(4096) },
	{ "28", "a line's last bytes never before its first (LL128)", 2, 0, line_order,
	  WITH_LINK(LINES * 128) },
	{ "28b", "the same as NCCL does it: attributes set, receives marked", 2, 0,
	  line_order_as_nccl, WITH_LINK(LINES * 128), .attributes = true },
	{ "30", "profiler callback and handles", 2, 0, with_profiler, WITH_INIT },
	{ 0 },
};
