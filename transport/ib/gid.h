/* SPDX-License-Identifier: Apache-2.0 */
/* gid.h -- which entry of a RoCE port's GID table to use; pure */
#ifndef IB_GID_H
#define IB_GID_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <infiniband/verbs.h>

enum ib_gid_rank {
	IB_GID_USELESS = 0, /* zero */
	IB_GID_LINK_LOCAL,  /* reaches one link only; never chosen where a better one exists */
	IB_GID_ROCE_V1,	    /* is not routed, and many networks drop it */
	IB_GID_IPV6,	    /* RoCE v2, routable IPv6 */
	IB_GID_IPV4,	    /* RoCE v2, IPv4-mapped */
};

struct ib_gid_choice {
	int entry; /* index into the array, -1 = none is usable */
	enum ib_gid_rank rank;
	bool asked; /* it is the one that the option asks for */
	char reason[160];
};

bool ib_gid_is_ipv4(const union ibv_gid *gid); /* an IPv4 address as IPv6 maps it */
bool ib_gid_is_zero(const union ibv_gid *gid);
bool ib_gid_is_link_local(const union ibv_gid *gid); /* as an IPv6 address */

/*
 * The entry for a RoCE port from all its valid entries; `option` is KVCACHE_RDMA_GID_INDEX (-1 =
 * automatic). `near` is an address or NULL: that very entry is best, then one of its family (IPv4,
 * IPv6).
 */
void ib_gid_choose(const struct ibv_gid_entry *entries, size_t n, int option,
		   const union ibv_gid *near, struct ib_gid_choice *choice);

/*
 * The entry for an InfiniBand port: the asked one, or 0, which is the port's own (IBTA volume 1,
 * 14.2.5.5 GUIDInfo).
 */
void ib_gid_choose_infiniband(const struct ibv_gid_entry *entries, size_t n, int option,
			      struct ib_gid_choice *choice);

/* "::ffff:10.0.0.1" style text of a GID into a buffer of at least INET6_ADDRSTRLEN bytes. */
void ib_gid_text(const union ibv_gid *gid, char *buf, size_t cap);

#endif
