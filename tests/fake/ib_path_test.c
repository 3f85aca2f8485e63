/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_path_test.c -- how packets are addressed: what queue pairs are given, and that a wrong address
 * would not arrive
 */
#include <stdlib.h>
#include <string.h>

#include "ib/ib.h"
#include "lib/test.h"
#include "setting.h"

enum { SIZE = 16 << 10 };

static const struct fake_config infiniband = { .infiniband = true };
static const struct fake_config without_cm = { .infiniband = true, .no_cm = true };

/* In the world that has begun. */
static void connect_and_move(struct setting *s, const char *const *options)
{
	setting_connect(s, options, SIZE, 0);
	setting_move(s);
}

static struct ibv_qp_attr attr_of(int host)
{
	struct ibv_qp_attr attr;

	assert_true(fake_host_qp(host, &attr));
	return attr;
}

static void expect_refusal(const char *const *options, int code, const char *message)
{
	struct rig rig;
	struct kv_error err = { 0 };

	assert_int_equal(rig_open(&rig, "ib", options, &err), 0);
	assert_int_equal(rig_connect(&rig, &err), code);
	if (!strstr(err.message, message))
		fail_msg("%s", err.message);
	rig_close(&rig);
	assert_true(fake_end());
}

/* The connection is made, and then nothing arrives. */
static void expect_loss(const char *const *options)
{
	struct tr_span span = { 0, 0, SIZE };
	struct setting s;
	struct rig_event *event;

	setting_connect(&s, options, SIZE, 0);
	rig_op(&s.rig, 0, TR_WRITE, 5, s.mem[0], s.rmem[0], &span, 1, TR_PROVEN, 0);
	event = rig_wait(&s.rig, 0, TR_IN_DOUBT, BUDGET);
	assert_non_null(event);
	assert_int_equal(event->cause.wc_status, IBV_WC_RETRY_EXC_ERR);
	setting_end(&s);
}

CASE(roce_packets_are_global_and_in_the_only_partition)
{
	static const char *const options[] = { "KVCACHE_IB_TRAFFIC_CLASS=104",
					       "KVCACHE_IB_SERVICE_LEVEL=3", NULL };
	struct setting s;

	fake_begin(NULL);
	fake_sa()->sl = 7; /* means nothing here */
	connect_and_move(&s, options);
	for (int host = 0; host < 2; host++) {
		struct ibv_qp_attr attr = attr_of(host);

		assert_int_equal(attr.ah_attr.is_global, 1);
		assert_int_equal(attr.ah_attr.grh.sgid_index, 3);
		assert_int_equal(attr.ah_attr.grh.hop_limit, 64);
		assert_int_equal(attr.ah_attr.grh.traffic_class, 104);
		assert_int_equal(attr.ah_attr.sl, 3);
		assert_int_equal(attr.ah_attr.dlid, 0);
		assert_int_equal(attr.pkey_index, 0);
	}
	setting_end(&s);
	fake_begin(NULL);
	fake_sa()->sl = 7;
	connect_and_move(&s, NULL);
	assert_int_equal(attr_of(0).ah_attr.sl, 0);
	setting_end(&s);
}

CASE(infiniband_packets_go_by_lid_without_a_grh)
{
	const struct fake_config *const configs[] = { &infiniband, &without_cm };
	struct setting s;

	for (int i = 0; i < 2; i++) {
		fake_begin(configs[i]);
		connect_and_move(&s, NULL);
		for (int host = 0; host < 2; host++) {
			assert_int_equal(attr_of(host).ah_attr.is_global, 0);
			assert_int_equal(attr_of(host).ah_attr.dlid, fake_lid(!host, 0));
			assert_int_equal(attr_of(host).ah_attr.src_path_bits, 0);
			assert_int_equal(attr_of(host).ah_attr.static_rate, 0);
		}
		setting_end(&s);
	}
}

