/* SPDX-License-Identifier: Apache-2.0 */
/* cases_group.c -- cases 24 and 25: receives of several messages, matched by tag */

#include "net_side.h"

enum { MAX = 8, ROOM = 8192 };

struct group {
	int n;
	int tag[MAX];
	size_t size[MAX]; /* of the message of row i */
	int order[MAX];	  /* rows in the order in which they are sent */
	uint64_t seed;
};

static uint64_t seed_of(const struct group *g, int row)
{
	return g->seed * 100 + (uint64_t)row;
}

static int send_group(struct side *s, const struct group *g)
{
	void *request[MAX];

	for (int i = 0; i < g->n; i++) {
		int row = g->order[i];
		uint8_t *data = s->b.bytes + row * ROOM;

		side_fill(data, g->size[row], seed_of(g, row));
		TRY(side_isend(s, s->comm, data, g->size[row], g->tag[row], s->b.mhandle,
			       &request[row]));
	}
	for (int row = 0; row < g->n; row++) {
		int size = -1;

		TRY(side_wait(s, request[row], &size));
		REQUIRE(s, size == (int)g->size[row], "row %d of %d: %d reported, %zu sent", row,
			g->n, size, g->size[row]);
	}
	return PASS;
}

static int recv_group(struct side *s, const struct group *g)
{
	int size[MAX] = { -1, -1, -1, -1, -1, -1, -1, -1 };
	void *request;

	side_poison(&s->b);
	TRY(side_irecv_rows(s, s->comm, &s->b, 0, ROOM, g->n, g->tag, &request));
	TRY(side_wait(s, request, size));
	for (int i = 0; i < g->n; i++) {
		const uint8_t *p = s->b.bytes + i * ROOM;

		REQUIRE(s, size[i] == (int)g->size[i], "row %d of %d: %d reported, %zu sent", i,
			g->n, size[i], g->size[i]);
		TRY(side_check_at(s, p, g->size[i], seed_of(g, i)));
		for (size_t k = g->size[i]; k < ROOM; k++)
			REQUIRE(s, p[k] == SIDE_POISON, "row %d: byte %zu past %zu changed", i, k,
				g->size[i]);
	}
	return PASS;
}

static int run_group(struct side *s, const struct group *g)
{
	return s->sender ? send_group(s, g) : recv_group(s, g);
}

/* Every n; sizes with zeros; sent forwards, backwards, and stepped. */
static int distinct_tags(struct side *s)
{
	static const size_t size[MAX] = { 0, 7000, 1, 0, 128, 4097, 64, 8192 };
	for (int n = 1; n <= MAX; n++)
		for (int how = 0; how < 3; how++) {
			struct group g = { .n = n, .seed = (uint64_t)(n * 10 + how) };

			for (int i = 0; i < n; i++) {
				g.tag[i] = 1000 - 7 * i;
				g.size[i] = size[(i + how) % MAX];
				g.order[i] = how == 0 ? i : how == 1 ? n - 1 - i : (i + n / 2) % n;
			}
			TRY(run_group(s, &g));
		}
	return PASS;
}

/* With equal tags the order of sending is the order of the rows. */
static int equal_tags(struct side *s)
{
	for (uint64_t round = 0; round < 50; round++) {
		struct group g = { .n = MAX, .seed = round };

		for (int i = 0; i < MAX; i++) {
			g.tag[i] = 5;
			g.size[i] = (size_t)(i * 300 + (int)round);
			g.order[i] = i;
		}
		TRY(run_group(s, &g));
	}
	return PASS;
}

/* Tags come in pairs: among equal ones the first row first, between the pairs any order. */
static int mixed_tags(struct side *s)
{
	static const int order[MAX] = { 6, 0, 2, 7, 4, 1, 3, 5 };
	for (uint64_t round = 0; round < 50; round++) {
		struct group g = { .n = MAX, .seed = round };

		for (int i = 0; i < MAX; i++) {
			g.tag[i] = i / 2;
			g.size[i] = (size_t)(i * 900);
			g.order[i] = order[i];
		}
		TRY(run_group(s, &g));
	}
	return PASS;
}

/* One message, then a group, with the tags of the last. */
static int alternation(struct side *s)
{
	for (uint64_t round = 0; round < 100; round++) {
		struct group g = { .n = round % 2 ? 1 : 4, .seed = round };

		for (int i = 0; i < g.n; i++) {
			g.tag[i] = i;
			g.size[i] = (size_t)(round * 20 + (uint64_t)i);
			g.order[i] = g.n - 1 - i;
		}
		TRY(run_group(s, &g));
	}
	return PASS;
}

/*
 * Two groups are posted before anything is sent. What belongs to the second only must wait until
 * the first is full, and a tag that both have goes to the first.
 */
