/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cases_gpu.c -- cases 19c to 19e: CUDA pointers between two processes, on GPUs that the options
 * name
 */
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"
#include "net_side.h"

enum { LEN = 5 << 20, AT = 4096 + 128, PIECES = 44 << 20 };

/* Where the bytes lie, and what the host sees of them. */
struct place {
	bool is_gpu;
	uint8_t *addr, *bytes;
	void *mhandle;
};

static int skipped(struct side *s)
{
	ncclNetProperties_v12_t p;

	if (s->gpu < 0)
		return side_skip(s, "no GPU was named (--gpu)");
	OK(s, s->net->getProperties(s->dev, &p));
	return p.ptrSupport & NCCL_PTR_CUDA ? PASS
					    : side_skip(s, "the plugin offers no CUDA pointers");
}

static int place_make(struct side *s, struct place *p, bool pieces)
{
	ncclResult_t result;
	cuda_ptr at;

	p->bytes = malloc(LEN);
	REQUIRE(s, p->bytes, "out of memory");
	p->addr = p->bytes;
	if (p->is_gpu && pieces)
		at = cuda_alloc_pieces(s->gpu, PIECES) + PIECES - LEN; /* over a border of two */
	else if (p->is_gpu)
		must(cuda.mem_alloc(&at, LEN), "cuMemAlloc");
	if (p->is_gpu)
		p->addr = (uint8_t *)(uintptr_t)at;
	result = s->net->regMr(s->comm, p->addr, LEN, p->is_gpu ? NCCL_PTR_CUDA : NCCL_PTR_HOST,
			       &p->mhandle);
	REQUIRE(s, !result || !pieces, "regMr returned %d", (int)result);
	return PASS;
}

static void place_put(const struct place *p)
{
	if (p->is_gpu)
		must(cuda.to_device((uintptr_t)p->addr, p->bytes, LEN), "cuMemcpyHtoD");
}

static void place_get(const struct place *p)
{
	if (p->is_gpu)
		must(cuda.to_host(p->bytes, (uintptr_t)p->addr, LEN), "cuMemcpyDtoH");
}

/* watched: as LL128 asks, a GPU looks at each line as it comes. */
static int receive(struct side *s, const struct place *p, size_t sent, bool watched)
{
	void *data = p->addr + AT, *request = NULL, *mhandle = p->mhandle, *phandle = NULL;
	int64_t end = side_ms() + SIDE_WAIT_MS;
	int tag = 0, size = -1;
	size_t room = LEN - AT;

	memset(p->bytes, SIDE_POISON, LEN);
	place_put(p);
	while (!request) {
		request = watched ? NCCL_NET_OPTIONAL_RECV_COMPLETION : NULL;
		OK(s, s->net->irecv(s->comm, 1, &data, &room, &tag, &mhandle, &phandle, &request));
		REQUIRE(s, side_ms() < end, "irecv: no request in %d ms", SIDE_WAIT_MS);
		sched_yield();
	}
	TRY(side_wait(s, request, &size));
	REQUIRE(s, (size_t)size == sent, "%zu bytes were sent, %d came", sent, size);
	OK(s, s->net->iflush(s->comm, 1, &data, &size, &mhandle, &request));
	REQUIRE(s, !request, "a flush is awaited");
	place_get(p);
	TRY(side_check_at(s, p->bytes + AT, sent, sent));
	for (size_t i = 0; i < LEN; i++)
		REQUIRE(s, (i >= AT && i < AT + sent) || p->bytes[i] == SIDE_POISON,
			"byte %zu beside the %zu received was touched", i, sent);
	return PASS;
}

static int send(struct side *s, const struct place *p, size_t sent)
{
	void *request;

	side_fill(p->bytes + AT, sent, sent);
	place_put(p);
	TRY(side_isend(s, s->comm, p->addr + AT, sent, 0, p->mhandle, &request));
	return side_wait(s, request, NULL);
}

static int messages(struct side *s, bool from_host, bool pieces)
{
	static const size_t sent[] = { 0, 1, 8, 127, 4096, 65536, 300000, 4 << 20 };
	struct place p = { .is_gpu = !s->sender || !from_host };

	TRY(skipped(s));
	TRY(place_make(s, &p, pieces));
	if (!p.mhandle) { /* at both ends */
		free(p.bytes);
		return PASS;
	}
	for (size_t i = 0; i < sizeof(sent) / sizeof(*sent); i++)
		for (int watched = 0; watched < 2; watched++)
			TRY(s->sender ? send(s, &p, sent[i]) : receive(s, &p, sent[i], watched));
	TRY(side_barrier(s));
	OK(s, s->net->deregMr(s->comm, p.mhandle));
	free(p.bytes);
	return PASS;
}

static int allocated(struct side *s)
{
	return messages(s, false, false);
}

static int mapped(struct side *s)
{
	return messages(s, false, true);
}

static int from_the_host(struct side *s)
{
	return messages(s, true, true);
}

const struct net_case gpu_cases[] = {
	{ "19c", "CUDA pointers of cudaMalloc are refused, or no byte beside them touched", 2, 0,
	  allocated, WITH_LINK(0), .attributes = true },
	{ "19d", "CUDA pointers of memory that is mapped piece by piece", 2, 0, mapped,
	  WITH_LINK(0), .attributes = true },
	{ "19e", "from the host's memory to a GPU's", 2, 0, from_the_host, WITH_LINK(0),
	  .attributes = true },
	{ "19d.10", "v10, without hints: as 19d", 2, 10, mapped, WITH_LINK(0) },
	{ 0 },
};
