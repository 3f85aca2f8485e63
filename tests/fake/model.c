/* SPDX-License-Identifier: Apache-2.0 */
/* model.c -- what every RC device does alike: GID table, queue pair states, names of results */
#include "model.h"

#include <string.h>

void model_gids(struct ibv_gid_entry gid[MODEL_GIDS], bool infiniband, int host, int index)
{
	memset(gid, 0, MODEL_GIDS * sizeof(gid[0]));
	for (unsigned int i = 0; i < MODEL_GIDS; i++) {
		struct ibv_gid_entry *entry = &gid[i];

		entry->gid_index = i;
		entry->port_num = 1;
		entry->gid_type = i == 2 ? IBV_GID_TYPE_ROCE_V1 : IBV_GID_TYPE_ROCE_V2;
		if (infiniband)
			entry->gid_type = IBV_GID_TYPE_IB;
		if (infiniband && i)
			continue;
		if (i == 0) {
			entry->gid.raw[0] = 0xfe;
			entry->gid.raw[1] = 0x80;
		} else if (i > 1) {
			entry->gid.raw[10] = entry->gid.raw[11] = 0xff;
			entry->gid.raw[12] = 10;
		}
		if (i != 1) {
			entry->gid.raw[14] = (uint8_t)(host + 1);
			entry->gid.raw[15] = (uint8_t)(index + 1);
		}
	}
}

bool model_gid_is_zero(const union ibv_gid *gid)
{
	return !gid->global.subnet_prefix && !gid->global.interface_id;
}

void model_device(struct ibv_device_attr *attr)
{
	memset(attr, 0, sizeof(*attr));
	attr->phys_port_cnt = 1;
	attr->max_qp_wr = MODEL_DEPTH;
	attr->max_sge = MODEL_SGES;
	attr->max_cqe = 1 << 16;
	attr->max_qp_rd_atom = 16;
	attr->max_qp_init_rd_atom = 16;
}

bool model_takes(const struct ibv_qp_init_attr *attr, uint32_t inline_max)
{
	return attr->cap.max_inline_data <= inline_max && attr->cap.max_send_sge <= MODEL_SGES &&
	       attr->cap.max_recv_sge <= MODEL_SGES && attr->cap.max_send_wr <= MODEL_DEPTH &&
	       attr->cap.max_recv_wr <= MODEL_DEPTH && attr->qp_type == IBV_QPT_RC &&
	       attr->send_cq && attr->recv_cq;
}

bool model_may_step(enum ibv_qp_state from, const struct ibv_qp_attr *attr, int mask)
{
	static const struct {
		enum ibv_qp_state from, to;
		int need;
	} legal[] = {
		{ IBV_QPS_RESET, IBV_QPS_INIT,
		  IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS },
		{ IBV_QPS_INIT, IBV_QPS_RTR,
		  IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
			  IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER },
		{ IBV_QPS_RTR, IBV_QPS_RTS,
		  IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
			  IBV_QP_MAX_QP_RD_ATOMIC },
	};

	for (size_t i = 0; i < sizeof(legal) / sizeof(legal[0]); i++)
		if (legal[i].from == from && legal[i].to == attr->qp_state)
			return (mask & legal[i].need) == legal[i].need;
	return false;
}

void model_take_attr(struct ibv_qp_attr *to, const struct ibv_qp_attr *attr, int mask)
{
	if (mask & IBV_QP_ACCESS_FLAGS)
		to->qp_access_flags = attr->qp_access_flags;
	if (mask & IBV_QP_PATH_MTU)
		to->path_mtu = attr->path_mtu;
	if (mask & IBV_QP_AV)
		to->ah_attr = attr->ah_attr;
	if (mask & IBV_QP_DEST_QPN)
		to->dest_qp_num = attr->dest_qp_num;
	if (mask & IBV_QP_RQ_PSN)
		to->rq_psn = attr->rq_psn;
	if (mask & IBV_QP_SQ_PSN)
		to->sq_psn = attr->sq_psn;
	if (mask & IBV_QP_PKEY_INDEX)
		to->pkey_index = attr->pkey_index;
	if (mask & IBV_QP_TIMEOUT)
		to->timeout = attr->timeout;
	if (mask & IBV_QP_RETRY_CNT)
		to->retry_cnt = attr->retry_cnt;
	if (mask & IBV_QP_RNR_RETRY)
		to->rnr_retry = attr->rnr_retry;
}

enum ibv_wc_opcode model_done(enum ibv_wr_opcode opcode)
{
	switch (opcode) {
	case IBV_WR_RDMA_READ:
		return IBV_WC_RDMA_READ;
	case IBV_WR_SEND:
	case IBV_WR_SEND_WITH_IMM:
		return IBV_WC_SEND;
	default:
		return IBV_WC_RDMA_WRITE;
	}
}

const char *model_wc_status_str(enum ibv_wc_status status)
{
	static const char *const names[] = {
		"success",
		"local length error",
		"local QP operation error",
		"local EEC operation error",
		"local protection error",
		"Work Request Flushed Error",
		"memory management operation error",
		"bad response error",
		"local access error",
		"remote invalid request error",
		"remote access error",
		"remote operation error",
		"transport retry counter exceeded",
		"RNR retry counter exceeded",
	};

	return (size_t)status < sizeof(names) / sizeof(names[0]) ? names[status] : "another error";
}

const char *model_event_type_str(enum ibv_event_type type)
{
	switch (type) {
	case IBV_EVENT_CQ_ERR:
		return "CQ error";
	case IBV_EVENT_QP_ACCESS_ERR:
		return "local access violation work queue error";
	case IBV_EVENT_DEVICE_FATAL:
		return "local catastrophic error";
	case IBV_EVENT_PORT_ERR:
		return "port error";
	case IBV_EVENT_PORT_ACTIVE:
		return "port active";
	default:
		return "another event";
	}
}
