/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_connect.c -- listen, connect, accept: none blocks, each call moves the handshakes a step
 *
 * The connecting side's state between two calls of connect is found by the cookie in the handle,
 * never by a pointer in it. A listener steps any number of handshakes at once, so a stranger that
 * connects and sends nothing delays no other. Two ranks that both wait in connect before they
 * accept would wait for ever; so a connect that has waited for long steps the handshakes of the
 * listeners of its communicator as well, and accept finds them done.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/report.h"
#include "np.h"

struct pending {
	struct tr_conn *conn;
	bool done;
	struct pending *next;
};

/* What changes after listen is under the context's lock. */
struct np_listener {
	struct np_context *ctx;
	struct np_listener *next; /* of the context */
	struct np_rail *rail;
	struct tr_listener *listener;
	uint8_t nonce[NP_NONCE];
	struct pending *pending;
	unsigned int pendings;
};

/* ------------------------------------------------------ what the two ends send in the handshake */

static int put_nonce(void *arg, struct tr_conn *conn, void *buf, size_t cap)
{
	const struct np_comm *comm = arg;

	if (cap < NP_NONCE)
		return KV_ERR_INTERNAL;
	memcpy(buf, comm->nonce, NP_NONCE);
	return NP_NONCE;
}

static int get_nonce(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	const struct np_listener *l = arg;

	if (len != NP_NONCE || memcmp(buf, l->nonce, NP_NONCE))
		return kv_fail(err, KV_ERR_STALE_PEER, "handshake",
			       "the handle is not of this listener");
	return 0;
}

/* A CPU puts a message ahead into place, so a receiver that may use GPU memory takes none. */
static int put_ahead(void *arg, struct tr_conn *conn, void *buf, size_t cap)
{
	const struct np_listener *l = arg;

	if (!cap)
		return KV_ERR_INTERNAL;
	*(uint8_t *)buf = l->rail->ptr_support == NCCL_PTR_HOST;
	return 1;
}

static int get_ahead(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	struct np_comm *comm = arg;

	if (len != 1)
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake", "%zu bytes of hello, not 1", len);
	np_send_of(comm)->may_ahead = *(const uint8_t *)buf;
	return 0;
}

static const struct tr_upper_ops connecting_ops = {
	.id = TR_UPPER_NCCL,
	.version = NP_WIRE_VERSION,
	.hello_put = put_nonce,
	.hello_get = get_ahead,
};

static const struct tr_upper_ops accepting_ops = {
	.id = TR_UPPER_NCCL,
	.version = NP_WIRE_VERSION,
	.hello_put = put_ahead,
	.hello_get = get_nonce,
};

static struct tr_conn_config config_of(const struct np_rail *rail, const struct tr_upper_ops *ops,
				       void *arg)
{
	return (struct tr_conn_config){
		.ops = ops,
		.arg = arg,
		.flags = TR_LINE_ORDER | TR_POLLED |
			 (rail->ptr_support & NCCL_PTR_CUDA ? TR_PASSES_GPU : 0u),
		.handshake_ms =
			kv_option_is_set(rail->options, KV_OPT_HANDSHAKE_MS) ? 0 : NP_HANDSHAKE_MS,
	};
}

/* ---------------------------------------------------------------- listen */

static int open_listener(struct np_listener *l, int dev, struct np_handle *handle,
			 struct kv_error *err)
{
	const char *why;
	int ret;

	if (kv_fault(NP_RANDOM) || getrandom(l->nonce, NP_NONCE, 0) != NP_NONCE)
		return kv_fail(err, KV_ERR_SYSTEM, "listen", "getrandom");
	ret = np_address_choose(np_device_get(dev)->is_host, handle->host, sizeof(handle->host),
				&why, err);
	if (!ret)
		ret = tr_listen(l->rail->tr, handle->host, 0, &l->listener, err);
	if (ret)
		return ret;
	memcpy(handle->nonce, l->nonce, NP_NONCE);
	handle->port = (uint16_t)tr_listener_port(l->listener);
	np_trace("listening on %s port %u (%s)", handle->host, handle->port, why);
	return 0;
}

