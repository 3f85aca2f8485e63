/* SPDX-License-Identifier: Apache-2.0 */
/* device.c -- devices, contexts, ports, protection domains and memory regions */
#include <arpa/inet.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "softnic.h"

#undef ibv_query_port
#undef ibv_reg_mr
#undef ibv_reg_mr_iova

struct ibv_device **ibv_get_device_list(int *n)
{
	struct ibv_device **list;

	if (!sn_attach())
		return NULL;
	list = calloc((size_t)sn.devices + 1, sizeof(struct ibv_device *));
	for (int i = 0; list && i < sn.devices; i++)
		list[i] = &sn.device[i].device;
	if (n)
		*n = list ? sn.devices : 0;
	return list;
}

void ibv_free_device_list(struct ibv_device **list)
{
	free(list);
}

const char *ibv_get_device_name(struct ibv_device *device)
{
	return device->name;
}

__be64 ibv_get_device_guid(struct ibv_device *device)
{
	return htobe64(UINT64_C(0x0200000000000000) | (uint64_t)sn.host << 8 |
		       (uint64_t)((struct sn_device *)device)->index);
}

int ibv_get_device_index(struct ibv_device *device)
{
	return ((struct sn_device *)device)->index;
}

int ibv_fork_init(void)
{
	return 0;
}

/* ---------------------------------------------------------------- what it says of itself */

int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *attr)
{
	model_device(attr);
	snprintf(attr->fw_ver, sizeof(attr->fw_ver), "softnic");
	attr->vendor_id = 0x2c9; /* programs that know their devices take it for a fast one */
	attr->max_mr_size = UINT64_MAX;
	attr->page_size_cap = ~UINT64_C(0xfff);
	attr->max_qp = SN_QPS;
	attr->max_cq = SN_CQS;
	attr->max_mr = SN_MRS;
	attr->max_pd = SN_MRS;
	attr->max_srq = SN_SRQS;
	attr->max_srq_wr = MODEL_DEPTH;
	attr->max_srq_sge = MODEL_SGES;
	attr->max_sge_rd = MODEL_SGES;
	attr->max_res_rd_atom = 16 * SN_QPS;
	attr->max_pkeys = 1;
	attr->node_guid = attr->sys_image_guid = ibv_get_device_guid(context->device);
	return 0;
}

static int query_device_ex(struct ibv_context *context,
			   const struct ibv_query_device_ex_input *input,
			   struct ibv_device_attr_ex *attr, size_t size)
{
	memset(attr, 0, size);
	return ibv_query_device(context, &attr->orig_attr);
}

static uint16_t lid_of(int host, int index)
{
	return (uint16_t)(host * SN_DEVICES + index + 1);
}

static int query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr,
		      size_t size)
{
	struct ibv_port_attr is = {
		.state = IBV_PORT_ACTIVE,
		.max_mtu = IBV_MTU_4096,
		.active_mtu = IBV_MTU_4096,
		.gid_tbl_len = MODEL_GIDS,
		.max_msg_sz = MODEL_MESSAGE,
		.pkey_tbl_len = 1,
		.active_width = 2, /* 4x 100 Gb/s */
		.active_speed = 128,
		.phys_state = 5,
		.link_layer = sn.infiniband ? IBV_LINK_LAYER_INFINIBAND : IBV_LINK_LAYER_ETHERNET,
	};

	if (port != 1)
		return EINVAL;
	is.lid = sn.infiniband ? lid_of(sn.host, sn_context_of(context)->device->index) : 0;
	memset(attr, 0, size);
	memcpy(attr, &is, size < sizeof(is) ? size : sizeof(is));
	return 0;
}

int ibv_query_port(struct ibv_context *context, uint8_t port, struct _compat_ibv_port_attr *attr)
{
	/* The first version ended behind link_layer. */
	return query_port(context, port, (struct ibv_port_attr *)attr,
			  offsetof(struct ibv_port_attr, flags));
}

static void gids_of(const struct ibv_context *context, struct ibv_gid_entry gid[MODEL_GIDS])
{
	const struct sn_context *c =
		(const struct sn_context *)((const char *)context -
					    offsetof(struct sn_context, verbs.context));

	model_gids(gid, sn.infiniband, sn.host, c->device->index);
}

