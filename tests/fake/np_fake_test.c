/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_fake_test.c -- what the NCCL plugin does to its devices: how a message is dealt over a virtual
 * NIC, and what NCCL's variables and traffic class change on a queue pair
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/clock.h"
#include "descriptors.h"
#include "np_rig.h"

static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

enum {
	DEVICES = NP_RIG_DEVICES,
	LARGE = 8 << 20,
	MAX = LARGE + 300,
	LINE = 128,
	WRITES = 4096,
	ENOUGH = 64 << 10,
	STEP = 512 << 10 /* of NCCL */
};

/* ---------------------------------------------------------------- stripes */

/*
 * The message's bytes, and nothing else of the buffer, once each; in whole lines, over all devices
 * if there is enough.
 */
static void check_writes(const uint8_t *to, size_t size, int ndevs)
{
	static struct fake_write write[WRITES];
	static uint8_t seen[MAX / LINE + 1];
	size_t n = fake_writes(write, WRITES), bytes = 0;
	unsigned int devices = 0, all = (1u << ndevs) - 1;

	memset(seen, 0, sizeof(seen));
	for (size_t i = 0; i < n; i++) {
		uint64_t at = write[i].addr - (uintptr_t)to;

		if (write[i].addr < (uintptr_t)to || at >= MAX)
			continue; /* a notify's record */
		CHECK(at % LINE == 0);
		CHECK(write[i].len % LINE == 0 || at + write[i].len == size);
		for (uint64_t line = at / LINE; line * LINE < at + write[i].len; line++)
			CHECK(!seen[line]++);
		bytes += write[i].len;
		devices |= 1u << write[i].device;
	}
	if (!bytes && size <= NP_AHEAD_BYTES)
		return; /* it went ahead, in a message */
	CHECK(bytes == size);
	CHECK(!(devices & ~all));
	if (size >= ENOUGH * (size_t)ndevs)
		CHECK(devices == all);
}

static void move(struct np_loop *l, uint8_t *from, uint8_t *to, size_t size, int ndevs)
{
	void *in = NULL, *out = NULL, *from_mh, *to_mh, *data = to;
	size_t room = MAX;
	int tag = 0;

	for (size_t i = 0; i < MAX; i++)
		from[i] = (uint8_t)(i * 7 + i / 251 + size);
	memset(to, 0xa5, MAX);
	CHECK(!net->regMr(l->send, from, MAX, NCCL_PTR_HOST, &from_mh));
	CHECK(!net->regMr(l->recv, to, MAX, NCCL_PTR_HOST, &to_mh));
	CHECK(!net->irecv(l->recv, 1, &data, &room, &tag, &to_mh, NULL, &in) && in);
	fake_writes(NULL, 0);
	CHECK(!net->isend(l->send, from, size, tag, from_mh, NULL, &out) && out);
	for (int done[2] = { 0 }; !done[0] || !done[1];) {
		if (!done[0])
			CHECK(!net->test(out, &done[0], NULL));
		if (!done[1])
			CHECK(!net->test(in, &done[1], NULL));
	}
	CHECK(!memcmp(from, to, size));
	for (size_t i = size; i < MAX; i++)
		CHECK(to[i] == 0xa5);
	check_writes(to, size, ndevs);
	CHECK(!net->deregMr(l->send, from_mh));
	CHECK(!net->deregMr(l->recv, to_mh));
}

static void deal(void)
{
	static const size_t sizes[] = { 0,     1,      127,  128,     129,   1000,	4096,
					70001, 300000, STEP, 1 << 20, LARGE, LARGE + 77 };
	uint8_t *from = aligned_alloc(4096, (MAX + 4095) & ~4095u);
	uint8_t *to = aligned_alloc(4096, (MAX + 4095) & ~4095u);
	int ndev, dev;
	void *ctx;

	CHECK(from && to);
	CHECK(!net->init(&ctx, 1, NULL, np_rig_logger, NULL));
	CHECK(!net->devices(&ndev) && ndev == DEVICES);
	for (int ndevs = 1; ndevs <= DEVICES; ndevs++) {
		ncclNetVDeviceProps_v12_t parts = { .ndevs = ndevs };
		ncclNetProperties_v12_t p;
		struct np_loop l;

		for (int i = 0; i < ndevs; i++)
			parts.devs[i] = i;
		CHECK(!net->makeVDevice(&dev, &parts) && dev == DEVICES - 1 + ndevs);
		CHECK(!net->getProperties(dev, &p) && p.vProps.ndevs == ndevs);
		CHECK(!memcmp(p.vProps.devs, parts.devs, sizeof(int) * (size_t)ndevs));
		l = np_rig_join(-1, dev);
		for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
			move(&l, from, to, sizes[i], ndevs);
		np_rig_part(&l);
	}
	CHECK(!net->finalize(ctx));
	free(from);
	free(to);
}

