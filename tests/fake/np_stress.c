/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_stress.c -- grouped receives, sends, deregistrations, aborts and closes under load; after a
 * call that gives memory back has succeeded, not one byte of it changes
 *
 * usage: np_stress cma|ring|ib OPERATIONS
 *
 * Two ranks, over shared memory as processes and over the fake device as threads of one. A round is
 * a connection of each of their workers: receives of one to eight rows are posted into a buffer and
 * sends to them, some are waited for, and in the middle one end deregisters or closes. What was
 * given back is filled with a mark and looked at again some rounds later, so a byte that lands late
 * is found. What could not be given back is kept until closing it again succeeds.
 */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "np_rig.h"

enum {
	WORKERS = 3,
	SLOTS = 4,	/* receives or sends under way of one worker */
	ROW = 20 << 10, /* past what goes by the ring when any order will do */
	BYTES = SLOTS * NP_GROUP * ROW,
	KEPT = 6,  /* buffers that are watched after they were given back */
	OPS = 300, /* of a round, at most */
	WAIT_MS = 60000,
};

static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

static struct totals {
	_Atomic long operations, late, closes, aborts, held;
} * totals;

static long wanted; /* operations */

/* Takes the place of the C library's: some copies are late, as behind a page fault. */
ssize_t process_vm_writev(pid_t pid, const struct iovec *local, unsigned long locals,
			  const struct iovec *remote, unsigned long remotes, unsigned long flags)
{
	static atomic_uint calls;
	unsigned int n = atomic_fetch_add(&calls, 1);

	if (n % 16 == 0)
		poll(NULL, 0, (int)(n / 16 % 4));
	return syscall(SYS_process_vm_writev, pid, local, locals, remote, remotes, flags);
}

/* ---------------------------------------------------------------- a worker */

struct worker {
	struct side s; /* its socket leads to the worker at the other end */
	uint64_t seed;
	uint8_t *buffer[KEPT];
	uint8_t mark[KEPT]; /* 0: nothing is known of it */
	unsigned int next;
	int rows[SLOTS];
};

static uint32_t draw(struct worker *w, uint32_t n)
{
	w->seed = w->seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(w->seed >> 33) % n;
}

/* How many bytes are not `value`. */
static long count_others(const uint8_t *bytes, size_t n, uint8_t value)
{
	long others = 0;

	if (!n || (bytes[0] == value && !memcmp(bytes, bytes + 1, n - 1)))
		return 0;
	for (size_t i = 0; i < n; i++)
		others += bytes[i] != value;
	return others;
}

static void look(struct worker *w, unsigned int i)
{
	long late = w->mark[i] ? count_others(w->buffer[i], BYTES, w->mark[i]) : 0;

	if (late)
		fprintf(stderr, "%ld bytes landed late\n", late);
	atomic_fetch_add(&totals->late, late);
}

/* The buffer is this side's again. */
static void given_back(struct worker *w, unsigned int i)
{
	w->mark[i] = (uint8_t)(1 + draw(w, 255));
	memset(w->buffer[i], w->mark[i], BYTES);
}

/* One row or a group; false: not now, or the other end has gone. */
static bool post(struct worker *w, void *comm, void *mh, unsigned int slot, uint8_t *at,
		 void **request)
{
	void *data[NP_GROUP], *mhs[NP_GROUP];
	int tags[NP_GROUP], n = w->s.sender ? 1 : draw(w, 3) ? 1 : 1 + (int)draw(w, NP_GROUP);
	size_t sizes[NP_GROUP];

	for (int i = 0; i < n; i++) {
		data[i] = at + (slot * NP_GROUP + (unsigned int)i) * (size_t)ROW;
		sizes[i] = draw(w, 2) ? ROW : draw(w, ROW);
		tags[i] = 0;
		mhs[i] = mh;
	}
	w->rows[slot] = n;
	/* NCCL's mark: then by the ring, whatever the size is */
	*request = draw(w, 2) ? NCCL_NET_OPTIONAL_RECV_COMPLETION : NULL;
	if (w->s.sender)
		return !net->isend(comm, data[0], sizes[0], 0, mh, NULL, request) && *request;
	return !net->irecv(comm, n, data, sizes, tags, mhs, NULL, request) && *request;
}

/*
 * A sender's bytes are zeroes until it is known that nobody reads them, and so are those that were
 * received.
 */
static void check_received(struct worker *w, unsigned int slot, const int *sizes)
{
	const uint8_t *at = w->buffer[w->next] + slot * (size_t)(NP_GROUP * ROW);
	long late = 0;

	for (int i = 0; !w->s.sender && i < w->rows[slot]; i++)
		late += count_others(at + i * ROW, (size_t)sizes[i], 0);
	if (late)
		fprintf(stderr, "%ld bytes were read late\n", late);
	atomic_fetch_add(&totals->late, late);
}

/* Until the memory is this side's again. */
static void end(struct worker *w, void *comm, void *mh, bool dereg)
{
	int64_t until = kv_deadline_ns(WAIT_MS);

	if (dereg)
		while (net->deregMr(comm, mh)) {
			atomic_fetch_add(&totals->held, 1);
			CHECK(kv_now_ns() < until);
		}
	if (dereg)
		given_back(w, w->next); /* NCCL would free it here */
	while (w->s.sender ? net->closeSend(comm) : net->closeRecv(comm)) {
		atomic_fetch_add(&totals->held, 1);
		CHECK(kv_now_ns() < until);
	}
	if (!dereg)
		given_back(w, w->next);
}

