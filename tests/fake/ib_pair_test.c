/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_pair_test.c -- which rails are joined: by librdmacm's routes, by their order, and which are
 * left out
 */
#include <string.h>

#include <kvrail/kv.h>

#include "ib/ib.h"
#include "lib/test.h"
#include "setting.h"

enum { SIZE = 64 << 10 };

/* Bytes go both ways, and a line for each path says which rails it joins. */
static void expect_paths(struct setting *s, const char *const *lines, int paths)
{
	char dump[4096];
	int n = 0;

	setting_move(s);
	tr_conn_dump(s->rig.side[0].conn, dump, sizeof(dump));
	for (const char *at = dump; (at = strstr(at, "  path ")); at++)
		n++;
	assert_int_equal(n, paths);
	for (int i = 0; i < paths; i++)
		if (!strstr(dump, lines[i]))
			fail_msg("\"%s\" is not in\n%s", lines[i], dump);
}

static void expect_refusal(const char *const *options, const char *message, const char *hint)
{
	struct rig rig;
	struct kv_error err = { 0 };

	assert_int_equal(rig_open(&rig, "ib", options, &err), 0);
	assert_int_equal(rig_connect(&rig, &err), KV_ERR_UNREACHABLE);
	if (!strstr(err.message, message) || !strstr(err.hint, hint))
		fail_msg("%s (%s)", err.message, err.hint);
	rig_close(&rig);
	assert_true(fake_end());
}

CASE(the_route_says_which_rails_are_joined)
{
	static const char *const crossed[] = { "fake0:1 with the peer's rail 1, by librdmacm",
					       "fake1:1 with the peer's rail 0, by librdmacm" };
	struct fake_config config = { .devices = 2 };
	struct setting s;

	fake_begin(&config);
	fake_port(1, 0)->routed_from[0] = 2;
	fake_port(1, 1)->routed_from[0] = 1;
	setting_connect(&s, NULL, SIZE, 0);
	assert_non_null(strstr(tr_conn_path(s.rig.side[0].conn), "by librdmacm"));
	assert_non_null(strstr(tr_conn_path(s.rig.side[1].conn), "by the peer"));
	expect_paths(&s, crossed, 2);
	setting_end(&s);
}

CASE(without_librdmacm_their_order_does)
{
	static const char *const off[] = { "KVCACHE_RDMA_CM=0", NULL };
	static const char *const straight[] = {
		"fake0:1 with the peer's rail 0, by the GID table; gid index 3",
		"fake1:1 with the peer's rail 1, by the GID table; gid index 3"
	};
	struct setting s;

	for (int missing = 0; missing < 2; missing++) {
		struct fake_config config = { .devices = 2, .no_cm = missing };

		setting_make(&s, &config, missing ? NULL : off, SIZE);
		expect_paths(&s, straight, 2);
		setting_end(&s);
	}
}

/*
 * The routing table names one port for all addresses of a subnet: the others are asked for one by
 * one.
 */
CASE(several_rails_of_one_subnet_are_all_used)
{
	static const char *const both[] = { "fake0:1 with the peer's rail 0, by librdmacm",
					    "fake1:1 with the peer's rail 1, by order and" };
	struct fake_config config = { .devices = 2 };
	struct setting s;

	for (int infiniband = 0; infiniband < 2; infiniband++) {
		config.infiniband = infiniband;
		fake_begin(&config);
		fake_port(1, 1)->routed_from[0] = 1;
		setting_connect(&s, NULL, SIZE, 0);
		expect_paths(&s, both, 2);
		setting_end(&s);
	}
}

CASE(a_named_device_wins_over_the_route)
{
	static const char *const second[] = { "0:KVCACHE_RDMA_NICS=fake1",
					      "1:KVCACHE_RDMA_NICS=fake0", NULL };
	static const char *const line[] = { "fake1:1 with the peer's rail 0, by order and" };
	struct fake_config config = { .devices = 2 };
	struct setting s;

	setting_make(&s, &config, second, SIZE);
	expect_paths(&s, line, 1);
	setting_end(&s);
}

CASE(a_rail_without_a_route_is_left_out_while_there_is_another)
{
	static const char *const line[] = { "fake1:1 with the peer's rail 1, by librdmacm" };
	static const char *const both[] = { "fake0:1 with the peer's rail 0, by the GID table",
					    "fake1:1 with the peer's rail 1, by the GID table" };
	struct fake_config config = { .devices = 2 };
	struct setting s;

	fake_begin(&config);
	fake_port(1, 0)->unreachable = true;
	setting_connect(&s, NULL, SIZE, 0);
	expect_paths(&s, line, 1);
	setting_end(&s);

	fake_begin(&config);
	fake_port(1, 0)->unreachable = fake_port(1, 1)->unreachable = true;
	setting_connect(&s, NULL, SIZE, 0);
	expect_paths(&s, both, 2);
	setting_end(&s);
}

