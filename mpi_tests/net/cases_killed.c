/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cases_killed.c -- case 32: the peer is killed, at every stage; a typed error in bounded time, and
 * close still works
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "net_side.h"

enum { LEN = 1 << 20, FLIGHT = 4, BOUND_MS = 10000 };

/* Does not come back. */
static int die(struct side *s)
{
	snprintf(s->reason, sizeof(s->reason), "killed as planned");
	return raise(SIGKILL);
}

static ncclResult_t post(struct side *s, void *comm, struct buffer *b, void **request)
{
	void *data = b->bytes, *phandle = NULL;
	size_t size = b->size;
	int tag = 0;

	*request = NULL;
	if (s->sender)
		return s->net->isend(comm, data, size, tag, b->mhandle, NULL, request);
	return s->net->irecv(comm, 1, &data, &size, &tag, &b->mhandle, &phandle, request);
}

/* What every later call says, and that everything can be put away. */
static int aftermath(struct side *s, void *comm, struct buffer *b, ncclResult_t ret, int64_t before)
{
	void *request;

	REQUIRE(s, ret == ncclRemoteError || s->source.symbol, "the error is %d, not %d", (int)ret,
		(int)ncclRemoteError);
	snprintf(s->reason, sizeof(s->reason), "error %d after %d ms", (int)ret,
		 (int)(side_ms() - before));
	REQUIRE(s, post(s, comm, b, &request), "the next call succeeds");
	before = side_slept_ms();
	TRY(side_buffer_free(s, comm, b));
	TRY(side_unlink(s, comm));
	before = side_slept_ms() - before;
	REQUIRE(s, before < SIDE_CLOSE_MS, "close took %d ms", (int)before);
	return side_stop(s);
}

/* Goes on sending or receiving until there is an error. */
static int survive(struct side *s, void *comm, struct buffer *b)
{
	int64_t end = side_ms() + BOUND_MS, before = side_ms();
	void *request = NULL;
	ncclResult_t ret = ncclSuccess;

	while (!ret) {
		int done = 0;

		ret = request ? s->net->test(request, &done, NULL) : post(s, comm, b, &request);
		if (done)
			request = NULL;
		REQUIRE(s, side_ms() < end, "no error within %d ms of the peer's death", BOUND_MS);
	}
	return aftermath(s, comm, b, ret, before);
}

/* Only looks at a request that was there before. */
static int wait_for_error(struct side *s, void *comm, struct buffer *b, void *request)
{
	int64_t end = side_ms() + BOUND_MS, before = side_ms();
	ncclResult_t ret = ncclSuccess;
	int done = 0;

	while (!ret) {
		ret = s->net->test(request, &done, NULL);
		REQUIRE(s, !done, "a request was done that nobody answered");
		REQUIRE(s, side_ms() < end, "no error within %d ms of the peer's death", BOUND_MS);
	}
	return aftermath(s, comm, b, ret, before);
}

static int begin(struct side *s, void **comm, struct buffer *b)
{
	TRY(side_start(s));
	TRY(side_link(s, comm));
	return side_buffer(s, *comm, LEN, b);
}

static int after_traffic(struct side *s, bool sender_dies)
{
	struct buffer b;
	void *comm;

	TRY(begin(s, &comm, &b));
	for (int i = 0; i < 10; i++) {
		void *request;

		if (s->sender)
			TRY(side_isend(s, comm, b.bytes, LEN, 0, b.mhandle, &request));
		else
			TRY(side_irecv1(s, comm, &b, LEN, 0, &request));
		TRY(side_wait(s, request, NULL));
	}
	return s->sender == sender_dies ? die(s) : survive(s, comm, &b);
}

static int sender_after_traffic(struct side *s)
{
	return after_traffic(s, true);
}

static int receiver_after_traffic(struct side *s)
{
	return after_traffic(s, false);
}

static int receive_posted(struct side *s)
{
	struct buffer b;
	void *comm, *request;

	TRY(begin(s, &comm, &b));
	if (s->sender) {
		TRY(side_barrier(s));
		return die(s);
	}
	TRY(side_irecv1(s, comm, &b, LEN, 0, &request));
	TRY(side_barrier(s));
	return wait_for_error(s, comm, &b, request);
}

/* A plugin may take such a send or say "not now": either way the error must come. */
static int send_without_receive(struct side *s)
{
	struct buffer b;
	void *comm, *request;

	TRY(begin(s, &comm, &b));
	if (!s->sender) {
		TRY(side_barrier(s));
		return die(s);
	}
	OK(s, post(s, comm, &b, &request));
	TRY(side_barrier(s));
	return request ? wait_for_error(s, comm, &b, request) : survive(s, comm, &b);
}

