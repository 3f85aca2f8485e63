/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_send.c -- the sending side: a send waits for its row, becomes one operation of the transport,
 * ends with it
 *
 * A send that comes before any receive is taken all the same and waits here (early), and the bytes
 * of a small one go ahead (np_ahead.c): ranks that all send first do not wait for each other. One
 * whose tag the oldest receive does not have gets "not now".
 *
 * After the receiver has closed in good order a send is taken, too, and fails when it is tested:
 * which end closes first with requests under way is a matter of chance. A receiver that is lost
 * otherwise fails every call.
 *
 * A send that is longer than the receive is cut to it, and both sides report the shorter size, as
 * NCCL's own plugin does.
 */
#include <string.h>

#include "np.h"

static struct np_request *take_request(struct np_send *s)
{
	struct np_request *request;

	if (!s->frees)
		return NULL;
	request = &s->request[s->free[--s->frees]];
	request->kind = NP_SEND;
	request->n = 1;
	request->left = 1;
	request->op = NULL;
	request->rmem = NULL;
	request->ahead = request->bound = false;
	request->waits_ns = 0;
	return request;
}

static void append(struct np_queue *queue, struct np_request *request)
{
	request->next = NULL;
	*queue->last = request;
	queue->last = &request->next;
}

static void take_out(struct np_queue *queue, struct np_request **at)
{
	*at = (*at)->next;
	if (!*at)
		queue->last = at;
}

void np_send_release(struct np_request *request)
{
	struct np_send *s = np_send_of(request->comm);

	np_mr_hold(request->mr[0], -1);
	tr_mem_close(request->rmem);
	request->kind = NP_FREE;
	s->free[s->frees++] = request->index;
}

/* ---------------------------------------------------------------- clear-to-send */

/*
 * The first row of the oldest group that has this tag and no send yet: later groups wait for their
 * turn.
 */
static int match_row(const struct np_send *s, int tag)
{
	const struct np_group *group = &s->group[s->group_head % NP_RECVS];

	for (unsigned int i = 0; s->group_head != s->group_tail && i < group->cts.n; i++)
		if (group->cts.row[i].tag == tag && !(group->taken & 1u << i))
			return (int)i;
	return -1;
}

/* Binds a send to its row and hands it on to the transport's queue. */
static int bind_row(struct np_send *s, unsigned int row_index, struct np_request *request,
		    struct kv_error *err)
{
	struct np_group *group = &s->group[s->group_head % NP_RECVS];
	const struct np_row *row = &group->cts.row[row_index];

	if (request->span.len > row->size) {
		np_info("a send of %llu bytes is cut to the receive of %llu",
			(unsigned long long)request->span.len, (unsigned long long)row->size);
		request->span.len = row->size;
	}
	if (request->span.len && !request->ahead) {
		request->rmem = row->mem < s->rmems ? s->rmem[row->mem] : NULL;
		if (!request->rmem)
			return kv_fail(err, KV_ERR_PROTOCOL, "send",
				       "a clear-to-send names a region that was not described");
		tr_rmem_hold(request->rmem); /* its slot may be described anew meanwhile */
		request->span.remote = row->offset;
	}
	request->bound = true;
	request->size[0] = (size_t)request->span.len;
	request->any_order = group->cts.any_order;
	request->value =
		np_notify_put(group->cts.slot, row_index, group->cts.seq, request->span.len);
	group->taken |= (uint8_t)(1u << row_index);
	if (group->taken == (1u << group->cts.n) - 1)
		s->group_head++;
	if (request->ahead)
		request->left = 0;
	else
		append(&s->pending, request);
	return 0;
}

/* After a group came or went: early sends with a tag of the oldest one, in their order. */
static int match_early(struct np_send *s, struct kv_error *err)
{
	struct np_request **at = &s->early.first;

	while (*at && s->group_head != s->group_tail) {
		struct np_request *request = *at;
		unsigned int head = s->group_head;
		int row = match_row(s, request->tag), ret;

		if (row < 0) {
			at = &request->next;
			continue;
		}
		take_out(&s->early, at);
		*(request->ahead ? &s->aheads : &s->waits) -= 1;
		ret = bind_row(s, (unsigned int)row, request, err);
		if (ret)
			return ret;
		if (s->group_head != head)
			at = &s->early.first;
	}
	return 0;
}

static int add_group(struct np_send *s, struct wire_reader *r, struct kv_error *err)
{
	struct np_group *group = &s->group[s->group_tail % NP_RECVS];

	if (s->group_tail - s->group_head == NP_RECVS)
		return kv_fail(err, KV_ERR_PROTOCOL, "send",
			       "the receiver has more than %d receives under way", NP_RECVS);
	if (!np_cts_get(r, &group->cts))
		return kv_fail(err, KV_ERR_PROTOCOL, "send", "a clear-to-send is malformed");
	group->taken = 0;
	s->group_tail++;
	s->next_seq = (group->cts.seq + 1) & NP_SEQ_MASK;
	return match_early(s, err);
}

static int take_event(struct np_comm *comm, const struct tr_event *event, struct kv_error *err)
{
	struct np_send *s = np_send_of(comm);
	struct wire_reader r = wire_reader_of(event->msg, event->len);

	if (event->kind == TR_WRITTEN) {
		s->request[event->user].left = 0;
		return 0;
	}
	if (event->kind != TR_MSG)
		return kv_fail(err, KV_ERR_PROTOCOL, "send", "event %d does not belong to a sender",
			       event->kind);
	switch (wire_get_u8(&r)) {
	case NP_MSG_MEM:
		return np_mem_described(s, &r, err);
	case NP_MSG_CTS:
		return add_group(s, &r, err);
	default:
		return kv_fail(err, KV_ERR_PROTOCOL, "send", "a message of %zu bytes is unknown",
			       event->len);
	}
}

