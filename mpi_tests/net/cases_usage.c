/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cases_usage.c -- cases 41 to 46: ways to use the interface that NCCL itself has not, and other
 * programs that test plugins have
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net_side.h"

enum { DEEP = NCCL_REQUESTS_MAX };

/* -------------------------------------------------------- both directions between two processes */

struct both {
	void *listen, *send, *recv;
};

static int exchange_handles(struct side *s, struct both *b, struct handle *other)
{
	struct handle own;

	memset(&own, 0x5a, sizeof(own)); /* listen must not rely on zeros */
	OK(s, s->net->listen(s->ctx, s->dev, own.bytes, &b->listen));
	TRY(side_put(s, own.bytes, sizeof(own.bytes)));
	side_handle_init(other);
	return side_get(s, other->bytes, sizeof(other->bytes));
}

static int join_in_turn(struct side *s, struct both *b, struct handle *h)
{
	int64_t end = side_ms() + SIDE_WAIT_MS;

	for (b->send = b->recv = NULL; !b->send || !b->recv;) {
		ncclNetDeviceHandle_v7_t *d;

		if (!b->send)
			OK(s, s->net->connect(s->ctx, s->dev, h->bytes, &b->send, &d));
		if (!b->recv)
			OK(s, s->net->accept(b->listen, &b->recv, &d));
		REQUIRE(s, side_ms() < end, "no connection in %d ms", SIDE_WAIT_MS);
	}
	return PASS;
}

/* DEEP sends, and only then DEEP receives; in both processes. */
static int sends_first(struct side *s, const struct both *b)
{
	enum { BYTES = 5000, ROOM = 5200 };
	void *out[DEEP], *in[DEEP];
	struct buffer from, to;

	TRY(side_buffer(s, b->send, DEEP * BYTES, &from));
	TRY(side_buffer(s, b->recv, DEEP * ROOM, &to));
	for (size_t i = 0; i < DEEP; i++) {
		side_fill(from.bytes + i * BYTES, BYTES, i);
		TRY(side_isend(s, b->send, from.bytes + i * BYTES, BYTES, 1, from.mhandle,
			       &out[i]));
	}
	for (size_t i = 0; i < DEEP; i++) {
		void *data = to.bytes + i * ROOM;
		size_t room = ROOM;
		int tag = 1;

		TRY(side_irecv(s, b->recv, 1, &data, &room, &tag, &to.mhandle, &in[i]));
	}
	for (size_t i = 0; i < DEEP; i++) {
		int told = -1;

		TRY(side_wait(s, out[i], &told));
		REQUIRE(s, told == BYTES, "send %zu is told %d", i, told);
		TRY(side_wait(s, in[i], &told));
		REQUIRE(s, told == BYTES, "receive %zu is told %d", i, told);
		TRY(side_check_at(s, to.bytes + i * ROOM, BYTES, i));
		for (size_t k = BYTES; k < ROOM; k++)
			REQUIRE(s, to.bytes[i * ROOM + k] == SIDE_POISON, "byte %zu past %zu", k,
				i);
	}
	TRY(side_buffer_free(s, b->send, &from));
	return side_buffer_free(s, b->recv, &to);
}

static int close_in_order(struct side *s, struct both *b, int order)
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
	struct both b;

	if (s->source.symbol)
		return side_skip(s, "the oracle's connect waits for accept");
	TRY(side_start(s));
	TRY(exchange_handles(s, &b, &h));
	TRY(side_wait_connect(s, &h, &b.send));
	TRY(side_wait_accept(s, b.listen, &b.recv));
	TRY(sends_first(s, &b));
	TRY(side_barrier(s));
	TRY(close_in_order(s, &b, 0));
	return side_stop(s);
}

static int ring(struct side *s)
{
	if (s->source.symbol)
		return side_skip(s, "the oracle's isend waits for irecv");
	TRY(side_start(s));
	for (int order = 0; order < 3; order++) {
		struct handle h;
		struct both b;

		TRY(exchange_handles(s, &b, &h));
		TRY(join_in_turn(s, &b, &h));
		TRY(sends_first(s, &b));
		TRY(close_in_order(s, &b, order));
		TRY(side_barrier(s));
	}
	return side_stop(s);
}

/* One listener for all rounds; connect gets a fresh copy of its handle each time. */
static int listener_again(struct side *s)
{
	struct handle h, copy;
	struct both b;

	TRY(side_start(s));
	TRY(exchange_handles(s, &b, &h));
	for (int round = 0; round < 10; round++) {
		copy = h;
		TRY(join_in_turn(s, &b, &copy));
		if (!s->source.symbol)
			TRY(sends_first(s, &b));
		OK(s, s->net->closeSend(b.send));
		OK(s, s->net->closeRecv(b.recv));
	}
	TRY(side_barrier(s));
	OK(s, s->net->closeListen(b.listen));
	return side_stop(s);
}

/* ------------------------------------------------------------- sends before receives, with tags */

