/* SPDX-License-Identifier: Apache-2.0 */
/* net_case.c -- what a conformance case finds made, and whole messages for it */
#include <sched.h>

#include "net_side.h"

int side_post(struct side *s, void *comm, struct buffer *b, size_t at, size_t size, uint64_t seed,
	      void **request)
{
	void *data = b->bytes + at;
	int tag = 0;

	if (!s->sender)
		return side_irecv(s, comm, 1, &data, &size, &tag, &b->mhandle, request);
	side_fill(data, size, seed);
	return side_isend(s, comm, data, size, tag, b->mhandle, request);
}

int side_message(struct side *s, void *comm, struct buffer *b, size_t size, uint64_t seed)
{
	void *request;

	side_poison(b);
	TRY(side_post(s, comm, b, 0, size, seed, &request));
	TRY(side_wait(s, request, NULL));
	return side_check(s, b, size, seed); /* a sender's own bytes are as they were, too */
}

int side_move(struct side *s, const struct loop *loop, const struct message *m)
{
	void *to = m->to, *to_mhandle = m->to_mhandle, *in = NULL, *out = NULL;
	int tag = m->tag, sent = -1, received = -1, done[2] = { 0 };
	int64_t end = side_ms() + SIDE_WAIT_MS;
	size_t room = m->room ? m->room : m->size;
	void *phandle = NULL;

	while (!done[0] || !done[1]) {
		if (!in)
			OK(s, s->net->irecv(loop->recv, 1, &to, &room, &tag, &to_mhandle, &phandle,
					    &in));
		else if (!done[0])
			OK(s, s->net->test(in, &done[0], &received));
		if (!out)
			OK(s, s->net->isend(loop->send, m->from, m->size, tag, m->from_mhandle,
					    NULL, &out));
		else if (!done[1])
			OK(s, s->net->test(out, &done[1], &sent));
		REQUIRE(s, side_ms() < end, "a message was not done in %d ms", SIDE_WAIT_MS);
		sched_yield();
	}
	REQUIRE(s, sent == received && (size_t)sent == m->size, "%zu bytes: sent %d, received %d",
		m->size, sent, received);
	return PASS;
}

int side_exchange(struct side *s, const struct loop *loop, struct buffer *from, struct buffer *to,
		  size_t size, uint64_t seed)
{
	side_fill(from->bytes, size, seed);
	side_poison(to);
	TRY(side_move(s, loop,
		      &(struct message){ .from = from->bytes,
					 .from_mhandle = from->mhandle,
					 .to = to->bytes,
					 .to_mhandle = to->mhandle,
					 .size = size,
					 .room = to->size,
					 .tag = 1 }));
	return side_check(s, to, size, seed);
}

int side_try(struct side *s, const struct loop *loop, uint64_t seed)
{
	struct buffer from, to;

	TRY(side_buffer(s, loop->send, 100, &from));
	TRY(side_buffer(s, loop->recv, 100, &to));
	TRY(side_exchange(s, loop, &from, &to, 100, seed));
	TRY(side_buffer_free(s, loop->send, &from));
	return side_buffer_free(s, loop->recv, &to);
}

/* ---------------------------------------------------------------- the rig of a case */

static int rig_begin(struct side *s, const struct net_case *c)
{
	ncclNetProperties_v12_t p = { 0 };

	if (c->rig == BARE)
		return PASS;
	TRY(side_start(s));
	if (c->attributes)
		TRY(side_attributes(s));
	if (c->rows)
		OK(s, s->net->getProperties(s->dev, &p));
	if (p.maxRecvs < c->rows)
		return side_skip(s, "maxRecvs is %d", p.maxRecvs);
	if (c->rig == LINKED)
		TRY(side_link(s, &s->comm));
	if (c->rig == LINKED && c->bytes)
		TRY(side_buffer(s, s->comm, c->bytes, &s->b));
	if (c->rig == LOOPED)
		TRY(side_loop(s, &s->loop));
	if (c->rig == LOOPED && c->bytes) {
		TRY(side_buffer(s, s->loop.send, c->bytes, &s->from));
		TRY(side_buffer(s, s->loop.recv, c->bytes, &s->to));
	}
	return PASS;
}

static int rig_end(struct side *s, const struct net_case *c)
{
	if (c->rig == BARE)
		return PASS;
	if (c->rig == LINKED) {
		TRY(side_barrier(s));
		if (c->bytes)
			TRY(side_buffer_free(s, s->comm, &s->b));
		TRY(side_unlink(s, s->comm));
	}
	if (c->rig == LOOPED && c->bytes) {
		TRY(side_buffer_free(s, s->loop.send, &s->from));
		TRY(side_buffer_free(s, s->loop.recv, &s->to));
	}
	if (c->rig == LOOPED)
		TRY(side_loop_close(s, &s->loop));
	return side_stop(s);
}

int side_case(struct side *s, const struct net_case *c)
{
	if (s->source.symbol && c->not_hidden)
		return side_skip(s, "NCCL's own %s", c->not_hidden);
	if (c->version)
		s->source.version = c->version;
	TRY(rig_begin(s, c));
	TRY(c->run(s));
	return c->dies ? PASS : rig_end(s, c);
}