ncclResult_t np_listen(void *ctx, int dev, void *handle, void **comm)
{
	struct np_handle h = { 0 };
	struct np_listener *l;
	struct kv_error err;

	np_end_step();
	if (!ctx || !handle || !comm)
		return np_misuse("listen: a pointer is NULL");
	l = kv_fault(NP_LISTENER) ? NULL : calloc(1, sizeof(*l));
	if (!l) {
		kv_fail(&err, KV_ERR_NOMEM, "listen", "cannot allocate a listener");
		return np_fail(&err, "listen");
	}
	if (np_rail_get(ctx, dev, &l->rail, &err)) {
		free(l);
		return np_fail(&err, "listen");
	}
	l->ctx = ctx;
	if (open_listener(l, dev, &h, &err)) {
		np_close_listen(l);
		return np_fail(&err, "listen");
	}
	np_handle_put(handle, &h);
	pthread_mutex_lock(&l->ctx->lock);
	l->next = l->ctx->listeners;
	l->ctx->listeners = l;
	pthread_mutex_unlock(&l->ctx->lock);
	*comm = l;
	return ncclSuccess;
}

ncclResult_t np_close_listen(void *comm)
{
	struct np_listener *l = comm, **at;

	if (!l)
		return ncclSuccess;
	pthread_mutex_lock(&l->ctx->lock);
	for (at = &l->ctx->listeners; *at && *at != l; at = &(*at)->next)
		;
	if (*at) /* not one that failed in listen */
		*at = l->next;
	pthread_mutex_unlock(&l->ctx->lock);
	while (l->pending) {
		struct pending *p = l->pending;

		l->pending = p->next;
		tr_conn_close(p->conn);
		free(p);
	}
	tr_listener_close(l->listener);
	np_context_put(l->ctx);
	free(l);
	return ncclSuccess;
}

/* -------------------------------------------- a listener's handshakes; under the context's lock */

/* Takes what waits in the socket's queue, as far as there is room. */
static int take_waiting(struct np_listener *l, struct kv_error *err)
{
	unsigned int max = (unsigned int)kv_option_int(l->rail->options, KV_OPT_MAX_PENDING);
	struct tr_conn_config config = config_of(l->rail, &accepting_ops, l);

	while (l->pendings < max) {
		struct pending *p = kv_fault(NP_PENDING) ? NULL : calloc(1, sizeof(*p)), **at;
		int ret;

		if (!p)
			return kv_fail(err, KV_ERR_NOMEM, "accept", "cannot allocate a handshake");
		ret = tr_accept(l->listener, &config, &p->conn, err);
		if (ret) {
			free(p);
			return ret == TR_AGAIN ? 0 : ret;
		}
		for (at = &l->pending; *at; at = &(*at)->next)
			;
		*at = p; /* at the end: accept returns the oldest first */
		l->pendings++;
	}
	return 0;
}

/* The stranger's problem, unless it is this process that has run short of something. */
static void refused(const struct tr_conn *conn, int code, const struct kv_error *err)
{
	if (kv_error_scope(code) == KV_SCOPE_DEVICE)
		np_warn("a connection from %s cannot be accepted: KV_ERR_%s: %s",
			tr_conn_address(conn), kv_error_name(code), err->message);
	else
		np_info("a connection from %s was refused: KV_ERR_%s: %s", tr_conn_address(conn),
			kv_error_name(code), err->message);
}

static void step_all(struct np_listener *l)
{
	struct pending **at = &l->pending;

	while (*at) {
		struct pending *p = *at;
		struct kv_error err;
		int ret = p->done ? 0 : tr_conn_step(p->conn, &err);

		p->done = !ret;
		if (!ret || ret == TR_AGAIN) {
			at = &p->next;
			continue;
		}
		refused(p->conn, ret, &err);
		*at = p->next;
		l->pendings--;
		tr_conn_close(p->conn);
		free(p);
	}
}

/* The first that is done, or NULL. */
static struct tr_conn *take_done(struct np_listener *l)
{
	struct pending **at = &l->pending, *p;
	struct tr_conn *conn;

	while (*at && !(*at)->done)
		at = &(*at)->next;
	p = *at;
	if (!p)
		return NULL;
	conn = p->conn;
	*at = p->next;
	l->pendings--;
	free(p);
	return conn;
}

static void step_listeners(struct np_context *ctx)
{
	struct kv_error err;

	pthread_mutex_lock(&ctx->lock);
	for (struct np_listener *l = ctx->listeners; l; l = l->next) {
		take_waiting(l, &err); /* accept meets the same failure and reports it */
		step_all(l);
	}
	pthread_mutex_unlock(&ctx->lock);
}