/* Taken early or not, they go where their tags belong, in order. */
static int early_tags(struct side *s)
{
	enum { N = 5, ROOM = 1000 };
	static const int sent[N] = { 7, 5, 6, 5, 7 }, posted[N] = { 5, 6, 7, 5, 7 };
	static const uint64_t from[N] = { 1, 2, 0, 3, 4 }; /* which send each place gets */
	void *comm, *request[N] = { 0 };
	struct buffer b;
	int told[N];

	TRY(side_start(s));
	TRY(side_link(s, &comm));
	TRY(side_buffer(s, comm, N * ROOM, &b));
	if (!s->sender) {
		void *data[N], *mh[N];
		size_t room[N];
		int tag[N];

		TRY(side_barrier(s)); /* the sends were tried */
		for (int i = 0; i < N; i++) {
			data[i] = b.bytes + i * ROOM;
			mh[i] = b.mhandle;
			room[i] = ROOM;
			tag[i] = posted[i];
		}
		TRY(side_irecv(s, comm, 2, data, room, tag, mh, &request[0]));
		TRY(side_irecv(s, comm, 2, data + 2, room + 2, tag + 2, mh + 2, &request[1]));
		TRY(side_irecv(s, comm, 1, data + 4, room + 4, tag + 4, mh + 4, &request[2]));
		TRY(side_wait(s, request[2], told + 4));
		TRY(side_wait(s, request[1], told + 2));
		TRY(side_wait(s, request[0], told));
		for (int i = 0; i < N; i++) {
			REQUIRE(s, told[i] == 900 + (int)from[i], "place %d has %d bytes", i,
				told[i]);
			TRY(side_check_at(s, data[i], (size_t)told[i], from[i]));
		}
	} else {
		int64_t end = side_ms() + SIDE_WAIT_MS;

		for (int left = N, pass = 0; left; pass++) {
			for (int i = 0; i < N; i++) {
				uint8_t *data = b.bytes + i * ROOM;
				bool behind = false;

				for (int k = 0; k < i; k++) /* equal tags stay in order */
					behind = behind || (sent[k] == sent[i] && !request[k]);
				if (request[i] || behind)
					continue;
				side_fill(data, 900 + (size_t)i, (uint64_t)i);
				OK(s, s->net->isend(comm, data, 900 + (size_t)i, sent[i], b.mhandle,
						    NULL, &request[i]));
				left -= request[i] != NULL;
			}
			if (!pass)
				TRY(side_barrier(s));
			REQUIRE(s, side_ms() < end, "%d sends are not taken", left);
		}
		for (int i = 0; i < N; i++)
			TRY(side_wait(s, request[i], NULL));
	}
	TRY(side_barrier(s));
	TRY(side_buffer_free(s, comm, &b));
	TRY(side_unlink(s, comm));
	return side_stop(s);
}

/* ---------------------------------------------------- deregistered and closed with 32 under way */

enum { BIG = 1 << 20, CLOSERS = 4 };

struct closer {
	struct side side;
	pthread_t thread;
	struct both both;
	int verdict;
};

static int post_and_close(struct side *s, const struct both *b)
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

	TRY(side_start(s));
	for (int round = 0; round < rounds; round++) {
		for (int i = 0; i < CLOSERS; i++) {
			struct handle h;

			TRY(exchange_handles(s, &closer[i].both, &h));
			TRY(join_in_turn(s, &closer[i].both, &h));
			closer[i].side = *s;
			pthread_create(&closer[i].thread, NULL, closer_main, &closer[i]);
		}
		for (int i = 0; i < CLOSERS; i++)
			pthread_join(closer[i].thread, NULL);
		for (int i = 0; i < CLOSERS; i++)
			REQUIRE(s, !closer[i].verdict, "round %d, thread %d: %s", round, i,
				closer[i].side.reason);
	}
	return side_stop(s);
}

/* ---------------------------------------------------------------- little care */

static int devices_before_init(struct side *s)
{
	ncclNetProperties_v12_t p;
	const char *why;
	int ndev = 0;

	if (s->source.symbol)
		return side_skip(s, "the oracle has none before init");
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

	if (s->source.symbol)
		return side_skip(s, "the oracle's library is not unloaded");
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
	struct both b;
	int ndev;

	TRY(side_start(s));
	OK(s, s->net->devices(&ndev));
	if (ndev < 2)
		return side_skip(s, "%d device", ndev);
	for (int i = 0; i < ndev; i++) {
		s->dev = s->sender ? i : ndev - 1 - i;
		TRY(exchange_handles(s, &b, &h));
		TRY(join_in_turn(s, &b, &h));
		if (!s->source.symbol)
			TRY(sends_first(s, &b));
		TRY(side_barrier(s));
		TRY(close_in_order(s, &b, 0));
	}
	return side_stop(s);
}

const struct net_case usage_cases[] = {
	{ "41", "both connect, and only then both accept", 2, 0, connect_then_accept },
	{ "42", "32 sends before the first receive, in both directions", 2, 0, ring },
	{ "42b", "sends before receives find their tags", 2, 0, early_tags },
	{ "43", "4 threads deregister and close with 32 messages of 1 MiB under way", 2, 0,
	  close_all_under_way },
	{ "44", "one listener, ten connections one after the other", 2, 0, listener_again },
	{ "45", "devices and properties before init; nothing but NULL for init", 1, 0,
	  devices_before_init },
	{ "45b", "v8: unloaded right after init", 1, 8, unloaded_without_finalize },
	{ "46", "the two ends on different devices", 2, 0, crossed_devices },
	{ 0 },
};
