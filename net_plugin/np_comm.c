/* SPDX-License-Identifier: Apache-2.0 */
/* np_comm.c -- the life of a communicator, and the one place that polls its connection */
#include <stdlib.h>

#include "base/fault.h"
#include "np.h"

enum { EVENTS = 16 }; /* taken by one tr_poll */

static void init_send(struct np_send *s)
{
	s->early.last = &s->early.first;
	s->pending.last = &s->pending.first;
	for (unsigned int i = 0; i < NP_SENDS; i++) {
		s->request[i].comm = &s->comm;
		s->request[i].index = (uint16_t)i;
		s->free[i] = (uint16_t)(NP_SENDS - 1 - i);
	}
	s->frees = NP_SENDS;
}

static void init_recv(struct np_recv *r)
{
	for (unsigned int i = 0; i < NP_RECVS; i++) {
		r->request[i].comm = &r->comm;
		r->request[i].index = (uint16_t)i;
	}
}

struct np_comm *np_comm_new(struct np_context *ctx, const struct np_rail *rail, bool is_send,
			    struct kv_error *err)
{
	size_t size = is_send ? sizeof(struct np_send) : sizeof(struct np_recv);
	struct np_comm *comm = kv_fault(NP_COMM) ? NULL : calloc(1, size);

	if (!comm) {
		kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate a communicator");
		return NULL;
	}
	comm->is_send = is_send;
	comm->ctx = ctx;
	comm->tr = rail->tr;
	comm->ptr_support = rail->ptr_support;
	pthread_mutex_init(&comm->mr_lock, NULL);
	if (is_send)
		init_send(np_send_of(comm));
	else
		init_recv(np_recv_of(comm));
	return comm;
}

void np_comm_free(struct np_comm *comm)
{
	struct np_context *ctx = comm->ctx;

	np_end_forget(comm);
	tr_conn_close(comm->conn);
	np_mem_free_all(comm);
	if (comm->is_send)
		free(np_send_of(comm)->rmem);
	pthread_mutex_destroy(&comm->mr_lock);
	free(comm);
	np_context_put(ctx);
}

ncclResult_t np_comm_fail(struct np_comm *comm, const struct kv_error *cause, const char *what)
{
	if (!comm->failed) {
		comm->failed = true;
		comm->left = tr_conn_peer_left(comm->conn);
		comm->result = np_fail(cause, what);
	}
	return comm->result;
}

static int take_event(struct np_comm *comm, const struct tr_event *event, struct kv_error *err)
{
	if (event->kind == TR_PEER_LOST || event->kind == TR_IN_DOUBT)
		return kv_error_copy(err, event->cause);
	return comm->is_send ? np_send_event(np_send_of(comm), event, err)
			     : np_recv_event(np_recv_of(comm), event, err);
}

ncclResult_t np_progress(struct np_comm *comm)
{
	struct tr_event events[EVENTS];
	struct kv_error err, later;
	int n, ret = 0;

	if (comm->failed)
		return comm->result;
	do {
		n = tr_poll(comm->conn, events, EVENTS);
		/*
		 * What came before the connection was lost may stand behind the first word of the
		 * loss.
		 */
		for (int i = 0; i < n; i++)
			if (ret)
				take_event(comm, &events[i], &later);
			else
				ret = take_event(comm, &events[i], &err);
	} while (n == EVENTS);
	if (!ret && comm->is_send)
		ret = np_send_push(np_send_of(comm), &err);
	return ret ? np_comm_fail(comm, &err, comm->is_send ? "send" : "receive") : ncclSuccess;
}
