/* SPDX-License-Identifier: Apache-2.0 */
/* np_qp_test.c -- what NCCL's variables and traffic class change on a queue pair; rights */
#include <stdlib.h>

#include "lib/test.h"
#include "np_rig.h"

/* ---------------------------------------------------------------- variables */

static int queue_pairs(struct ibv_qp_attr *attr)
{
	int n = 0;

	while (fake_qp_attr(n, attr))
		n++;
	CHECK(n);
	fake_qp_attr(0, attr);
	return n;
}

static void plain(void)
{
	struct side s = np_rig_join(-1, 0, 64);
	struct ibv_qp_attr attr;

	CHECK(queue_pairs(&attr) == 4); /* two lanes, both ends */
	CHECK(!attr.ah_attr.sl && !attr.ah_attr.grh.traffic_class && !attr.pkey_index);
	CHECK(attr.ah_attr.grh.sgid_index == 3 && attr.retry_cnt == 7 && attr.timeout == 20);
	np_rig_part(&s);
}

static void all_set(void)
{
	struct side s = np_rig_join(96, 0, 64); /* the variables beat the communicator's class */
	struct ibv_qp_attr attr;

	CHECK(queue_pairs(&attr) == 6);
	CHECK(attr.ah_attr.sl == 5 && attr.ah_attr.grh.traffic_class == 106);
	CHECK(attr.ah_attr.grh.sgid_index == 2 && attr.retry_cnt == 4 && attr.timeout == 21);
	CHECK(attr.pkey_index == 1);
	CHECK(side_log_has("NCCL_IB_AR_THRESHOLD is set, but has no effect: a notify"));
	CHECK(!side_log_has("NCCL_IB_TC is set, but"));
	np_rig_part(&s);
}

static void ours_beat_nccls(void)
{
	struct side s = np_rig_join(7, 0, 64);
	struct ibv_qp_attr attr;

	queue_pairs(&attr);
	CHECK(attr.ah_attr.grh.traffic_class == 8 && attr.ah_attr.sl == 7);
	np_rig_part(&s);
}

/*
 * On InfiniBand: the value comes before the index, as in NCCL, and the bit of full membership does
 * not matter.
 */
static void partition_by_value(void)
{
	struct ibv_qp_attr attr;
	struct side s;

	CHECK(fake_end());
	fake_begin(&(struct fake_config){ .hosts = 1, .devices = 1, .infiniband = true });
	fake_port(0, 0)->pkey[1] = 0x8001;
	fake_port(0, 0)->pkey[2] = 0x8005;
	s = np_rig_join(-1, 0, 64);
	queue_pairs(&attr);
	CHECK(attr.pkey_index == 2);
	CHECK(side_log_has("NCCL_IB_PKEY is set, but has no effect: KVCACHE_IB_PKEY is given"));
	np_rig_part(&s);
}

static void out_of_range(void)
{
	CHECK(!side_log_lines());
	plain();
	CHECK(side_log_has("NCCL_IB_TIMEOUT is \"40\"; kvrail takes 14..31"));
	CHECK(side_log_has("NCCL_IB_TC is \"banana\""));
	CHECK(side_log_has("NCCL_IB_QPS_PER_CONNECTION is \"0\""));
}

CASE(nccls_variables_reach_the_queue_pair)
{
	static const char *const set[] = {
		"NCCL_IB_TC=106",      "NCCL_IB_SL=5",		 "NCCL_IB_TIMEOUT=021",
		"NCCL_IB_RETRY_CNT=4", "NCCL_IB_GID_INDEX=2",	 "NCCL_IB_QPS_PER_CONNECTION=3",
		"NCCL_IB_PKEY=1",      "NCCL_IB_AR_THRESHOLD=0", NULL
	};
	static const char *const both[] = { "NCCL_IB_TC=106", "KVCACHE_IB_TRAFFIC_CLASS=8", NULL };
	static const char *const value[] = { "NCCL_IB_PKEY_VALUE=0x5", "NCCL_IB_PKEY=1", NULL };
	static const char *const our_value[] = { "KVCACHE_IB_PKEY=0x8005", "NCCL_IB_PKEY=1", NULL };
	static const char *const bad[] = { "NCCL_IB_TIMEOUT=40", "NCCL_IB_TC=banana",
					   "NCCL_IB_QPS_PER_CONNECTION=0", "NCCL_IB_SL=-1", NULL };

	np_rig_process(NULL, plain);
	np_rig_process(set, all_set);
	np_rig_process(both, ours_beat_nccls);
	np_rig_process(value, partition_by_value);
	np_rig_process(our_value, partition_by_value);
	np_rig_process(bad, out_of_range);
}

