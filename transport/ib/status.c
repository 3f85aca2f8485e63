/* SPDX-License-Identifier: Apache-2.0 */
/* status.c -- from what a device reports to a KV_ERR_* with its cause */
#include <stdio.h>

#include "base/error.h"
#include "ib.h"

int ib_wc_code(enum ibv_wc_status status, bool port_down)
{
	switch (status) {
	case IBV_WC_SUCCESS:
		return KV_OK;
	case IBV_WC_LOC_QP_OP_ERR: /* also how Soft-RoCE says that no route leads out any more */
		return port_down ? KV_ERR_LINK : KV_ERR_LOCAL_MR;
	case IBV_WC_LOC_LEN_ERR:
	case IBV_WC_LOC_EEC_OP_ERR:
	case IBV_WC_LOC_PROT_ERR:
	case IBV_WC_LOC_ACCESS_ERR:
	case IBV_WC_MW_BIND_ERR:
	case IBV_WC_LOC_RDD_VIOL_ERR:
		return KV_ERR_LOCAL_MR;
	case IBV_WC_REM_ACCESS_ERR:
	case IBV_WC_REM_INV_REQ_ERR:
	case IBV_WC_REM_INV_RD_REQ_ERR:
		return KV_ERR_REMOTE_ACCESS;
	case IBV_WC_RNR_RETRY_EXC_ERR:
		return KV_ERR_RNR;
	case IBV_WC_RETRY_EXC_ERR:
	case IBV_WC_RESP_TIMEOUT_ERR:
	case IBV_WC_WR_FLUSH_ERR:
		return port_down ? KV_ERR_LINK : KV_ERR_PEER_LOST;
	case IBV_WC_BAD_RESP_ERR:
	case IBV_WC_REM_OP_ERR:
	case IBV_WC_REM_ABORT_ERR:
		return KV_ERR_PEER_LOST;
	default:
		return KV_ERR_DEVICE;
	}
}

static const char *hint_of(enum ibv_wc_status status)
{
	switch (status) {
	case IBV_WC_RETRY_EXC_ERR:
		return "the peer's process or host is gone, or packets are lost: connect again; "
		       "KVCACHE_IB_TIMEOUT and KVCACHE_IB_RETRY set how long is tried";
	case IBV_WC_REM_ACCESS_ERR:
		return "the peer deregistered the memory, or its cache is smaller than it said";
	case IBV_WC_LOC_QP_OP_ERR:
		return "on RoCE: was the interface taken down, or the address removed that the queue "
		       "pair sends from? `ip addr` and `kvrail info` show it; then connect again";
	case IBV_WC_LOC_PROT_ERR:
		return "the source memory was deregistered or unmapped during the operation";
	default:
		return "";
	}
}

void ib_name_peer(const struct ib_conn *c, const struct ib_rail *rail, struct kv_error *err)
{
	const char *peer = c ? tr_conn_address(c->conn) : NULL;

	if (!err)
		return;
	if (peer)
		snprintf(err->peer, sizeof(err->peer), "%s", peer);
	if (rail)
		snprintf(err->device, sizeof(err->device), "%s", rail->name);
}

void ib_wc_cause(const struct ib_lane *lane, const struct ibv_wc *wc, struct kv_error *err)
{
	const struct ib_rail *rail = lane->path->rail;
	const char *what =
		IB_WR_KIND(wc->wr_id) == IB_KIND_RECV ? "receive request" : "work request";
	bool down = atomic_load(&rail->down);
	/*
	 * With Soft-RoCE the completion is here before the event that says why no packet leaves any
	 * more.
	 */
	bool stuck = rail->attr.vendor_id == IB_SOFT_ROCE && wc->status == IBV_WC_LOC_QP_OP_ERR;

	kv_fail(err, ib_wc_code(wc->status, down || stuck), "transfer",
		"a %s on qp 0x%x of %s ended with %s (%d), vendor error 0x%x%s", what, wc->qp_num,
		rail->name, lane->c->v->wc_status_str(wc->status), (int)wc->status, wc->vendor_err,
		down ? "; the local port is down" : "");
	kv_error_hint(err, "%s", hint_of(wc->status));
	err->wc_status = (int32_t)wc->status;
	err->vendor_err = wc->vendor_err;
	err->qp_num = wc->qp_num;
	err->in_doubt = 1;
	ib_name_peer(lane->c, rail, err);
}

void ib_async_cause(const struct ib_lane *lane, int type, struct kv_error *err)
{
	const struct ib_rail *rail = lane->path->rail;
	int code = type == IBV_EVENT_DEVICE_FATAL || type == IBV_EVENT_CQ_ERR ? KV_ERR_DEVICE
									      : KV_ERR_PEER_LOST;

	kv_fail(err, code, "transfer", "%s reported \"%s\" for qp 0x%x", rail->name,
		lane->c->v->event_type_str((enum ibv_event_type)type), lane->qpn);
	if (type == IBV_EVENT_QP_ACCESS_ERR)
		kv_error_hint(err, "the peer used an address or a key that it does not have");
	err->qp_num = lane->qpn;
	err->in_doubt = 1;
	ib_name_peer(lane->c, rail, err);
}