/* ---------------------------------------------------------------- isend */

/*
 * Shared memory copies in the call, unless there are threads for it; a NIC is given everything at
 * once.
 */
void np_send_ready(struct np_send *s, const struct np_rail *rail)
{
	s->comm.is_shm = !strcmp(tr_conn_transport(s->comm.conn), "shm");
	s->piece = s->comm.is_shm && (!kv_option_int(rail->options, KV_OPT_NET_COPY_THREADS) ||
				      s->comm.ptr_support != NCCL_PTR_HOST)
			   ? NP_PIECE
			   : SIZE_MAX;
}

/* 0: the transport has all of it; TR_AGAIN: it takes no more now. */
static int push_one(struct np_send *s, struct np_request *request, struct kv_error *err)
{
	int ret = 0;

	if (!request->op)
		ret = tr_op_begin(s->comm.conn, TR_WRITE | (request->any_order ? TR_ANY_ORDER : 0),
				  request->index, &request->op, err);
	if (!ret && request->span.len) {
		struct tr_span piece = request->span;
		long n;

		if (piece.len > s->piece && !request->mr[0]->is_gpu)
			piece.len = s->piece;
		n = tr_op_add(request->op, request->mr[0]->mem, request->rmem, &piece, 1, err);
		if (n < 0)
			return (int)n;
		if (n) {
			request->span.local += piece.len;
			request->span.remote += piece.len;
			request->span.len -= piece.len;
		}
		if (request->span.len)
			ret = TR_AGAIN;
	}
	return ret ? ret : tr_op_commit(request->op, TR_NOTIFY, request->value, err);
}

/* Hands pending sends to the transport. */
static int push_pending(struct np_comm *comm, struct kv_error *err)
{
	struct np_send *s = np_send_of(comm);
	struct np_request **at = &s->pending.first;
	bool late = false;

	while (*at) {
		struct np_request *request = *at;
		int ret;

		/* A GPU's copies end in their order: to ask for one is a call of the driver. */
		if (late && request->op && request->mr[0] && request->mr[0]->is_gpu &&
		    !request->span.len) {
			at = &request->next;
			continue;
		}
		ret = push_one(s, request, err);
		late |= ret == TR_AGAIN;
		if (!ret)
			take_out(&s->pending, at);
		else if (ret != TR_AGAIN)
			return ret;
		else if (!request->op || request->span.len) /* there is no room for bytes */
			return 0;
		else /* its bytes are on their way, the next one's can be, too */
			at = &request->next;
	}
	return 0;
}

/* There is no row for it yet. After a failure there never will be, and test reports that. */
static ncclResult_t send_early(struct np_send *s, struct np_request *request, const void *data)
{
	struct kv_error err;
	int ret = s->comm.failed ? TR_AGAIN : np_ahead_send(s, request, data, &err);

	append(&s->early, request);
	*(request->ahead ? &s->aheads : &s->waits) += 1;
	return ret < 0 ? np_comm_fail(&s->comm, &err, "send") : ncclSuccess;
}

ncclResult_t np_isend(void *comm, void *data, size_t size, int tag, void *mhandle, void *phandle,
		      void **request_p)
{
	struct np_send *s = comm;
	struct np_request *request;
	struct kv_error err;
	ncclResult_t result;
	int row, ret;

	if (!s || !request_p)
		return np_misuse("isend: a pointer is NULL");
	*request_p = NULL;
	if (!np_mem_holds(mhandle, data, size) || size >> NP_SIZE_BITS)
		return np_misuse("isend: %zu bytes at %p are not in the region given", size, data);
	result = np_progress(&s->comm);
	if (result && !s->comm.left)
		return result;
	row = result ? -1 : match_row(s, tag);
	if (row < 0 && !result && s->group_head != s->group_tail)
		return ncclSuccess;
	request = take_request(s);
	if (!request)
		return result;
	request->tag = tag;
	request->mr[0] = size ? mhandle : NULL;
	np_mr_hold(request->mr[0], 1);
	request->size[0] = size;
	request->span.len = size;
	if (size)
		request->span.local = (uint64_t)((const uint8_t *)data -
						 (const uint8_t *)tr_mem_addr(request->mr[0]->mem));
	*request_p = request;
	if (row < 0)
		return send_early(s, request, data);
	ret = bind_row(s, (unsigned int)row, request, &err);
	if (!ret)
		ret = match_early(s, &err);
	if (!ret)
		ret = push_pending(&s->comm, &err);
	if (ret)
		result = np_comm_fail(&s->comm, &err, "send");
	return s->comm.left ? ncclSuccess : result;
}

static void init_send(struct np_comm *comm)
{
	struct np_send *s = np_send_of(comm);

	s->early.last = &s->early.first;
	s->pending.last = &s->pending.first;
	for (unsigned int i = 0; i < NP_SENDS; i++) {
		s->request[i].comm = comm;
		s->request[i].index = (uint16_t)i;
		s->free[i] = (uint16_t)(NP_SENDS - 1 - i);
	}
	s->frees = NP_SENDS;
}

const struct np_side np_sending = {
	.what = "send",
	.is_send = true,
	.size = sizeof(struct np_send),
	.init = init_send,
	.event = take_event,
	.push = push_pending,
};
