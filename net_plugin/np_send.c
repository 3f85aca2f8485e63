/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_send.c -- the sending side: a send waits for its row, becomes one operation of the transport, ends with it
 *
 * A send that is longer than the receive is cut to it, and both sides report the shorter size, as NCCL's own plugin does.
 */
#include "base/fault.h"
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
	request->next = NULL;
	s->comm.busy++;
	return request;
}

void np_send_release(struct np_request *request)
{
	struct np_send *s = np_send_of(request->comm);

	request->kind = NP_FREE;
	s->free[s->frees++] = request->index;
	s->comm.busy--;
}

/* ---------------------------------------------------------------- clear-to-send */

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
	return 0;
}

int np_send_event(struct np_send *s, const struct tr_event *event, struct kv_error *err)
{
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

/* The first row of the oldest group that has this tag and no send yet: later groups wait for their turn. */
static int match_row(const struct np_send *s, int tag)
{
	const struct np_group *group = &s->group[s->group_head % NP_RECVS];

	for (unsigned int i = 0; s->group_head != s->group_tail && i < group->cts.n; i++)
		if (group->cts.row[i].tag == tag && !(group->taken & 1u << i))
			return (int)i;
	return -1;
}

/* ---------------------------------------------------------------- isend */

/* Binds a send to its row. */
static int bind_row(struct np_send *s, unsigned int row_index, struct np_request *request,
		    struct np_mr *mr, const void *data, size_t size, struct kv_error *err)
{
	struct np_group *group = &s->group[s->group_head % NP_RECVS];
	const struct np_row *row = &group->cts.row[row_index];

	if (size > row->size) {
		np_info("a send of %zu bytes is cut to the receive of %llu", size,
			(unsigned long long)row->size);
		size = (size_t)row->size;
	}
	if (size) {
		request->rmem = row->mem < s->rmems ? s->rmem[row->mem] : NULL;
		if (!request->rmem)
			return kv_fail(err, KV_ERR_PROTOCOL, "send",
				       "a clear-to-send names a region that was not described");
		request->mem = mr->mem;
		request->span.local =
			(uint64_t)((const uint8_t *)data - (const uint8_t *)tr_mem_addr(mr->mem));
		request->span.remote = row->offset;
	}
	request->span.len = size;
	request->size[0] = size;
	request->any_order = group->cts.any_order;
	request->value = np_notify_put(group->cts.slot, row_index, group->cts.seq, size);
	group->taken |= (uint8_t)(1u << row_index);
	if (group->taken == (1u << group->cts.n) - 1)
		s->group_head++;
	return 0;
}

/* 0: the transport has all of it; TR_AGAIN: it takes no more now. */
static int push_one(struct np_send *s, struct np_request *request, struct kv_error *err)
{
	int ret = 0;

	if (!request->op)
		ret = tr_op_begin(s->comm.conn, TR_WRITE | (request->any_order ? TR_ANY_ORDER : 0),
				  request->index, &request->op, err);
	if (!ret && request->span.len) {
		long n =
			tr_op_add(request->op, request->mem, request->rmem, &request->span, 1, err);

		if (n > 0)
			request->span.len = 0;
		else
			ret = n ? (int)n : TR_AGAIN;
	}
	return ret ? ret : tr_op_commit(request->op, TR_NOTIFY, request->value, err);
}

int np_send_push(struct np_send *s, struct kv_error *err)
{
	while (s->pending) {
		int ret = push_one(s, s->pending, err);

		if (ret == TR_AGAIN)
			return 0;
		if (ret)
			return ret;
		s->pending = s->pending->next;
		if (!s->pending)
			s->pending_last = &s->pending;
	}
	return 0;
}

ncclResult_t np_isend(void *comm, void *data, size_t size, int tag, void *mhandle, void *phandle,
		      void **request_p)
{
	struct np_send *s = comm;
	struct np_request *request;
	struct kv_error err;
	ncclResult_t result;
	int row;

	(void)phandle;
	if (!s || !request_p)
		return np_misuse("isend: a pointer is NULL");
	*request_p = NULL;
	if (!np_mem_holds(mhandle, data, size) || size >> 41)
		return np_misuse("isend: %zu bytes at %p are not in the region given", size, data);
	result = np_progress(&s->comm);
	if (result)
		return result;
	row = match_row(s, tag);
	if (row < 0)
		return ncclSuccess;
	request = take_request(s);
	if (!request)
		return ncclSuccess;
	if (bind_row(s, (unsigned int)row, request, mhandle, data, size, &err)) {
		np_send_release(request);
		return np_comm_fail(&s->comm, &err, "send");
	}
	*s->pending_last = request;
	s->pending_last = &request->next;
	*request_p = request;
	return np_send_push(s, &err) ? np_comm_fail(&s->comm, &err, "send") : ncclSuccess;
}