CASE(the_path_record_gives_service_level_and_rate_to_both_sides)
{
	static const char *const wrong[] = { "KVCACHE_IB_SERVICE_LEVEL=2", NULL };
	struct setting s;

	fake_begin(&infiniband);
	*fake_sa() = (struct fake_sa){ .sl = 5, .rate = IBV_RATE_100_GBPS, .strict_sl = true };
	connect_and_move(&s, NULL);
	for (int host = 0; host < 2; host++) {
		assert_int_equal(attr_of(host).ah_attr.sl, 5);
		assert_int_equal(attr_of(host).ah_attr.static_rate, IBV_RATE_100_GBPS);
	}
	setting_end(&s);

	/*
	 * The option beats it, and the fabric drops what has the wrong level; so without a path
	 * record.
	 */
	fake_begin(&infiniband);
	*fake_sa() = (struct fake_sa){ .sl = 5, .strict_sl = true };
	expect_loss(wrong);
	fake_begin(&without_cm);
	*fake_sa() = (struct fake_sa){ .sl = 5, .strict_sl = true };
	expect_loss(NULL);
	fake_begin(&infiniband);
	*fake_sa() = (struct fake_sa){ .sl = 0, .dead = true };
	connect_and_move(&s, NULL);
	assert_non_null(strstr(tr_conn_path(s.rig.side[0].conn), "by the GID table"));
	setting_end(&s);
}

static void partitions(uint16_t first, uint16_t second)
{
	*fake_port(0, 0) = (struct fake_port){ .mtu = IBV_MTU_4096,
					       .width = 2,
					       .speed = 64,
					       .pkey = { 0x7fff, first, 0x8009 },
					       .routed_from = { 1, 1 } };
	*fake_port(1, 0) = *fake_port(0, 0);
	fake_port(1, 0)->pkey[1] = 0;
	fake_port(1, 0)->pkey[3] = second;
}

/* The index is each port's own: 1 on host 0, 3 on host 1. */
CASE(the_partition_is_found_by_its_value)
{
	static const char *const here[] = { "0:KVCACHE_IB_PKEY=0x8001", NULL };
	static const char *const there[] = { "1:KVCACHE_IB_PKEY=0x8001", NULL };
	static const char *const both[] = { "KVCACHE_IB_PKEY=1", NULL };
	static const char *const indices[] = { "0:KVCACHE_IB_PKEY_INDEX=1",
					       "1:KVCACHE_IB_PKEY_INDEX=3", NULL };
	static const char *const *const ways[] = { here, there, both, indices, NULL };
	struct setting s;

	for (int i = 0; i < 10; i++) {
		fake_begin(i % 2 ? &without_cm : &infiniband);
		partitions(0x8001,
			   i < 4 ? 0x8001 : 0x0001); /* one of them may be a limited member */
		if (!ways[i / 2]) {
			if (i % 2)
				fake_port(0, 0)->pkey[0] = fake_port(1, 0)->pkey[0] = 0;
			fake_sa()->pkey = 0x8001;
		}
		if (!ways[i / 2] && i % 2) { /* no path record, no option: the first there is */
			fake_port(0, 0)->pkey[1] = 0x8001;
		}
		connect_and_move(&s, ways[i / 2]);
		assert_int_equal(attr_of(0).pkey_index, 1);
		assert_int_equal(attr_of(1).pkey_index, 3);
		setting_end(&s);
	}
}

/* Then the path is asked for in the partition that there is. */
CASE(ports_outside_of_the_default_partition_have_a_path_record)
{
	struct setting s;

	fake_begin(&infiniband);
	fake_port(0, 0)->pkey[0] = fake_port(1, 0)->pkey[2] = 0x8005;
	fake_port(1, 0)->pkey[0] = 0;
	*fake_sa() = (struct fake_sa){ .sl = 6, .strict_sl = true };
	connect_and_move(&s, NULL);
	assert_int_equal(attr_of(0).pkey_index, 0);
	assert_int_equal(attr_of(1).pkey_index, 2);
	assert_int_equal(attr_of(1).ah_attr.sl, 6);
	setting_end(&s);
}

