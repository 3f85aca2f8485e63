/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cases_usage.c -- cases 41 to 46: ways to use the interface that NCCL itself has not, and other
 * programs that test plugins have
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "net_side.h"

enum { DEEP = NCCL_REQUESTS_MAX };

/* -------------------------------------------------------- both directions between two processes */

static int exchange_handles(struct side *s, struct loop *b, struct handle *other)
{
	struct handle own;

	*b = (struct loop){ 0 };
	memset(&own, 0x5a, sizeof(own)); /* listen must not rely on zeros */
	OK(s, s->net->listen(s->ctx, s->dev, own.bytes, &b->listen));
	TRY(side_put(s, own.bytes, sizeof(own.bytes)));
	side_handle_init(other);
	return side_get(s, other->bytes, sizeof(other->bytes));
}

/* DEEP sends, and only then DEEP receives; in both processes. */
static int sends_first(struct side *s, const struct loop *b)
{
	enum { BYTES = 5000, PLACE = 5200 };
	void *out[DEEP], *in[DEEP];
	struct buffer from, to;

	TRY(side_buffer(s, b->send, DEEP * BYTES, &from));
	TRY(side_buffer(s, b->recv, DEEP * PLACE, &to));
	for (size_t i = 0; i < DEEP; i++) {
		side_fill(from.bytes + i * BYTES, BYTES, i);
		TRY(side_isend(s, b->send, from.bytes + i * BYTES, BYTES, 1, from.mhandle,
			       &out[i]));
	}
	for (size_t i = 0; i < DEEP; i++)
		TRY(side_irecv_rows(s, b->recv, &to, i * PLACE, PLACE, 1, &(int){ 1 }, &in[i]));
	for (size_t i = 0; i < DEEP; i++) {
		int size = -1;

		TRY(side_wait(s, out[i], &size));
		REQUIRE(s, size == BYTES, "send %zu reports %d", i, size);
		TRY(side_wait(s, in[i], &size));
		REQUIRE(s, size == BYTES, "receive %zu reports %d", i, size);
		TRY(side_check_at(s, to.bytes + i * PLACE, BYTES, i));
		for (size_t k = BYTES; k < PLACE; k++)
			REQUIRE(s, to.bytes[i * PLACE + k] == SIDE_POISON, "byte %zu past %zu", k,
				i);
	}
	TRY(side_buffer_free(s, b->send, &from));
	return side_buffer_free(s, b->recv, &to);
}

static int close_in_order(struct side *s, struct loop *b, int order)
{
	for (int i = 0; i < 3; i++) {
		int which = (order + i) % 3;

		if (which == 0)
			OK(s, s->net->closeListen(b->listen));
		else if (which == 1)
			OK(s, s->net->closeSend(b->send));
		else
			OK(s, s->net->closeRecv(b->recv));
	}
	return PASS;
}

static int connect_then_accept(struct side *s)
{
	struct handle h;
	struct loop b;

	TRY(exchange_handles(s, &b, &h));
	TRY(side_wait_connect(s, &h, &b.send));
	TRY(side_wait_accept(s, b.listen, &b.recv));
	TRY(sends_first(s, &b));
	TRY(side_barrier(s));
	return close_in_order(s, &b, 0);
}

static int ring(struct side *s)
{
	for (int order = 0; order < 3; order++) {
		struct handle h;
		struct loop b;

		TRY(exchange_handles(s, &b, &h));
		TRY(side_join(s, &b, &h));
		TRY(sends_first(s, &b));
		TRY(close_in_order(s, &b, order));
		TRY(side_barrier(s));
	}
	return PASS;
}

/* One listener for all rounds; connect gets a fresh copy of its handle each time. */
static int listener_again(struct side *s)
{
	struct handle h, copy;
	struct loop b;

	TRY(exchange_handles(s, &b, &h));
	for (int round = 0; round < 10; round++) {
		copy = h;
		TRY(side_join(s, &b, &copy));
		if (!s->source.symbol)
			TRY(sends_first(s, &b));
		OK(s, s->net->closeSend(b.send));
		OK(s, s->net->closeRecv(b.recv));
		b.send = b.recv = NULL;
	}
	TRY(side_barrier(s));
	OK(s, s->net->closeListen(b.listen));
	return PASS;
}

