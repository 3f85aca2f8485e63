/* SPDX-License-Identifier: Apache-2.0 */
/* copy.h -- jobs and their pieces, for those who take them: threads (copy.c), callers (help.c) */
#ifndef COPY_H
#define COPY_H

#include "shm.h"

struct copy_pool {
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct copy_job *first, **last;
	_Atomic bool work; /* there is a job */
	_Atomic bool full; /* no thread is idle, and no more are started */
	bool stopping;
	int split;  /* threads for the pieces of one job; 0: a job is not split */
	int wanted; /* at most; fewer after one could not be started */
	int started, idle, sleeping;
	_Atomic int coming; /* threads that look at the list next: started, or done with a piece */
	int jobs; /* in the list */
	int64_t spin_ns;
	struct copy_job *offered; /* help.c: jobs of which those who wait may take pieces */
	_Atomic bool offers;	  /* there are some */
	uint64_t looks;		  /* numbers of looks */
	pthread_t thread[SHM_COPY_THREADS_MAX];
	atomic_bool ended[SHM_COPY_THREADS_MAX];
	struct shm_conn *left; /* closed, and a thread is in a call for it */
};

/* What one process_vm call, or a few, move. */
struct copy_piece {
	struct tr_span span[TR_SPANS_MOST];
	size_t n;
	uint64_t len;
};

/* The next piece, of `most` bytes at most; a span is cut if it is longer. Under the lock, */
void piece_next(const struct copy_job *job, uint64_t most, struct copy_piece *piece);
/* and it is taken from the job: the thread that does so runs it. */
void piece_take(struct copy_job *job, const struct copy_piece *piece);
/*
 * Moves it. The job may be another one after that: only a connection that counts the call stays.
 * alive: as in cma_move.
 */
void piece_run(struct copy_job *job, const struct copy_piece *piece, bool alive);
void copy_leave_call(struct shm_conn *sc); /* one of shm_conn.calls has returned. Under the lock */
void copy_prepare(struct copy_job *job);   /* before any piece of it is taken */
/* What is not taken of a prepared one goes to the threads; false: there is none. */
bool copy_hand(struct copy_job *job);

#endif