/* ---------------------------------------------------------------- connect */

static struct np_comm **find_connecting(struct np_context *ctx, uint64_t cookie)
{
	struct np_comm **at = &ctx->connecting;

	while (*at && (*at)->cookie != cookie)
		at = &(*at)->next;
	return at;
}

/* The list begins with the one that was asked for last. */
unsigned int np_connecting_end(struct np_context *ctx, int64_t asked_before_ns)
{
	struct np_comm **at = &ctx->connecting, *list;
	unsigned int left;

	pthread_mutex_lock(&ctx->lock);
	while (*at && (*at)->asked_ns >= asked_before_ns)
		at = &(*at)->next;
	list = *at;
	*at = NULL;
	for (struct np_comm *comm = list; comm; comm = comm->next)
		ctx->connectings--;
	left = ctx->connectings;
	pthread_mutex_unlock(&ctx->lock);
	while (list) {
		struct np_comm *comm = list;

		list = comm->next;
		np_comm_free(comm);
	}
	return left;
}

static int start_connect(struct np_context *ctx, int dev, const struct np_handle *handle,
			 struct np_comm **comm_p, struct kv_error *err)
{
	struct tr_conn_config config;
	struct np_rail *rail;
	struct np_comm *comm;
	int ret = np_rail_get(ctx, dev, &rail, err);

	if (ret)
		return ret;
	comm = np_comm_new(ctx, rail, &np_sending, err);
	if (!comm) {
		np_context_put(ctx);
		return KV_ERR_NOMEM;
	}
	memcpy(comm->nonce, handle->nonce, NP_NONCE);
	comm->patience_ns = kv_deadline_ns(NP_PATIENCE_MS);
	config = config_of(rail, &connecting_ops, comm);
	ret = tr_connect(rail->tr, handle->host, handle->port, &config, &comm->conn, err);
	if (ret)
		np_comm_free(comm);
	else
		*comm_p = comm;
	return ret;
}

/*
 * Finds the connection of this handle or starts one; under no lock while it resolves and connects.
 */
static int take_connecting(struct np_context *ctx, int dev, void *buf, struct np_comm **comm_p,
			   struct kv_error *err)
{
	uint64_t cookie = np_handle_cookie(buf);
	struct np_handle handle;
	struct np_comm **at;
	unsigned int left;
	bool full;
	int ret;

	*comm_p = NULL;
	pthread_mutex_lock(&ctx->lock);
	at = cookie ? find_connecting(ctx, cookie) : NULL;
	if (at && *at) {
		*comm_p = *at;
		*at = (*at)->next;
		ctx->connectings--;
	}
	full = ctx->connectings >= NP_CONNECTING_MAX;
	pthread_mutex_unlock(&ctx->lock);
	if (*comm_p)
		return 0;
	/* One that NCCL comes back for all the same begins anew. */
	left = np_connecting_end(ctx, kv_now_ns() -
					      (full ? NP_HASTE_MS : NP_GIVEN_UP_MS) * KV_NS_PER_MS);
	if (!np_handle_get(buf, &handle))
		return kv_fail(err, KV_ERR_PROTOCOL, "connect",
			       "the handle was not made by this version of the kvrail plugin");
	if (left >= NP_CONNECTING_MAX)
		return kv_fail(err, KV_ERR_BUSY, "connect", "%d connects are under way",
			       NP_CONNECTING_MAX);
	ret = start_connect(ctx, dev, &handle, comm_p, err);
	if (ret == KV_ERR_NOFD) {
		np_connecting_end(ctx, kv_now_ns() - NP_HASTE_MS * KV_NS_PER_MS);
		ret = start_connect(ctx, dev, &handle, comm_p, err);
	}
	if (ret)
		return ret;
	pthread_mutex_lock(&ctx->lock);
	(*comm_p)->cookie = ++ctx->next_cookie;
	pthread_mutex_unlock(&ctx->lock);
	np_handle_set_cookie(buf, (*comm_p)->cookie);
	return 0;
}

