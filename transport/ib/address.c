/* SPDX-License-Identifier: Apache-2.0 */
/*
 * address.c -- how the packets of a path are addressed
 *
 * RoCE: by GID, always with a GRH; the partition is the only one there is (index 0), the LID means
 * nothing. InfiniBand: by LID within a subnet; with a GRH besides where the port or the path record
 * asks for it.
 */
#include <arpa/inet.h>
#include <errno.h>

#include "base/error.h"
#include "base/option.h"
#include "ib.h"

enum {
	PKEY_PARTITION = 0x7fff, /* the other bit is full membership (IBTA volume 1, 10.9.1.1) */
	PKEY_FULL = 0x8000,
	HOP_LIMIT = 64, /* as IPv6 has it by default */
};

static uint64_t subnet(const union ibv_gid *gid)
{
	return be64toh(gid->global.subnet_prefix);
}

static int check_infiniband(const struct ib_rail *rail, const union ibv_gid *own,
			    const union ibv_gid *peer, struct kv_error *err)
{
	if (ib_gid_is_zero(own) || ib_gid_is_zero(peer) || subnet(own) == subnet(peer))
		return 0;
	/* The way back has a path record of its own, which only the peer's subnet manager has. */
	return kv_fail(err, KV_ERR_UNREACHABLE, "connect",
		       "an InfiniBand router is between %s (subnet %016llx) and the peer's port "
		       "(%016llx), which is not supported",
		       rail->name, (unsigned long long)subnet(own),
		       (unsigned long long)subnet(peer));
}

/*
 * Why packets between these two ports would not arrive; the devices would not say so but be silent.
 */
int ib_path_check(struct ib_ctx *ctx, const struct ib_rail *rail, const struct ib_address *own,
		  const union ibv_gid *peer, struct kv_error *err)
{
	bool ipv4 = ib_gid_is_ipv4(&own->gid);

	if (!rail->ethernet)
		return check_infiniband(rail, &own->gid, peer, err);
	if (ib_gid_is_zero(&own->gid))
		return kv_fail(err, KV_ERR_UNREACHABLE, "connect", "%s has no usable GID: %s",
			       rail->name, own->reason);
	if (ib_gid_is_zero(peer))
		return kv_fail(err, KV_ERR_UNREACHABLE, "connect",
			       "the peer's port has no usable GID");
	if (ipv4 != ib_gid_is_ipv4(peer)) {
		kv_fail(err, KV_ERR_UNREACHABLE, "connect",
			"%s sends from an %s address, but the peer's port has an %s one",
			rail->name, ipv4 ? "IPv4" : "IPv6", ipv4 ? "IPv6" : "IPv4");
		kv_error_hint(err, "give both ports addresses of one kind, or choose with "
				   "KVCACHE_RDMA_GID_INDEX");
		return KV_ERR_UNREACHABLE;
	}
	if ((ib_gid_is_link_local(&own->gid) || ib_gid_is_link_local(peer)) &&
	    ctx->gid_option < 0 && !ib_rails_have(ctx, peer)) {
		kv_fail(err, KV_ERR_UNREACHABLE, "connect",
			"%s and the peer's port have only a link-local address between them, which "
			"is not used across hosts",
			rail->name);
		kv_error_hint(err, "give the interfaces of both ports an IPv4 or a global IPv6 "
				   "address; KVCACHE_RDMA_GID_INDEX on both sides insists");
		return KV_ERR_UNREACHABLE;
	}
	return 0;
}

/*
 * Finds the partition in the port's table: by value, as the index is each port's own affair, unless
 * KVCACHE_IB_PKEY_INDEX names one; an entry with full membership is preferred. pkey 0: the first
 * there is.
 */
int ib_path_partition(const struct ib_ctx *ctx, struct ib_path *path, uint16_t pkey,
		      struct kv_error *err)
{
	const struct ib_rail *rail = path->rail;
	int64_t index = kv_option_int(ctx->tr->options, KV_OPT_IB_PKEY_INDEX);