static void a_message_is_dealt_over_up_to_eight_devices_in_whole_lines(void **state)
{
	(void)state;
	np_rig_process(NULL, deal);
}

static void refuse(void)
{
	ncclNetVDeviceProps_v12_t nine = { .ndevs = 9 }, none = { .ndevs = 0 };
	ncclNetVDeviceProps_v12_t twice = { 2, { 3, 3 } }, unknown = { 2, { 0, DEVICES } };
	ncclNetVDeviceProps_v12_t negative = { 1, { -1 } }, mixed = { 2, { 0, 1 } };
	ncclNetVDeviceProps_v9_t five = { .ndevs = 5 };
	int ndev, dev = -7;
	void *ctx;

	CHECK(!net->init(&ctx, 1, NULL, np_rig_logger, NULL));
	CHECK(net->makeVDevice(&dev, &nine) && net->makeVDevice(&dev, &none));
	CHECK(net->makeVDevice(&dev, &twice) && net->makeVDevice(&dev, &unknown));
	CHECK(net->makeVDevice(&dev, &negative) && net->makeVDevice(&dev, NULL));
	CHECK(ncclNetPlugin_v11.makeVDevice(&dev, &five));
	snprintf(((struct np_device *)np_device_get(1))->link, 16, "InfiniBand");
	CHECK(net->makeVDevice(&dev, &mixed));
	CHECK(dev == -7);
	CHECK(!net->devices(&ndev) && ndev == DEVICES);
	CHECK(!net->finalize(ctx));
}

static void a_virtual_device_of_none_nine_equal_or_mixed_ones_is_refused(void **state)
{
	(void)state;
	np_rig_process(NULL, refuse);
}

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
	struct np_loop l = np_rig_join(-1, 0);
	struct ibv_qp_attr attr;

	CHECK(queue_pairs(&attr) == 4); /* two lanes, both ends */
	CHECK(!attr.ah_attr.sl && !attr.ah_attr.grh.traffic_class && !attr.pkey_index);
	CHECK(attr.ah_attr.grh.sgid_index == 3 && attr.retry_cnt == 7 && attr.timeout == 20);
	np_rig_part(&l);
}

static void all_set(void)
{
	struct np_loop l = np_rig_join(96, 0); /* the variables beat the communicator's class */
	struct ibv_qp_attr attr;

	CHECK(queue_pairs(&attr) == 6);
	CHECK(attr.ah_attr.sl == 5 && attr.ah_attr.grh.traffic_class == 106);
	CHECK(attr.ah_attr.grh.sgid_index == 2 && attr.retry_cnt == 4 && attr.timeout == 21);
	CHECK(attr.pkey_index == 1);
	CHECK(strstr(np_rig_log, "NCCL_IB_AR_THRESHOLD is set, but has no effect: a notify"));
	CHECK(!strstr(np_rig_log, "NCCL_IB_TC is set, but"));
	np_rig_part(&l);
}

static void ours_beat_nccls(void)
{
	struct np_loop l = np_rig_join(7, 0);
	struct ibv_qp_attr attr;

	queue_pairs(&attr);
	CHECK(attr.ah_attr.grh.traffic_class == 8 && attr.ah_attr.sl == 7);
	np_rig_part(&l);
}

/*
 * On InfiniBand: the value comes before the index, as in NCCL, and the bit of full membership does
 * not matter.
 */
static void partition_by_value(void)
{
	struct ibv_qp_attr attr;
	struct np_loop l;

	CHECK(fake_end());
	fake_begin(&(struct fake_config){ .hosts = 1, .devices = 1, .infiniband = true });
	fake_port(0, 0)->pkey[1] = 0x8001;
	fake_port(0, 0)->pkey[2] = 0x8005;
	l = np_rig_join(-1, 0);
	queue_pairs(&attr);
	CHECK(attr.pkey_index == 2);
	CHECK(strstr(np_rig_log,
		     "NCCL_IB_PKEY is set, but has no effect: KVCACHE_IB_PKEY is given"));
	np_rig_part(&l);
}

