/* SPDX-License-Identifier: Apache-2.0 */
/*
 * handshake.c -- from a TCP connection to a proven transport, one non-blocking step at a time
 * (frame.h has the picture)
 *
 * Every failure ends in fail(): the peer gets a REJECT frame where that is possible, the caller the
 * error.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/option.h"
#include "base/text.h"
#include "conn.h"
#include "dial.h"

static int send_frame(struct tr_conn *conn, enum frame_type type, const void *payload, size_t len,
		      struct kv_error *err)
{
	struct conn_handshake *hs = conn->hs;
	int ret;

	free(hs->out);
	hs->out = kv_fault(TR_CONN_SETUP_ALLOC) ? NULL : malloc(FRAME_HEADER + len + MAC_BYTES);
	if (!hs->out)
		return kv_fail(err, KV_ERR_NOMEM, "handshake",
			       "cannot allocate a frame of %zu bytes", len);
	if (len)
		memcpy(hs->out + FRAME_HEADER, payload, len);
	hs->out_len = control_finish_frame(hs->out, type, len, &conn->auth);
	hs->out_pos = 0;
	ret = control_flush(conn, err);
	return ret == TR_AGAIN ? 0 : ret;
}

/*
 * What is for the log of this host alone, as long as the other end has not shown to belong here:
 * the key file and whose it is, what a system call or an allocation has answered.
 */
static bool is_own_affair(const struct tr_conn *conn, const struct kv_error *cause)
{
	return conn->stage <= CONN_WAIT_HELLO &&
	       (!strcmp(cause->op, "key") || kv_error_scope(cause->code) == KV_SCOPE_DEVICE);
}

/*
 * Tells the peer why, as far as the socket takes it at once: only a peer that has shown to be
 * kvrail, and not with half a frame of our own in the way.
 */
static void send_reject(struct tr_conn *conn, const struct kv_error *cause)
{
	const struct conn_handshake *hs = conn->hs;
	/* A connection that was accepted has sent the beginning of a frame: lobby.c. */
	bool is_kvrail = hs && (conn->accepting || hs->in.type || cause->code == KV_ERR_VERSION);
	int code = cause->code;

	if (!is_kvrail || hs->in.type == FRAME_REJECT || code == KV_ERR_PEER_LOST ||
	    (hs->out && hs->out_pos < hs->out_len))
		return;
	/* A shortage of this process is not the peer's fault: it may try again. */
	if (code == KV_ERR_NOFD || code == KV_ERR_NOMEM)
		code = KV_ERR_BUSY;
	if (is_own_affair(conn, cause)) {
		control_warn(conn->tr, cause->message);
		control_reject(conn->sock, &conn->auth, code, "for a cause that its log names", "");
		return;
	}
	control_reject(conn->sock, &conn->auth, code, cause->message, cause->hint);
}

static const struct kv_error *fail(struct tr_conn *conn, const struct kv_error *cause)
{
	/* Else the upper layer has refused it in the peer's words. */
	if (conn->stage != CONN_FAILED)
		send_reject(conn, cause);
	conn->error = *cause;
	if (!conn->error.peer[0])
		memcpy(conn->error.peer, conn->address, sizeof(conn->error.peer));
	conn->stage = CONN_FAILED;
	return &conn->error;
}

static void stop_offers(struct tr_conn *conn)
{
	for (int i = 0; i < conn->tr->providers; i++)
		if (conn->hs->offered[i]) {
			conn->hs->offered[i] = false;
			conn->tr->provider[i]->stop(conn, conn->hs->offer_priv[i]);
		}
}

void handshake_free(struct tr_conn *conn)
{
	if (!conn->hs)
		return;
	stop_offers(conn);
	dial_free(conn->hs->dial);
	free(conn->hs->frame);
	free(conn->hs->out);
	free(conn->hs->hello);
	explicit_bzero(&conn->hs->psk, sizeof(conn->hs->psk));
	free(conn->hs);
	conn->hs = NULL;
}

