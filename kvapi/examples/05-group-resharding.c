/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 05-group-resharding.c -- two prefill ranks that each hold half of every block write to two decode
 * ranks that hold whole ones
 *
 *     cc 05-group-resharding.c -o 05-group-resharding $(pkg-config --cflags --libs kvrail)
 *
 * The prefill model runs with tensor parallelism 2, the decode model with 1, twice. kv_comm_init
 * connects every prefill rank with every decode rank; it needs only an allgather of opaque bytes
 * (MPI_Allgather, or the pipes below). Each prefill rank then posts its writes to both decode ranks
 * as one group, and the halves land where they belong.
 */
#include "example.h"

enum { PREFILL = 2, DECODE = 2, RANKS = PREFILL + DECODE, N = 4 };

/* Request d goes to decode rank d. */
static const int64_t local_ids[DECODE][N] = { { 0, 1, 2, 3 }, { 10, 11, 12, 13 } };
static const int64_t remote_ids[DECODE][N] = { { 5, 50, 6, 51 }, { 30, 3, 33, 0 } };

/* Rank's side: give my bytes to the parent process, get everybody's. */
static int allgather(void *arg, const void *mine, void *all, size_t len)
{
	int fd = *(int *)arg;

	send_bytes(fd, &len, sizeof(len));
	send_bytes(fd, mine, len);
	receive_bytes(fd, all, len * RANKS);
	return 0;
}

/* Parent's side: one round, or false when the ranks have gone. */
static bool serve_allgather(const int *fds)
{
	static char all[RANKS * 65536];
	size_t len = 0;

	for (int r = 0; r < RANKS; r++) {
		if (read(fds[r], &len, sizeof(len)) != sizeof(len))
			return false;
		require(len <= sizeof(all) / RANKS, "a small message");
		receive_bytes(fds[r], all + (size_t)r * len, len);
	}
	for (int r = 0; r < RANKS; r++)
		send_bytes(fds[r], all, RANKS * len);
	return true;
}

static void prefill(struct kv_comm *comm, struct kv_engine *engine, struct small_cache *cache,
		    uint32_t rank)
{
	struct kv_options options = KV_INIT(kv_options);
	struct kv_layers all_layers = {};
	struct kv_op *ops[DECODE];
	struct kv_error err;
	size_t failed;

	for (int d = 0; d < DECODE; d++)
		for (uint32_t layer = 0; layer < LAYERS; layer++)
			for (int i = 0; i < N; i++)
				fill_block(cache, layer, local_ids[d][i], rank);

	check(kv_group_start(engine, &options.group, &err), &err);
	for (uint32_t d = 0; d < DECODE; d++) {
		options.tag = d;
		check(kv_write_blocks_async(kv_comm_peer(comm, PREFILL + d), cache->handle,
					    all_layers, local_ids[d], remote_ids[d], N, &options,
					    &ops[d], &err),
		      &err);
	}
	check(kv_group_end(options.group, WAIT_MS, &failed, &err), &err);
	require(!failed, "no operation of the group failed");
	for (int d = 0; d < DECODE; d++)
		check(kv_op_free(ops[d], &err), &err);
	printf("prefill rank %u: its half of %d requests is visible at %d decode ranks\n", rank,
	       DECODE, DECODE);
}

static void decode(struct kv_engine *engine, const struct small_cache *cache, uint32_t d)
{
	for (int arrived = 0; arrived < PREFILL;) {
		struct kv_arrival arrival = next_arrival(engine);

		if (arrival.kind != KV_ARRIVAL_BLOCKS)
			continue;
		require(arrival.tag == d && arrival.blocks == N, "this rank's request");
		arrived++;
	}
	for (uint32_t layer = 0; layer < LAYERS; layer++)
		for (int i = 0; i < N; i++)
			for (uint32_t p = 0; p < PREFILL; p++)
				expect_part(cache, layer, remote_ids[d][i], local_ids[d][i], p, p,
					    PREFILL);
	expect_rest_untouched(cache, remote_ids[d], N);
	printf("decode rank %u: both halves of each of its %d blocks are in their places\n", d, N);
}

static void run_rank(uint32_t rank, int fd)
{
	bool is_prefill = rank < PREFILL;
	struct kv_comm_config config = KV_INIT(kv_comm_config);
	struct small_cache cache;
	struct kv_engine *engine;
	struct kv_comm *comm;
	struct kv_error err;

	check(kv_engine_open(NULL, &engine, &err), &err);
	/*
	 * A prefill rank's blocks are half as large: it has rank `rank` of a tensor-parallel group
	 * of two.
	 */
	cache = is_prefill ? open_cache(engine, 0, PREFILL, rank)
			   : open_cache(engine, KV_CACHE_OPEN, 1, 0);
	config.rank = rank;
	config.nranks = RANKS;
	config.group =
		is_prefill ? 0 : 1; /* ranks of one group are not connected with each other */
	config.allgather = allgather;
	config.arg = &fd;
	check(kv_comm_init(engine, &config, &comm, &err), &err);
	if (is_prefill)
		prefill(comm, engine, &cache, rank);
	else
		decode(engine, &cache, rank - PREFILL);
	check(kv_comm_free(comm, WAIT_MS, &err), &err);
	kv_engine_close(engine);
}

int main(void)
{
	int fds[RANKS];
	int status, bad = 0;

	for (uint32_t rank = 0; rank < RANKS; rank++) {
		int pair[2];
		pid_t child;

		require(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "a socket pair");
		child = fork();
		require(child >= 0, "a process");
		if (!child) {
			for (uint32_t r = 0; r < rank; r++)
				close(fds[r]);
			close(pair[0]);
			run_rank(rank, pair[1]);
			return 0;
		}
		close(pair[1]);
		fds[rank] = pair[0];
	}
	while (serve_allgather(fds))
		;
	for (int rank = 0; rank < RANKS; rank++)
		close(fds[rank]);
	while (wait(&status) > 0)
		bad |= status;
	return bad != 0;
}
