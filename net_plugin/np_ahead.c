/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_ahead.c -- a small send that comes before its receive: its bytes travel in a message at once
 *
 * The other way round costs a trip: the receive is announced, and only then the bytes leave. NCCL
 * posts a receive when the receiving GPU has come to it, so for the smallest messages that trip is
 * a good part of the whole.
 *
 * Both ends find the row of such a message without a word more, because among the sends of one tag
 * the n-th takes the n-th row with that tag. A message is sent ahead only when no row is open,
 * nothing waits that was not sent ahead and nothing is on its way into the transport; so its row is
 * the first one with its tag, from the first receive on that the sender does not know yet (`seq`),
 * that no earlier message ahead has taken.
 *
 * A CPU reads and writes these bytes, so they are not a GPU's at either end: a receiver that may be
 * given GPU memory says in its hello that it takes none.
 *
 * The send is done when its receive is known, as any other: then its true size is, too. At most
 * NP_AHEADS are not done.
 */
#include <string.h>

#include "np.h"

/* ---------------------------------------------------------------- sending side */

int np_ahead_send(struct np_send *s, struct np_request *request, const void *data,
		  struct kv_error *err)
{
	uint8_t message[TR_MSG_MAX];
	struct np_ahead ahead = {
		.seq = s->next_seq, .tag = request->tag, .bytes = data, .len = request->size[0]
	};
	int ret;

	if (!s->may_ahead || (request->mr[0] && request->mr[0]->is_gpu) ||
	    ahead.len > NP_AHEAD_BYTES || s->aheads == NP_AHEADS || s->waits || s->pending.first)
		return TR_AGAIN;
	ret = tr_msg(s->comm.conn, message, np_ahead_put(message, sizeof(message), &ahead), err);
	request->ahead = !ret;
	return ret;
}

/* ---------------------------------------------------------------- receiving side */

/*
 * A GPU may watch the lines fill, so what counts for a message counts here: whole words in
 * ascending order. NCCL's buffers and sizes are multiples of 8 where it does.
 */
static void store_words(uint8_t *dst, const uint8_t *src, size_t n)
{
	for (; n >= 8 && !((uintptr_t)dst & 7); n -= 8, dst += 8, src += 8) {
		uint64_t word;

		memcpy(&word, src, 8);
		__atomic_store_n((uint64_t *)(void *)dst, word, __ATOMIC_RELEASE);
	}
	if (n)
		memcpy(dst, src, n);
}

/* Into this receive, if a row of it has the tag and no message yet. */
static bool land(struct np_recv *r, struct np_request *request, const struct np_ahead *ahead)
{
	for (unsigned int i = 0; i < request->n; i++) {
		const struct np_landing *at = &r->landing[request->index][i];

		if (!(request->left & 1u << i) || at->tag != ahead->tag)
			continue;
		if (request->size[i] > ahead->len)
			request->size[i] = ahead->len;
		store_words(at->data, ahead->bytes, request->size[i]);
		request->left &= (uint8_t) ~(1u << i);
		return true;
	}
	return false;
}

/* The receives under way from `seq` on, in order. */
static bool land_in_any(struct np_recv *r, const struct np_ahead *ahead)
{
	for (uint16_t seq = ahead->seq; seq != r->seq; seq = (seq + 1) & NP_SEQ_MASK)
		for (unsigned int i = 0; i < NP_RECVS; i++)
			if (r->request[i].kind == NP_RECV && r->request[i].seq == seq &&
			    land(r, &r->request[i], ahead))
				return true;
	return false;
}

int np_ahead_event(struct np_recv *r, struct wire_reader *reader, struct kv_error *err)
{
	struct np_ahead ahead;
	struct np_kept *kept;

	if (r->comm.ptr_support != NCCL_PTR_HOST || !np_ahead_get(reader, &ahead) ||
	    ((r->seq - ahead.seq) & NP_SEQ_MASK) > NP_RECVS + NP_AHEADS)
		return kv_fail(err, KV_ERR_PROTOCOL, "receive",
			       "a message ahead is malformed, or was not allowed");
	if (land_in_any(r, &ahead))
		return 0;
	if (r->keeps == NP_AHEADS)
		return kv_fail(err, KV_ERR_PROTOCOL, "receive",
			       "more than %d messages came ahead of their receives", NP_AHEADS);
	kept = &r->kept[r->keeps++];
	kept->tag = ahead.tag;
	kept->len = (uint16_t)ahead.len;
	memcpy(kept->bytes, ahead.bytes, ahead.len);
	return 0;
}

void np_ahead_land(struct np_recv *r, struct np_request *request)
{
	unsigned int left = 0;

	for (unsigned int i = 0; i < r->keeps; i++) {
		const struct np_kept *kept = &r->kept[i];
		struct np_ahead ahead = { .tag = kept->tag,
					  .bytes = kept->bytes,
					  .len = kept->len };

		if (land(r, request, &ahead))
			continue;
		if (left != i)
			r->kept[left] = *kept;
		left++;
	}
	r->keeps = left;
}