static void round_of(struct worker *w)
{
	unsigned int ops = draw(w, OPS), open = 0;
	void *comm, *mh, *request[SLOTS] = { 0 };
	bool dead = false;
	int64_t pause = kv_deadline_ns((int64_t)draw(w, 4));

	PASSES(&w->s, side_link(&w->s, &comm));
	w->next = (w->next + 1) % KEPT;
	look(w, w->next);
	w->mark[w->next] = 0;
	memset(w->buffer[w->next], 0, BYTES);
	CHECK(!net->regMr(comm, w->buffer[w->next], BYTES, NCCL_PTR_HOST, &mh));
	for (unsigned int tries = 0; ops && !dead && tries < 20000; tries++) {
		unsigned int slot = draw(w, SLOTS);
		int done = 0, sizes[NP_GROUP];

		if (!request[slot] && post(w, comm, mh, slot, w->buffer[w->next], &request[slot])) {
			atomic_fetch_add(&totals->operations, 1);
			ops--;
			open++;
		}
		if (request[slot] && net->test(request[slot], &done, sizes))
			dead = true;
		if (!done)
			sched_yield();
		if (done) {
			check_received(w, slot, sizes);
			request[slot] = NULL;
			open--;
		}
	}
	while (!draw(w, 2) && kv_now_ns() < pause) /* the other one may be in the middle */
		;
	atomic_fetch_add(open ? &totals->aborts : &totals->closes, 1);
	end(w, comm, mh, draw(w, 2));
}

static void *work(void *arg)
{
	struct worker *w = arg;
	char go;

	CHECK(!net->init(&w->s.ctx, 1, NULL, side_logger, NULL));
	/* Receives without NCCL's mark may be filled by a copy of the sender's. */
	CHECK(!net->setNetAttr(w->s.ctx, &(ncclNetAttr_v11_t){ 0 }));
	for (int i = 0; i < KEPT; i++) {
		w->buffer[i] = aligned_alloc(4096, BYTES);
		CHECK(w->buffer[i]);
	}
	/* The sender decides, so both begin a round or neither does. */
	while (w->s.sender
		       ? atomic_load(&totals->operations) < wanted && send(w->s.sock, "", 1, 0) == 1
		       : recv(w->s.sock, &go, 1, MSG_WAITALL) == 1)
		round_of(w);
	shutdown(w->s.sock, SHUT_RDWR);
	for (unsigned int i = 0; i < KEPT; i++) {
		look(w, i);
		free(w->buffer[i]);
	}
	CHECK(!net->finalize(w->s.ctx));
	return NULL;
}

/* ---------------------------------------------------------------- two ranks */

static struct worker workers[2][WORKERS];

static void start(int rank, pthread_t *threads)
{
	for (int i = 0; i < WORKERS; i++)
		CHECK(!pthread_create(&threads[i], NULL, work, &workers[rank][i]));
}

static void join(pthread_t *threads)
{
	for (int i = 0; i < WORKERS; i++)
		pthread_join(threads[i], NULL);
}

static void run_threads(void)
{
	pthread_t threads[2][WORKERS];

	fake_begin(&(struct fake_config){ .hosts = 1, .threads = true });
	start(0, threads[0]);
	start(1, threads[1]);
	join(threads[0]);
	join(threads[1]);
	CHECK(fake_end());
}

static void run_processes(void)
{
	pthread_t threads[WORKERS];
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 0; i < WORKERS; i++)
		close(workers[pid ? 1 : 0][i].s.sock);
	start(pid ? 0 : 1, threads);
	join(threads);
	if (!pid)
		_exit(0);
	CHECK(waitpid(pid, &status, 0) == pid && !status);
}

int main(int argc, char **argv)
{
	int64_t begun = kv_now_ns();
	bool ib;

	if (argc != 3) {
		fputs("usage: np_stress cma|ring|ib OPERATIONS\n", stderr);
		return 2;
	}
	ib = !strcmp(argv[1], "ib");
	wanted = strtol(argv[2], NULL, 10);
	signal(SIGPIPE, SIG_IGN);
	setenv("KVCACHE_TRANSPORT", ib ? "ib" : "shm", 1);
	setenv("KVCACHE_SHM_PATH", strcmp(argv[1], "ring") ? "auto" : "ring", 1);
	totals = mmap(NULL, sizeof(*totals), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	CHECK(totals != MAP_FAILED);
	for (int i = 0; i < WORKERS; i++) {
		int pair[2];

		CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
		for (int rank = 0; rank < 2; rank++)
			workers[rank][i] = (struct worker){
				.s = { .net = net, .sock = pair[rank], .sender = rank },
				.seed = (uint64_t)(2 * i + rank + 1)
			};
	}
	if (ib)
		run_threads();
	else
		run_processes();
	printf("%s: %ld operations in %.1f s, %ld closes, %ld of them with requests under way, "
	       "%ld calls that held the memory, %ld bytes late\n",
	       argv[1], totals->operations, (double)(kv_now_ns() - begun) / 1e9,
	       totals->closes + totals->aborts, totals->aborts, totals->held, totals->late);
	return totals->late ? 1 : 0;
}
