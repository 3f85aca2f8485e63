/* SPDX-License-Identifier: Apache-2.0 */
/* np_comm.c -- the life of a communicator, and the one place that polls its connection */
#include <stdlib.h>

#include "base/fault.h"
#include "np.h"

enum { EVENTS = 16 }; /* taken by one tr_poll */

struct np_comm *np_comm_new(struct np_context *ctx, const struct np_rail *rail,
			    const struct np_side *side, struct kv_error *err)
{
	struct np_comm *comm = kv_fault(NP_COMM) ? NULL : calloc(1, side->size);

	if (!comm) {
		kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate a communicator");
		return NULL;
	}
	comm->side = side;
	comm->ctx = ctx;
	comm->tr = rail->tr;
	comm->metrics = rail->metrics;
	comm->ptr_support = rail->ptr_support;
	pthread_mutex_init(&comm->mr_lock, NULL);
	side->init(comm);
	np_metrics_open(comm->metrics, 1);
	return comm;
}

void np_comm_free(struct np_comm *comm)
{
	struct np_context *ctx = comm->ctx;

	np_metrics_open(comm->metrics, -1);
	np_view_remove(comm);
	tr_conn_close(comm->conn);
	np_mem_free_all(comm);
	if (comm->side->is_send)
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
		if (!comm->left)
			np_metrics_failed(comm->metrics, comm, cause);
		comm->result = np_fail(cause, what);
	}
	return comm->result;
}

static int take_event(struct np_comm *comm, const struct tr_event *event, struct kv_error *err)
{
	if (event->kind == TR_PEER_LOST || event->kind == TR_IN_DOUBT)
		return kv_error_copy(err, event->cause);
	return comm->side->event(comm, event, err);
}

ncclResult_t np_progress(struct np_comm *comm)
{
	struct tr_event events[EVENTS];
	struct kv_error err, later;
	int n, ret = 0;

	if (comm->failed)
		return comm->result;
	if (atomic_load_explicit(&comm->asked, memory_order_relaxed))
		np_view_answer(comm);
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
	if (!ret && comm->side->push)
		ret = comm->side->push(comm, &err);
	return ret ? np_comm_fail(comm, &err, comm->side->what) : ncclSuccess;
}
