/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rank.h -- the ranks of a job, with MPI or without
 *
 * A rank is always a child process: of one parent that forks them all (--local), or each of its own
 * MPI process, which forks it before MPI_Init and makes the collective calls for it. So a rank that
 * dies, even by SIGKILL, is seen by its parent, the others learn of it, and mpirun does not end the
 * job.
 *
 * A rank and its parent talk over a socket pair; what a rank leaves in its slot survives it.
 */
#ifndef MPI_TESTS_RANK_H
#define MPI_TESTS_RANK_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { RANK_MAX = 64, RANK_MESSAGE_MAX = 4 << 20 };

struct rank_slot {
	_Atomic uint64_t done;	 /* units of work finished, for the progress bar */
	_Atomic uint64_t beat;	 /* grows whenever the rank moves; a rank that does not is killed */
	_Atomic uint64_t resume; /* where a rank that replaces this one goes on */
	_Atomic uint64_t killed_ns; /* when this rank killed itself */
	_Atomic uint64_t begin_ns;  /* when the first process of this rank began to work */
	uint32_t keep[RANK_MAX];    /* whatever the rank wants its replacement to know */
};

/* ---------------------------------------------------------------- in the rank */

struct rank {
	uint32_t rank, size;
	uint32_t life; /* 0; 1 in the process that replaces a dead one */
	int fd;
	struct rank_slot *slot;
};

/*
 * Gives every rank the `len` bytes of every rank, in rank order. Returns 0, or -1 when a rank is
 * missing or the parent is gone. `arg` is the struct rank: the shape that kv_comm_init asks for.
 */
int rank_allgather(void *arg, const void *mine, void *all, size_t len);

/*
 * Engine options for this rank, as kv_engine_config.options wants them, or NULL: with more ranks
 * than cores here, spinning only takes time from the rank that is waited for.
 */
const char *const *rank_engine_options(const struct rank *r);

/* A barrier in two parts: say that this rank is there, go on working, look whether all are. */
int rank_arrive(struct rank *r);
/*
 * 1 when every living rank has arrived, 0 after timeout_ms without that, -1 if the parent is gone.
 */
int rank_arrived(struct rank *r, int timeout_ms);

/* The rank's last words: `len` must be the job's result_len. */
int rank_result(struct rank *r, const void *result, size_t len);

/* ---------------------------------------------------------------- in the parent */

struct rank_fate {
	uint32_t present; /* its result is there */
	uint32_t deaths;  /* processes of this rank that died without one */
	int32_t status;	  /* of the last such death, as waitpid tells */
	uint32_t reserved;
	uint64_t killed_ns; /* rank_slot.killed_ns */
};

struct rank_job {
	uint32_t size;
	int local;	   /* fork all ranks here; otherwise one, and MPI joins them */
	int64_t restart;   /* number of the rank that is replaced when it dies; -1 = none */
	uint64_t stall_ms; /* kill a rank that has not moved for so long */
	size_t result_len;
	int (*work)(struct rank *r, void *arg); /* the rank; its value is the exit status */
	void (*tick)(void *arg, uint64_t done, int last); /* about every 200 ms; may be NULL */
	/*
	 * Asked by the first rank's parent before any rank begins: not 0 ends the job. The other
	 * ranks may be on other hosts.
	 */
	int (*ready)(const void *arg);
	void *arg;
};

/* Is there an MPI launcher around this process? (Its environment says so.) */
int rank_launched(void);

/*
 * Runs the job. Returns 0 when every rank has ended or died, with `results` (size x result_len) and
 * `fates` (size) filled in, -1 with a line on stderr when the job could not be run. *lead_p is 1 in
 * the one process that is to print.
 */
int rank_job_run(const struct rank_job *job, void *results, struct rank_fate *fates, int *lead_p);

/* After the printing: ends MPI where it was begun. */
void rank_job_end(const struct rank_job *job);

/*
 * ---------------------------------------------------------------- between the two files of the
 * parent
 */

struct rank_tick {
	void (*fn)(void *arg);
	void *arg;
};

/* rank_mpi.c; only in a build with MPI. The tick is called while waiting. */
int rank_mpi_begin(uint32_t *rank, uint32_t *size);
int rank_mpi_exchange(const void *mine, void *all, size_t len, const struct rank_tick *tick);
void rank_mpi_end(void);

/* Framing on the socket pair, used by both ends. */
enum rank_kind { RANK_NONE = 0, RANK_HELLO, RANK_GATHER, RANK_ARRIVE, RANK_RESULT };

struct rank_head {
	uint32_t kind; /* enum rank_kind */
	uint32_t len;  /* of what follows */
	uint32_t ok;   /* parent to rank: every rank was there */
	uint32_t reserved;
};

int rank_send(int fd, const struct rank_head *head, const void *data);
int rank_recv_full(int fd, void *data, size_t len);

#endif