ssize_t _ibv_query_gid_table(struct ibv_context *context, struct ibv_gid_entry *entries, size_t max,
			     uint32_t flags, size_t entry_size)
{
	struct ibv_gid_entry gid[MODEL_GIDS];
	ssize_t n = 0;

	gids_of(context, gid);
	for (size_t i = 0; i < MODEL_GIDS && (size_t)n < max; i++)
		if (!model_gid_is_zero(&gid[i].gid))
			memcpy((char *)entries + (size_t)n++ * entry_size, &gid[i],
			       entry_size < sizeof(gid[i]) ? entry_size : sizeof(gid[i]));
	return n;
}

int _ibv_query_gid_ex(struct ibv_context *context, uint32_t port, uint32_t index,
		      struct ibv_gid_entry *entry, uint32_t flags, size_t entry_size)
{
	struct ibv_gid_entry gid[MODEL_GIDS];

	gids_of(context, gid);
	if (port != 1 || index >= MODEL_GIDS)
		return EINVAL;
	if (model_gid_is_zero(&gid[index].gid))
		return ENODATA;
	memcpy(entry, &gid[index], entry_size < sizeof(*gid) ? entry_size : sizeof(*gid));
	return 0;
}

int ibv_query_gid(struct ibv_context *context, uint8_t port, int index, union ibv_gid *to)
{
	struct ibv_gid_entry gid[MODEL_GIDS];

	gids_of(context, gid);
	if (port != 1 || index < 0 || index >= MODEL_GIDS)
		return -1;
	*to = gid[index].gid;
	return 0;
}

int ibv_query_pkey(struct ibv_context *context, uint8_t port, int index, __be16 *pkey)
{
	*pkey = 0xffff;
	return port == 1 && !index ? 0 : -1;
}

int ibv_get_pkey_index(struct ibv_context *context, uint8_t port, __be16 pkey)
{
	return port == 1 && (pkey & htons(0x7fff)) == htons(0x7fff) ? 0 : -1;
}

/* ---------------------------------------------------------------- contexts */

struct ibv_context *ibv_open_device(struct ibv_device *device)
{
	struct sn_context *c = sn_attach() ? calloc(1, sizeof(*c)) : NULL;

	if (!c)
		return NULL;
	c->device = (struct sn_device *)device;
	c->verbs.sz = sizeof(c->verbs);
	c->verbs.query_port = query_port;
	c->verbs.query_device_ex = query_device_ex;
	c->verbs.create_qp_ex = sn_create_qp_ex;
	c->verbs.context = (struct ibv_context){
		.device = device,
		.cmd_fd = -1,
		.async_fd = sn_socket(&c->async),
		.num_comp_vectors = 1,
		.abi_compat = __VERBS_ABI_IS_EXTENDED,
		.ops = { .poll_cq = sn_poll_cq,
			 .req_notify_cq = sn_req_notify_cq,
			 .post_send = sn_post_send,
			 .post_recv = sn_post_recv,
			 .post_srq_recv = sn_post_srq_recv },
	};
	pthread_mutex_init(&c->verbs.context.mutex, NULL);
	return &c->verbs.context;
}

int ibv_close_device(struct ibv_context *context)
{
	close(context->async_fd);
	free(sn_context_of(context));
	return 0;
}

struct told {
	uint32_t type, qpn;
};

void sn_tell_async(const struct sn_shared_qp *qp, enum ibv_event_type type)
{
	struct told told = { type, qp->qpn };

	sn_tell(qp->async, &told, sizeof(told));
}

int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *event)
{
	struct told told;

	while (recv(context->async_fd, &told, sizeof(told), 0) == sizeof(told)) {
		struct sn_qp *qp = sn.qp[told.qpn % SN_QPS];

		if (!qp || qp->ex.qp_base.qp_num != told.qpn)
			continue; /* it was destroyed */
		event->event_type = (enum ibv_event_type)told.type;
		if (event->event_type == IBV_EVENT_CQ_ERR)
			event->element.cq = qp->init.recv_cq;
		else
			event->element.qp = &qp->ex.qp_base;
		return 0;
	}
	return -1;
}

