/* SPDX-License-Identifier: Apache-2.0 */
/* plan.c -- what a seed does: its steps, dealt to actors, and the actors that take them */
#include "plan.h"

#include <pthread.h>
#include <string.h>

#include "schedule.h"

enum { FAULT_ACTORS = 2, STORM_ACTORS = 16, STORM_STEPS = 256, STORM_FAULTS = 2304 };

static const struct sim_kind *choose(const struct sim_kind *kinds, uint64_t *random)
{
	uint32_t all = 0, at;

	for (const struct sim_kind *k = kinds; k->weight; k++)
		all += k->weight;
	at = sim_below(random, all);
	while (at >= kinds->weight)
		at -= kinds++->weight;
	return kinds;
}

void plan_make(const struct sim *sim, struct sim_plan *plan)
{
	static const uint32_t rates[] = { 2, 4, 8, 16, 48 }, stalls[] = { 0, 0, 400, 2000, 10000 };
	const struct sim_kind *work = plan->storm ? sim->storm_work : sim->work;
	const struct sim_kind *faults = plan->way ? sim->host_faults : sim->faults;
	int steps = plan->storm ? STORM_STEPS : sim->steps;
	uint32_t fault_actors = plan->storm ? STORM_ACTORS : FAULT_ACTORS;
	uint64_t random = plan->seed * UINT64_C(0x9e3779b97f4a7c15) + 1;

	memset(plan->left_out, false, sizeof(plan->left_out));
	plan->rate = rates[sim_below(&random, 5)];
	plan->stall = stalls[sim_below(&random, 5)];
	plan->workers = sim->actors(&random);
	plan->actors = plan->workers + (int)fault_actors;
	plan->steps = steps + (plan->storm ? STORM_FAULTS : sim->fault_steps);
	for (int i = 0; i < plan->steps; i++) {
		bool fault = i >= steps;
		struct sim_step *step = &plan->step[i];

		step->actor =
			(uint8_t)(fault ? (uint32_t)plan->workers + sim_below(&random, fault_actors)
					: sim_below(&random, (uint32_t)plan->workers));
		step->kind = choose(fault ? faults : work, &random);
		step->random = sim_random(&random);
	}
}

static const struct sim_plan *playing;
static int at_work; /* workers that have steps left */

static void *act(void *arg)
{
	struct sim_actor *actor = arg;

	for (int i = 0; i < playing->steps; i++) {
		const struct sim_step *step = &playing->step[i];

		if (step->actor != actor->number || playing->left_out[i])
			continue;
		if (playing->storm && !at_work)
			break; /* a fault that nobody meets */
		actor->random = step->random;
		sim_say("actor %d step %d %s", actor->number, i, step->kind->name);
		sched_note((uint64_t)i);
		step->kind->play(actor);
		sim_result->steps++;
	}
	at_work -= actor->number < playing->workers;
	return NULL;
}

void sim_play(const struct sim_plan *plan)
{
	struct sim_actor actor[SIM_ACTORS];
	pthread_t thread[SIM_ACTORS];

	playing = plan;
	at_work = plan->workers;
	for (int i = 0; i < plan->actors; i++) {
		actor[i] = (struct sim_actor){ .number = i };
		pthread_create(&thread[i], NULL, act, &actor[i]);
	}
	for (int i = 0; i < plan->actors; i++)
		pthread_join(thread[i], NULL);
}