/* ---------------------------------------------------------------- frames going out */

/* Accepting side: what was offered may have something to take from the peer. */
static void tend_offers(struct tr_conn *conn)
{
	for (int i = 0; i < conn->tr->providers; i++)
		if (conn->hs->offered[i] && conn->tr->provider[i]->offered)
			conn->tr->provider[i]->offered(conn, conn->hs->offer_priv[i]);
}

/* A transport that moves all that is registered; what it does not reach, a later one stages. */
static int offer(struct tr_conn *conn, int i, struct wire_writer *w, struct kv_error *why)
{
	const struct tr_provider *provider = conn->tr->provider[i];

	if (!mem_misses(conn->tr, i, why))
		return provider->offer(conn->tr->provider_ctx[i], conn, &conn->hs->offer_priv[i], w,
				       why);
	kv_log_warn(conn->tr->log, "%s is not offered to %s: %s", provider->name, conn->address,
		    why->message);
	return KV_ERR_UNSUPPORTED;
}

static int put_hello(struct tr_conn *conn, struct kv_error *err)
{
	uint8_t upper[TR_HELLO_MAX], offers[FRAME_OFFERS_MAX][FRAME_OFFER_MAX],
		buf[FRAME_HELLO_MAX];
	struct frame_hello hello = { .features = conn->features,
				     .upper_id = conn->upper->id,
				     .upper_version = conn->upper->version };
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	int len = conn->upper->hello_put(conn->upper_arg, conn, upper, sizeof(upper));
	struct kv_error why = { 0 };

	if (len < 0)
		return kv_fail(err, len, "handshake", "the upper layer has no hello");
	memcpy(hello.incarnation, conn->tr->incarnation, sizeof(hello.incarnation));
	hello.upper = (struct frame_bytes){ upper, (size_t)len };
	for (int i = 0; conn->accepting && i < conn->tr->providers; i++) {
		struct wire_writer o = wire_writer_of(offers[hello.offers], FRAME_OFFER_MAX);
		int ret = offer(conn, i, &o, &why);

		if (ret == KV_ERR_UNSUPPORTED)
			continue;
		if (ret)
			return kv_error_copy(err, &why);
		conn->hs->offered[i] = true;
		if (o.bad)
			return kv_fail(err, KV_ERR_INTERNAL, "handshake",
				       "the %s offer is too long", conn->tr->provider[i]->name);
		hello.offer[hello.offers].provider = conn->tr->provider[i]->id;
		hello.offer[hello.offers++].bytes = (struct frame_bytes){ o.buf, o.len };
	}
	if (conn->accepting && !hello.offers) { /* the peer gets the cause */
		kv_fail(err, KV_ERR_UNREACHABLE, "handshake", "%s",
			why.code ? why.message : "no transport is open here");
		kv_error_hint(err, "%s", why.hint);
		return KV_ERR_UNREACHABLE;
	}
	frame_put_hello(&w, &hello);
	return send_frame(conn, FRAME_HELLO, buf, w.len, err);
}

static int put_setup(struct tr_conn *conn, struct kv_error *err)
{
	uint8_t provider_bytes[FRAME_PROVIDER_SETUP_MAX];
	struct wire_writer p = wire_writer_of(provider_bytes, sizeof(provider_bytes));
	uint8_t *upper = kv_fault(TR_CONN_SETUP_ALLOC) ? NULL : malloc(TR_SETUP_MAX);
	uint8_t *buf = malloc(FRAME_SETUP_MAX);
	struct wire_writer w = wire_writer_of(buf, FRAME_SETUP_MAX);
	int ret, len;

	if (!upper || !buf) {
		ret = kv_fail(err, KV_ERR_NOMEM, "handshake", "cannot allocate the setup");
		goto out;
	}
	ret = conn->provider->setup_put(conn, &p, err);
	if (ret)
		goto out;
	len = !conn->upper->setup_put
		      ? 0
		      : conn->upper->setup_put(conn->upper_arg, conn, upper, TR_SETUP_MAX, err);
	if (len < 0) {
		ret = len;
		goto out;
	}
	frame_put_setup(&w, &(struct frame_setup){
				    .provider = conn->provider->id,
				    .provider_bytes = { provider_bytes, p.len },
				    .upper = { upper, (size_t)len },
			    });
	ret = p.bad || w.bad ? kv_fail(err, KV_ERR_INTERNAL, "handshake", "the setup is too long")
			     : send_frame(conn, FRAME_SETUP, buf, w.len, err);

out:
	free(buf);
	free(upper);
	return ret;
}