static void out_of_range(void)
{
	CHECK(strlen(np_rig_log) == 0);
	plain();
	CHECK(strstr(np_rig_log, "NCCL_IB_TIMEOUT is \"40\"; kvrail takes 14..31"));
	CHECK(strstr(np_rig_log, "NCCL_IB_TC is \"banana\""));
	CHECK(strstr(np_rig_log, "NCCL_IB_QPS_PER_CONNECTION is \"0\""));
}

static void nccls_variables_reach_the_queue_pair(void **state)
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

	(void)state;
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
		struct np_loop l = np_rig_join(classes[i], 0);
		struct ibv_qp_attr attr;

		queue_pairs(&attr);
		CHECK(attr.ah_attr.grh.traffic_class == tc[i] && attr.ah_attr.sl == sl[i]);
		np_rig_part(&l);
	}
}

/* v10: two connects of one process with their own classes, and one without a word about it. */
static void by_connect(void)
{
	static const int classes[] = { 96, -1, 32 };
	const ncclNet_v10_t *old = &ncclNetPlugin_v10;
	uint8_t handle[NCCL_HANDLE_MAX];
	void *listen[3], *send[3] = { 0 }, *recv[3] = { 0 };
	unsigned int seen = 0;
	struct ibv_qp_attr attr;

	CHECK(!old->init(np_rig_logger, NULL));
	for (int i = 0; i < 3; i++) {
		ncclNetCommConfig_v10_t config = { classes[i] };

		CHECK(!old->listen(0, handle, &listen[i]));
		while (!send[i] || !recv[i]) {
			if (!send[i])
				CHECK(!old->connect(0, i == 1 ? NULL : &config, handle, &send[i],
						    NULL));
			if (!recv[i])
				CHECK(!old->accept(listen[i], &recv[i], NULL));
		}
	}
	for (int i = 0; fake_qp_attr(i, &attr); i++)
		seen |= attr.ah_attr.grh.traffic_class == 96   ? 1
			: attr.ah_attr.grh.traffic_class == 32 ? 2
			: attr.ah_attr.grh.traffic_class == 0  ? 4
							       : 8;
	CHECK(seen == 7);
	for (int i = 0; i < 3; i++)
		CHECK(!old->closeSend(send[i]) && !old->closeRecv(recv[i]) &&
		      !old->closeListen(listen[i]));
	exit(0); /* the contexts end with the library, and the world after them */
}

/*
 * A rank that connects before it accepts, to itself and with a class: its listener is stepped in
 * connect.
 */
static void connect_first(void)
{
	const ncclNet_v10_t *old = &ncclNetPlugin_v10;
	ncclNetCommConfig_v10_t config = { 96 };
	uint8_t handle[NCCL_HANDLE_MAX];
	void *listen, *send = NULL, *recv = NULL;
	int64_t end = kv_deadline_ns(20000);

	CHECK(!old->init(np_rig_logger, NULL));
	CHECK(!old->listen(0, handle, &listen));
	while (!send) {
		CHECK(!old->connect(0, &config, handle, &send, NULL));
		CHECK(kv_now_ns() < end);
	}
	CHECK(!old->accept(listen, &recv, NULL) && recv);
	CHECK(!old->closeSend(send) && !old->closeRecv(recv) && !old->closeListen(listen));
	exit(0);
}

static void with_a_class_ranks_may_connect_before_they_accept(void **state)
{
	(void)state;
	np_rig_process(NULL, connect_first);
}

/* ---------------------------------------------------------------- descriptors */

static void join_one(void *ctx, void **send, void **recv)
{
	int64_t end = kv_deadline_ns(20000);
	uint8_t handle[NCCL_HANDLE_MAX];
	void *listen;

	CHECK(!net->listen(ctx, 0, handle, &listen));
	for (*send = *recv = NULL; !*send || !*recv;) {
		if (!*send)
			CHECK(!net->connect(ctx, 0, handle, send, NULL));
		if (!*recv)
			CHECK(!net->accept(listen, recv, NULL));
		CHECK(kv_now_ns() < end);
	}
	CHECK(!net->closeListen(listen));
}