void ibv_ack_async_event(struct ibv_async_event *event)
{
}

/* ---------------------------------------------------------------- domains and regions */

struct ibv_pd *ibv_alloc_pd(struct ibv_context *context)
{
	struct sn_pd *pd = calloc(1, sizeof(*pd));

	if (!pd)
		return NULL;
	pd->pd.context = context;
	pd->number = atomic_fetch_add(&sn.world->next_pd, 1) + 1;
	return &pd->pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
	free(pd);
	return 0;
}

static struct sn_shared_mr *take_mr(uint32_t *lkey_p)
{
	for (int tries = 0; tries < SN_MRS; tries++) {
		uint32_t number = atomic_fetch_add(&sn.world->next_mr, 1), none = 0;
		struct sn_shared_mr *mr = &sn.world->mr[number % SN_MRS];

		/* The low byte changes when a slot comes back: an old key does not open it. */
		*lkey_p = number % SN_MRS << 8 | ((number / SN_MRS * 2 + 1) & 0xff);
		if (atomic_compare_exchange_strong(&mr->lkey, &none, UINT32_MAX))
			return mr;
	}
	errno = ENOMEM;
	return NULL;
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova,
				unsigned int access)
{
	struct ibv_mr *mr = NULL;
	struct sn_shared_mr *shared;
	uint32_t lkey;

	errno = EINVAL;
	if (!model_may_register(len, access))
		return NULL;
	shared = take_mr(&lkey);
	mr = shared ? calloc(1, sizeof(*mr)) : NULL;
	if (!mr)
		return NULL;
	shared->rkey = lkey ^ 0x80; /* local and remote keys are not mixed up unnoticed */
	shared->pd = ((struct sn_pd *)pd)->number;
	shared->host = sn.host;
	shared->access = access;
	shared->iova = iova;
	shared->addr = (uintptr_t)addr;
	shared->len = len;
	atomic_store(&shared->lkey, lkey);
	*mr = (struct ibv_mr){ .context = pd->context,
			       .pd = pd,
			       .addr = addr,
			       .length = len,
			       .lkey = lkey,
			       .rkey = shared->rkey };
	return mr;
}

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t len, int access)
{
	return ibv_reg_mr_iova2(pd, addr, len, (uintptr_t)addr, (unsigned int)access);
}

struct ibv_mr *ibv_reg_mr_iova(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova, int access)
{
	return ibv_reg_mr_iova2(pd, addr, len, iova, (unsigned int)access);
}

struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t len, uint64_t iova,
				 int fd, int access)
{
	errno = EOPNOTSUPP;
	return NULL;
}

/* What is being written into it is written before it is gone. */
int ibv_dereg_mr(struct ibv_mr *mr)
{
	struct sn_shared_mr *shared = &sn.world->mr[mr->lkey >> 8];

	atomic_store(&shared->lkey, UINT32_MAX);
	for (int tries = 0; atomic_load(&shared->users) && tries < 1 << 20; tries++)
		sched_yield(); /* bounded: a user may have been killed */
	sn_collect_all();
	atomic_store(&shared->users, 0);
	atomic_store(&shared->lkey, 0);
	free(mr);
	return 0;
}

/* The region, in use until its users is counted down; NULL: the key opens none. */
struct sn_shared_mr *sn_mr_find(uint32_t key, bool remote)
{
	struct sn_shared_mr *mr = key >> 8 < SN_MRS ? &sn.world->mr[key >> 8] : NULL;
	uint32_t lkey = remote ? key ^ 0x80 : key;

	if (!mr || atomic_load(&mr->lkey) != lkey)
		return NULL;
	atomic_fetch_add(&mr->users, 1);
	if (atomic_load(&mr->lkey) == lkey)
		return mr;
	atomic_fetch_sub(&mr->users, 1);
	return NULL;
}

uint64_t sn_mr_at(const struct sn_shared_mr *mr, int host, uint32_t pd, uint64_t addr, uint64_t len,
		  unsigned int access)
{
	if (mr->host != host || mr->pd != pd || (mr->access & access) != access ||
	    addr < mr->iova || len > mr->len || addr - mr->iova > mr->len - len)
		return 0;
	return mr->addr + (addr - mr->iova);
}
