/* SPDX-License-Identifier: Apache-2.0 */
/*
 * broken_verbs.c -- the real verbs behind a table that can fail the nth call of each, and counts
 * what was made
 */
#include "broken_verbs.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>

enum { VENDOR_ERR = 0x1234 };

static const struct ib_verbs *real;
static const struct ib_cm *real_cm;
static struct {
	atomic_int left; /* calls until it fails; 0 or less = never */
	atomic_bool fired;
	int error;
} verb_fault[FAKE_VERB_COUNT];
static int wr_left, wc_left;
static enum ibv_wc_status wc_status;
static bool wc_fired;
static atomic_int contexts, pds, mrs, channels, cqs, qps, cms;

static bool fails(enum fake_verb verb)
{
	if (atomic_load(&verb_fault[verb].left) <= 0 ||
	    atomic_fetch_sub(&verb_fault[verb].left, 1) != 1)
		return false;
	verb_fault[verb].fired = true;
	errno = verb_fault[verb].error;
	return true;
}

/* What a verb has made, counted. */
static void *made(void *object, atomic_int *count)
{
	*count += object != NULL;
	return object;
}

static int destroyed(int ret, atomic_int *count)
{
	*count -= !ret;
	return ret;
}

static struct ibv_device **get_device_list(int *n)
{
	return fails(FAKE_get_device_list) ? NULL : real->get_device_list(n);
}

static struct ibv_context *open_device(struct ibv_device *device)
{
	return made(fails(FAKE_open_device) ? NULL : real->open_device(device), &contexts);
}

static int close_device(struct ibv_context *context)
{
	return destroyed(real->close_device(context), &contexts);
}

static int query_device(struct ibv_context *context, struct ibv_device_attr *attr)
{
	return fails(FAKE_query_device) ? errno : real->query_device(context, attr);
}

static int query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr)
{
	return fails(FAKE_query_port) ? errno : real->query_port(context, port, attr);
}

static ssize_t query_gid_table(struct ibv_context *context, struct ibv_gid_entry *entries,
			       size_t max)
{
	return fails(FAKE_query_gid_table) ? -errno : real->query_gid_table(context, entries, max);
}

static struct ibv_pd *alloc_pd(struct ibv_context *context)
{
	return made(fails(FAKE_alloc_pd) ? NULL : real->alloc_pd(context), &pds);
}

static int dealloc_pd(struct ibv_pd *pd)
{
	return destroyed(real->dealloc_pd(pd), &pds);
}

static struct ibv_mr *reg_mr(struct ibv_pd *pd, void *addr, size_t len, unsigned int access)
{
	return made(fails(FAKE_reg_mr) ? NULL : real->reg_mr(pd, addr, len, access), &mrs);
}

static struct ibv_mr *reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t len, uint64_t iova,
				    int fd, int access)
{
	return made(fails(FAKE_reg_dmabuf_mr)
			    ? NULL
			    : real->reg_dmabuf_mr(pd, offset, len, iova, fd, access),
		    &mrs);
}

static int dereg_mr(struct ibv_mr *mr)
{
	return destroyed(real->dereg_mr(mr), &mrs);
}

static struct ibv_comp_channel *create_comp_channel(struct ibv_context *context)
{
	return made(fails(FAKE_create_comp_channel) ? NULL : real->create_comp_channel(context),
		    &channels);
}

static int destroy_comp_channel(struct ibv_comp_channel *channel)
{
	return destroyed(real->destroy_comp_channel(channel), &channels);
}

static struct ibv_cq *create_cq(struct ibv_context *context, int cqe, void *cq_context,
				struct ibv_comp_channel *channel, int comp_vector)
{
	return made(fails(FAKE_create_cq)
			    ? NULL
			    : real->create_cq(context, cqe, cq_context, channel, comp_vector),
		    &cqs);
}

static int destroy_cq(struct ibv_cq *cq)
{
	return destroyed(real->destroy_cq(cq), &cqs);
}

static int poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
	int got = fails(FAKE_poll_cq) ? -1 : real->poll_cq(cq, n, wc);

	for (int i = 0; i < got; i++)
		if (!wc[i].status && wc_left && !--wc_left) {
			wc[i].status = wc_status;
			wc[i].vendor_err = VENDOR_ERR;
			wc_fired = true;
		}
	return got;
}

static int req_notify_cq(struct ibv_cq *cq, int solicited_only)
{
	return fails(FAKE_req_notify_cq) ? errno : real->req_notify_cq(cq, solicited_only);
}

static struct ibv_qp *create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
	return made(fails(FAKE_create_qp) ? NULL : real->create_qp(pd, attr), &qps);
}

static int modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask)
{
	if (attr->qp_state == IBV_QPS_ERR)
		wc_left = 0; /* what a stopped queue pair completes concerns nobody */
	return fails(FAKE_modify_qp) ? errno : real->modify_qp(qp, attr, mask);
}

static int destroy_qp(struct ibv_qp *qp)
{
	return destroyed(real->destroy_qp(qp), &qps);
}