CASE(partitions_that_do_not_fit_are_refused)
{
	static const char *const one[] = { "KVCACHE_IB_PKEY=0x8001", NULL };
	static const char *const two[] = { "0:KVCACHE_IB_PKEY=0x8001", "1:KVCACHE_IB_PKEY=0x8009",
					   NULL };
	static const char *const none[] = { "KVCACHE_IB_PKEY=0x8002", NULL };
	static const char *const index[] = { "KVCACHE_IB_PKEY_INDEX=2", NULL };

	fake_begin(&infiniband);
	partitions(0x0001, 0x0001);
	expect_refusal(one, KV_ERR_UNREACHABLE, "limited members of partition 0x0001");
	fake_begin(&infiniband);
	partitions(0x8001, 0x8001);
	expect_refusal(two, KV_ERR_UNREACHABLE, "is to use partition 0x8009, the peer 0x8001");
	fake_begin(&infiniband);
	partitions(0x8001, 0x8001);
	expect_refusal(none, KV_ERR_UNREACHABLE, "fake0:1 is not in partition 0x8002");
	fake_begin(&infiniband);
	expect_refusal(index, KV_ERR_UNREACHABLE, "fake0:1 has no P_Key at index 2");
	fake_begin(&without_cm);
	partitions(0x8001, 0);
	expect_refusal(one, KV_ERR_UNREACHABLE, "fake0:1 is not in partition 0x8001");
}

CASE(a_grh_is_there_on_both_sides_where_either_needs_it)
{
	struct setting s;

	for (int i = 0; i < 6; i++) {
		fake_begin(i % 2 ? &without_cm : &infiniband);
		if (i < 4)
			fake_port(i / 2, 0)->grh_required = true;
		else
			*fake_sa() = (struct fake_sa){ .hop_limit = 9 };
		if (i == 5) { /* without a path record only the port asks */
			fake_port(0, 0)->grh_required = true;
			fake_port(1, 0)->grh_required = true;
		}
		connect_and_move(&s, NULL);
		for (int host = 0; host < 2; host++) {
			struct ibv_qp_attr attr = attr_of(host);

			assert_int_equal(attr.ah_attr.is_global, 1);
			assert_int_equal(attr.ah_attr.dlid, fake_lid(!host, 0));
			assert_int_equal(attr.ah_attr.grh.sgid_index, 0);
			assert_int_equal(attr.ah_attr.grh.dgid.raw[14], host ? 1 : 2);
		}
		assert_int_equal(attr_of(0).ah_attr.grh.hop_limit, i == 4 ? 9 : 64);
		setting_end(&s);
	}
}

/*
 * With an LMC of 2 a port has four LIDs; the packets of both directions carry those of the path
 * record.
 */
CASE(the_path_records_lids_are_used)
{
	struct setting s;

	fake_begin(&infiniband);
	fake_port(0, 0)->lmc = fake_port(1, 0)->lmc = 2;
	fake_sa()->path_bits = 3;
	connect_and_move(&s, NULL);
	for (int host = 0; host < 2; host++) {
		assert_int_equal(attr_of(host).ah_attr.dlid, fake_lid(!host, 0) + 3);
		assert_int_equal(attr_of(host).ah_attr.src_path_bits, 3);
	}
	setting_end(&s);
}

/*
 * A subnet manager that has begun anew gives other LIDs; processes go on with connections made from
 * then on.
 */
CASE(connections_made_after_lids_have_changed_use_the_new_ones)
{
	const struct fake_config *const configs[] = { &infiniband, &without_cm };
	struct setting s;

	for (int i = 0; i < 2; i++) {
		struct kv_error err;

		fake_begin(configs[i]);
		connect_and_move(&s, NULL);
		rig_disconnect(&s.rig);
		for (int host = 0; host < 2; host++)
			fake_lid_moves(host, 0, (uint16_t)(100 + 16 * host), 2);
		fake_sa()->path_bits = 1;
		if (rig_connect(&s.rig, &err))
			fail_msg("%s", err.message);
		for (int side = 0; side < 2; side++)
			s.rmem[side] = rig_see(&s.rig, side, s.mem[!side]);
		setting_move(&s);
		for (int host = 0; host < 2; host++) {
			assert_int_equal(attr_of(host).ah_attr.dlid, fake_lid(!host, 0) + !i);
			assert_int_equal(attr_of(host).ah_attr.src_path_bits, !i);
		}
		setting_end(&s);
	}
}

