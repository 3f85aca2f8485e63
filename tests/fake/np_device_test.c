/* SPDX-License-Identifier: Apache-2.0 */
/* np_device_test.c -- which devices and which address the NCCL plugin takes, by NCCL's variables */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/test.h"
#include "np_rig.h"

static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

static void names(const char *expected)
{
	char all[256] = "";
	void *ctx;
	int ndev;

	CHECK(!net->init(&ctx, 1, NULL, side_logger, NULL));
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

	CHECK(net->init(&ctx, 1, NULL, side_logger, NULL));
}

CASE(nccl_ib_hca_chooses_the_devices)
{
	static const char *const exact[] = { "NCCL_IB_HCA==fake5:1,fake2", NULL };
	static const char *const inverse[] = { "NCCL_IB_HCA=^=fake5,fake2:1", NULL };
	static const char *const port[] = { "NCCL_IB_HCA=fake:2", NULL };
	static const char *const none[] = { "NCCL_IB_HCA==fake", NULL };
	static const char *const all[] = { "NCCL_IB_HCA=^fake", NULL };

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
	CHECK(net->init(&ctx, 1, NULL, side_logger, NULL));
	CHECK(side_log_has("this host has no RDMA port, and the job has ranks on other hosts"));
}

static void shm_by_name(void)
{
	setenv("KVCACHE_TRANSPORT", "shm", 1);
	names("shm");
}

CASE(without_a_port_a_job_of_two_hosts_is_left_to_nccl)
{
	static const char *const two[] = { "NCCL_IB_DISABLE=1", "WORLD_SIZE=16",
					   "LOCAL_WORLD_SIZE=8", NULL };
	static const char *const one[] = { "NCCL_IB_DISABLE=1", "WORLD_SIZE=8",
					   "LOCAL_WORLD_SIZE=8", "SLURM_STEP_NUM_NODES=2", NULL };
	static const char *const steps[] = { "NCCL_IB_DISABLE=1", "SLURM_STEP_NUM_NODES=2", NULL };

	np_rig_process(two, on_two_hosts);
	np_rig_process(steps, on_two_hosts);
	np_rig_process(one, disabled);
	np_rig_process(two, shm_by_name);
}

static void listening_on(const char *where)
{
	struct side s = np_rig_join(-1, 0, 64);

	CHECK(side_log_has(where));
	np_rig_part(&s);
}

static void by_the_loopback(void)
{
	listening_on("listening on 127.0.0.1 port");
}

static void by_ipv6(void)
{
	listening_on("listening on ::1 port");
}

static void by_none(void)
{
	struct side s = np_rig_init(-1, 0);
	uint8_t handle[NCCL_HANDLE_MAX];

	CHECK(net->listen(s.ctx, 0, handle, &s.loop.listen) && !s.loop.listen);
	CHECK(side_log_has("no interface that is up matches \"=lo0,nosuch\""));
	PASSES(&s, side_stop(&s));
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

CASE(nccls_switches_choose_transport_and_address)
{
	static const char *const off[] = { "NCCL_IB_DISABLE=1", NULL };
	static const char *const lo[] = { "NCCL_SOCKET_IFNAME==lo", "NCCL_SOCKET_FAMILY=AF_INET",
					  NULL };
	static const char *const six[] = { "NCCL_SOCKET_IFNAME=lo", "NCCL_SOCKET_FAMILY=AF_INET6",
					   NULL };
	static const char *const none[] = { "NCCL_SOCKET_IFNAME==lo0,nosuch", NULL };

	np_rig_process(off, disabled);
	np_rig_process(lo, by_the_loopback);
	np_rig_process(none, by_none);
	if (loopback_has_ipv6())
		np_rig_process(six, by_ipv6);
}
