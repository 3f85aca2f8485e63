/* SPDX-License-Identifier: Apache-2.0 */
/* rank_mpi.c -- the parents' collectives over MPI */
#include <mpi.h>
#include <stdio.h>
#include <time.h>

#include "rank.h"

int rank_mpi_begin(uint32_t *rank, uint32_t *size)
{
	int r, n;

	if (MPI_Init(NULL, NULL) || MPI_Comm_rank(MPI_COMM_WORLD, &r) ||
	    MPI_Comm_size(MPI_COMM_WORLD, &n)) {
		fprintf(stderr, "MPI_Init failed\n");
		return -1;
	}
	*rank = (uint32_t)r;
	*size = (uint32_t)n;
	return 0;
}

/* The parents sleep between looks: their cores belong to the ranks. */
int rank_mpi_exchange(const void *mine, void *all, size_t len, const struct rank_tick *tick)
{
	const struct timespec pause = { .tv_nsec = 500 * 1000 };
	MPI_Request request;
	int done = 0;

	if (MPI_Iallgather(mine, (int)len, MPI_BYTE, all, (int)len, MPI_BYTE, MPI_COMM_WORLD,
			   &request))
		return -1;
	for (;;) {
		if (MPI_Test(&request, &done, MPI_STATUS_IGNORE))
			return -1;
		if (done)
			return 0;
		tick->fn(tick->arg);
		nanosleep(&pause, NULL);
	}
}

void rank_mpi_end(void)
{
	int begun = 0;

	if (MPI_Initialized(&begun) == 0 && begun)
		MPI_Finalize();
}