/* ------------------------------------------------------------- sends before receives, with tags */

enum { N = 5, ROOM = 1000, TAGS_BYTES = N * ROOM };

/* Taken early or not, they go where their tags belong, in order. */
static int early_tags(struct side *s)
{
	static const int sent[N] = { 7, 5, 6, 5, 7 }, posted[N] = { 5, 6, 7, 5, 7 };
	static const uint64_t from[N] = { 1, 2, 0, 3, 4 }; /* which send each place gets */
	void *request[N] = { 0 };
	int size[N];

	if (!s->sender) {
		TRY(side_barrier(s)); /* the sends were tried */
		TRY(side_irecv_rows(s, s->comm, &s->b, 0, ROOM, 2, posted, &request[0]));
		TRY(side_irecv_rows(s, s->comm, &s->b, 2 * (size_t)ROOM, ROOM, 2, posted + 2,
				    &request[1]));
		TRY(side_irecv_rows(s, s->comm, &s->b, 4 * (size_t)ROOM, ROOM, 1, posted + 4,
				    &request[2]));
		TRY(side_wait(s, request[2], size + 4));
		TRY(side_wait(s, request[1], size + 2));
		TRY(side_wait(s, request[0], size));
		for (int i = 0; i < N; i++) {
			REQUIRE(s, size[i] == 900 + (int)from[i], "place %d has %d bytes", i,
				size[i]);
			TRY(side_check_at(s, s->b.bytes + i * ROOM, (size_t)size[i], from[i]));
		}
	} else {
		int64_t end = side_ms() + SIDE_WAIT_MS;

		for (int left = N, pass = 0; left; pass++) {
			for (int i = 0; i < N; i++) {
				uint8_t *data = s->b.bytes + i * ROOM;
				bool behind = false;

				for (int k = 0; k < i; k++) /* equal tags stay in order */
					behind = behind || (sent[k] == sent[i] && !request[k]);
				if (request[i] || behind)
					continue;
				side_fill(data, 900 + (size_t)i, (uint64_t)i);
				OK(s, s->net->isend(s->comm, data, 900 + (size_t)i, sent[i],
						    s->b.mhandle, NULL, &request[i]));
				left -= request[i] != NULL;
			}
			if (!pass)
				TRY(side_barrier(s));
			REQUIRE(s, side_ms() < end, "%d sends are not taken", left);
		}
		for (int i = 0; i < N; i++)
			TRY(side_wait(s, request[i], NULL));
	}
	return PASS;
}

/* ---------------------------------------------------- deregistered and closed with 32 under way */

enum { BIG = 1 << 20, CLOSERS = 4 };

struct closer {
	struct side side;
	pthread_t thread;
	struct loop both;
	int verdict;
};

static int post_and_close(struct side *s, const struct loop *b)
{
	void *comm = s->sender ? b->send : b->recv, *mh[DEEP], *request;
	uint8_t *bytes = malloc((size_t)DEEP * BIG);

	REQUIRE(s, bytes, "out of memory");
	for (size_t i = 0; i < DEEP; i++) {
		void *data = bytes + i * BIG;
		size_t size = BIG;
		int tag = 1;

		memset(data, 1, BIG);
		OK(s, s->net->regMr(comm, data, BIG, NCCL_PTR_HOST, &mh[i]));
		if (s->sender)
			TRY(side_isend(s, comm, data, BIG, tag, mh[i], &request));
		else
			TRY(side_irecv(s, comm, 1, &data, &size, &tag, &mh[i], &request));
	}
	for (int i = 0; i < DEEP; i++)
		OK(s, s->net->deregMr(comm, mh[i]));
	OK(s, s->net->closeSend(b->send));
	OK(s, s->net->closeRecv(b->recv));
	OK(s, s->net->closeListen(b->listen));
	free(bytes);
	return PASS;
}

