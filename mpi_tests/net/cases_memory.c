/* SPDX-License-Identifier: Apache-2.0 */
/* cases_memory.c -- cases 16 to 19 and 29: registered memory */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "net_side.h"

enum { LEN = 5000, MAPPED = 65536 };

static int sizes(struct side *s)
{
	static const size_t sizes[] = { 1, 4095, 4096, 4097, 1 << 20, 1 << 30 };

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
		for (size_t shift = 0; shift < 2; shift++) {
			uint8_t *p = mmap(NULL, sizes[i] + 4096, PROT_READ | PROT_WRITE,
					  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
			void *a, *b;

			if (s->source.symbol && sizes[i] == 1 << 30)
				continue; /* a device pins it */
			REQUIRE(s, p != MAP_FAILED, "mmap of %zu", sizes[i]);
			OK(s,
			   s->net->regMr(s->loop.recv, p + 3 * shift, sizes[i], NCCL_PTR_HOST, &a));
			OK(s,
			   s->net->regMr(s->loop.send, p + 3 * shift, sizes[i], NCCL_PTR_HOST, &b));
			OK(s, s->net->deregMr(s->loop.recv, a));
			OK(s, s->net->deregMr(s->loop.send, b));
			munmap(p, sizes[i] + 4096);
		}
	return PASS;
}

/* Two overlapping, one nested, one twice; then each in turn goes, and the others still work. */
static int overlapping(struct side *s)
{
	enum { RANGES = 4 };
	static const size_t start[RANGES] = { 0, 4096, 1000, 1000 };
	static const size_t len[RANGES] = { 12288, 12288, 3000, 3000 };

	for (int gone = 0; gone < RANGES; gone++) {
		void *mh[RANGES];

		for (int i = 0; i < RANGES; i++)
			OK(s, s->net->regMr(s->loop.recv, s->to.bytes + start[i], len[i],
					    NCCL_PTR_HOST, &mh[i]));
		OK(s, s->net->deregMr(s->loop.recv, mh[gone]));
		for (int i = 0; i < RANGES; i++) {
			struct message m = { .from = s->from.bytes,
					     .from_mhandle = s->from.mhandle,
					     .to = s->to.bytes + start[i],
					     .to_mhandle = mh[i],
					     .size = len[i] };

			if (i == gone)
				continue;
			side_fill(m.from, m.size, (uint64_t)(10 * gone + i));
			TRY(side_move(s, &s->loop, &m));
			TRY(side_check_at(s, m.to, m.size, (uint64_t)(10 * gone + i)));
			OK(s, s->net->deregMr(s->loop.recv, mh[i]));
		}
	}
	OK(s, s->net->deregMr(s->loop.recv, NULL));
	return PASS;
}

static int refused(struct side *s)
{
	void *comm = s->loop.recv, *hole, *mh = NULL;

	hole = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(hole, 8192);
	REQUIRE(s, s->net->regMr(comm, NULL, 4096, NCCL_PTR_HOST, &mh), "NULL is registered");
	REQUIRE(s, s->net->regMr(comm, &hole, 0, NCCL_PTR_HOST, &mh), "no bytes are registered");
	REQUIRE(s, s->net->regMr(comm, hole, 4096, NCCL_PTR_HOST, &mh),
		"memory that is not mapped is registered");
	return PASS;
}

static int not_offered(struct side *s)
{
	int fd = memfd_create("no DMA-BUF", MFD_CLOEXEC);
	void *comm = s->loop.recv, *mh = NULL;
	ncclNetProperties_v12_t p;
	char bytes[64];

	OK(s, s->net->getProperties(0, &p));
	if (!s->source.symbol && !(p.ptrSupport & NCCL_PTR_CUDA))
		REQUIRE(s, s->net->regMr(comm, bytes, 64, NCCL_PTR_CUDA, &mh),
			"a CUDA pointer is registered");
	REQUIRE(s, s->net->regMrDmaBuf(comm, bytes, 64, NCCL_PTR_CUDA, 0, -1, &mh),
		"no descriptor is registered");
	if (!s->source.symbol && !(p.ptrSupport & NCCL_PTR_DMABUF))
		REQUIRE(s, s->net->regMrDmaBuf(comm, bytes, 64, NCCL_PTR_CUDA, 0, fd, &mh),
			"a DMA-BUF is registered");
	close(fd);
	return PASS;
}

/*
 * A GPU's memory: an address that no CPU may touch, and a memfd in the place of its DMA-BUF. Or the
 * host's.
 */
struct place {
	size_t len, offset; /* `offset` bytes at each end are not registered */
	bool is_gpu;
	uint8_t *addr, *bytes;
	void *mhandle;
};

static int place_make(struct side *s, void *comm, struct place *p)
{
	int fd = memfd_create("gpu", MFD_CLOEXEC);
	size_t size = p->len - 2 * p->offset;
	ncclResult_t result;

	REQUIRE(s, fd >= 0 && !ftruncate(fd, (off_t)p->len), "memfd_create");
	p->bytes = mmap(NULL, p->len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	p->addr = mmap(NULL, p->len, p->is_gpu ? PROT_NONE : PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		       0);
	REQUIRE(s, p->bytes != MAP_FAILED && p->addr != MAP_FAILED, "mmap");
	if (p->is_gpu)
		result = s->net->regMrDmaBuf(comm, p->addr + p->offset, size, NCCL_PTR_CUDA,
					     p->offset, fd, &p->mhandle);
	else
		result = s->net->regMr(comm, p->addr + p->offset, size, NCCL_PTR_HOST, &p->mhandle);
	close(fd); /* what is registered keeps it */
	return result ? side_skip(s, "no memfd is taken for a DMA-BUF, and there is no GPU here")
		      : PASS;
}

static int place_free(struct side *s, void *comm, struct place *p)
{
	OK(s, s->net->deregMr(comm, p->mhandle));
	munmap(p->bytes, p->len);
	munmap(p->addr, p->len);
	return PASS;
}

/* `sent` bytes from one place to the other; `early`: before they are waited for. */
static int carry(struct side *s, struct place *from, struct place *to, size_t sent, bool early)
{
	const size_t skip = 100, source = from->offset + skip, at = to->offset + skip;
	void *data = to->addr + at, *in, *out;
	size_t room = to->len - to->offset - at;
	int tag = 1, size = -1;

	memset(to->bytes, SIDE_POISON, to->len);
	side_fill(from->bytes + source, sent, sent);
	if (early)
		TRY(side_isend(s, s->loop.send, from->addr + source, sent, tag, from->mhandle,
			       &out));
	TRY(side_irecv(s, s->loop.recv, 1, &data, &room, &tag, &to->mhandle, &in));
	if (!early)
		TRY(side_isend(s, s->loop.send, from->addr + source, sent, tag, from->mhandle,
			       &out));
	TRY(side_wait(s, out, NULL));
	TRY(side_wait(s, in, &size));
	REQUIRE(s, (size_t)size == sent, "%zu bytes were sent, %d came", sent, size);
	TRY(side_check_at(s, to->bytes + at, sent, sent));
	for (size_t i = 0; i < to->len; i++)
		REQUIRE(s, (i >= at && i < at + sent) || to->bytes[i] == SIDE_POISON,
			"byte %zu beside the %zu received was touched", i, sent);
	return PASS;
}

static int dmabufs(struct side *s)
{
	static const size_t sent[] = { 0, 1, 8, 127, 240, 4096, 65536, 300000 };
	ncclNetProperties_v12_t p;

	OK(s, s->net->getProperties(0, &p));
	if (!(p.ptrSupport & NCCL_PTR_DMABUF))
		return side_skip(s, "the plugin offers no DMA-BUF");
	for (int gpus = 1; gpus < 4; gpus++) { /* at one end, at the other, at both */
		struct place from = { .len = 128 << 12,
				      .offset = 3 * 4096 + 64,
				      .is_gpu = gpus & 1 };
		struct place to = { .len = 160 << 12,
				    .offset = 20 * 4096 + 512,
				    .is_gpu = gpus & 2 };

		TRY(place_make(s, s->loop.send, &from));
		TRY(place_make(s, s->loop.recv, &to));
		for (size_t i = 0; i < sizeof(sent) / sizeof(*sent); i++)
			for (int early = 0; early < 2; early++)
				TRY(carry(s, &from, &to, sent[i], early));
		TRY(place_free(s, s->loop.send, &from));
		TRY(place_free(s, s->loop.recv, &to));
	}
	return PASS;
}

/* The same address, other memory: what arrives must be in the new. */
static int mapped_again(struct side *s)
{
	void *place =
		mmap(NULL, MAPPED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (uint64_t i = 0; i < 20; i++) {
		struct message m = { .from = s->from.bytes,
				     .from_mhandle = s->from.mhandle,
				     .to = place,
				     .size = MAPPED,
				     .tag = 1 };

		munmap(place, MAPPED);
		REQUIRE(s,
			mmap(place, MAPPED, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == place,
			"mmap gave another address");
		OK(s, s->net->regMr(s->loop.recv, place, MAPPED, NCCL_PTR_HOST, &m.to_mhandle));
		side_fill(m.from, MAPPED, i);
		TRY(side_move(s, &s->loop, &m));
		TRY(side_check_at(s, place, MAPPED, i));
		OK(s, s->net->deregMr(s->loop.recv, m.to_mhandle));
	}
	munmap(place, MAPPED);
	return PASS;
}

/* NCCL's service thread registers while its progress thread sends. */
struct registrar {
	struct side side; /* its own place for a reason */
	void *comm;
	atomic_bool stop;
	atomic_uint rounds;
	int verdict;
};

static int register_until_stopped(struct registrar *r)
{
	static uint8_t bytes[16 * 4096];
	struct side *s = &r->side;
	void *mh[16];

	while (!atomic_load(&r->stop)) {
		for (int i = 0; i < 16; i++)
			OK(s,
			   s->net->regMr(r->comm, bytes + 4096 * i, 4096, NCCL_PTR_HOST, &mh[i]));
		for (int i = 0; i < 16; i++)
			OK(s, s->net->deregMr(r->comm, mh[(i * 7) % 16]));
		atomic_fetch_add(&r->rounds, 1);
		sched_yield(); /* a device registers slowly, and under a lock */
	}
	return PASS;
}

static void *registrar_main(void *arg)
{
	struct registrar *r = arg;

	r->verdict = register_until_stopped(r);
	return NULL;
}

static int concurrent(struct side *s)
{
	enum { ROUNDS = 300 };
	struct registrar r = { .side = { .sock = -1 } };
	pthread_t thread;

	r.side.net = s->net;
	r.comm = s->comm;
	pthread_create(&thread, NULL, registrar_main, &r);
	for (int64_t end = side_ms() + SIDE_WAIT_MS; !atomic_load(&r.rounds);) {
		REQUIRE(s, side_ms() < end, "the second thread does not get anywhere");
		sched_yield();
	}
	for (uint64_t i = 0; i < ROUNDS; i++) {
		struct buffer b = s->b;

		/* New registrations enter the data path meanwhile. */
		OK(s, s->net->regMr(s->comm, b.bytes, LEN, NCCL_PTR_HOST, &b.mhandle));
		TRY(side_message(s, s->comm, &b, LEN, i));
		OK(s, s->net->deregMr(s->comm, b.mhandle));
	}
	atomic_store(&r.stop, true);
	pthread_join(thread, NULL);
	REQUIRE(s, !r.verdict, "beside the data path: %s", r.side.reason);
	return PASS;
}

static int flush(struct side *s)
{
	void *data[] = { s->to.bytes, s->to.bytes + 100 };
	void *mh[] = { s->to.mhandle, s->to.mhandle };
	int sizes[] = { 100, 0 };

	for (int i = 0; i < 51; i++) {
		void *request = NULL;

		if (i == 50)
			sizes[0] = 0;
		OK(s, s->net->iflush(s->loop.recv, i == 50 ? 2 : 1 + i % 2, data, sizes, mh,
				     &request));
		if (request)
			TRY(side_wait(s, request, NULL));
	}
	return PASS;
}

const struct net_case memory_cases[] = {
	{ "16", "register sizes from 1 byte to 1 GiB, also unaligned", 1, 0, sizes, WITH_LOOP(0) },
	{ "16b", "overlapping, nested and equal ranges, in every order of going", 1, 0, overlapping,
	  WITH_LOOP(16384) },
	{ "17", "what is not memory is refused", 1, 0, refused, WITH_LOOP(0),
	  .not_hidden = "does not check what it registers" },
	{ "17b", "register beside isend, irecv and test", 2, 0, concurrent, WITH_LINK(LEN) },
	{ "18", "another mapping at the same address", 1, 0, mapped_again, WITH_LOOP(MAPPED) },
	{ "19", "CUDA and DMA-BUF are refused where not offered", 1, 0, not_offered, WITH_LOOP(0) },
	{ "19b", "DMA-BUFs at an offset, no byte of them touched by a CPU", 1, 0, dmabufs,
	  WITH_LOOP(0) },
	{ "19b.11", "v11: as 19b", 1, 11, dmabufs, WITH_LOOP(0) },
	{ "19b.10", "v10: as 19b", 1, 10, dmabufs, WITH_LOOP(0) },
	{ "19b.9", "v9: as 19b", 1, 9, dmabufs, WITH_LOOP(0) },
	{ "19b.8", "v8: as 19b", 1, 8, dmabufs, WITH_LOOP(0) },
	{ "19b.7", "v7: as 19b", 1, 7, dmabufs, WITH_LOOP(0) },
	{ "19b.6", "v6: as 19b", 1, 6, dmabufs, WITH_LOOP(0) },
	{ "29", "flush of host memory", 1, 0, flush, WITH_LOOP(200) },
	{ 0 },
};
