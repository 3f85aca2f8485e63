/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model.h -- what the two software devices have in common: that of tests/fake (one process, every
 * fault) and that of tests/softnic (any program, as fast as a driver); pure
 */
#ifndef MODEL_H
#define MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include <infiniband/verbs.h>

enum {
	MODEL_GIDS = 4, /* of a device; one stays empty */
	MODEL_SGES = 4,
	MODEL_INLINE = 256,
	MODEL_DEPTH = 4096, /* work requests of a queue */
	MODEL_MESSAGE = 8 << 20,
};

/*
 * RoCE: index 0 link-local, 1 empty, 2 RoCE v1, 3 RoCE v2 with an IPv4 address: a blind choice of 0
 * or 1 fails. InfiniBand: index 0 is the port's own, the others are empty.
 */
void model_gids(struct ibv_gid_entry gid[MODEL_GIDS], bool infiniband, int host, int index);
bool model_gid_is_zero(const union ibv_gid *gid);
void model_device(struct ibv_device_attr *attr);
/* What a queue pair of any device refuses. */
bool model_takes(const struct ibv_qp_init_attr *attr, uint32_t inline_max);
/* Is this step (not to RESET, not to ERR) allowed, with these attributes? */
bool model_may_step(enum ibv_qp_state from, const struct ibv_qp_attr *attr, int mask);
void model_take_attr(struct ibv_qp_attr *to, const struct ibv_qp_attr *attr, int mask);
/* Of a work request that has succeeded, at its requester. */
enum ibv_wc_opcode model_done(enum ibv_wr_opcode opcode);
const char *model_wc_status_str(enum ibv_wc_status status);
const char *model_event_type_str(enum ibv_event_type type);

static inline bool model_has_imm(enum ibv_wr_opcode opcode)
{
	return opcode == IBV_WR_RDMA_WRITE_WITH_IMM || opcode == IBV_WR_SEND_WITH_IMM;
}

static inline bool model_needs_receive(enum ibv_wr_opcode opcode)
{
	return opcode == IBV_WR_SEND || model_has_imm(opcode);
}

/* RC without atomics, memory windows and invalidation. */
static inline bool model_knows(enum ibv_wr_opcode opcode)
{
	return opcode == IBV_WR_RDMA_WRITE || opcode == IBV_WR_RDMA_READ ||
	       model_needs_receive(opcode);
}

static inline bool model_may_register(size_t len, unsigned int access)
{
	return len && (!(access & IBV_ACCESS_REMOTE_WRITE) || (access & IBV_ACCESS_LOCAL_WRITE));
}

#endif