/* ---------------------------------------------------------------- frames coming in */

static int check_hello(struct tr_conn *conn, const struct frame_hello *hello, struct kv_error *err)
{
	if (hello->upper_id != conn->upper->id)
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
			       "the peer speaks protocol %u over kvrail, this end %u",
			       hello->upper_id, conn->upper->id);
	if (hello->upper_version != conn->upper->version)
		return kv_fail(err, KV_ERR_VERSION, "handshake",
			       "the peer speaks version %u of protocol %u, this end %u",
			       hello->upper_version, hello->upper_id, conn->upper->version);
	memcpy(conn->incarnation, hello->incarnation, sizeof(conn->incarnation));
	conn->peer_features = hello->features;
	return conn->upper->hello_get(conn->upper_arg, conn, hello->upper.p, hello->upper.len, err);
}

/* Accepting side: the first thing that is spent on the peer comes after check_hello. */
static int got_hello_accepting(struct tr_conn *conn, struct kv_error *err)
{
	struct frame_hello hello;
	int ret;

	if (frame_get_hello(conn->hs->payload, conn->hs->in.len, &hello))
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
			       "a hello of %u bytes is malformed", conn->hs->in.len);
	ret = check_hello(conn, &hello, err);
	if (ret)
		return ret;
	conn->stage = CONN_WAIT_SETUP;
	return put_hello(conn, err);
}

static int got_hello_connecting(struct tr_conn *conn, struct kv_error *err)
{
	struct conn_handshake *hs = conn->hs;
	int ret;

	hs->hello = hs->frame; /* the offers point into it */
	hs->frame = NULL;
	if (frame_get_hello(hs->payload, hs->in.len, &hs->peer))
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
			       "a hello of %u bytes is malformed", hs->in.len);
	ret = check_hello(conn, &hs->peer, err);
	conn->stage = CONN_STARTING;
	return ret;
}

static int index_of_provider(const struct tr *tr, uint16_t id)
{
	for (int i = 0; i < tr->providers; i++)
		if (tr->provider[i]->id == id)
			return i;
	return -1;
}

static void set_provider(struct tr_conn *conn, int index, void *priv)
{
	conn->provider_index = index;
	conn->provider = conn->tr->provider[index];
	conn->priv = priv;
}

/* Of a known transport; "" if it is open here and the peer has taken another. */
static const char *why_not(const struct tr_conn *conn, int known)
{
	int i = conn->hs ? tr_provider_at(conn->tr, tr_known[known]) : -1;

	if (i < 0)
		return conn->tr->absent[known];
	return conn->accepting || *conn->hs->why[i] ? conn->hs->why[i]
						    : "the peer does not have it";
}

const char *tr_conn_why_not(const struct tr_conn *conn, const char *name)
{
	for (int k = 0; k < TR_PROVIDERS; k++)
		if (!strcmp(tr_known[k]->name, name))
			return why_not(conn, k);
	return "";
}

/* Each transport that is preferred to `end` (NULL: every one) with its reason. */
static void print_reasons(const struct tr_conn *conn, const struct tr_provider *end,
			  struct kv_text *text)
{
	for (int k = 0; k < TR_PROVIDERS && tr_known[k] != end; k++)
		kv_text_add(text, "%s%s: %s", text->len ? "; " : "", tr_known[k]->name,
			    why_not(conn, k));
}

enum { REASONS = TR_PROVIDERS * (TR_WHY + 8) };