/* ---------------------------------------------------------------- traffic class */

static void by_init(void)
{
	static const int classes[] = { -1, 0, 7, 96, 255, 256 };
	static const uint8_t tc[] = { 0, 0, 7, 96, 255, 0 }, sl[] = { 0, 0, 7, 0, 0, 0 };

	for (size_t i = 0; i < sizeof(classes) / sizeof(*classes); i++) {
		struct side s = np_rig_join(classes[i], 0, 64);
		struct ibv_qp_attr attr;

		queue_pairs(&attr);
		CHECK(attr.ah_attr.grh.traffic_class == tc[i] && attr.ah_attr.sl == sl[i]);
		np_rig_part(&s);
	}
}

/* v10: two connects of one process with their own classes, and one that says nothing about it. */
static void by_connect(void)
{
	static const ncclNetCommConfig_v10_t high = { 96 }, low = { 32 };
	const ncclNetCommConfig_v10_t *const configs[] = { &high, NULL, &low };
	const ncclNet_v10_t *old = &ncclNetPlugin_v10;
	unsigned int seen = 0;
	struct ibv_qp_attr attr;
	struct loop loop[3];

	CHECK(!old->init(side_logger, NULL));
	for (int i = 0; i < 3; i++)
		np_rig_join_old(configs[i], false, &loop[i]);
	for (int i = 0; fake_qp_attr(i, &attr); i++)
		seen |= attr.ah_attr.grh.traffic_class == 96   ? 1
			: attr.ah_attr.grh.traffic_class == 32 ? 2
			: attr.ah_attr.grh.traffic_class == 0  ? 4
							       : 8;
	CHECK(seen == 7);
	for (int i = 0; i < 3; i++)
		CHECK(!old->closeSend(loop[i].send) && !old->closeRecv(loop[i].recv) &&
		      !old->closeListen(loop[i].listen));
	exit(0); /* the contexts end with the library, and the world after them */
}

/*
 * A rank that connects before it accepts, to itself and with a class: its listener is stepped in
 * connect.
 */
static void connect_first(void)
{
	static const ncclNetCommConfig_v10_t config = { 96 };
	const ncclNet_v10_t *old = &ncclNetPlugin_v10;
	struct loop l;

	CHECK(!old->init(side_logger, NULL));
	np_rig_join_old(&config, true, &l);
	CHECK(!old->closeSend(l.send) && !old->closeRecv(l.recv) && !old->closeListen(l.listen));
	exit(0);
}

CASE(with_a_class_ranks_may_connect_before_they_accept)
{
	np_rig_process(NULL, connect_first);
}

CASE(the_traffic_class_of_init_and_of_connect_reaches_the_queue_pair)
{
	np_rig_process(NULL, by_init);
	np_rig_process(NULL, by_connect);
}

/* ---------------------------------------------------------------- rights */

/* What is sent from is open to nobody, what is received into is written alone. */
static void registered(void)
{
	struct side s = np_rig_join(-1, 0, 64);
	int written = fake_regions(0, IBV_ACCESS_REMOTE_WRITE);
	int read = fake_regions(0, IBV_ACCESS_REMOTE_READ);
	static char from[4096], into[4096];
	void *send, *recv;

	CHECK(!ncclNetPlugin_v12.regMr(s.loop.send, from, sizeof(from), NCCL_PTR_HOST, &send));
	CHECK(fake_regions(0, IBV_ACCESS_REMOTE_WRITE) == written);
	CHECK(!ncclNetPlugin_v12.regMr(s.loop.recv, into, sizeof(into), NCCL_PTR_HOST, &recv));
	CHECK(fake_regions(0, IBV_ACCESS_REMOTE_WRITE) == written + 1);
	CHECK(fake_regions(0, IBV_ACCESS_REMOTE_READ) == read);
	CHECK(!ncclNetPlugin_v12.deregMr(s.loop.send, send));
	CHECK(!ncclNetPlugin_v12.deregMr(s.loop.recv, recv));
	np_rig_part(&s);
}

CASE(memory_is_open_as_far_as_its_end_needs)
{
	np_rig_process(NULL, registered);
}
