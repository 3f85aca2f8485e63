/* SPDX-License-Identifier: Apache-2.0 */
/*
 * event.c -- the events that a connection reports to its owner: ends of operations, notifies,
 * messages, its own loss; each exactly once
 */
#include <sys/socket.h>

#include "base/error.h"
#include "base/log.h"
#include "conn.h"

enum { CONTROL_EVERY = 64 }; /* idle polls between two looks at the control socket */

void tr_op_end(struct tr_op *op, int kind)
{
	struct conn_data *data = op->conn->data;

	if (op->state == TR_OP_FREE || op->state == TR_OP_ENDED)
		return;
	op->state = TR_OP_ENDED;
	op->end_kind = kind;
	op->next = NULL;
	*data->ended_last = op;
	data->ended_last = &op->next;
}

int tr_conn_room(const struct tr_conn *conn)
{
	return CONN_EVENTS - (int)(conn->data->event_tail - conn->data->event_head);
}

static struct conn_event *push(struct tr_conn *conn, int kind)
{
	struct conn_event *e = &conn->data->event[conn->data->event_tail++ % CONN_EVENTS];

	e->kind = kind;
	return e;
}

void tr_conn_notified(struct tr_conn *conn, uint64_t value)
{
	push(conn, TR_NOTIFIED)->value = value;
	conn->count.notifies_in++;
}

void tr_conn_message(struct tr_conn *conn, const void *buf, size_t len)
{
	struct conn_event *e = push(conn, TR_MSG);

	e->len = (uint32_t)len;
	memcpy(e->msg, buf, len);
	conn->count.msgs_in++;
}

static bool set_error(struct tr_conn *conn, const struct kv_error *cause)
{
	if (conn->error.code)
		return false;
	conn->error = *cause;
	if (!conn->error.peer[0])
		memcpy(conn->error.peer, conn->address, sizeof(conn->error.peer));
	return true;
}

/*
 * A loss that this side did not ask for. One that came of the other end's giving the handshake up
 * is reported in its words, whatever has shown it first.
 */
static void set_loss(struct tr_conn *conn, const struct kv_error *cause)
{
	struct frame_reject reject;
	struct kv_error refused;

	if (!conn->error.code && !conn->accepting && control_refusal(conn, &reject)) {
		kv_fail(&refused, KV_ERR_PEER_LOST, "poll", "%s refused: KV_ERR_%s: %s",
			conn->address, kv_error_name(reject.code), reject.message);
		kv_error_hint(&refused, "%s", reject.hint);
		cause = &refused;
	}
	if (set_error(conn, cause))
		kv_log_warn(conn->tr->log, "connection to %s is lost: KV_ERR_%s: %s", conn->address,
			    kv_error_name(conn->error.code), conn->error.message);
}

void tr_conn_lost(struct tr_conn *conn, const struct kv_error *cause)
{
	if (conn->stage != CONN_READY && conn->stage != CONN_BREAKING)
		return;
	set_loss(conn, cause);
	conn->stage = CONN_LOST;
	silence_end(conn);
	if (conn->sock >= 0)
		shutdown(conn->sock, SHUT_RDWR); /* the peer sees it at once */
	for (unsigned int i = 0; i < tr_conn_ops(conn); i++) {
		struct tr_op *op = tr_conn_op(conn, i);

		tr_op_end(op, op->state == TR_OP_STOPPING ? TR_CANCELLED : TR_IN_DOUBT);
	}
}

int tr_fence(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err)
{
	struct kv_error cause;
	int ret;

	if (!conn->data)
		/* the peer cannot be ready, as this end's setup was not sent */
		return 0;
	if (conn->stage == CONN_READY || conn->stage == CONN_WAIT_READY) {
		kv_fail(&cause, KV_ERR_PEER_LOST, "fence", "this end fenced the connection to %s",
			conn->address);
		set_error(conn, &cause);
		/* waiting for READY: the peer may have sent it, and write already */
		conn->leaving = conn->stage == CONN_READY;
		conn->stage = conn->leaving ? CONN_BREAKING : CONN_FAILED;
	}
	ret = conn->provider->fence(conn, linger_ns, err);
	if (!ret || conn->provider->stops_at_once)
		tr_conn_lost(conn, &conn->error);
	return ret;
}

void tr_conn_cut(struct tr_conn *conn)
{
	if (conn->provider->cut)
		conn->provider->cut(conn);
}

bool tr_conn_can_cut(const struct tr_conn *conn)
{
	return conn->provider && conn->provider->cut;
}

/*
 * The control socket, and silence, show a death that the provider may not notice. What the peer
 * sent before it went still counts: that is taken first, and they are looked at again at the next
 * poll.
 */
