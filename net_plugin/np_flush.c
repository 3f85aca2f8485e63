/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_flush.c -- received bytes made visible to a reader that starts now; for host memory nothing is
 * left to do
 */
#include "np.h"

int np_flush_step(struct np_request *request, struct kv_error *err)
{
	for (unsigned int i = 0; i < request->n; i++) {
		int ret;

		if (!(request->left & 1u << i))
			continue;
		ret = tr_flush(request->comm->conn, request->mr[i]->mem, err);
		if (ret)
			return ret;
		request->left &= (uint8_t) ~(1u << i);
	}
	return 0;
}

/* *request_p stays NULL where nothing needs waiting for. */
ncclResult_t np_iflush(void *comm, int n, void **data, int *sizes, void **mhandles,
		       void **request_p)
{
	struct np_recv *r = comm;
	struct np_request *request = NULL;
	struct kv_error err;
	int ret;

	(void)data;
	if (!r || !request_p || n < 0 || n > NP_GROUP || (n && (!sizes || !mhandles)))
		return np_misuse("iflush: %d buffers", n);
	*request_p = NULL;
	if (r->comm.failed)
		return r->comm.result;
	for (unsigned int i = 0; !request && i < NP_RECVS; i++)
		if (r->flush[i].kind == NP_FREE)
			request = &r->flush[i];
	if (!request)
		return np_misuse("iflush: %d flushes are under way", NP_RECVS);
	request->n = (uint8_t)n;
	request->left = 0;
	for (int i = 0; i < n; i++) {
		const struct np_mr *mr = mhandles[i];

		if (!mr || sizes[i] <= 0)
			continue;
		request->mr[i] = mhandles[i];
		request->left |= (uint8_t)(1u << i);
	}
	ret = np_flush_step(request, &err);
	if (ret == TR_AGAIN) {
		request->kind = NP_FLUSH;
		*request_p = request;
		return ncclSuccess;
	}
	return ret ? np_comm_fail(&r->comm, &err, "flush") : ncclSuccess;
}
