/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_recv.c -- the receiving side: a receive is announced by one message and ends with one notify
 * for each of its rows
 *
 * After the sender has closed in good order a receive is taken and fails when it is tested, as in
 * np_send.c.
 */
#include "np.h"

static struct np_request *find_free(struct np_recv *r)
{
	for (unsigned int i = 0; i < NP_RECVS; i++) {
		struct np_request *request = &r->request[(r->seq + i) % NP_RECVS];

		if (request->kind == NP_FREE)
			return request;
	}
	return NULL;
}

static int take_event(struct np_comm *comm, const struct tr_event *event, struct kv_error *err)
{
	struct np_recv *r = np_recv_of(comm);
	struct np_request *request;
	unsigned int slot, row, seq;
	uint64_t size;

	if (event->kind == TR_MSG) {
		struct wire_reader reader = wire_reader_of(event->msg, event->len);

		if (wire_get_u8(&reader) == NP_MSG_AHEAD)
			return np_ahead_event(r, &reader, err);
	}
	if (event->kind != TR_NOTIFIED)
		return kv_fail(err, KV_ERR_PROTOCOL, "receive",
			       "event %d does not belong to a receiver", event->kind);
	np_notify_get(event->value, &slot, &row, &seq, &size);
	request = &r->request[slot];
	if (request->kind != NP_RECV || request->seq != seq || !(request->left & 1u << row) ||
	    size > request->size[row])
		return kv_fail(
			err, KV_ERR_PROTOCOL, "receive",
			"the sender filled row %u of receive %u with %llu bytes, which was not asked for",
			row, slot, (unsigned long long)size);
	request->size[row] = (size_t)size;
	request->left &= (uint8_t) ~(1u << row);
	return 0;
}

/* Fills the message and describes every region that it names: 0, TR_AGAIN or the error. */
static int prepare(struct np_recv *r, struct np_cts *cts, void **data, void **mhandles,
		   struct kv_error *err)
{
	for (unsigned int i = 0; i < cts->n; i++) {
		struct np_mr *mr = cts->row[i].size ? mhandles[i] : NULL;
		int ret = mr ? np_mem_describe(&r->comm, mr, err) : 0;

		if (ret)
			return ret;
		if (mr) {
			cts->row[i].mem = mr->slot;
			cts->row[i].offset =
				(uint64_t)((uint8_t *)data[i] - (uint8_t *)tr_mem_addr(mr->mem));
		}
	}
	return 0;
}

static int announce(struct np_recv *r, struct np_cts *cts, void **data, void **mhandles,
		    struct kv_error *err)
{
	uint8_t message[TR_MSG_MAX];
	int ret = prepare(r, cts, data, mhandles, err);

	return ret ? ret
		   : tr_msg(r->comm.conn, message, np_cts_put(message, sizeof(message), cts), err);
}

static struct np_request *take(struct np_recv *r, struct np_request *request,
			       const struct np_cts *cts, void **data, void **mhandles)
{
	request->kind = NP_RECV;
	request->n = cts->n;
	request->left = (uint8_t)((1u << cts->n) - 1);
	request->seq = cts->seq;
	request->waits_ns = 0;
	request->any_order = cts->any_order;
	for (unsigned int i = 0; i < cts->n; i++) {
		request->size[i] = (size_t)cts->row[i].size;
		request->mr[i] = request->size[i] ? mhandles[i] : NULL;
		np_mr_hold(request->mr[i], 1);
		r->landing[request->index][i] = (struct np_landing){ .data = data ? data[i] : NULL,
								     .tag = cts->row[i].tag };
	}
	r->seq = (r->seq + 1) & NP_SEQ_MASK;
	np_ahead_land(r, request);
	return request;
}

void np_recv_release(struct np_request *request)
{
	for (unsigned int i = 0; i < request->n; i++)
		np_mr_hold(request->mr[i], -1);
	request->kind = NP_FREE;
}