static void watch_control(struct tr_conn *conn)
{
	struct kv_error cause;

	conn->idle_polls = 0;
	if (conn->sock < 0) { /* what its link shows the provider reports by itself */
		silence_look_again(conn);
		conn->provider->ask(conn);
		return;
	}
	if (!control_is_dead(conn, &cause) && !silence_is_loss(conn, &cause))
		return;
	if (conn->provider->progress(conn)) {
		conn->idle_polls = CONTROL_EVERY - 1;
		return;
	}
	if (conn->stage != CONN_READY)
		return;
	set_loss(conn, &cause);
	conn->stage = CONN_BREAKING;
}

static void fill_end_event(const struct tr_conn *conn, struct tr_event *event,
			   const struct tr_op *op)
{
	*event = (struct tr_event){ .kind = op->end_kind, .user = op->user };
	if (op->end_kind == TR_IN_DOUBT) {
		event->status = conn->error.code;
		event->cause = &conn->error;
	}
}

static int take_events(struct tr_conn *conn, struct tr_event *events, int n)
{
	struct conn_data *data = conn->data;
	int got = 0;

	while (got < n && data->ended_first) {
		struct tr_op *op = data->ended_first;

		fill_end_event(conn, &events[got++], op);
		data->ended_first = op->next;
		if (!data->ended_first)
			data->ended_last = &data->ended_first;
		op_release(op);
	}
	while (got < n && data->event_head + data->event_lent != data->event_tail) {
		const struct conn_event *e =
			&data->event[(data->event_head + data->event_lent++) % CONN_EVENTS];

		events[got++] = (struct tr_event){
			.kind = e->kind,
			.value = e->value,
			.msg = e->kind == TR_MSG ? e->msg : NULL,
			.len = e->kind == TR_MSG ? e->len : 0,
		};
	}
	if (got < n && conn->stage == CONN_LOST && !conn->lost_reported) {
		conn->lost_reported = true;
		events[got++] = (struct tr_event){
			.kind = TR_PEER_LOST,
			.status = conn->error.code,
			.cause = &conn->error,
		};
	}
	return got;
}

int tr_poll(struct tr_conn *conn, struct tr_event *events, int n)
{
	struct conn_data *data = conn->data;

	if (!data || conn->hs)
		return 0; /* the handshake is not over */
	/* What the last call gave out may be overwritten now. */
	if (data->event_lent) {
		data->event_head += data->event_lent;
		data->event_lent = 0;
		if (data->event_head == data->event_tail)
			data->event_head = data->event_tail = 0; /* the same few places again */
	}
	if (conn->stage == CONN_READY && !conn->provider->progress(conn) &&
	    ++conn->idle_polls == CONTROL_EVERY)
		watch_control(conn);
	/* At every look: a descriptor is to be closed, soon. */
	if (conn->stage == CONN_READY && conn->own_link && conn->sock >= 0)
		watch_control(conn);
	/*
	 * A provider that cannot be fenced yet still has nothing of ours under way: only foreign
	 * bytes may land, see tr_fence.
	 */
	/* If the peer has left, there is no one to send the rest to: do not wait for it. */
	if (conn->stage == CONN_BREAKING &&
	    conn->provider->fence(conn, conn->leaving ? INT64_MAX : 0, NULL) != TR_AGAIN)
		tr_conn_lost(conn, &conn->error);
	return take_events(conn, events, n);
}

void tr_conn_poll_on(struct tr_conn *conn)
{
	if (conn->stage == CONN_READY && conn->provider->polled)
		conn->provider->polled(conn);
}

bool tr_conn_computes(const struct tr_conn *conn)
{
	return conn->provider && conn->provider->computes && conn->provider->computes(conn);
}

bool tr_conn_awaits(const struct tr_conn *conn)
{
	return conn->stage == CONN_READY && conn->provider->await;
}

bool tr_conn_await(struct tr_conn *conn, int64_t looks_ns, int64_t most_ns, int fd)
{
	return tr_conn_awaits(conn) && conn->provider->await(conn, looks_ns, most_ns, fd);
}

/* What it is without the provider: 0 or 1; -1: only that can say. */
static int arm_core(struct tr_conn *conn)
{
	const struct conn_data *data = conn->data;

	if (!data || conn->hs)
		return 0;
	if (conn->stage == CONN_READY && silence_is_due(conn))
		watch_control(conn); /* a caller that sleeps between polls does not poll often */
	if (data->ended_first || data->event_head + data->event_lent != data->event_tail)
		return 1;
	if (conn->stage == CONN_LOST)
		return !conn->lost_reported;
	return conn->stage == CONN_BREAKING ? 1 : -1;
}

int tr_conn_arm(struct tr_conn *conn)
{
	int known = arm_core(conn);

	return known >= 0 ? known : conn->provider->arm(conn);
}

int tr_conn_hand_over(struct tr_conn *conn)
{
	const struct tr_provider *provider = conn->provider;
	int known = arm_core(conn);

	if (known >= 0)
		return known;
	return provider->hand_over ? provider->hand_over(conn) : provider->arm(conn);
}
