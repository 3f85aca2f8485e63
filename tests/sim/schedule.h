/* SPDX-License-Identifier: Apache-2.0 */
/*
 * schedule.h -- the threads of a simulation: exactly one runs, and a seed says which
 *
 * They are real threads of the product. The functions in which they meet (wrap.c, sockets.c: the
 * linker puts those in the place of the C library's) are points at which another thread may go on.
 * What the product's clock says is the scheduler's: it goes a little at each point, and jumps to
 * the nearest deadline when no thread can go on. So a run of a seed is the same each time, and a
 * deadline of 5 s costs nothing.
 *
 * A thread that is not under it (before sched_begin, of a sanitizer) gets the C library's.
 */
#ifndef SIM_SCHEDULE_H
#define SIM_SCHEDULE_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#define SCHED_NEVER INT64_MAX

struct sched_config {
	uint64_t seed;
	uint32_t rate;	/* another thread goes on at one of so many points */
	uint32_t stall; /* a thread stands still for a while at one of so many; 0 = never */
};
struct sched_counts {
	uint64_t points, switches, jumps, stalls;
	int64_t now_ns, stalled_ns; /* from 0; how long threads that could run stood still */
	uint64_t hash;		    /* of who ran when: two runs of a seed have the same */
};

void sched_begin(const struct sched_config *config); /* the caller is its first thread */
void sched_end(void); /* fails the run if another thread has not ended */
void sched_counts(struct sched_counts *counts);
int64_t sched_now_ns(void);
bool sched_is_on(void);	       /* of this thread */
const char *sched_state(void); /* every thread and what it waits for, as text */

/* A number from the schedule's chance. */
uint64_t sched_random(void);
/* Something happened that the hash is to hold. */
void sched_note(uint64_t what);

/* Another thread may go on; `often`: it is as likely as that. */
void sched_point(void);
void sched_rare_point(void);
void sched_yield_point(void); /* another thread goes on if one can */
void sched_sleep(int64_t ns);

/*
 * Until another thread wakes `key`, or one of the descriptors is ready, or the time has come; false
 * after the last. Either may be NULL.
 */
bool sched_wait(const void *key, struct pollfd *fds, nfds_t n, int64_t until_ns);
void sched_wake(const void *key, int threads);
/* A descriptor may be ready that was not: those that wait for one look again. */
void sched_moved(void);

#endif