ncclResult_t np_connect(void *context, int dev, void *handle, void **comm_p,
			ncclNetDeviceHandle_v7_t **device)
{
	struct np_context *ctx = context;
	struct np_comm *comm;
	struct kv_error err;
	int64_t patience_ns;
	int ret;

	np_end_step();
	if (!ctx || !handle || !comm_p)
		return np_misuse("connect: a pointer is NULL");
	*comm_p = NULL;
	if (device)
		*device = NULL;
	if (take_connecting(ctx, dev, handle, &comm, &err))
		return np_fail(&err, "connect");
	patience_ns = comm->patience_ns;
	ret = tr_conn_step(comm->conn, &err);
	if (ret == TR_AGAIN) {
		pthread_mutex_lock(&ctx->lock);
		comm->asked_ns = kv_now_ns();
		comm->next = ctx->connecting;
		ctx->connecting = comm;
		ctx->connectings++;
		pthread_mutex_unlock(&ctx->lock);
		if (kv_now_ns() >= patience_ns)
			step_listeners(ctx->listens);
		return ncclSuccess;
	}
	np_handle_set_cookie(handle, 0);
	if (ret) {
		np_comm_free(comm);
		if (np_device_get(dev) && np_device_get(dev)->is_host)
			np_warn("connect: this host has no RDMA port, so only its own ranks can be reached; NCCL_NET=Socket takes NCCL's own network");
		return np_fail(&err, "connect");
	}
	np_send_ready(np_send_of(comm), &ctx->rail[dev]);
	np_view_add(comm);
	*comm_p = comm;
	return ncclSuccess;
}

/* ---------------------------------------------------------------- for kvrail dump */

static void report_listener(struct kv_report *r, const struct np_listener *l)
{
	kv_report_item(r, "listener");
	kv_report_int(r, "port", tr_listener_port(l->listener));
	kv_report_list(r, "handshakes");
	for (const struct pending *p = l->pending; p; p = p->next) {
		kv_report_item(r, "handshake");
		kv_report_text(r, "address", "%s", tr_conn_address(p->conn));
		if (p->done)
			kv_report_text(r, "waits_for", "NCCL, which has not called accept");
		tr_conn_report(p->conn, r);
		kv_report_end_item(r);
	}
	kv_report_end_list(r);
	kv_report_end_item(r);
}

void np_connecting_report(struct np_context *ctx, const struct np_metrics *m, struct kv_report *r)
{
	if (pthread_mutex_trylock(&ctx->lock)) {
		kv_report_text(r, "handshakes", "another thread moves them");
		return;
	}
	kv_report_list(r, "connecting");
	for (const struct np_comm *comm = ctx->connecting; comm; comm = comm->next) {
		if (comm->metrics != m)
			continue;
		kv_report_item(r, "connecting");
		kv_report_text(r, "address", "%s", tr_conn_address(comm->conn));
		kv_report_age(r, "connect_called_ms_ago", comm->asked_ns);
		tr_conn_report(comm->conn, r);
		kv_report_end_item(r);
	}
	kv_report_end_list(r);
	kv_report_list(r, "listeners");
	for (const struct np_listener *l = ctx->listeners; l; l = l->next)
		if (l->rail->metrics == m)
			report_listener(r, l);
	kv_report_end_list(r);
	pthread_mutex_unlock(&ctx->lock);
}

/* ---------------------------------------------------------------- accept */

ncclResult_t np_accept(void *listen, void **comm_p, ncclNetDeviceHandle_v7_t **device)
{
	struct np_listener *l = listen;
	struct tr_conn *conn;
	struct np_comm *comm;
	struct kv_error err;
	int ret;

	if (!l || !comm_p)
		return np_misuse("accept: a pointer is NULL");
	*comm_p = NULL;
	if (device)
		*device = NULL;
	pthread_mutex_lock(&l->ctx->lock);
	ret = take_waiting(l, &err);
	step_all(l);
	conn = take_done(l);
	pthread_mutex_unlock(&l->ctx->lock);
	if (!conn)
		return ret ? np_fail(&err, "accept") : ncclSuccess;
	comm = np_comm_new(l->ctx, l->rail, &np_receiving, &err);
	if (!comm) {
		tr_conn_close(conn);
		return np_fail(&err, "accept");
	}
	pthread_mutex_lock(&l->ctx->lock);
	l->ctx->refs++;
	pthread_mutex_unlock(&l->ctx->lock);
	comm->conn = conn;
	comm->is_shm = !strcmp(tr_conn_transport(conn), "shm");
	np_view_add(comm);
	*comm_p = comm;
	return ncclSuccess;
}