	path->pkey = 0;
	path->pkey_index = index < 0 ? 0 : (uint16_t)index;
	if (rail->ethernet)
		return 0;
	for (uint16_t i = 0; i < rail->port_attr.pkey_tbl_len; i++) {
		__be16 raw = 0;
		uint16_t value;

		if (index >= 0 && i != index)
			continue;
		if (ctx->v->query_pkey(rail->context, rail->port, i, &raw))
			return kv_fail_errno(err, KV_ERR_DEVICE, errno, "connect",
					     "cannot read P_Key %u of %s", i, rail->name);
		value = ntohs(raw);
		if (!(value & PKEY_PARTITION) ||
		    (index < 0 && pkey && (value ^ pkey) & PKEY_PARTITION))
			continue;
		if (!path->pkey || value & PKEY_FULL) {
			path->pkey = value;
			path->pkey_index = i;
		}
		if (!pkey || value & PKEY_FULL)
			break;
	}
	if (path->pkey)
		return 0;
	if (index >= 0)
		kv_fail(err, KV_ERR_UNREACHABLE, "connect", "%s has no P_Key at index %lld",
			rail->name, (long long)index);
	else
		kv_fail(err, KV_ERR_UNREACHABLE, "connect", "%s is not in partition 0x%04x",
			rail->name, pkey);
	kv_error_hint(err, "the subnet manager's partitions decide; the port's own are in "
			   "/sys/class/infiniband/*/ports/*/pkeys");
	return KV_ERR_UNREACHABLE;
}

/*
 * After both sides have sent theirs: one partition, of which one of them is a full member (IBTA
 * volume 1, 10.9.3).
 */
int ib_path_agree(const struct ib_path *path, struct kv_error *err)
{
	const struct ib_rail *rail = path->rail;
	const struct ib_end *peer = &path->peer;

	if (rail->ethernet)
		return 0;
	if ((path->pkey ^ peer->pkey) & PKEY_PARTITION)
		return kv_fail(err, KV_ERR_UNREACHABLE, "connect",
			       "%s is to use partition 0x%04x, the peer 0x%04x", rail->name,
			       path->pkey, peer->pkey);
	if (!((path->pkey | peer->pkey) & PKEY_FULL))
		return kv_fail(err, KV_ERR_UNREACHABLE, "connect",
			       "both %s and the peer's port are limited members of partition "
			       "0x%04x, which exchange no packets",
			       rail->name, path->pkey);
	if ((ib_path_wants_grh(path) || peer->grh) &&
	    (ib_gid_is_zero(&path->address.gid) || ib_gid_is_zero(&peer->gid)))
		return kv_fail(err, KV_ERR_UNREACHABLE, "connect",
			       "packets of %s need a GRH, but a port has no GID", rail->name);
	return 0;
}

/*
 * The port demands it (ibv_query_port(3), IBV_QPF_GRH_REQUIRED: a virtual port that only its GID
 * identifies), or the subnet manager does: a hop limit above 0 in the path record.
 */
bool ib_path_wants_grh(const struct ib_path *path)
{
	return path->rail->ethernet || path->rail->port_attr.flags & IBV_QPF_GRH_REQUIRED ||
	       path->record.hop_limit > 0;
}

/* The LID of this side: with an LMC a port has 2^LMC of them, and the path record names one. */
uint16_t ib_path_lid(const struct ib_path *path)
{
	return path->record.slid ? path->record.slid : path->address.lid;
}

uint8_t ib_path_sl(const struct ib_path *path, const struct kv_option_set *options)
{
	int64_t option = kv_option_int(options, KV_OPT_IB_SERVICE_LEVEL);

	return option >= 0 ? (uint8_t)option : path->record.sl;
}

/* The smallest of both ports' and of the path's. */
enum ibv_mtu ib_path_mtu(const struct ib_path *path)
{
	unsigned int mtu = path->address.mtu;

	if (path->record.mtu && path->record.mtu < mtu)
		mtu = path->record.mtu;
	if (path->peer.mtu && path->peer.mtu < mtu)
		mtu = path->peer.mtu;
	return (enum ibv_mtu)mtu;
}

void ib_path_vector(const struct ib_path *path, const struct kv_option_set *options,
		    struct ibv_ah_attr *ah)
{
	const struct ib_rail *rail = path->rail;

	*ah = (struct ibv_ah_attr){
		.port_num = rail->port,
		.sl = ib_path_sl(path, options),
		.is_global = ib_path_wants_grh(path) || path->peer.grh,
	};
	if (!rail->ethernet) {
		ah->dlid = path->peer.lid;
		ah->src_path_bits = (uint8_t)(ib_path_lid(path) & ((1u << path->address.lmc) - 1));
		ah->static_rate = path->record.rate;
	}
	if (ah->is_global) {
		ah->grh.dgid = path->peer.gid;
		ah->grh.sgid_index = path->address.gid_index;
		ah->grh.hop_limit = !rail->ethernet && path->record.hop_limit
					    ? path->record.hop_limit
					    : HOP_LIMIT;
		ah->grh.traffic_class = (uint8_t)kv_option_int(options, KV_OPT_IB_TRAFFIC_CLASS);
	}
}
