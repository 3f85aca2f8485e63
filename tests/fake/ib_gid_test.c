/* SPDX-License-Identifier: Apache-2.0 */
/* ib_gid_test.c -- the choice of a GID: pure */
#include <arpa/inet.h>
#include <string.h>

#include "ib/ib.h"
#include "lib/test.h"

static struct ibv_gid_entry entry(uint32_t index, const char *address, uint32_t type)
{
	struct ibv_gid_entry e = { .gid_index = index, .port_num = 1, .gid_type = type };

	assert_int_equal(inet_pton(AF_INET6, address, e.gid.raw), 1);
	return e;
}

/* Chooses among the entries; returns the chosen index, -1 if there is none. */
static int choose(const struct ibv_gid_entry *entries, size_t n, int option,
		  struct ib_gid_choice *choice)
{
	ib_gid_choose(entries, n, option, NULL, choice);
	return choice->entry < 0 ? -1 : (int)entries[choice->entry].gid_index;
}

CASE(ipv4_is_best_then_routable_ipv6_then_v1_then_link_local)
{
	struct ibv_gid_entry e[] = {
		entry(0, "fe80::1:2:3:4", IBV_GID_TYPE_ROCE_V1),
		entry(1, "fe80::1:2:3:4", IBV_GID_TYPE_ROCE_V2),
		entry(2, "::ffff:10.0.0.1", IBV_GID_TYPE_ROCE_V1),
		entry(4, "2001:db8::7", IBV_GID_TYPE_ROCE_V2),
		entry(5, "::ffff:10.0.0.1", IBV_GID_TYPE_ROCE_V2),
		entry(6, "::ffff:10.0.0.2", IBV_GID_TYPE_ROCE_V2),
	};
	struct ib_gid_choice choice;

	assert_int_equal(choose(e, 6, -1, &choice), 5);
	assert_non_null(strstr(choice.reason, "gid index 5, ::ffff:10.0.0.1 (RoCE v2, IPv4)"));
	assert_int_equal(choose(e, 4, -1, &choice), 4);
	assert_int_equal(choose(e, 3, -1, &choice), 2);
	assert_int_equal(choose(e, 2, -1, &choice), 0);
	assert_int_equal(choice.rank, IB_GID_LINK_LOCAL);
}

CASE(an_asked_index_is_taken_and_an_empty_one_replaced)
{
	struct ibv_gid_entry e[] = {
		entry(0, "fe80::1:2:3:4", IBV_GID_TYPE_ROCE_V2),
		entry(1, "::ffff:192.168.1.9", IBV_GID_TYPE_ROCE_V2),
	};
	struct ib_gid_choice choice;

	assert_int_equal(choose(e, 2, 0, &choice), 0);
	assert_true(choice.asked);
	assert_int_equal(choose(e, 2, 3, &choice), 1);
	assert_false(choice.asked);
	assert_non_null(strstr(choice.reason, "the index 3 of KVCACHE_RDMA_GID_INDEX is empty"));
}

CASE(an_empty_table_has_no_choice)
{
	struct ibv_gid_entry zero[] = { entry(0, "::", IBV_GID_TYPE_ROCE_V2),
					entry(1, "fe80::", IBV_GID_TYPE_ROCE_V2) };
	struct ib_gid_choice choice;

	assert_int_equal(choose(NULL, 0, -1, &choice), -1);
	assert_int_equal(choose(zero, 2, 0, &choice), -1);
	assert_true(choice.reason[0]);
}

CASE(the_nearest_address_comes_first)
{
	struct ibv_gid_entry e[] = {
		entry(0, "fe80::1:2:3:4", IBV_GID_TYPE_ROCE_V2),
		entry(1, "::ffff:10.0.0.1", IBV_GID_TYPE_ROCE_V1),
		entry(2, "::ffff:10.0.0.1", IBV_GID_TYPE_ROCE_V2),
		entry(3, "::ffff:10.0.0.2", IBV_GID_TYPE_ROCE_V1),
		entry(4, "::ffff:10.0.0.2", IBV_GID_TYPE_ROCE_V2),
		entry(5, "2001:db8::7", IBV_GID_TYPE_ROCE_V2),
		entry(6, "2001:db8::8", IBV_GID_TYPE_ROCE_V2),
	};
	static const struct {
		const char *near;
		int index;
	} rows[] = {
		{ "::ffff:10.0.0.2", 4 }, /* that very one, as RoCE v2 */
		{ "2001:db8::8", 6 },	  { "::ffff:192.168.0.1", 2 }, /* its family */
		{ "fd00::1", 5 },	  { "fe80::1:2:3:4", 5 }, /* never for being link-local */
	};
	struct ib_gid_choice choice;

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct ibv_gid_entry near = entry(0, rows[i].near, 0);

		ib_gid_choose(e, 7, -1, &near.gid, &choice);
		assert_int_equal(e[choice.entry].gid_index, rows[i].index);
		ib_gid_choose(e, 7, 1, &near.gid, &choice); /* the option comes first */
		assert_int_equal(e[choice.entry].gid_index, 1);
	}
}

CASE(an_infiniband_port_has_its_own_at_index_0)
{
	struct ibv_gid_entry e[] = { entry(2, "fe80::2", IBV_GID_TYPE_IB),
				     entry(0, "fe80::1", IBV_GID_TYPE_IB),
				     entry(3, "::", IBV_GID_TYPE_IB) };
	static const int chosen[][2] = { { -1, 0 }, { 0, 0 }, { 2, 2 }, { 3, 0 }, { 9, 0 } };
	struct ib_gid_choice choice;

	for (size_t i = 0; i < sizeof(chosen) / sizeof(chosen[0]); i++) {
		ib_gid_choose_infiniband(e, 3, chosen[i][0], &choice);
		assert_int_equal(e[choice.entry].gid_index, chosen[i][1]);
	}
	ib_gid_choose_infiniband(e + 2, 1, -1, &choice);
	assert_int_equal(choice.entry, -1);
}