static void count_ends(void)
{
	enum { PAIRS = 10 };
	void *ctx, *send[PAIRS], *recv[PAIRS];
	int before;

	CHECK(!net->init(&ctx, 1, NULL, np_rig_logger, NULL));
	join_one(ctx, &send[0], &recv[0]);
	before = count_descriptors();
	for (int i = 1; i < PAIRS; i++)
		join_one(ctx, &send[i], &recv[i]);
	CHECK(count_descriptors() - before <= 2 * 2 * (PAIRS - 1));
	for (int i = 0; i < PAIRS; i++)
		CHECK(!net->closeSend(send[i]) && !net->closeRecv(recv[i]));
	CHECK(!net->finalize(ctx));
}

/* Connects whose caller does not come back, to a listener that nobody accepts on. */
static void given_up(void)
{
	uint8_t handle[NCCL_HANDLE_MAX], copy[NCCL_HANDLE_MAX];
	void *ctx, *listen, *send;
	int before;

	CHECK(!net->init(&ctx, 1, NULL, np_rig_logger, NULL));
	CHECK(!net->listen(ctx, 0, handle, &listen));
	before = count_descriptors();
	for (int i = 0; i < 100; i++) {
		memcpy(copy, handle, sizeof(copy));
		CHECK(!net->connect(ctx, 0, copy, &send, NULL) && !send);
	}
	CHECK(count_descriptors() >= before + 100);
	CHECK(!np_connecting_end(ctx, kv_now_ns())); /* as some time later */
	CHECK(count_descriptors() == before);
	/* Whoever comes back all the same begins anew. */
	CHECK(!net->connect(ctx, 0, copy, &send, NULL) && !send);
	CHECK(count_descriptors() == before + 1);
	CHECK(!net->closeListen(listen) && !net->finalize(ctx));
}

static void at_the_limit(void)
{
	struct rlimit limit = { .rlim_cur = (rlim_t)count_descriptors() + 4, .rlim_max = 4096 };
	ncclResult_t result = ncclSuccess;
	uint8_t handle[NCCL_HANDLE_MAX];
	void *ctx, *listen[8];

	CHECK(!net->init(&ctx, 1, NULL, np_rig_logger, NULL));
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit));
	for (int i = 0; i < 8 && !result; i++)
		result = net->listen(ctx, 0, handle, &listen[i]);
	CHECK(result);
	CHECK(strstr(np_rig_log, "raise the limit on open files (ulimit -n): it is "));
	_exit(0);
}

static void an_end_costs_two_descriptors_and_their_limit_is_named(void **state)
{
	static const char *const shm[] = { "KVCACHE_TRANSPORT=shm", NULL };

	(void)state;
	np_rig_process(NULL, count_ends);
	np_rig_process(shm, count_ends);
	np_rig_process(shm, at_the_limit);
	np_rig_process(shm, given_up);
}

/* ------------------------------------------------------- a description that is broken off */

/* Half of it is sent, as where the credits for messages are out then. */
static void send_half(struct np_comm *comm, struct np_mr *mr)
{
	uint8_t bytes[TR_MEM_PACK_MAX], message[TR_MSG_MAX];
	struct np_mem_piece piece = { .slot = mr->slot, .bytes = bytes };
	struct kv_error err;
	size_t total;

	CHECK(!tr_mem_pack(comm->conn, mr->mem, bytes, sizeof(bytes), &total, &err));
	piece.total = (uint16_t)total;
	piece.len = total / 2;
	CHECK(!tr_msg(comm->conn, message, np_mem_piece_put(message, sizeof(message), &piece),
		      &err));
	mr->described_len = piece.len;
	comm->describing = mr->serial;
}

static void exchange(const struct np_loop *l, void *from, void *from_mh, void *to, void *to_mh)
{
	int64_t end = kv_deadline_ns(20000);
	void *in = NULL, *out = NULL;
	int tag = 0, done[2] = { 0 };
	size_t size = LINE;

	while (!in)
		CHECK(!net->irecv(l->recv, 1, &to, &size, &tag, &to_mh, NULL, &in));
	while (!out)
		CHECK(!net->isend(l->send, from, size, tag, from_mh, NULL, &out));
	while (!done[0] || !done[1]) {
		if (!done[0])
			CHECK(!net->test(out, &done[0], NULL));
		if (!done[1])
			CHECK(!net->test(in, &done[1], NULL));
		CHECK(kv_now_ns() < end);
	}
	CHECK(!memcmp(from, to, size));
}