static int reached_by_none(const struct tr_conn *conn, const char *hint, struct kv_error *err)
{
	char reasons[REASONS] = "";
	struct kv_text text = { reasons, sizeof(reasons), 0 };

	print_reasons(conn, NULL, &text);
	kv_fail(err, KV_ERR_UNREACHABLE, "handshake", "no transport reaches %s: %s", conn->address,
		reasons);
	kv_error_hint(
		err, "%s",
		*hint ? hint
		      : "KVCACHE_TRANSPORT at both ends must allow one that reaches (tcp does "
			"between hosts); containers of one host need one network namespace for shm");
	return KV_ERR_UNREACHABLE;
}

/* Connecting side, once: RDMA was wanted, and the connection is slower than it could be. */
static void warn_of_tcp(const struct tr_conn *conn)
{
	char reasons[REASONS] = "";
	struct kv_text text = { reasons, sizeof(reasons), 0 };

	if (conn->accepting || conn->provider != &tr_tcp_provider ||
	    kv_option_is(conn->tr->options, KV_OPT_TRANSPORT, "tcp"))
		return;
	print_reasons(conn, conn->provider, &text);
	kv_log_warn(conn->tr->log, "the connection to %s fell back to TCP: %s", conn->address,
		    reasons);
}

/* Connecting side: tries the offers in the peer's order; 0 when one has started. */
static int start_offer(struct tr_conn *conn, struct kv_error *err)
{
	struct conn_handshake *hs = conn->hs;
	struct kv_error why = { 0 };

	for (; hs->next_offer < hs->peer.offers; hs->next_offer++) {
		struct frame_bytes bytes = hs->peer.offer[hs->next_offer].bytes;
		struct wire_reader r = wire_reader_of(bytes.p, bytes.len);
		int index = index_of_provider(conn->tr, hs->peer.offer[hs->next_offer].provider);
		int ret;

		if (index < 0)
			continue;
		ret = mem_misses(conn->tr, index, &why)
			      ? KV_ERR_UNSUPPORTED
			      : conn->tr->provider[index]->start(conn->tr->provider_ctx[index],
								 conn, &hs->offer_priv[index], &r,
								 &why);
		hs->offered[index] = ret == TR_AGAIN; /* begun: stop_offers undoes it */
		if (ret == TR_AGAIN)
			return TR_AGAIN;
		if (!ret) {
			set_provider(conn, index, hs->offer_priv[index]);
			return put_setup(conn, err);
		}
		snprintf(hs->why[index], TR_WHY, "%.*s", TR_WHY - 1, why.message);
	}
	return reached_by_none(conn, why.hint, err);
}

static int take_upper_setup(struct tr_conn *conn, const void *bytes, size_t len,
			    struct kv_error *err)
{
	if (conn->upper->setup_get)
		return conn->upper->setup_get(conn->upper_arg, conn, bytes, len, err);
	return len ? kv_fail(err, KV_ERR_PROTOCOL, "handshake", "a setup has %zu bytes too many",
			     len)
		   : 0;
}

/* Both sides: the provider first, because the upper layer's setup opens regions through it. */
static int got_setup(struct tr_conn *conn, struct kv_error *err)
{
	struct frame_setup setup;
	struct wire_reader r;
	int index, ret;

	if (frame_get_setup(conn->hs->payload, conn->hs->in.len, &setup))
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
			       "a setup of %u bytes is malformed", conn->hs->in.len);
	index = index_of_provider(conn->tr, setup.provider);
	if (index < 0 ||
	    (conn->accepting ? !conn->hs->offered[index] : index != conn->provider_index))
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
			       "the peer chose transport %u, which was not offered",
			       setup.provider);
	if (conn->accepting) {
		set_provider(conn, index, conn->hs->offer_priv[index]);
		conn->hs->offered[index] = false;
		stop_offers(conn);
	}
	r = wire_reader_of(setup.provider_bytes.p, setup.provider_bytes.len);
	ret = conn->provider->setup_get(conn, &r, err);
	if (!ret && !wire_done(&r))
		ret = kv_fail(err, KV_ERR_PROTOCOL, "handshake", "the peer's %s setup is malformed",
			      conn->provider->name);
	if (!ret)
		ret = take_upper_setup(conn, setup.upper.p, setup.upper.len, err);
	if (ret)
		return ret;
	ret = op_make_data(conn, err);
	if (ret)
		return ret;
	if (conn->accepting) {
		conn->stage = CONN_WAIT_READY;
		return put_setup(conn, err);
	}
	conn->stage = CONN_READY;
	return send_frame(conn, FRAME_READY, NULL, 0, err);
}

