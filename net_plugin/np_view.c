/* SPDX-License-Identifier: Apache-2.0 */
/* np_view.c -- the communicators of a device for kvrail dump: what each request waits for */
#include <time.h>

#include "base/clock.h"
#include "base/report.h"
#include "base/thread.h"
#include "np.h"

enum {
	PATIENCE_MS = 50, /* for threads that poll, all together; then it says that they do not */
	ROWS = 8,	  /* of the requests of a communicator, the oldest */
};

void np_view_init(struct np_view *view)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&view->lock, NULL);
	pthread_mutex_init(&view->asking, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&view->answered, &attr);
	pthread_condattr_destroy(&attr);
}

void np_view_free(struct np_view *view)
{
	pthread_cond_destroy(&view->answered);
	pthread_mutex_destroy(&view->asking);
	pthread_mutex_destroy(&view->lock);
}

void np_view_add(struct np_comm *comm)
{
	struct np_view *view = np_metrics_view(comm->metrics);

	if (!view)
		return;
	pthread_mutex_lock(&view->lock);
	comm->beside = view->first;
	view->first = comm;
	comm->shown = true;
	pthread_mutex_unlock(&view->lock);
}

void np_view_remove(struct np_comm *comm)
{
	struct np_view *view = np_metrics_view(comm->metrics);
	struct np_comm **at;

	if (!comm->shown)
		return;
	pthread_mutex_lock(&view->lock);
	for (at = &view->first; *at != comm; at = &(*at)->beside)
		;
	*at = comm->beside;
	pthread_mutex_unlock(&view->lock);
}

/* ---------------------------------------------------------------- by the thread that polls it */

void np_view_answer(struct np_comm *comm)
{
	struct np_view *view = np_metrics_view(comm->metrics);

	pthread_mutex_lock(&view->asking);
	if (view->asked == comm) {
		tr_conn_report(comm->conn, view->to);
		view->asked = NULL;
		pthread_cond_signal(&view->answered);
	}
	atomic_store(&comm->asked, false);
	pthread_mutex_unlock(&view->asking);
}

static bool ask(struct np_view *view, struct np_comm *comm, struct kv_report *r,
		int64_t deadline_ns)
{
	struct timespec ts = { .tv_sec = deadline_ns / 1000000000,
			       .tv_nsec = deadline_ns % 1000000000 };
	bool answered;

	pthread_mutex_lock(&view->asking);
	view->asked = comm;
	view->to = r;
	atomic_store(&comm->asked, true);
	while (view->asked && !pthread_cond_timedwait(&view->answered, &view->asking, &ts))
		;
	answered = !view->asked;
	view->asked = NULL;
	atomic_store(&comm->asked, false);
	pthread_mutex_unlock(&view->asking);
	return answered;
}

/* ---------------------------------------------------------------- as others see it */

struct look {
	struct np_request request[ROWS]; /* the oldest */
	int tag[ROWS];
	unsigned int shown, n;
	unsigned int groups; /* receives of the peer that wait for a send here */
	int group_tag;	     /* of the oldest */
	bool failed, ending, closed, left;
};

/* One that NCCL has not asked for in vain is the newest. */
static int64_t waits_since(const struct np_request *request)
{
	return request->waits_ns ? request->waits_ns : INT64_MAX;
}

static void keep_oldest(struct look *look, const struct np_request *request, int tag)
{
	unsigned int at;

	look->n++;
	for (at = look->shown; at && waits_since(&look->request[at - 1]) > waits_since(request);
	     at--)
		if (at < ROWS) {
			look->request[at] = look->request[at - 1];
			look->tag[at] = look->tag[at - 1];
		}
	look->shown += look->shown < ROWS;
	if (at < ROWS) {
		look->request[at] = *request;
		look->tag[at] = tag;
	}
}

KV_LOOKS static bool see_request(const struct np_request *from, struct np_request *to)
{
	to->kind = KV_SEEN(from->kind);
	to->n = KV_SEEN(from->n);
	to->left = KV_SEEN(from->left);
	to->index = KV_SEEN(from->index);
	to->waits_ns = KV_SEEN(from->waits_ns);
	to->tag = KV_SEEN(from->tag);
	to->bound = KV_SEEN(from->bound);
	to->ahead = KV_SEEN(from->ahead);
	to->op = KV_SEEN(from->op);
	to->span.len = KV_SEEN(from->span.len);
	for (int i = 0; i < NP_GROUP; i++)
		to->size[i] = KV_SEEN(from->size[i]);
	return to->kind != NP_FREE && to->n <= NP_GROUP;
}