static void *closer_main(void *arg)
{
	struct closer *c = arg;

	c->verdict = post_and_close(&c->side, &c->both);
	return NULL;
}

static int close_all_under_way(struct side *s)
{
	struct closer closer[CLOSERS];
	int rounds = s->quick ? 3 : 10;

	for (int round = 0; round < rounds; round++) {
		for (int i = 0; i < CLOSERS; i++) {
			struct handle h;

			TRY(exchange_handles(s, &closer[i].both, &h));
			TRY(side_join(s, &closer[i].both, &h));
			closer[i].side = *s;
			pthread_create(&closer[i].thread, NULL, closer_main, &closer[i]);
		}
		for (int i = 0; i < CLOSERS; i++)
			pthread_join(closer[i].thread, NULL);
		for (int i = 0; i < CLOSERS; i++)
			REQUIRE(s, !closer[i].verdict, "round %d, thread %d: %s", round, i,
				closer[i].side.reason);
	}
	return PASS;
}

/* ---------------------------------------------------------------- little care */

static int devices_before_init(struct side *s)
{
	ncclNetProperties_v12_t p;
	const char *why;
	int ndev = 0;

	s->net = net_load(&s->source, &s->version, &why);
	REQUIRE(s, s->net, "%s", why);
	OK(s, s->net->devices(&ndev));
	for (int i = 0; i < ndev; i++)
		OK(s, s->net->getProperties(i, &p));
	OK(s, s->net->init(&s->ctx, 0, NULL, NULL, NULL));
	REQUIRE(s, ndev > 0, "there is no device before init");
	return side_stop(s);
}

/* What a program that forgets finalize does; of the versions before 11 there is none. */
static int unloaded_without_finalize(struct side *s)
{
	int fds = side_count_fds(), threads = side_count_threads();

	TRY(side_start(s));
	net_unload();
	REQUIRE(s, side_count_fds() == fds, "%d descriptors, %d before", side_count_fds(), fds);
	REQUIRE(s, side_count_threads() == threads, "%d threads", side_count_threads());
	return PASS;
}

/* The two ends of a connection are on different devices. */
static int crossed_devices(struct side *s)
{
	struct handle h;
	struct loop b;
	int ndev;

	OK(s, s->net->devices(&ndev));
	if (ndev < 2)
		return side_skip(s, "%d device", ndev);
	for (int i = 0; i < ndev; i++) {
		s->dev = s->sender ? i : ndev - 1 - i;
		TRY(exchange_handles(s, &b, &h));
		TRY(side_join(s, &b, &h));
		if (!s->source.symbol)
			TRY(sends_first(s, &b));
		TRY(side_barrier(s));
		TRY(close_in_order(s, &b, 0));
	}
	return PASS;
}

const struct net_case usage_cases[] = {
	{ "41", "both connect, and only then both accept", 2, 0, connect_then_accept, WITH_INIT,
	  .not_hidden = "connect waits for accept" },
	{ "42", "32 sends before the first receive, in both directions", 2, 0, ring, WITH_INIT,
	  .not_hidden = "isend waits for irecv" },
	{ "42b", "sends before receives find their tags", 2, 0, early_tags, WITH_LINK(TAGS_BYTES) },
	{ "43", "4 threads deregister and close with 32 messages of 1 MiB under way", 2, 0,
	  close_all_under_way, WITH_INIT },
	{ "44", "one listener, ten connections one after the other", 2, 0, listener_again,
	  WITH_INIT },
	{ "45", "devices and properties before init; nothing but NULL for init", 1, 0,
	  devices_before_init, ALONE, .not_hidden = "has none before init" },
	{ "45b", "v8: unloaded right after init", 1, 8, unloaded_without_finalize, ALONE,
	  .not_hidden = "library is not unloaded" },
	{ "46", "the two ends on different devices", 2, 0, crossed_devices, WITH_INIT },
	{ 0 },
};