static int report_reject(const struct tr_conn *conn, const struct frame_reject *reject,
			 struct kv_error *err)
{
	kv_fail(err, reject->code, "handshake", "%s refused: %s", conn->address, reject->message);
	kv_error_hint(err, "%s", reject->hint);
	return reject->code;
}

static int got_reject(struct tr_conn *conn, struct kv_error *err)
{
	struct frame_reject reject;

	if (frame_get_reject(conn->hs->payload, conn->hs->in.len, &reject))
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
			       "a refusal of %u bytes is malformed", conn->hs->in.len);
	return report_reject(conn, &reject, err);
}

/* ---------------------------------------------------------------- the key */

static int send_knock(struct tr_conn *conn, struct kv_error *err)
{
	uint8_t *knock = conn->hs->knock;
	int ret;

	frame_put_header(knock, FRAME_KNOCK, AUTH_KNOCK);
	ret = auth_knock(conn->tr->psk, &conn->hs->psk, knock, err);
	if (ret)
		return ret;
	conn->stage = CONN_WAIT_CHALLENGE;
	return send_frame(conn, FRAME_KNOCK, knock + FRAME_HEADER, AUTH_KNOCK, err);
}

static int got_knock(struct tr_conn *conn, struct kv_error *err)
{
	uint8_t challenge[FRAME_HEADER + AUTH_CHALLENGE];
	int ret;

	if (!conn->tr->psk) {
		kv_fail(err, KV_ERR_AUTH, "handshake",
			"the connecting side wants a key to be proven, and this end has none");
		kv_error_hint(err, "set KVCACHE_PSK_FILE on both ends, or on neither");
		return KV_ERR_AUTH;
	}
	if (conn->hs->in.len != AUTH_KNOCK)
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
			       "a knock of %u bytes is malformed", conn->hs->in.len);
	frame_put_header(challenge, FRAME_CHALLENGE, AUTH_CHALLENGE);
	ret = auth_challenge(&conn->auth, conn->tr->psk, conn->hs->frame, challenge, err);
	if (!ret)
		ret = send_frame(conn, FRAME_CHALLENGE, challenge + FRAME_HEADER, AUTH_CHALLENGE,
				 err);
	conn->auth.on = !ret;
	return ret;
}

static int got_challenge(struct tr_conn *conn, struct kv_error *err)
{
	struct conn_handshake *hs = conn->hs;
	int ret;

	if (hs->in.type != FRAME_CHALLENGE || hs->in.len != AUTH_CHALLENGE) {
		kv_fail(err, KV_ERR_AUTH, "handshake",
			"%s answers a knock with frame type %u: it did not ask for the key",
			conn->address, hs->in.type);
		return KV_ERR_AUTH;
	}
	ret = auth_challenged(&conn->auth, &hs->psk, hs->knock, hs->frame, err);
	explicit_bzero(&hs->psk, sizeof(hs->psk));
	if (ret)
		return ret;
	conn->stage = CONN_WAIT_HELLO;
	return put_hello(conn, err);
}

