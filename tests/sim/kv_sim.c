/* SPDX-License-Identifier: Apache-2.0 */
/* kv_sim.c -- two or three engines of the block API over fake devices, or over shared memory */
#include <stdlib.h>

#include "fake.h"
#include "faults.h"
#include "kv_steps.h"
#include "kv_world.h"
#include "lib/process.h"
#include "schedule.h"

static int actors(uint64_t *random)
{
	return 2 * (sim_below(random, 4) ? 2 : 3);
}

/* When nothing is wrong any more everything works again. */
static void recover(void)
{
	faults_heal();
	for (int i = 0; i < w.engines; i++)
		for (int j = 0; j < w.engines; j++) {
			int ret = KV_ERR_PEER_LOST;

			for (int tries = 0; i != j && ret && tries < 8; tries++) {
				if (!world_join(i, j)) {
					sched_sleep(1000000000);
					continue;
				}
				ret = kv_step_try(i, j);
			}
			if (i != j && ret)
				sim_fail(
					"engine %d cannot write to %d although nothing is wrong: %s",
					i, j, kv_error_name(ret));
		}
}

static void run(const struct sim_plan *plan)
{
	uint64_t random = plan->seed;
	struct fake_config config = { .hosts = ENGINES, .threads = true };
	struct sched_config schedule = { .rate = plan->rate, .stall = plan->stall };
	int fds = count_descriptors();

	config.seed = sim_random(&random);
	config.devices = 1 + (int)sim_below(&random, 2);
	config.steps_per_poll = 1 + (int)sim_below(&random, 12);
	config.prompt = !sim_below(&random, 4);
	config.no_cm = sim_below(&random, 2);
	setenv("KVCACHE_TRANSPORT", plan->way ? "shm" : "ib", 1);
	if (plan->way)
		setenv("KVCACHE_SHM_PATH", plan->way, 1);
	setenv("KVCACHE_IB_LANES", sim_below(&random, 2) ? "1" : "3", 1);
	schedule.seed = sim_random(&random) + plan->schedule * UINT64_C(0x5851f42d4c957f2d);
	sim_sockets_begin();
	fake_begin(&config);
	faults_begin(config.hosts, config.devices, plan->storm);
	sched_begin(&schedule);
	world_open(sim_random(&random), plan->workers / 2);
	sim_play(plan);
	recover();
	world_close();
	sched_end();
	if (!fake_end() && !w.left_open)
		sim_fail("something was left on a device, or a device was misused");
	if (count_descriptors() != fds && !w.left_open)
		sim_fail("%d descriptors were open before, %d are now", fds, count_descriptors());
}

static const struct sim kv_sim = {
	.name = "kv_sim",
	.about =
		"Two or three engines of the block API over fake devices, their threads in an order that the\n"
		"seed gives, faults of verbs and of the network, and a shadow of all their memory.",
	.work = kv_steps,
	.storm_work = kv_storm_steps,
	.faults = sim_faults,
	.host_faults = sim_host_faults,
	.steps = 120,
	.fault_steps = 40,
	.actors = actors,
	.run = run,
};

int main(int argc, char **argv)
{
	bounds_read(SIM_SOURCE "/docs/deadlines.md");
	return sim_main(&kv_sim, argc, argv);
}