static void descriptions(void)
{
	static uint8_t from[LINE], to[2][LINE];
	struct np_loop l = np_rig_join(-1, 0);
	void *from_mh, *to_mh[2];

	memset(from, 7, sizeof(from));
	CHECK(!net->regMr(l.send, from, LINE, NCCL_PTR_HOST, &from_mh));
	for (int i = 0; i < 2; i++)
		CHECK(!net->regMr(l.recv, to[i], LINE, NCCL_PTR_HOST, &to_mh[i]));
	send_half(l.recv, to_mh[0]);
	exchange(&l, from, from_mh, to[1], to_mh[1]);
	exchange(&l, from, from_mh, to[0], to_mh[0]);
	np_rig_part(&l);
}

static void a_description_that_was_broken_off_begins_again(void **state)
{
	(void)state;
	np_rig_process(NULL, descriptions);
}

/* ---------------------------------------------------------------- fork */

/* Runs after the plugin's own destructor: what it has left on the devices. */
static int tell_counts = -1;

static __attribute__((destructor(101))) void after_the_plugin(void)
{
	struct fake_counts counts;

	if (tell_counts < 0)
		return;
	fake_counts(&counts);
	_exit(write(tell_counts, &counts, sizeof(counts)) == sizeof(counts) ? 0 : 1);
}

static void child_exits(void)
{
	const ncclNet_v10_t *old = &ncclNetPlugin_v10;
	struct fake_counts before, after;
	uint8_t handle[NCCL_HANDLE_MAX];
	void *listen;
	int fd[2];
	pid_t pid;

	CHECK(!old->init(np_rig_logger, NULL));
	CHECK(!old->listen(0, handle, &listen)); /* opens the device, for good */
	CHECK(!old->closeListen(listen));
	fake_counts(&before);
	CHECK(before.pds);
	CHECK(!pipe(fd));
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		tell_counts = fd[1];
		exit(0);
	}
	CHECK(read(fd[0], &after, sizeof(after)) == sizeof(after));
	CHECK(waitpid(pid, NULL, 0) == pid);
	CHECK(after.pds == before.pds && after.contexts == before.contexts);
	exit(0);
}

static void a_forked_child_that_exits_frees_nothing_of_its_parents(void **state)
{
	(void)state;
	np_rig_process(NULL, child_exits);
}

static void the_traffic_class_of_init_and_of_connect_reaches_the_queue_pair(void **state)
{
	(void)state;
	np_rig_process(NULL, by_init);
	np_rig_process(NULL, by_connect);
}

/* ---------------------------------------------------------------- devices */

static void names(const char *expected)
{
	char all[256] = "";
	void *ctx;
	int ndev;

	CHECK(!net->init(&ctx, 1, NULL, np_rig_logger, NULL));
	CHECK(!net->devices(&ndev));
	for (int i = 0; i < ndev; i++) {
		ncclNetProperties_v12_t p;

		CHECK(!net->getProperties(i, &p));
		snprintf(all + strlen(all), sizeof(all) - strlen(all), "%s%s", i ? " " : "",
			 p.name);
	}
	if (strcmp(all, expected))
		fprintf(stderr, "devices are %s\n", all);
	CHECK(!strcmp(all, expected));
	CHECK(!net->finalize(ctx));
}

static void only_two(void)
{
	names("fake2:1 fake5:1");
}

static void all_but_two(void)
{
	names("fake0:1 fake1:1 fake3:1 fake4:1 fake6:1 fake7:1");
}

static void link_is_down(void)
{
	fake_link(0, 5, false);
	names("fake2:1");
}

static void nothing_left(void)
{
	void *ctx;

	CHECK(net->init(&ctx, 1, NULL, np_rig_logger, NULL));
}

static void nccl_ib_hca_chooses_the_devices(void **state)
{
	static const char *const exact[] = { "NCCL_IB_HCA==fake5:1,fake2", NULL };
	static const char *const inverse[] = { "NCCL_IB_HCA=^=fake5,fake2:1", NULL };
	static const char *const port[] = { "NCCL_IB_HCA=fake:2", NULL };
	static const char *const none[] = { "NCCL_IB_HCA==fake", NULL };
	static const char *const all[] = { "NCCL_IB_HCA=^fake", NULL };

	(void)state;
	np_rig_process(exact, only_two);
	np_rig_process(inverse, all_but_two);
	np_rig_process(exact, link_is_down);
	np_rig_process(port, nothing_left);
	np_rig_process(none, nothing_left);
	np_rig_process(all, nothing_left);
}

