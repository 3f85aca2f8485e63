/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nccl_ranks.c -- two ranks of the real NCCL on a machine without a GPU, as far as NCCL gets
 * without CUDA
 *
 * usage: nccl_ranks LIBRARY ROUNDS BYTES NAME=OFFSET...
 *
 * NCCL's own loader chooses a network plugin for each rank (a thread), and with
 * NCCL_OOB_NET_ENABLE=1 its bootstrap then gathers BYTES of each rank over it: listen, connect,
 * accept, regMr, isend, irecv, test, close. BYTES 0 loads and unloads only. These are internal
 * functions of NCCL and members of its communicator: the caller takes where they are from the
 * library's debug information.
 */
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { RANKS = 2, SHARED = 1 << 20 /* more than the shared part of a communicator needs */ };

static uintptr_t base;
static char **offsets;
static size_t bytes;
static char unique_id[128];
static uint32_t abort_flag;

static uintptr_t offset(const char *name)
{
	size_t len = strlen(name);

	for (char **at = offsets; *at; at++)
		if (!strncmp(*at, name, len) && (*at)[len] == '=')
			return strtoull(*at + len + 1, NULL, 10);
	fprintf(stderr, "nccl_ranks: %s is not given\n", name);
	exit(2);
}

#define FUNCTION(name, ...) ((int (*)(__VA_ARGS__))(base + offset(name)))
#define MEMBER(comm, name, type) (*(type *)((char *)(comm) + offset(name)))

static void say(int rank, const char *what, int result)
{
	printf("rank %d: %s %d\n", rank, what, result);
}

/* Every rank's bytes to every rank. */
static int gather(int rank, void *comm)
{
	void *bootstrap = MEMBER(comm, "bootstrap", void *);
	unsigned char *all = malloc(RANKS * bytes);
	int ret;

	if (!all)
		return -1;
	memset(all, 0, RANKS * bytes);
	for (size_t i = 0; i < bytes; i++)
		all[(size_t)rank * bytes + i] = (unsigned char)(i * 7 + (size_t)rank * 101 + 1);
	ret = FUNCTION("bootstrapAllGather", void *, void *, int)(bootstrap, all, (int)bytes);
	for (size_t r = 0; !ret && r < RANKS; r++)
		for (size_t i = 0; i < bytes; i++)
			if (all[r * bytes + i] != (unsigned char)(i * 7 + r * 101 + 1))
				ret = -2;
	free(all);
	return ret;
}

static void talk(int rank, char *comm)
{
	MEMBER(comm, "rank", int) = rank;
	MEMBER(comm, "nRanks", int) = RANKS;
	MEMBER(comm, "abortFlag", uint32_t *) = &abort_flag;
	MEMBER(comm, "sharedRes", void *) = comm + offset("ncclComm");
	say(rank, "bootstrap",
	    FUNCTION("bootstrapInit", int, void *, void *, void *)(1, unique_id, comm, NULL));
	say(rank, "gather", gather(rank, comm));
	say(rank, "close", FUNCTION("bootstrapClose", void *)(MEMBER(comm, "bootstrap", void *)));
}

static void *run_rank(void *arg)
{
	int rank = (int)(intptr_t)arg, ret;
	char *comm = mmap(NULL, offset("ncclComm") + SHARED, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (comm == MAP_FAILED)
		return NULL;
	FUNCTION("envConfigOverride", void *)(comm);
	ret = FUNCTION("ncclNetInit", void *)(comm);
	say(rank, "init", ret);
	if (ret)
		return NULL;
	if (bytes)
		talk(rank, comm);
	say(rank, "finalize", FUNCTION("ncclNetFinalize", void *)(comm));
	return NULL;
}

static int is_kvrail(struct dl_phdr_info *info, size_t size, void *arg)
{
	return strstr(info->dlpi_name, "libnccl-net") != NULL;
}

int main(int argc, char **argv)
{
	void *library = argc > 4 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
	int (*get_id)(void *) = library ? (int (*)(void *))dlsym(library, "ncclGetUniqueId") : NULL;
	struct link_map *map;

	if (!get_id || dlinfo(library, RTLD_DI_LINKMAP, &map)) {
		fprintf(stderr, "nccl_ranks: %s\n", argc > 4 ? dlerror() : "arguments");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	base = map->l_addr;
	bytes = strtoull(argv[3], NULL, 10);
	offsets = argv + 4;
	for (long round = 0; round < strtol(argv[2], NULL, 10); round++) {
		pthread_t thread[RANKS];
		int ret = get_id(unique_id);

		say(0, "ncclGetUniqueId", ret);
		for (intptr_t i = 0; i < RANKS; i++)
			if (pthread_create(&thread[i], NULL, run_rank, (void *)i))
				return 2;
		for (int i = 0; i < RANKS; i++)
			pthread_join(thread[i], NULL);
		printf("mapped afterwards: %s\n", dl_iterate_phdr(is_kvrail, NULL) ? "yes" : "no");
	}
	return 0;
}