/* Takes the MAC off the frame; before both ends have the secrets there is none. */
static int check_mac(struct tr_conn *conn, struct kv_error *err)
{
	struct conn_handshake *hs = conn->hs;

	if (conn->auth.on &&
	    (hs->in.len < MAC_BYTES ||
	     !auth_opens(&conn->auth, hs->frame, FRAME_HEADER + hs->in.len - MAC_BYTES,
			 hs->payload + hs->in.len - MAC_BYTES))) {
		kv_fail(err, KV_ERR_AUTH, "handshake",
			"a frame of type %u from %s was not made with the key", hs->in.type,
			conn->address);
		return KV_ERR_AUTH;
	}
	if (conn->auth.on)
		hs->in.len -= MAC_BYTES;
	else if (conn->tr->psk && conn->accepting && hs->in.type == FRAME_HELLO) {
		kv_fail(err, KV_ERR_AUTH, "handshake", "%s has no key", conn->address);
		kv_error_hint(err,
			      "set KVCACHE_PSK_FILE there, to a file with a key of this end's");
		return KV_ERR_AUTH;
	}
	return 0;
}

static int got_frame(struct tr_conn *conn, struct kv_error *err)
{
	uint16_t type = conn->hs->in.type;
	int ret = check_mac(conn, err);

	if (ret)
		return ret;
	if (!frame_fits(&conn->hs->in))
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake", "a frame of type %u has %u bytes",
			       type, conn->hs->in.len);
	if (type == FRAME_REJECT)
		return got_reject(conn, err);
	if (conn->stage == CONN_WAIT_CHALLENGE)
		return got_challenge(conn, err);
	if (type == FRAME_KNOCK && conn->stage == CONN_WAIT_HELLO && conn->accepting &&
	    !conn->auth.on)
		return got_knock(conn, err);
	if (type == FRAME_HELLO && conn->stage == CONN_WAIT_HELLO)
		return conn->accepting ? got_hello_accepting(conn, err)
				       : got_hello_connecting(conn, err);
	if (type == FRAME_SETUP && conn->stage == CONN_WAIT_SETUP)
		return got_setup(conn, err);
	if (type == FRAME_READY && conn->stage == CONN_WAIT_READY) {
		conn->stage = CONN_READY;
		return 0;
	}
	return kv_fail(err, KV_ERR_PROTOCOL, "handshake", "frame type %u does not belong here",
		       type);
}

static int bad_header(const uint8_t *header, size_t len, int code, struct kv_error *err)
{
	if (code == KV_ERR_VERSION) {
		kv_fail(err, code, "handshake",
			"the peer speaks transport version %u.%u, this end %u.%u", header[4],
			header[5], FRAME_MAJOR, FRAME_MINOR);
		kv_error_hint(err, "install the same kvrail release on both ends");
		return code;
	}
	return kv_fail(err, code, "handshake",
		       "the other end is not kvrail: it begins with %02x %02x %02x %02x",
		       len > 0 ? header[0] : 0, len > 1 ? header[1] : 0, len > 2 ? header[2] : 0,
		       len > 3 ? header[3] : 0);
}

/* Reads one frame and handles it: 0, TR_AGAIN or the error. */
static int take_frame(struct tr_conn *conn, struct kv_error *err)
{
	struct conn_handshake *hs = conn->hs;
	int ret = 0;

	if (hs->got < FRAME_HEADER) {
		ret = control_fill(conn, FRAME_HEADER, err);
		if (hs->got && conn->deadline_ns == INT64_MAX)
			conn->deadline_ns = kv_deadline_ns(conn->handshake_ms);
		if (hs->got && frame_check_prefix(hs->header, hs->got))
			return bad_header(hs->header, hs->got, KV_ERR_PROTOCOL, err);
		if (ret)
			return ret;
		ret = frame_get_header(hs->header, &hs->in);
		if (ret)
			return bad_header(hs->header, FRAME_HEADER, ret, err);
		/*
		 * Before the hello is accepted nothing larger than a hello without offers is
		 * allocated.
		 */
		if (conn->stage == CONN_WAIT_HELLO && conn->accepting &&
		    (hs->in.type == FRAME_SETUP ||
		     hs->in.len > TR_HELLO_MAX + FRAME_HELLO_FIXED + MAC_BYTES))
			return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
				       "frame type %u does not belong here", hs->in.type);
		hs->frame =
			kv_fault(TR_CONN_SETUP_ALLOC) ? NULL : malloc(FRAME_HEADER + hs->in.len);
		if (!hs->frame)
			return kv_fail(err, KV_ERR_NOMEM, "handshake", "cannot allocate %u bytes",
				       hs->in.len);
		memcpy(hs->frame, hs->header, FRAME_HEADER);
		hs->payload = hs->frame + FRAME_HEADER;
	}
	ret = control_fill(conn, FRAME_HEADER + hs->in.len, err);
	if (ret)
		return ret;
	ret = got_frame(conn, err);
	free(hs->frame);
	hs->frame = NULL;
	hs->got = 0;
	return ret;
}

