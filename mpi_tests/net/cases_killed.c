/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cases_killed.c -- case 32: the peer is killed, at every stage; a typed error in bounded time, and
 * close still works
 */
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "net_side.h"

enum { LEN = 1 << 20, FLIGHT = 4 };
#define BOUND_MS ((int)slow_ms(10000))

/* Does not come back. */
static int die(struct side *s)
{
	snprintf(s->reason, sizeof(s->reason), "killed as planned");
	return raise(SIGKILL);
}

static ncclResult_t post(struct side *s, void **request)
{
	void *data = s->b.bytes, *phandle = NULL;
	size_t size = s->b.size;
	int tag = 0;

	*request = NULL;
	if (s->sender)
		return s->net->isend(s->comm, data, size, tag, s->b.mhandle, NULL, request);
	return s->net->irecv(s->comm, 1, &data, &size, &tag, &s->b.mhandle, &phandle, request);
}

/* What every later call says, and that everything can be put away. */
static int aftermath(struct side *s, ncclResult_t ret, int64_t before)
{
	void *request;

	REQUIRE(s, ret == ncclRemoteError || s->source.symbol, "the error is %d, not %d", (int)ret,
		(int)ncclRemoteError);
	snprintf(s->reason, sizeof(s->reason), "error %d after %d ms", (int)ret,
		 (int)(side_ms() - before));
	REQUIRE(s, post(s, &request), "the next call succeeds");
	before = side_slept_ms();
	TRY(side_buffer_free(s, s->comm, &s->b));
	TRY(side_unlink(s, s->comm));
	before = side_slept_ms() - before;
	REQUIRE(s, before < SIDE_CLOSE_MS, "close took %d ms", (int)before);
	return side_stop(s);
}

/* Goes on sending or receiving until there is an error. */
static int survive(struct side *s)
{
	int64_t end = side_ms() + BOUND_MS, before = side_ms();
	void *request = NULL;
	ncclResult_t ret = ncclSuccess;

	while (!ret) {
		int done = 0;

		ret = request ? s->net->test(request, &done, NULL) : post(s, &request);
		if (done)
			request = NULL;
		REQUIRE(s, side_ms() < end, "no error within %d ms of the peer's death", BOUND_MS);
	}
	return aftermath(s, ret, before);
}

/* Only looks at a request that was there before. */
static int wait_for_error(struct side *s, void *request)
{
	int64_t end = side_ms() + BOUND_MS, before = side_ms();
	ncclResult_t ret = ncclSuccess;
	int done = 0;

	while (!ret) {
		ret = s->net->test(request, &done, NULL);
		REQUIRE(s, !done, "a request was done that nobody answered");
		REQUIRE(s, side_ms() < end, "no error within %d ms of the peer's death", BOUND_MS);
	}
	return aftermath(s, ret, before);
}

static int after_traffic(struct side *s, bool sender_dies)
{
	for (uint64_t i = 0; i < 10; i++)
		TRY(side_message(s, s->comm, &s->b, LEN, i));
	return s->sender == sender_dies ? die(s) : survive(s);
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
	void *request;

	if (s->sender) {
		TRY(side_barrier(s));
		return die(s);
	}
	TRY(side_irecv1(s, s->comm, &s->b, LEN, 0, &request));
	TRY(side_barrier(s));
	return wait_for_error(s, request);
}

/* A plugin may take such a send or say "not now": either way the error must come. */
static int send_without_receive(struct side *s)
{
	void *request;

	if (!s->sender) {
		TRY(side_barrier(s));
		return die(s);
	}
	OK(s, post(s, &request));
	TRY(side_barrier(s));
	return request ? wait_for_error(s, request) : survive(s);
}

/* The receiver has asked for several messages and dies while they come. */
static int in_mid_transfer(struct side *s)
{
	void *request;

	if (s->sender) {
		TRY(side_barrier(s));
		return survive(s);
	}
	for (int i = 0; i < FLIGHT; i++)
		TRY(side_irecv1(s, s->comm, &s->b, LEN, 0, &request));
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
	struct loop loop = { 0 };
	struct handle h;
	int64_t end;

	side_handle_init(&h);
	if (s->sender) {
		TRY(side_get(s, h.bytes, sizeof(h.bytes)));
		for (int i = 0; i < 3 && !loop.send; i++)
			OK(s, s->net->connect(s->ctx, s->dev, h.bytes, &loop.send, &d));
		TRY(side_barrier(s));
		return die(s);
	}
	OK(s, s->net->listen(s->ctx, s->dev, h.bytes, &loop.listen));
	TRY(side_put(s, h.bytes, sizeof(h.bytes)));
	OK(s, s->net->accept(loop.listen, &loop.recv, &d)); /* it may have come already */
	TRY(side_barrier(s));
	for (end = side_ms() + 500; !loop.recv && side_ms() < end;) {
		OK(s, s->net->accept(loop.listen, &loop.recv, &d));
		usleep(1000);
	}
	if (loop.recv)
		OK(s, s->net->closeRecv(loop.recv));
	loop.recv = NULL;
	TRY(side_join(s, &loop, &h));
	TRY(side_loop_close(s, &loop));
	return side_stop(s);
}

#define KILLED WITH_LINK(LEN), .dies = true
#define KILLED_ALONE WITH_INIT, .dies = true

const struct net_case killed_cases[] = {
	{ "32", "the sender is killed after some traffic", 2, 0, sender_after_traffic, KILLED },
	{ "32b", "the receiver is killed after some traffic", 2, 0, receiver_after_traffic,
	  KILLED },
	{ "32c", "the listener is killed before connect", 2, 0, before_connect, KILLED_ALONE },
	{ "32d", "the listener is killed while connect waits", 2, 0, in_connect, KILLED_ALONE },
	{ "32e", "the connecting process is killed; accept serves the next", 2, 0, connecting_dies,
	  KILLED_ALONE },
	{ "32f", "the sender is killed while a receive waits", 2, 0, receive_posted, KILLED },
	{ "32g", "the receiver is killed while a send waits for it", 2, 0, send_without_receive,
	  KILLED },
	{ "32h", "the receiver is killed in the middle of messages", 2, 0, in_mid_transfer,
	  KILLED },
	{ 0 },
};