/* Row 1 gets the address; row 3, which has the IPv4 one, is emptied where there is to be none. */
static void ipv6_addresses(bool ipv4_at_0, bool ipv4_at_1, bool ipv6_at_0)
{
	if (ipv6_at_0)
		fake_address(0, 0, 1, "fd00:1::1");
	fake_address(1, 0, 1, "fd00:2::1");
	for (int row = 2; row < 4; row++) {
		if (!ipv4_at_0)
			fake_address(0, 0, row, NULL);
		if (!ipv4_at_1)
			fake_address(1, 0, row, NULL);
	}
}

CASE(routable_ipv6_is_used_where_a_side_has_no_ipv4)
{
	static const char *const line[] = { "fake0:1 with the peer's rail 0, by librdmacm; "
					    "gid index 1, fd00:1::1 (RoCE v2, routable IPv6)" };
	struct setting s;

	for (int ipv4 = 0; ipv4 < 2; ipv4++) {
		fake_begin(NULL);
		ipv6_addresses(ipv4, false, true);
		setting_connect(&s, NULL, SIZE, 0);
		expect_paths(&s, line, 1);
		setting_end(&s);
	}
	fake_begin(NULL);
	ipv6_addresses(true, false, false);
	expect_refusal(NULL, "fake0:1 sends from an IPv4 address, but the peer's port has an IPv6",
		       "addresses of one kind");
}

CASE(link_local_addresses_are_not_used_across_hosts)
{
	static const char *const line[] = { "fake1:1 with the peer's rail 1" };
	struct fake_config config = { .devices = 2 };
	struct setting s;

	for (int cm = 0; cm < 2; cm++) {
		config.no_cm = !cm;
		fake_begin(&config); /* one port of each host never got an address */
		for (int host = 0; host < 2; host++)
			for (int row = 1; row < 4; row++)
				fake_address(host, 0, row, NULL);
		setting_connect(&s, NULL, SIZE, 0);
		expect_paths(&s, line, 1);
		setting_end(&s);
	}
	fake_begin(NULL);
	for (int row = 1; row < 4; row++) {
		fake_address(0, 0, row, NULL);
		fake_address(1, 0, row, NULL);
	}
	expect_refusal(NULL, "only a link-local address between them", "a global IPv6");
}

CASE(a_port_that_lost_its_address_is_left_out)
{
	static const char *const line[] = { "fake0:1 with the peer's rail 0" };
	struct fake_config config = { .devices = 2 };
	struct setting s;
	struct kv_error err;

	setting_make(&s, &config, NULL, SIZE);
	rig_disconnect(&s.rig);
	for (int row = 0; row < 4; row++)
		fake_address(1, 1, row, NULL);
	if (rig_connect(&s.rig, &err))
		fail_msg("connect: %s", err.message);
	for (int i = 0; i < 2; i++)
		s.rmem[i] = rig_see(&s.rig, i, s.mem[!i]);
	expect_paths(&s, line, 1);
	setting_end(&s);
}

/* Work requests are dealt by the room that a lane has: the fast port's are finished sooner. */
CASE(a_faster_rail_carries_more)
{
	struct fake_config config = { .devices = 2 };
	struct setting s;
	struct tr_span spans[512];
	struct kv_device_info info = { .size = sizeof(info) };

	fake_begin(&config);
	for (int host = 0; host < 2; host++) {
		fake_port(host, 1)->slow = 400;
		fake_port(host, 1)->speed = 32; /* 25 Gb/s a lane */
	}
	ib_test_hook.sq_depth = 16;
	setting_connect(&s, NULL, 512 * 128, 0);
	tr_ib_provider.device_get(s.rig.side[0].tr->provider_ctx[0], 0, &info);
	assert_non_null(strstr(info.detail, "200 Gb/s"));
	tr_ib_provider.device_get(s.rig.side[0].tr->provider_ctx[0], 1, &info);
	assert_non_null(strstr(info.detail, "100 Gb/s"));
	setting_fill(&s, 0, 3);
	for (size_t i = 0; i < 512; i++) /* scattered: one work request each */
		spans[i] = (struct tr_span){ i * 128, (i * 7 + 3) % 512 * 128, 128 };
	rig_op(&s.rig, 0, TR_WRITE, 5, s.mem[0], s.rmem[0], spans, 512, TR_NOTIFY, 5);
	setting_expect_notify(&s, 1, 5);
	setting_expect_written(&s, 0, 5);
	for (size_t i = 0; i < 512; i++)
		assert_memory_equal(setting_at(&s, 1, spans[i].remote),
				    setting_at(&s, 0, spans[i].local), 128);
	assert_true(fake_carried(0, 1) > 0);
	assert_true(fake_carried(0, 0) > 2 * fake_carried(0, 1));
	setting_end(&s);
}