/* The receiver has asked for several messages and dies while they come. */
static int in_mid_transfer(struct side *s)
{
	void *comm, *request;
	struct buffer b;

	TRY(begin(s, &comm, &b));
	if (s->sender) {
		TRY(side_barrier(s));
		return survive(s, comm, &b);
	}
	for (int i = 0; i < FLIGHT; i++)
		TRY(side_irecv1(s, comm, &b, LEN, 0, &request));
	TRY(side_barrier(s));
	usleep(1000);
	return die(s);
}

/*
 * The handle is known, and then the listener is gone: before connect, or while it waits for accept.
 */
static int listener_dies(struct side *s, bool connecting)
{
	int64_t end, before;
	ncclResult_t ret = ncclSuccess;
	void *listen = NULL, *comm = NULL;
	struct handle h;

	TRY(side_start(s));
	side_handle_init(&h);
	if (!s->sender) {
		OK(s, s->net->listen(s->ctx, s->dev, h.bytes, &listen));
		TRY(side_put(s, h.bytes, sizeof(h.bytes)));
		if (connecting)
			TRY(side_barrier(s));
		return die(s);
	}
	TRY(side_get(s, h.bytes, sizeof(h.bytes)));
	if (connecting) {
		ncclNetDeviceHandle_v7_t *d = NULL;

		for (int i = 0; i < 20 && !comm; i++) {
			OK(s, s->net->connect(s->ctx, s->dev, h.bytes, &comm, &d));
			usleep(1000);
		}
		REQUIRE(s, !comm, "connected although nobody accepts");
		TRY(side_barrier(s));
	}
	before = side_ms();
	for (end = before + BOUND_MS; !ret;) {
		ncclNetDeviceHandle_v7_t *d = NULL;

		ret = s->net->connect(s->ctx, s->dev, h.bytes, &comm, &d);
		REQUIRE(s, !comm, "connected to a dead process");
		REQUIRE(s, side_ms() < end, "no error within %d ms of the peer's death", BOUND_MS);
		usleep(1000);
	}
	REQUIRE(s, ret == ncclRemoteError || s->source.symbol, "the error is %d, not %d", (int)ret,
		(int)ncclRemoteError);
	snprintf(s->reason, sizeof(s->reason), "error %d after %d ms", (int)ret,
		 (int)(side_ms() - before));
	return side_stop(s);
}

static int before_connect(struct side *s)
{
	return listener_dies(s, false);
}

static int in_connect(struct side *s)
{
	return listener_dies(s, true);
}

/* Accept has nothing to report but the next one who comes. */
static int connecting_dies(struct side *s)
{
	ncclNetDeviceHandle_v7_t *d = NULL;
	void *listen, *send = NULL, *recv = NULL;
	struct handle h;
	int64_t end;

	TRY(side_start(s));
	side_handle_init(&h);
	if (s->sender) {
		TRY(side_get(s, h.bytes, sizeof(h.bytes)));
		for (int i = 0; i < 3 && !send; i++)
			OK(s, s->net->connect(s->ctx, s->dev, h.bytes, &send, &d));
		TRY(side_barrier(s));
		return die(s);
	}
	OK(s, s->net->listen(s->ctx, s->dev, h.bytes, &listen));
	TRY(side_put(s, h.bytes, sizeof(h.bytes)));
	OK(s, s->net->accept(listen, &recv, &d)); /* it may have come already */
	TRY(side_barrier(s));
	for (end = side_ms() + 500; !recv && side_ms() < end;) {
		OK(s, s->net->accept(listen, &recv, &d));
		usleep(1000);
	}
	if (recv)
		OK(s, s->net->closeRecv(recv));
	end = side_ms() + SIDE_WAIT_MS;
	for (recv = NULL; !send || !recv;) {
		if (!send)
			OK(s, s->net->connect(s->ctx, s->dev, h.bytes, &send, &d));
		if (!recv)
			OK(s, s->net->accept(listen, &recv, &d));
		REQUIRE(s, side_ms() < end, "the next connection does not come through");
	}
	OK(s, s->net->closeSend(send));
	OK(s, s->net->closeRecv(recv));
	OK(s, s->net->closeListen(listen));
	return side_stop(s);
}

const struct net_case killed_cases[] = {
	{ "32", "the sender is killed after some traffic", 2, 0, sender_after_traffic },
	{ "32b", "the receiver is killed after some traffic", 2, 0, receiver_after_traffic },
	{ "32c", "the listener is killed before connect", 2, 0, before_connect },
	{ "32d", "the listener is killed while connect waits", 2, 0, in_connect },
	{ "32e", "who connects is killed; accept serves the next", 2, 0, connecting_dies },
	{ "32f", "the sender is killed while a receive waits", 2, 0, receive_posted },
	{ "32g", "the receiver is killed while a send waits for it", 2, 0, send_without_receive },
	{ "32h", "the receiver is killed in the middle of messages", 2, 0, in_mid_transfer },
	{ 0 },
};
