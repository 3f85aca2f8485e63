/* SPDX-License-Identifier: Apache-2.0 */
/* cases_group.c -- cases 24 and 25: receives of several messages, matched by tag */
#include <stdio.h>
#include <string.h>

#include "net_side.h"

enum { MAX = 8, ROOM = 8192 };

struct group {
	int n;
	int tag[MAX];
	size_t size[MAX]; /* of the message of row i */
	int order[MAX];	  /* rows in the order in which they are sent */
	uint64_t seed;
};

struct run {
	void *comm;
	struct buffer b; /* MAX places of ROOM bytes */
	void *request[MAX];
};

static uint64_t seed_of(const struct group *g, int row)
{
	return g->seed * 100 + (uint64_t)row;
}

static int send_group(struct side *s, struct run *r, const struct group *g)
{
	for (int i = 0; i < g->n; i++) {
		int row = g->order[i];
		uint8_t *data = r->b.bytes + row * ROOM;

		side_fill(data, g->size[row], seed_of(g, row));
		TRY(side_isend(s, r->comm, data, g->size[row], g->tag[row], r->b.mhandle,
			       &r->request[row]));
	}
	for (int row = 0; row < g->n; row++) {
		int told = -1;

		TRY(side_wait(s, r->request[row], &told));
		REQUIRE(s, told == (int)g->size[row], "row %d of %d: told %d, sent %zu", row, g->n,
			told, g->size[row]);
	}
	return PASS;
}

static int recv_group(struct side *s, struct run *r, const struct group *g)
{
	size_t room[MAX];
	void *data[MAX], *mh[MAX], *request;
	int told[MAX], tag[MAX];

	side_poison(&r->b);
	for (int i = 0; i < g->n; i++) {
		data[i] = r->b.bytes + i * ROOM;
		mh[i] = r->b.mhandle;
		room[i] = ROOM;
		tag[i] = g->tag[i];
		told[i] = -1;
	}
	TRY(side_irecv(s, r->comm, g->n, data, room, tag, mh, &request));
	TRY(side_wait(s, request, told));
	for (int i = 0; i < g->n; i++) {
		const uint8_t *p = data[i];

		REQUIRE(s, told[i] == (int)g->size[i], "row %d of %d: told %d, sent %zu", i, g->n,
			told[i], g->size[i]);
		TRY(side_check_at(s, p, g->size[i], seed_of(g, i)));
		for (size_t k = g->size[i]; k < ROOM; k++)
			REQUIRE(s, p[k] == SIDE_POISON, "row %d: byte %zu past %zu changed", i, k,
				g->size[i]);
	}
	return PASS;
}

static int run_group(struct side *s, struct run *r, const struct group *g)
{
	return s->sender ? send_group(s, r, g) : recv_group(s, r, g);
}

static int begin(struct side *s, struct run *r)
{
	ncclNetProperties_v12_t p;

	TRY(side_start(s));
	OK(s, s->net->getProperties(s->dev, &p));
	if (p.maxRecvs < MAX)
		return side_skip(s, "maxRecvs is %d", p.maxRecvs);
	TRY(side_link(s, &r->comm));
	return side_buffer(s, r->comm, MAX * ROOM, &r->b);
}

static int end(struct side *s, struct run *r)
{
	TRY(side_barrier(s));
	TRY(side_buffer_free(s, r->comm, &r->b));
	TRY(side_unlink(s, r->comm));
	return side_stop(s);
}

/* Every n; sizes with zeros; sent forwards, backwards, and stepped. */
static int distinct_tags(struct side *s)
{
	static const size_t size[MAX] = { 0, 7000, 1, 0, 128, 4097, 64, 8192 };
	struct run r;

	TRY(begin(s, &r));
	for (int n = 1; n <= MAX; n++)
		for (int how = 0; how < 3; how++) {
			struct group g = { .n = n, .seed = (uint64_t)(n * 10 + how) };

			for (int i = 0; i < n; i++) {
				g.tag[i] = 1000 - 7 * i;
				g.size[i] = size[(i + how) % MAX];
				g.order[i] = how == 0 ? i : how == 1 ? n - 1 - i : (i + n / 2) % n;
			}
			TRY(run_group(s, &r, &g));
		}
	return end(s, &r);
}

