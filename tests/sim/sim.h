/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim.h -- a simulation: a seed makes a plan of steps, actors take them at the same time, and
 * something that must never be is looked for after each
 *
 * Each seed runs in a process of its own. A step has chance of its own, so that a plan can be made
 * smaller by leaving steps out (`keep`) and the others stay what they were.
 */
#ifndef SIM_H
#define SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Where a seed's memory lies, the same in each run. A race detector has a part of the addresses
 * only.
 */
#ifdef __SANITIZE_THREAD__
#define SIM_MEMORY UINT64_C(0x7e9000000000)
#else
#define SIM_MEMORY UINT64_C(0x200000000000)
#endif

enum { SIM_STEPS = 2560, SIM_ACTORS = 24 };

static inline uint64_t sim_random(uint64_t *state)
{
	uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}
static inline uint32_t sim_below(uint64_t *state, uint32_t n)
{
	return n ? (uint32_t)(sim_random(state) >> 32) % n : 0;
}

struct sim_actor {
	int number;
	uint64_t random; /* of its step */
};
struct sim_kind {
	const char *name;
	unsigned int weight; /* how often, of the steps of its kind of actor; 0 ends a table */
	void (*play)(struct sim_actor *actor);
};
struct sim_step {
	uint8_t actor;
	const struct sim_kind *kind;
	uint64_t random;
};
struct sim_plan {
	uint64_t seed, schedule;
	const char *way; /* that bytes go: NULL = over the fake device, else KVCACHE_SHM_PATH */
	bool storm;	 /* many faults, each short, and large operations between them */
	uint32_t rate, stall; /* of the schedule */
	int workers, actors;  /* those behind the workers make faults */
	int steps;
	struct sim_step step[SIM_STEPS];
	bool left_out[SIM_STEPS];
};
struct sim {
	const char *name, *about;
	const struct sim_kind *work, *faults;
	const struct sim_kind *storm_work;  /* in a storm; NULL: there is none */
	const struct sim_kind *host_faults; /* where there is no device; NULL: there always is */
	int steps;			    /* of a plan, without its faults */
	int fault_steps;
	int (*actors)(uint64_t *random); /* that work */
	void (*run)(const struct sim_plan *plan);
	void (*dump)(void); /* the state, for a run that is looked at */
};

/* What a run was; in memory that its maker sees. */
struct sim_result {
	uint64_t operations, blocks, faults, steps, checks;
	uint64_t switches, points, virtual_ns, hash;
	uint64_t kind; /* of the failure, 0 = none */
	int64_t failed_ns;
	char why[2048];
};
extern struct sim_result *sim_result;
extern bool sim_talks; /* one seed is looked at: say what happens */

int sim_main(const struct sim *sim, int argc, char **argv);
/* Takes the plan's steps, each actor in a thread. */
void sim_play(const struct sim_plan *plan);

/* An invariant does not hold: the run ends here. */
_Noreturn void sim_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void sim_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* sockets.c */
void sim_sockets_begin(void);
bool sim_fd_blocks(int fd);
/* Breaks a TCP connection; false: there is none. */
bool sim_cut_tcp(uint64_t which);

#endif
