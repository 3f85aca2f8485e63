/* SPDX-License-Identifier: Apache-2.0 */
/* gid.c -- which entry of a RoCE port's GID table to use; pure */
#include "gid.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

static const char *const rank_text[] = {
	[IB_GID_USELESS] = "empty",	 [IB_GID_LINK_LOCAL] = "link-local",
	[IB_GID_ROCE_V1] = "RoCE v1",	 [IB_GID_IPV6] = "RoCE v2, routable IPv6",
	[IB_GID_IPV4] = "RoCE v2, IPv4",
};

void ib_gid_text(const union ibv_gid *gid, char *buf, size_t cap)
{
	if (!inet_ntop(AF_INET6, gid->raw, buf, (socklen_t)cap))
		snprintf(buf, cap, "?");
}

bool ib_gid_is_zero(const union ibv_gid *gid)
{
	static const uint8_t zero[16];

	return !memcmp(gid->raw, zero, sizeof(zero));
}

bool ib_gid_is_ipv4(const union ibv_gid *gid)
{
	static const uint8_t prefix[12] = { [10] = 0xff, [11] = 0xff };

	return !memcmp(gid->raw, prefix, sizeof(prefix));
}

bool ib_gid_is_link_local(const union ibv_gid *gid)
{
	return gid->raw[0] == 0xfe && (gid->raw[1] & 0xc0) == 0x80;
}

static enum ib_gid_rank rank_of(const struct ibv_gid_entry *entry)
{
	static const uint8_t zero[8];
	const uint8_t *raw = entry->gid.raw;

	/* A GID whose interface part is zero belongs to an interface without an address. */
	if (ib_gid_is_zero(&entry->gid) || !memcmp(raw + 8, zero, 8))
		return IB_GID_USELESS;
	if (ib_gid_is_link_local(&entry->gid))
		return IB_GID_LINK_LOCAL;
	if (entry->gid_type != IBV_GID_TYPE_ROCE_V2)
		return IB_GID_ROCE_V1;
	return ib_gid_is_ipv4(&entry->gid) ? IB_GID_IPV4 : IB_GID_IPV6;
}

static void take_gid(struct ib_gid_choice *choice, const struct ibv_gid_entry *entries, int entry,
		     bool asked, const char *why)
{
	char text[INET6_ADDRSTRLEN];

	choice->entry = entry;
	choice->rank = rank_of(&entries[entry]);
	choice->asked = asked;
	ib_gid_text(&entries[entry].gid, text, sizeof(text));
	snprintf(choice->reason, sizeof(choice->reason), "gid index %u, %s (%s): %s",
		 entries[entry].gid_index, text, rank_text[choice->rank], why);
}

/* How good an entry is, 0 = useless: the very address, then its family, then the kind. */
static int score(const struct ibv_gid_entry *entry, const union ibv_gid *near)
{
	enum { FAMILY = 10, VERY = 20 };
	enum ib_gid_rank rank = rank_of(entry);

	if (!near || rank <= IB_GID_LINK_LOCAL)
		return (int)rank;
	if (!memcmp(near->raw, entry->gid.raw, sizeof(near->raw)))
		return (int)rank + VERY;
	return ib_gid_is_ipv4(near) == ib_gid_is_ipv4(&entry->gid) ? (int)rank + FAMILY : (int)rank;
}

void ib_gid_choose(const struct ibv_gid_entry *entries, size_t n, int option,
		   const union ibv_gid *near, struct ib_gid_choice *choice)
{
	char why[64] = "the first of the best kind";
	int best = 0, found = -1;

	memset(choice, 0, sizeof(*choice));
	choice->entry = -1;
	for (size_t i = 0; i < n; i++) {
		int points = score(&entries[i], near);

		if (option >= 0 && entries[i].gid_index == (uint32_t)option && points) {
			take_gid(choice, entries, (int)i, true,
				 "KVCACHE_RDMA_GID_INDEX asks for it");
			return;
		}
		if (points > best) {
			best = points;
			found = (int)i;
		}
	}
	if (option >= 0)
		snprintf(why, sizeof(why), "the index %d of KVCACHE_RDMA_GID_INDEX is empty",
			 option);
	if (found >= 0)
		take_gid(choice, entries, found, false, why);
	else
		snprintf(choice->reason, sizeof(choice->reason), "no entry of %zu is usable", n);
}

void ib_gid_choose_infiniband(const struct ibv_gid_entry *entries, size_t n, int option,
			      struct ib_gid_choice *choice)
{
	memset(choice, 0, sizeof(*choice));
	choice->entry = -1;
	for (size_t i = 0; i < n; i++) {
		bool asked = option >= 0 && entries[i].gid_index == (uint32_t)option;

		if (ib_gid_is_zero(&entries[i].gid) || (!asked && entries[i].gid_index))
			continue;
		choice->entry = (int)i;
		choice->asked = asked;
		if (asked)
			return;
	}
}