/* With equal tags the order of sending is the order of the rows. */
static int equal_tags(struct side *s)
{
	struct run r;

	TRY(begin(s, &r));
	for (uint64_t round = 0; round < 50; round++) {
		struct group g = { .n = MAX, .seed = round };

		for (int i = 0; i < MAX; i++) {
			g.tag[i] = 5;
			g.size[i] = (size_t)(i * 300 + (int)round);
			g.order[i] = i;
		}
		TRY(run_group(s, &r, &g));
	}
	return end(s, &r);
}

/* Tags come in pairs: among equal ones the first row first, between the pairs any order. */
static int mixed_tags(struct side *s)
{
	static const int order[MAX] = { 6, 0, 2, 7, 4, 1, 3, 5 };
	struct run r;

	TRY(begin(s, &r));
	for (uint64_t round = 0; round < 50; round++) {
		struct group g = { .n = MAX, .seed = round };

		for (int i = 0; i < MAX; i++) {
			g.tag[i] = i / 2;
			g.size[i] = (size_t)(i * 900);
			g.order[i] = order[i];
		}
		TRY(run_group(s, &r, &g));
	}
	return end(s, &r);
}

/* One message, then a group, with the tags of the last. */
static int alternation(struct side *s)
{
	struct run r;

	TRY(begin(s, &r));
	for (uint64_t round = 0; round < 100; round++) {
		struct group g = { .n = round % 2 ? 1 : 4, .seed = round };

		for (int i = 0; i < g.n; i++) {
			g.tag[i] = i;
			g.size[i] = (size_t)(round * 20 + (uint64_t)i);
			g.order[i] = g.n - 1 - i;
		}
		TRY(run_group(s, &r, &g));
	}
	return end(s, &r);
}

/*
 * Two groups are posted before anything is sent. What belongs to the second only must wait until
 * the first is full, and a tag that both have goes to the first.
 */
static int two_groups(struct side *s)
{
	struct run r;

	TRY(begin(s, &r));
	if (s->sender) {
		static const int tags[4] = { 2, 1, 3, 2 };
		void *request = NULL, *sent[4];

		TRY(side_barrier(s)); /* both are posted */
		for (int i = 0; i < 200; i++) {
			OK(s, s->net->isend(r.comm, r.b.bytes, 10, 3, r.b.mhandle, NULL, &request));
			REQUIRE(s, !request, "a tag of the second group was matched too early");
		}
		for (int i = 0; i < 4; i++) {
			uint8_t *data = r.b.bytes + i * ROOM;

			side_fill(data, 1000, (uint64_t)i);
			TRY(side_isend(s, r.comm, data, 1000, tags[i], r.b.mhandle, &sent[i]));
		}
		for (int i = 0; i < 4; i++)
			TRY(side_wait(s, sent[i], NULL));
	} else {
		/* Sent as 2 (first group), 1, 3 (second), 2. */
		static const int tags[4] = { 1, 2, 2, 3 };
		static const uint64_t seeds[4] = { 1, 0, 3, 2 };
		void *data[4], *mh[4], *first, *second;
		size_t room[4];
		int tag[4], told[2];

		for (int i = 0; i < 4; i++) {
			data[i] = r.b.bytes + i * ROOM;
			mh[i] = r.b.mhandle;
			room[i] = ROOM;
			tag[i] = tags[i];
		}
		TRY(side_irecv(s, r.comm, 2, data, room, tag, mh, &first));
		TRY(side_irecv(s, r.comm, 2, data + 2, room + 2, tag + 2, mh + 2, &second));
		TRY(side_barrier(s));
		TRY(side_wait(s, second, told));
		TRY(side_wait(s, first, told));
		for (int i = 0; i < 4; i++)
			TRY(side_check_at(s, data[i], 1000, seeds[i]));
	}
	return end(s, &r);
}