/* Those before the work request that is refused are posted, as a device does it. */
static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	struct ibv_send_wr *last = NULL, *refused = NULL;
	int ret = 0;

	if (fails(FAKE_post_send)) {
		*bad = wr;
		return errno;
	}
	for (struct ibv_send_wr *w = wr; w && wr_left && !refused; w = w->next) {
		if (--wr_left)
			last = w;
		else
			refused = w;
	}
	if (!refused)
		return real->post_send(qp, wr, bad);
	if (last) {
		last->next = NULL;
		ret = real->post_send(qp, wr, bad);
		last->next = refused;
	}
	if (!ret) {
		*bad = refused;
		ret = ENOMEM;
	}
	return ret;
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	if (fails(FAKE_post_recv)) {
		*bad = wr;
		return errno;
	}
	return real->post_recv(qp, wr, bad);
}

static struct rdma_event_channel *create_event_channel(void)
{
	return made(fails(FAKE_cm_create_event_channel) ? NULL : real_cm->create_event_channel(),
		    &cms);
}

static void destroy_event_channel(struct rdma_event_channel *channel)
{
	real_cm->destroy_event_channel(channel);
	cms--;
}

static int create_id(struct rdma_event_channel *channel, struct rdma_cm_id **id, void *context,
		     enum rdma_port_space ps)
{
	int ret = fails(FAKE_cm_create_id) ? -1 : real_cm->create_id(channel, id, context, ps);

	cms += !ret;
	return ret;
}

static int destroy_id(struct rdma_cm_id *id)
{
	return destroyed(real_cm->destroy_id(id), &cms);
}

static int resolve_addr(struct rdma_cm_id *id, struct sockaddr *src, struct sockaddr *dst,
			int timeout_ms)
{
	return fails(FAKE_cm_resolve_addr) ? -1 : real_cm->resolve_addr(id, src, dst, timeout_ms);
}

static int resolve_route(struct rdma_cm_id *id, int timeout_ms)
{
	return fails(FAKE_cm_resolve_route) ? -1 : real_cm->resolve_route(id, timeout_ms);
}

static int get_cm_event(struct rdma_event_channel *channel, struct rdma_cm_event **event)
{
	return fails(FAKE_cm_get_cm_event) ? -1 : real_cm->get_cm_event(channel, event);
}

static void begin_cm(void)
{
	static struct ib_cm table;

	if (!real_cm) {
		real_cm = ib_cm_load(NULL);
		table = (struct ib_cm){
			.create_event_channel = create_event_channel,
			.destroy_event_channel = destroy_event_channel,
			.create_id = create_id,
			.destroy_id = destroy_id,
			.resolve_addr = resolve_addr,
			.resolve_route = resolve_route,
			.get_cm_event = get_cm_event,
			.ack_cm_event = real_cm->ack_cm_event,
		};
	}
	ib_test_hook.cm = &table;
}

void broken_begin(void)
{
	static struct ib_verbs table;

	if (!real) {
		real = ib_verbs_load(NULL);
		table = *real;
		table.get_device_list = get_device_list;
		table.open_device = open_device;
		table.close_device = close_device;
		table.query_device = query_device;
		table.query_port = query_port;
		table.query_gid_table = query_gid_table;
		table.alloc_pd = alloc_pd;
		table.dealloc_pd = dealloc_pd;
		table.reg_mr = reg_mr;
		table.reg_dmabuf_mr = reg_dmabuf_mr;
		table.dereg_mr = dereg_mr;
		table.create_comp_channel = create_comp_channel;
		table.destroy_comp_channel = destroy_comp_channel;
		table.create_cq = create_cq;
		table.destroy_cq = destroy_cq;
		table.poll_cq = poll_cq;
		table.req_notify_cq = req_notify_cq;
		table.create_qp = create_qp;
		table.modify_qp = modify_qp;
		table.destroy_qp = destroy_qp;
		table.post_send = post_send;
		table.post_recv = post_recv;
	}
	begin_cm();
	for (int i = 0; i < FAKE_VERB_COUNT; i++)
		verb_fault[i].fired = false;
	wc_fired = false;
	ib_test_hook.verbs = &table;
}

bool broken_end(void)
{
	ib_test_hook.verbs = NULL;
	ib_test_hook.cm = NULL;
	wr_left = wc_left = 0;
	for (int i = 0; i < FAKE_VERB_COUNT; i++)
		verb_fault[i].left = 0;
	if (!contexts && !pds && !mrs && !channels && !cqs && !qps && !cms)
		return true;
	printf("left behind: contexts %d, protection domains %d, regions %d, channels %d, completion queues %d, queue "
	       "pairs %d, of librdmacm %d\n",
	       contexts, pds, mrs, channels, cqs, qps, cms);
	return false;
}

void broken_fail_verb(enum fake_verb verb, int nth, int error)
{
	verb_fault[verb].error = error;
	verb_fault[verb].left = nth;
}

void broken_fail_wr(int nth)
{
	wr_left = nth;
}

void broken_fail_completion(int nth, enum ibv_wc_status status)
{
	wc_left = nth;
	wc_status = status;
}

bool broken_verb_fired(enum fake_verb verb)
{
	return verb_fault[verb].fired;
}

bool broken_completion_fired(void)
{
	return wc_fired;
}