static void disabled(void)
{
	unsetenv("KVCACHE_TRANSPORT"); /* it would beat NCCL's */
	names("shm");
}

static void on_two_hosts(void)
{
	void *ctx;

	unsetenv("KVCACHE_TRANSPORT");
	CHECK(net->init(&ctx, 1, NULL, np_rig_logger, NULL));
	CHECK(strstr(np_rig_log,
		     "this host has no RDMA port, and the job has ranks on other hosts"));
}

static void shm_by_name(void)
{
	setenv("KVCACHE_TRANSPORT", "shm", 1);
	names("shm");
}

static void without_a_port_a_job_of_two_hosts_is_left_to_nccl(void **state)
{
	static const char *const two[] = { "NCCL_IB_DISABLE=1", "WORLD_SIZE=16",
					   "LOCAL_WORLD_SIZE=8", NULL };
	static const char *const one[] = { "NCCL_IB_DISABLE=1", "WORLD_SIZE=8",
					   "LOCAL_WORLD_SIZE=8", "SLURM_STEP_NUM_NODES=2", NULL };
	static const char *const steps[] = { "NCCL_IB_DISABLE=1", "SLURM_STEP_NUM_NODES=2", NULL };

	(void)state;
	np_rig_process(two, on_two_hosts);
	np_rig_process(steps, on_two_hosts);
	np_rig_process(one, disabled);
	np_rig_process(two, shm_by_name);
}

static void by_the_loopback(void)
{
	struct np_loop l = np_rig_join(-1, 0);

	CHECK(strstr(np_rig_log, "listening on 127.0.0.1 port"));
	np_rig_part(&l);
}

static void by_ipv6(void)
{
	struct np_loop l = np_rig_join(-1, 0);

	CHECK(strstr(np_rig_log, "listening on ::1 port"));
	np_rig_part(&l);
}

static void by_none(void)
{
	uint8_t handle[NCCL_HANDLE_MAX];
	void *ctx, *listen = NULL;

	CHECK(!net->init(&ctx, 1, NULL, np_rig_logger, NULL));
	CHECK(net->listen(ctx, 0, handle, &listen) && !listen);
	CHECK(strstr(np_rig_log, "no interface that is up matches \"=lo0,nosuch\""));
	CHECK(!net->finalize(ctx));
}

static bool loopback_has_ipv6(void)
{
	char line[128];
	FILE *f = fopen("/proc/net/if_inet6", "re");
	bool found = false;

	while (f && !found && fgets(line, sizeof(line), f))
		found = !strncmp(line, "00000000000000000000000000000001", 32);
	if (f)
		fclose(f);
	return found;
}

static void nccls_switches_choose_transport_and_address(void **state)
{
	static const char *const off[] = { "NCCL_IB_DISABLE=1", NULL };
	static const char *const lo[] = { "NCCL_SOCKET_IFNAME==lo", "NCCL_SOCKET_FAMILY=AF_INET",
					  NULL };
	static const char *const six[] = { "NCCL_SOCKET_IFNAME=lo", "NCCL_SOCKET_FAMILY=AF_INET6",
					   NULL };
	static const char *const none[] = { "NCCL_SOCKET_IFNAME==lo0,nosuch", NULL };

	(void)state;
	np_rig_process(off, disabled);
	np_rig_process(lo, by_the_loopback);
	np_rig_process(none, by_none);
	if (loopback_has_ipv6())
		np_rig_process(six, by_ipv6);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_message_is_dealt_over_up_to_eight_devices_in_whole_lines),
		cmocka_unit_test(a_virtual_device_of_none_nine_equal_or_mixed_ones_is_refused),
		cmocka_unit_test(nccls_variables_reach_the_queue_pair),
		cmocka_unit_test(the_traffic_class_of_init_and_of_connect_reaches_the_queue_pair),
		cmocka_unit_test(with_a_class_ranks_may_connect_before_they_accept),
		cmocka_unit_test(an_end_costs_two_descriptors_and_their_limit_is_named),
		cmocka_unit_test(a_description_that_was_broken_off_begins_again),
		cmocka_unit_test(a_forked_child_that_exits_frees_nothing_of_its_parents),
		cmocka_unit_test(nccl_ib_hca_chooses_the_devices),
		cmocka_unit_test(without_a_port_a_job_of_two_hosts_is_left_to_nccl),
		cmocka_unit_test(nccls_switches_choose_transport_and_address),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
