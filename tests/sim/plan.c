/* SPDX-License-Identifier: Apache-2.0 */
/* plan.c -- what a seed does: its steps, dealt to actors, and the actors that take them */
#include "plan.h"

#include <pthread.h>
#include <string.h>

#include "schedule.h"

enum { FAULT_ACTORS = 2 };

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

void plan_make(const struct sim *sim, uint64_t seed, uint64_t schedule, const char *way,
	       struct sim_plan *plan)
{
	static const uint32_t rates[] = { 2, 4, 8, 16, 48 }, stalls[] = { 0, 0, 400, 2000, 10000 };
	uint64_t random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;

	memset(plan, 0, sizeof(*plan));
	plan->seed = seed;
	plan->schedule = schedule;
	plan->way = way;
	plan->rate = rates[sim_below(&random, 5)];
	plan->stall = stalls[sim_below(&random, 5)];
	plan->workers = sim->actors(&random);
	plan->actors = plan->workers + FAULT_ACTORS;
	plan->steps = sim->steps + sim->fault_steps;
	for (int i = 0; i < plan->steps; i++) {
		bool fault = i >= sim->steps;
		struct sim_step *step = &plan->step[i];

		step->actor =
			(uint8_t)(fault ? (uint32_t)plan->workers + sim_below(&random, FAULT_ACTORS)
					: sim_below(&random, (uint32_t)plan->workers));
		step->kind =
			choose(fault ? way ? sim->host_faults : sim->faults : sim->work, &random);
		step->random = sim_random(&random);
	}
}

static const struct sim_plan *playing;

static void *act(void *arg)
{
	struct sim_actor *actor = arg;

	for (int i = 0; i < playing->steps; i++) {
		const struct sim_step *step = &playing->step[i];

		if (step->actor != actor->number || playing->left_out[i])
			continue;
		actor->random = step->random;
		sim_say("actor %d step %d %s", actor->number, i, step->kind->name);
		sched_note((uint64_t)i);
		step->kind->play(actor);
		sim_result->steps++;
	}
	return NULL;
}

void sim_play(const struct sim_plan *plan)
{
	struct sim_actor actor[SIM_ACTORS];
	pthread_t thread[SIM_ACTORS];

	playing = plan;
	for (int i = 0; i < plan->actors; i++) {
		actor[i] = (struct sim_actor){ .number = i };
		pthread_create(&thread[i], NULL, act, &actor[i]);
	}
	for (int i = 0; i < plan->actors; i++)
		pthread_join(thread[i], NULL);
}