static int bad_counts(struct side *s)
{
	void *data[MAX + 1], *mh[MAX + 1], *phandles[MAX + 1] = { 0 }, *request = NULL;
	size_t room[MAX + 1];
	int tag[MAX + 1];
	struct loop loop;
	struct buffer b;

	TRY(side_start(s));
	if (s->source.symbol)
		return side_skip(s, "the oracle does not check n");
	TRY(side_loop(s, &loop));
	TRY(side_buffer(s, loop.recv, 4096, &b));
	for (int i = 0; i <= MAX; i++) {
		data[i] = b.bytes;
		mh[i] = b.mhandle;
		room[i] = 16;
		tag[i] = i;
	}
	REQUIRE(s, s->net->irecv(loop.recv, 0, data, room, tag, mh, phandles, &request),
		"a receive of none");
	REQUIRE(s, s->net->irecv(loop.recv, MAX + 1, data, room, tag, mh, phandles, &request),
		"a receive of nine");
	room[0] = 1 << 20;
	REQUIRE(s, s->net->irecv(loop.recv, 1, data, room, tag, mh, phandles, &request),
		"a receive past the end of its region");
	TRY(side_buffer_free(s, loop.recv, &b));
	TRY(side_loop_close(s, &loop));
	return side_stop(s);
}

/* 32 groups of 8: 256 messages under way at once. */
static int all_at_once(struct side *s)
{
	enum { GROUPS = NCCL_REQUESTS_MAX, BYTES = 256 };
	void *request[GROUPS][MAX];
	struct run r;

	TRY(begin(s, &r));
	for (uint64_t round = 0; round < 5; round++) {
		for (int g = 0; g < GROUPS; g++) {
			void *data[MAX], *mh[MAX];
			size_t room[MAX];
			int tag[MAX];

			for (int i = 0; i < MAX; i++) {
				data[i] = r.b.bytes + (g * MAX + i) * BYTES;
				mh[i] = r.b.mhandle;
				room[i] = BYTES;
				tag[i] = i;
			}
			if (!s->sender)
				TRY(side_irecv(s, r.comm, MAX, data, room, tag, mh,
					       &request[g][0]));
			for (int i = MAX; s->sender && i--;) {
				side_fill(data[i], BYTES, round * 1000 + (uint64_t)(g * MAX + i));
				TRY(side_isend(s, r.comm, data[i], BYTES, i, mh[i],
					       &request[g][i]));
			}
		}
		for (int g = 0; g < GROUPS; g++) {
			int told[MAX];

			for (int i = 0; i < (s->sender ? MAX : 1); i++)
				TRY(side_wait(s, request[g][i], told));
			for (int i = 0; !s->sender && i < MAX; i++)
				TRY(side_check_at(s, r.b.bytes + (g * MAX + i) * BYTES, BYTES,
						  round * 1000 + (uint64_t)(g * MAX + i)));
		}
		TRY(side_barrier(s));
	}
	return end(s, &r);
}

const struct net_case group_cases[] = {
	{ "22b", "32 receives of 8: 256 messages under way", 2, 0, all_at_once },
	{ "24", "groups of 1 to 8, sent in any order, with empty messages", 2, 0, distinct_tags },
	{ "24b", "eight equal tags", 2, 0, equal_tags },
	{ "24c", "equal tags in pairs", 2, 0, mixed_tags },
	{ "24d", "single and grouped in turn", 2, 0, alternation },
	{ "24e", "none, nine, and past the region are errors", 1, 0, bad_counts },
	{ "25", "a tag of the second group waits for the first", 2, 0, two_groups },
	{ 0 },
};