static int two_groups(struct side *s)
{
	void *request = NULL, *sent[4], *first, *second;
	int size[2];

	if (s->sender) {
		static const int tags[4] = { 2, 1, 3, 2 };

		TRY(side_barrier(s)); /* both are posted */
		for (int i = 0; i < 200; i++) {
			OK(s,
			   s->net->isend(s->comm, s->b.bytes, 10, 3, s->b.mhandle, NULL, &request));
			REQUIRE(s, !request, "a tag of the second group was matched too early");
		}
		for (int i = 0; i < 4; i++) {
			uint8_t *data = s->b.bytes + i * ROOM;

			side_fill(data, 1000, (uint64_t)i);
			TRY(side_isend(s, s->comm, data, 1000, tags[i], s->b.mhandle, &sent[i]));
		}
		for (int i = 0; i < 4; i++)
			TRY(side_wait(s, sent[i], NULL));
	} else {
		/* Sent as 2 (first group), 1, 3 (second), 2. */
		static const int tags[4] = { 1, 2, 2, 3 };
		static const uint64_t seeds[4] = { 1, 0, 3, 2 };

		TRY(side_irecv_rows(s, s->comm, &s->b, 0, ROOM, 2, tags, &first));
		TRY(side_irecv_rows(s, s->comm, &s->b, 2 * (size_t)ROOM, ROOM, 2, tags + 2,
				    &second));
		TRY(side_barrier(s));
		TRY(side_wait(s, second, size));
		TRY(side_wait(s, first, size));
		for (int i = 0; i < 4; i++)
			TRY(side_check_at(s, s->b.bytes + i * ROOM, 1000, seeds[i]));
	}
	return PASS;
}

static int bad_counts(struct side *s)
{
	void *data[MAX + 1], *mh[MAX + 1], *phandles[MAX + 1] = { 0 }, *request = NULL;
	size_t room[MAX + 1];
	int tag[MAX + 1];

	for (int i = 0; i <= MAX; i++) {
		data[i] = s->to.bytes;
		mh[i] = s->to.mhandle;
		room[i] = 16;
		tag[i] = i;
	}
	REQUIRE(s, s->net->irecv(s->loop.recv, 0, data, room, tag, mh, phandles, &request),
		"a receive of none");
	REQUIRE(s, s->net->irecv(s->loop.recv, MAX + 1, data, room, tag, mh, phandles, &request),
		"a receive of nine");
	room[0] = 1 << 20;
	REQUIRE(s, s->net->irecv(s->loop.recv, 1, data, room, tag, mh, phandles, &request),
		"a receive past the end of its region");
	return PASS;
}

/* 32 groups of 8: 256 messages under way at once. */
static int all_at_once(struct side *s)
{
	enum { GROUPS = NCCL_REQUESTS_MAX, BYTES = 256 };
	static const int tags[MAX] = { 0, 1, 2, 3, 4, 5, 6, 7 };
	void *request[GROUPS][MAX];

	for (uint64_t round = 0; round < 5; round++) {
		for (size_t g = 0; g < GROUPS; g++) {
			size_t at = g * MAX * BYTES;

			if (!s->sender)
				TRY(side_irecv_rows(s, s->comm, &s->b, at, BYTES, MAX, tags,
						    &request[g][0]));
			for (size_t i = MAX; s->sender && i--;) {
				uint8_t *data = s->b.bytes + at + i * BYTES;

				side_fill(data, BYTES, round * 1000 + g * MAX + i);
				TRY(side_isend(s, s->comm, data, BYTES, tags[i], s->b.mhandle,
					       &request[g][i]));
			}
		}
		for (int g = 0; g < GROUPS; g++) {
			int size[MAX];

			for (int i = 0; i < (s->sender ? MAX : 1); i++)
				TRY(side_wait(s, request[g][i], size));
			for (int i = 0; !s->sender && i < MAX; i++)
				TRY(side_check_at(s, s->b.bytes + (g * MAX + i) * BYTES, BYTES,
						  round * 1000 + (uint64_t)(g * MAX + i)));
		}
		TRY(side_barrier(s));
	}
	return PASS;
}

#define GROUPED WITH_LINK(MAX *ROOM), .rows = MAX

const struct net_case group_cases[] = {
	{ "22b", "32 receives of 8: 256 messages under way", 2, 0, all_at_once, GROUPED },
	{ "24", "groups of 1 to 8, sent in any order, with empty messages", 2, 0, distinct_tags,
	  GROUPED },
	{ "24b", "eight equal tags", 2, 0, equal_tags, GROUPED },
	{ "24c", "equal tags in pairs", 2, 0, mixed_tags, GROUPED },
	{ "24d", "single and grouped in turn", 2, 0, alternation, GROUPED },
	{ "24e", "none, nine, and past the region are errors", 1, 0, bad_counts, WITH_LOOP(4096),
	  .not_hidden = "does not check n" },
	{ "25", "a tag of the second group waits for the first", 2, 0, two_groups, GROUPED },
	{ 0 },
};
