/* SPDX-License-Identifier: Apache-2.0 */
/* staged.c -- messages about slots (slot.h): what is due goes out, what has come is done */
#include "slot.h"

#include "base/error.h"

static int say_open(struct ib_conn *c)
{
	struct ib_staged *s = c->staged;
	uint64_t addr = (uint64_t)(uintptr_t)(s->bytes + STAGED_HALF);

	if (s->sent_open ||
	    ib_staged_say(c, &(struct staged_message){
				     .kind = STAGED_OPEN, .word = addr, .number = s->mr_in->rkey }))
		return 0;
	s->sent_open = true;
	return 1;
}

static int say_taken(struct ib_conn *c)
{
	struct ib_staged *s = c->staged;

	if (s->placed_sent == s->placed ||
	    ib_staged_say(c, &(struct staged_message){ .kind = STAGED_TAKEN, .number = s->placed }))
		return 0;
	s->placed_sent = s->placed;
	return 1;
}

int ib_staged_push(struct ib_conn *c)
{
	bool ran = ib_staged_runs(c);
	int done = 0;

	if (c->state == IB_LIVE)
		done += say_open(c);
	if (c->state == IB_LIVE)
		done += say_taken(c);
	if (c->state == IB_LIVE)
		done += ib_gather_push(c);
	if (done || (ran && !ib_staged_runs(c)))
		c->room |= c->refused;
	return done;
}

static int refuse(struct kv_error *err)
{
	return kv_fail(err, KV_ERR_PROTOCOL, "message",
		       "a message of the peer about staged memory "
		       "is malformed");
}

static int take_open(struct ib_conn *c, const struct staged_message *message, struct kv_error *err)
{
	int ret = c->staged && c->staged->open ? refuse(err) : ib_staged_make(c, err);

	if (ret)
		return ret;
	c->staged->peer = message->word;
	c->staged->rkey = message->number;
	c->staged->open = true;
	return 0;
}

static int take_message(struct ib_conn *c, const struct staged_message *message,
			struct kv_error *err)
{
	if (message->kind == STAGED_OPEN)
		return take_open(c, message, err);
	if (!c->staged || !c->staged->sent_open)
		return refuse(err);
	if (message->kind == STAGED_TAKEN)
		return ib_gather_taken(c, message->number) ? 0 : refuse(err);
	return ib_scatter_slot(c, message, err);
}

/* false: not yet, or never: what follows it waits. */
bool ib_staged_take(struct ib_conn *c, const uint8_t *text, size_t len)
{
	struct wire_reader r = wire_reader_of(text, len);
	struct staged_message message = { .kind = wire_get_u8(&r) };
	uint8_t zero = wire_get_u8(&r);
	struct kv_error err;
	int ret;

	message.spans = wire_get_u16(&r);
	message.bytes = wire_get_u32(&r);
	message.word = wire_get_u64(&r);
	message.number = wire_get_u32(&r);
	if (c->state != IB_LIVE) /* nothing of the peer is placed any more */
		return false;
	ret = zero || !wire_done(&r) ? refuse(&err) : take_message(c, &message, &err);
	if (ret < 0)
		ib_staged_break(c, &err);
	return !ret;
}
