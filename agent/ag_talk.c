/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ag_talk.c -- what a peer's message asks for; one that no agent sends to this side of a connection
 * ends it
 */
#include "ag.h"
#include "base/wire.h"

enum { ANSWERS_MAX = 4 * AG_WANTS };

static int wrong_side(struct kv_error *err)
{
	return kv_fail(err, KV_ERR_PROTOCOL, "hear",
		       "the peer's message belongs to the other side of the connection");
}

static int bad_id(uint32_t len, struct kv_error *err)
{
	return kv_fail(err, KV_ERR_PROTOCOL, "hear", "a region's number has %u bytes", len);
}

static int answer_want(struct ag_peer *peer, uint64_t id, struct kv_error *err)
{
	struct ag_record *answer;
	int ret;

	if (peer->out.n > ANSWERS_MAX)
		return kv_fail(err, KV_ERR_PROTOCOL, "hear",
			       "the peer asks for more than %d regions before it reads the answers",
			       ANSWERS_MAX);
	ret = ag_mem_pack(peer, id, &answer, err);
	if (!ret)
		ag_records_add(&peer->out, answer);
	return ret;
}

/* The side that was connected to. */
static int serve_record(struct ag_peer *peer, const uint8_t *body, struct kv_error *err)
{
	const struct ag_hearing *h = &peer->hearing;
	struct wire_reader r = wire_reader_of(body, h->len);

	if (h->kind == AG_NOTE)
		return ag_note_add(peer->agent, peer->name, body, h->len, err);
	if (h->kind != AG_WANT && h->kind != AG_LEFT)
		return wrong_side(err);
	if (h->len != 8)
		return bad_id(h->len, err);
	if (h->kind == AG_WANT)
		return answer_want(peer, wire_get_u64(&r), err);
	ag_mem_left(peer, wire_get_u64(&r));
	return 0;
}

/* The side that connected. */
static int answer_record(struct ag_peer *peer, const uint8_t *body, struct kv_error *err)
{
	const struct ag_hearing *h = &peer->hearing;
	struct wire_reader r = wire_reader_of(body, h->len);

	if (h->kind == AG_PACK)
		return ag_rmem_known(peer, body, h->len, err);
	if (h->kind != AG_WITHDRAW)
		return wrong_side(err);
	if (h->len != 8)
		return bad_id(h->len, err);
	ag_rmem_withdrawn(peer, wire_get_u64(&r));
	ag_move_revoke(peer);
	return 0;
}

int ag_talk(struct ag_peer *peer, const uint8_t *msg, size_t len, struct kv_error *err)
{
	const uint8_t *body;
	int ret = ag_hear(&peer->hearing, msg, len, &body, err);

	if (ret <= 0)
		return ret;
	return peer->incoming ? serve_record(peer, body, err) : answer_record(peer, body, err);
}
