/* SPDX-License-Identifier: Apache-2.0 */
/* link.h -- two queue pairs of softnic's tests, connected through a socket */
#ifndef LINK_H
#define LINK_H

#include <sys/socket.h>
#include <unistd.h>

#include <infiniband/verbs.h>

#include "lib/test.h"

struct card {
	uint32_t qpn, rkey;
	uint64_t addr;
	union ibv_gid gid;
};

/* Both ends call it; the peer's card is there, and both are ready, when it returns. */
static inline void link_qp(struct ibv_qp *qp, const struct ibv_mr *mr, int socket,
			   struct card *peer)
{
	struct card own = { qp->qp_num, mr->rkey, (uintptr_t)mr->addr, { { 0 } } };
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT,
				    .port_num = 1,
				    .qp_access_flags =
					    IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ };

	assert_int_equal(ibv_query_gid(qp->context, 1, 3, &own.gid), 0);
	assert_int_equal(
		ibv_modify_qp(qp, &attr,
			      IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS),
		0);
	assert_int_equal(write(socket, &own, sizeof(own)), sizeof(own));
	assert_int_equal(recv(socket, peer, sizeof(*peer), MSG_WAITALL), sizeof(*peer));
	attr = (struct ibv_qp_attr){ .qp_state = IBV_QPS_RTR,
				     .path_mtu = IBV_MTU_4096,
				     .dest_qp_num = peer->qpn,
				     .max_dest_rd_atomic = 1,
				     .ah_attr = { .is_global = 1,
						  .port_num = 1,
						  .grh = { .dgid = peer->gid, .sgid_index = 3 } } };
	assert_int_equal(ibv_modify_qp(qp, &attr,
				       IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU |
					       IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
					       IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER),
			 0);
	attr = (struct ibv_qp_attr){ .qp_state = IBV_QPS_RTS,
				     .timeout = 8,
				     .retry_cnt = 1,
				     .rnr_retry = 7,
				     .max_rd_atomic = 1 };
	assert_int_equal(ibv_modify_qp(qp, &attr,
				       IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
					       IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
					       IBV_QP_MAX_QP_RD_ATOMIC),
			 0);
	assert_int_equal(write(socket, "r", 1), 1); /* both are ready */
	assert_int_equal(read(socket, &attr, 1), 1);
}

#endif