KV_LOOKS static void see_comm(struct np_comm *comm, struct look *look)
{
	look->failed = KV_SEEN(comm->failed);
	look->ending = KV_SEEN(comm->ending);
	look->closed = KV_SEEN(comm->closed);
	look->left = KV_SEEN(comm->left);
	if (comm->side->is_send) {
		struct np_send *s = np_send_of(comm);
		unsigned int head = KV_SEEN(s->group_head);

		look->groups = KV_SEEN(s->group_tail) - head;
		look->group_tag = KV_SEEN(s->group[head % NP_RECVS].cts.row[0].tag);
	}
}

KV_LOOKS static int see_tag(struct np_recv *r, unsigned int index)
{
	return KV_SEEN(r->landing[index % NP_RECVS][0].tag);
}

static struct look look_at_comm(struct np_comm *comm)
{
	bool is_send = comm->side->is_send;
	unsigned int n = is_send ? (unsigned int)NP_SENDS : (unsigned int)NP_RECVS;
	const struct np_request *at =
		is_send ? np_send_of(comm)->request : np_recv_of(comm)->request;
	struct look look = { .n = 0 };

	see_comm(comm, &look);
	for (; n--; at++) {
		struct np_request seen = { .n = 0 };

		if (see_request(at, &seen))
			keep_oldest(&look, &seen,
				    is_send ? seen.tag : see_tag(np_recv_of(comm), seen.index));
	}
	return look;
}

static const char *request_awaits(const struct np_request *request)
{
	if (!request->left)
		return "NCCL, which has not asked since it was done";
	if (request->kind == NP_RECV)
		return "a send of the peer";
	if (!request->bound)
		return request->ahead ? "a receive of the peer; its bytes were sent ahead"
				      : "a receive of the peer";
	return request->op && !request->span.len ? "the transport" : "room in the transport";
}

static void report_request(struct kv_report *r, const struct np_request *request, int tag)
{
	size_t bytes = 0;

	for (unsigned int i = 0; i < request->n; i++)
		bytes += request->size[i];
	kv_report_item(r, "operation");
	kv_report_text(r, "kind", "%s", request->kind == NP_RECV ? "receive" : "send");
	if (request->waits_ns)
		kv_report_age(r, "age_ms", request->waits_ns);
	kv_report_text(r, "waits_for", "%s", request_awaits(request));
	kv_report_int(r, "tag", tag);
	kv_report_int(r, "bytes", (int64_t)bytes);
	kv_report_int(r, "parts", request->n);
	kv_report_int(r, "parts_missing", __builtin_popcount(request->left));
	kv_report_end_item(r);
}

static void report_comm(struct kv_report *r, struct np_view *view, struct np_comm *comm,
			int64_t deadline_ns)
{
	struct look look = look_at_comm(comm);

	kv_report_item(r, "communicator");
	kv_report_text(r, "kind", "%s", comm->side->is_send ? "sends" : "receives");
	kv_report_text(r, "peer", "%s", tr_conn_address(comm->conn));
	kv_report_int(r, "requests", look.n);
	if (comm->side->is_send)
		kv_report_int(r, "receives_of_the_peer", look.groups);
	if (look.groups)
		kv_report_int(r, "tag_of_the_first", look.group_tag);
	if (look.ending)
		kv_report_text(r, "closing", "%s",
			       look.closed ? "NCCL has closed it; it ends when nothing can touch "
					     "its memory any more"
					   : "a request was under way");
	else if (look.failed)
		kv_report_text(r, "failed", "%s",
			       look.left ? "the peer has closed it" : "see last_error");
	else if (look.n && !ask(view, comm, r, deadline_ns))
		kv_report_text(r, "polled",
			       "no: NCCL's thread has not called the plugin for it since this dump "
			       "began");
	kv_report_list(r, "operations");
	for (unsigned int i = 0; i < look.shown; i++)
		report_request(r, &look.request[i], look.tag[i]);
	kv_report_end_list(r);
	kv_report_end_item(r);
}

void np_view_report(struct np_view *view, struct kv_report *r)
{
	int64_t deadline_ns = kv_deadline_ns(PATIENCE_MS), oldest = INT64_MAX;
	unsigned int n = 0;

	pthread_mutex_lock(&view->lock);
	for (struct np_comm *comm = view->first; comm; comm = comm->beside) {
		struct look look = look_at_comm(comm);

		n += look.n;
		if (look.n && waits_since(&look.request[0]) < oldest)
			oldest = waits_since(&look.request[0]);
	}
	kv_report_int(r, "operations_in_flight", n);
	kv_report_age(r, "oldest_ms", oldest == INT64_MAX ? kv_now_ns() : oldest);
	if (!r->brief) {
		kv_report_list(r, "communicators");
		for (struct np_comm *comm = view->first; comm; comm = comm->beside)
			report_comm(r, view, comm, deadline_ns);
		kv_report_end_list(r);
	}
	pthread_mutex_unlock(&view->lock);
}