CASE(a_peer_behind_an_infiniband_router_is_refused)
{
	for (int i = 0; i < 2; i++) {
		fake_begin(i ? &without_cm : &infiniband);
		fake_subnet(1, 7);
		expect_refusal(NULL, KV_ERR_UNREACHABLE, "an InfiniBand router is between fake0:1");
	}
}

CASE(the_smallest_mtu_counts)
{
	static const struct {
		enum ibv_mtu here, there, record, is;
	} rows[] = {
		{ IBV_MTU_4096, IBV_MTU_1024, IBV_MTU_4096, IBV_MTU_1024 },
		{ IBV_MTU_1024, IBV_MTU_4096, IBV_MTU_4096, IBV_MTU_1024 },
		{ IBV_MTU_4096, IBV_MTU_4096, IBV_MTU_2048, IBV_MTU_2048 },
		{ IBV_MTU_4096, IBV_MTU_4096, 0, IBV_MTU_4096 },
		{ IBV_MTU_256, IBV_MTU_4096, IBV_MTU_2048, IBV_MTU_256 },
	};
	struct setting s;

	for (size_t i = 0; i < 2 * sizeof(rows) / sizeof(rows[0]); i++) {
		fake_begin(i % 2 ? &infiniband : NULL);
		fake_port(0, 0)->mtu = rows[i / 2].here;
		fake_port(1, 0)->mtu = rows[i / 2].there;
		fake_sa()->mtu = (uint8_t)rows[i / 2].record;
		connect_and_move(&s, NULL);
		assert_int_equal(attr_of(0).path_mtu, rows[i / 2].is);
		assert_int_equal(attr_of(1).path_mtu, rows[i / 2].is);
		setting_end(&s);
	}
}

CASE(retries_are_finite_and_numbers_begin_at_random)
{
	static const char *const for_ever[] = { "KVCACHE_IB_RNR_RETRY=7", NULL };
	uint32_t psn[8];
	struct setting s;
	struct rig rig;
	struct kv_error err;

	for (int i = 0; i < 8; i += 2) {
		fake_begin(NULL); /* the fake's chance is the same each time */
		connect_and_move(&s, NULL);
		for (int host = 0; host < 2; host++) {
			struct ibv_qp_attr attr = attr_of(host);

			assert_in_range(attr.rnr_retry, 1, 6);
			assert_in_range(attr.retry_cnt, 1, 6);
			assert_in_range(attr.timeout, 14, 18);
			assert_in_range(attr.sq_psn, 0, 0xffffff);
			psn[i + host] = attr.sq_psn;
		}
		assert_int_equal(attr_of(0).rq_psn, attr_of(1).sq_psn);
		setting_end(&s);
	}
	for (int i = 0; i < 8; i++) /* 28 pairs of 24 bits: once in 600000 runs */
		for (int j = 0; j < i; j++)
			assert_int_not_equal(psn[i], psn[j]);
	fake_begin(NULL);
	assert_int_equal(rig_open(&rig, "ib", for_ever, &err), KV_ERR_ARG);
	assert_true(fake_end());
}

/* Data that asked for it, where the option allows it; never the memory of messages and notifies. */
CASE(only_data_memory_is_relaxed)
{
	static const char *const relaxed[] = { "KVCACHE_RELAX_ORDERING=1", NULL };
	struct setting s;

	for (int option = 0; option < 2; option++) {
		void *data = aligned_alloc(4096, 8192);
		struct tr_mem *mem;

		fake_begin(NULL);
		connect_and_move(&s, option ? relaxed : NULL);
		assert_true(fake_regions(1, IBV_ACCESS_REMOTE_WRITE) > 1);
		assert_int_equal(fake_regions(1, IBV_ACCESS_RELAXED_ORDERING), 0);
		mem = rig_reg(&s.rig, 1, data, 8192, TR_REMOTE_WRITE | TR_RELAXED);
		assert_int_equal(fake_regions(1, IBV_ACCESS_RELAXED_ORDERING), option);
		assert_int_equal(tr_mem_dereg(mem, NULL), 0);
		setting_end(&s);
		free(data);
	}
}
