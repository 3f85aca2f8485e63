/* SPDX-License-Identifier: Apache-2.0 */
/* np_sim.c -- ranks of the NCCL plugin over fake devices */
#include <stdlib.h>

#include "fake.h"
#include "faults.h"
#include "np_steps.h"
#include "schedule.h"

static int actors(uint64_t *random)
{
	return 1 + (int)sim_below(random, 3);
}

static void run(const struct sim_plan *plan)
{
	uint64_t random = plan->seed;
	struct fake_config config = { .hosts = 1, .threads = true };
	struct sched_config schedule = { .rate = plan->rate, .stall = plan->stall };

	config.seed = sim_random(&random);
	config.devices = 1 + (int)sim_below(&random, 2);
	config.steps_per_poll = 1 + (int)sim_below(&random, 12);
	config.prompt = !sim_below(&random, 4);
	config.no_cm = sim_below(&random, 2);
	setenv("KVCACHE_TRANSPORT", "ib", 1);
	setenv("NCCL_SOCKET_IFNAME", "lo", 1);
	schedule.seed = sim_random(&random) + plan->schedule * UINT64_C(0x5851f42d4c957f2d);
	sim_sockets_begin();
	fake_begin(&config);
	faults_begin(config.hosts, config.devices, false);
	sched_begin(&schedule);
	np_world_open(plan->workers);
	sim_play(plan);
	faults_heal();
	np_world_recover();
	np_world_close();
	sched_end();
	if (!fake_end() && !faults_were_slow())
		sim_fail("something was left on a device, or a device was misused");
}

static const struct sim np_sim = {
	.name = "np_sim",
	.about =
		"One to three ranks of the NCCL plugin over fake devices, their threads in an order that the\n"
		"seed gives, faults of verbs and of the network, and memory that is given back in the middle.",
	.work = np_steps,
	.faults = sim_faults,
	.steps = 60,
	.fault_steps = 40,
	.actors = actors,
	.run = run,
};

int main(int argc, char **argv)
{
	return sim_main(&np_sim, argc, argv);
}