/* One move of the state machine: 0 = moved, TR_AGAIN = waits for the peer. */
static int advance(struct tr_conn *conn, struct kv_error *err)
{
	int ret;

	if (conn->stage == CONN_CONNECTING) {
		ret = dial_finish(conn, err);
		if (ret)
			return ret;
		conn->stage = CONN_WAIT_HELLO;
		return conn->tr->psk ? send_knock(conn, err) : put_hello(conn, err);
	}
	ret = control_flush(conn, err);
	if (ret)
		return ret;
	if (conn->stage == CONN_WAIT_SETUP && conn->accepting)
		tend_offers(conn);
	if (conn->stage != CONN_STARTING)
		return take_frame(conn, err);
	ret = start_offer(conn, err);
	if (!ret)
		conn->stage = CONN_WAIT_SETUP;
	return ret;
}

static int handshake_finish(struct tr_conn *conn, struct kv_error *err)
{
	int ret = control_flush(conn, err);

	if (ret)
		return ret;
	warn_of_tcp(conn);
	handshake_free(conn);
	conn->deadline_ns = INT64_MAX;
	silence_begin(conn);
	kv_log_info(conn->tr->log, "%s %s over %s: %s",
		    conn->accepting ? "accepted" : "connected to", conn->address,
		    conn->provider->name, conn->path);
	if (!conn->own_link || !conn->accepting)
		return tr_conn_watch_for(conn, conn->sock, TR_WATCH_IN, err);
	/* The other end's word that it may close it, too: nothing is refused any more. */
	control_close(conn);
	return 0;
}

/*
 * What has failed may have failed because the other end had given up: what it says of that is the
 * next frame, and not read yet.
 */
static void prefer_refusal(struct tr_conn *conn, int code, struct kv_error *cause)
{
	bool may_follow =
		code == KV_ERR_PEER_LOST || code == KV_ERR_UNREACHABLE || code == KV_ERR_TIMEOUT;
	struct frame_reject reject;

	if (may_follow && conn->hs && !conn->hs->got && conn->hs->in.type != FRAME_REJECT &&
	    control_refusal(conn, &reject)) {
		conn->hs->in.type = FRAME_REJECT;
		report_reject(conn, &reject, cause);
	}
}

int tr_conn_step(struct tr_conn *conn, struct kv_error *err)
{
	struct kv_error cause;
	int ret = 0;

	if (conn->stage == CONN_FAILED)
		return kv_error_copy(err, &conn->error);
	while (!ret && conn->stage < CONN_READY)
		ret = advance(conn, &cause);
	if (!ret && conn->hs)
		ret = handshake_finish(conn, &cause);
	if (ret == TR_AGAIN && kv_now_ns() >= conn->deadline_ns) {
		ret = kv_fail(&cause, KV_ERR_TIMEOUT, "handshake",
			      "%s took longer than %lld ms: %s", conn->address,
			      (long long)conn->handshake_ms, tr_conn_stage(conn));
	}
	if (ret >= 0)
		return ret;
	prefer_refusal(conn, ret, &cause);
	return kv_error_copy(err, fail(conn, &cause));
}

void tr_conn_refuse(struct tr_conn *conn, const struct kv_error *why)
{
	if (conn->stage < CONN_READY)
		fail(conn, why);
}