/*
 * NCCL's LL and LL128 protocols have a GPU watch the buffer while it fills, so each 128-byte line
 * must arrive whole. Such a receive, if it is single, is marked by NCCL's hint that no call waits
 * for it (*request_p on entry). So a single receive without the mark, from a caller that is known
 * to give it, may be filled in any order; and so may several into a GPU's memory, as several are
 * never LL128, and LL's buffers are the host's. The hint itself is not needed: completion costs no
 * message.
 */
static bool may_be_any_order(const struct np_recv *r, int n, void *const *mhandles,
			     void *const *request_p)
{
	bool gpu = n > 1;

	for (int i = 0; gpu && i < n; i++)
		gpu = mhandles && mhandles[i] && ((const struct np_mr *)mhandles[i])->is_gpu;
	return (gpu || (n == 1 && *request_p != NCCL_NET_OPTIONAL_RECV_COMPLETION)) &&
	       atomic_load_explicit(&r->comm.ctx->hints, memory_order_relaxed);
}

ncclResult_t np_irecv(void *comm, int n, void **data, size_t *sizes, int *tags, void **mhandles,
		      void **phandles, void **request_p)
{
	struct np_recv *r = comm;
	struct np_request *request;
	struct np_cts cts;
	struct kv_error err;
	ncclResult_t result;
	int ret;

	if (!r || !request_p || !sizes || !tags)
		return np_misuse("irecv: a pointer is NULL");
	if (n < 1 || n > NP_GROUP)
		return np_misuse("irecv: %d messages; a receive has 1 to %d", n, NP_GROUP);
	cts.any_order = may_be_any_order(r, n, mhandles, request_p);
	*request_p = NULL;
	for (int i = 0; i < n; i++)
		if (!np_mem_holds(mhandles ? mhandles[i] : NULL, data ? data[i] : NULL, sizes[i]))
			return np_misuse("irecv: %zu bytes at %p are not in the region given",
					 sizes[i], data ? data[i] : NULL);
	result = np_progress(&r->comm);
	if (result && !r->comm.left)
		return result;
	request = find_free(r);
	if (!request)
		return result;
	cts.slot = (uint8_t)request->index;
	cts.n = (uint8_t)n;
	cts.seq = r->seq;
	for (int i = 0; i < n; i++)
		cts.row[i] =
			(struct np_row){ .size = sizes[i], .tag = tags[i], .mem = NP_MEM_NONE };
	ret = result ? 0 : announce(r, &cts, data, mhandles, &err);
	if (ret == TR_AGAIN)
		return ncclSuccess;
	if (ret)
		result = np_comm_fail(&r->comm, &err, "receive");
	if (result && !r->comm.left)
		return result;
	*request_p = take(r, request, &cts, data, mhandles);
	return ncclSuccess;
}

/*
 * tr_flush is done or fails at once, so there is never a request to test.
 */
ncclResult_t np_iflush(void *comm, int n, void **data, int *sizes, void **mhandles,
		       void **request_p)
{
	struct np_recv *r = comm;
	struct kv_error err;
	int ret = 0;

	if (!r || !request_p || n < 0 || n > NP_GROUP || (n && (!sizes || !mhandles)))
		return np_misuse("iflush: %d buffers", n);
	*request_p = NULL;
	if (r->comm.failed)
		return r->comm.result;
	for (int i = 0; i < n && !ret; i++) {
		const struct np_mr *mr = mhandles[i];

		if (mr && sizes[i] > 0)
			ret = tr_flush(r->comm.conn, mr->mem, &err);
	}
	return ret ? np_comm_fail(&r->comm, &err, "flush") : ncclSuccess;
}

static void init_recv(struct np_comm *comm)
{
	struct np_recv *r = np_recv_of(comm);

	for (unsigned int i = 0; i < NP_RECVS; i++) {
		r->request[i].comm = comm;
		r->request[i].index = (uint16_t)i;
	}
}

const struct np_side np_receiving = {
	.what = "receive",
	.size = sizeof(struct np_recv),
	.init = init_recv,
	.event = take_event,
};
