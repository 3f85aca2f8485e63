/* SPDX-License-Identifier: Apache-2.0 */
/* world.c -- the shared file that is the wire, who is in it; locks, names, settings, counters */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "softnic.h"

struct sn_self sn = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* Another layout is another world. */
#define MAGIC (UINT64_C(0x736f66746e696301) ^ sizeof(struct sn_world))

static const char *setting(const char *name, const char *otherwise)
{
	const char *value = getenv(name);

	return value && *value ? value : otherwise;
}

static void world_path(char path[64])
{
	snprintf(path, 64, "/dev/shm/softnic.%u.%.32s", geteuid(), setting("SOFTNIC_WORLD", "0"));
}

static int complain(const char *what)
{
	int error = errno;

	fprintf(stderr, "softnic: %s: %s\n", what, strerror(error));
	errno = error;
	return -1;
}

/* The cost of one of `per_us` a microsecond, in the clock's unit. */
static uint64_t cost_of(const char *per_us)
{
	double rate = strtod(per_us, NULL);

	return rate > 0 ? (uint64_t)(1024 * 1000 / rate + 0.5) : 0;
}

static int settings(void)
{
	static const char *const modes[] = { "copy", "null", "model" };
	const char *mode = setting("SOFTNIC_MODE", "copy");
	double gbs = strtod(setting("SOFTNIC_GBS", "50"), NULL);

	for (sn.mode = SN_COPY; sn.mode <= SN_MODEL; sn.mode++)
		if (!strcmp(mode, modes[sn.mode]))
			break;
	errno = EINVAL;
	if (sn.mode > SN_MODEL)
		return complain("SOFTNIC_MODE is copy, null or model");
	sn.byte_cost = gbs > 0 ? (uint64_t)(1024 * 1024 / gbs + 0.5) : 0; /* of 1024 bytes */
	sn.message_cost = cost_of(setting("SOFTNIC_MPPS", "200"));
	sn.qp_cost = cost_of(setting("SOFTNIC_QP_MPPS", "15"));
	sn.latency_ns = strtoull(setting("SOFTNIC_LATENCY_NS", "2000"), NULL, 10);
	sn.doorbell_ns = strtoull(setting("SOFTNIC_DOORBELL_NS", "0"), NULL, 10);
	sn.infiniband = !strcmp(setting("SOFTNIC_LINK", "roce"), "infiniband");
	sn.devices = (int)strtol(setting("SOFTNIC_DEVICES", "1"), NULL, 10);
	if (sn.devices < 1 || sn.devices > SN_DEVICES)
		return complain("SOFTNIC_DEVICES is 1 to 4");
	sn.stats = getenv("SOFTNIC_STATS");
	sn.timed = sn.stats && *sn.stats;
	for (int i = 0; i < sn.devices; i++) {
		struct sn_device *device = &sn.device[i];

		device->index = i;
		device->device.node_type = IBV_NODE_CA;
		device->device.transport_type = IBV_TRANSPORT_IB;
		snprintf(device->device.name, sizeof(device->device.name), "softnic%d", i);
		snprintf(device->device.dev_name, sizeof(device->device.dev_name), "softnic%d", i);
		snprintf(device->device.ibdev_path, sizeof(device->device.ibdev_path),
			 "/sys/class/infiniband/softnic%d", i);
		pthread_mutex_init(&device->clock.lock, NULL);
	}
	return 0;
}

/* ---------------------------------------------------------------- who is in it */

static bool lives(int pid)
{
	return pid && (!kill(pid, 0) || errno != ESRCH);
}

/* What a host leaves behind. */
static void clear_host(int host)
{
	struct sn_world *w = sn.world;

	for (uint32_t i = 0; i < SN_MRS && i < w->next_mr; i++)
		if (w->mr[i].lkey && w->mr[i].host == host)
			w->mr[i].lkey = 0;
	for (uint32_t i = 0; i < SN_QPS && i < w->next_qp; i++)
		if (w->qp[i].qpn && w->qp[i].host == host)
			w->qp[i].qpn = 0;
	for (uint32_t i = 0; i < SN_CQS && i < w->next_cq; i++)
		if (w->cq[i].host == host + 1)
			w->cq[i].host = 0;
	for (uint32_t i = 0; i < SN_SRQS && i < w->next_srq; i++)
		if (w->srq[i].host == host + 1)
			w->srq[i].host = 0;
	w->host[host] = 0;
}

/* The file, locked; one that somebody has removed meanwhile is not it. */
static int open_world(const char *path)
{
	struct stat st;
	int fd;

	for (;;) {
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0 || flock(fd, LOCK_EX) || fstat(fd, &st)) {
			complain(path);
			return -1;
		}
		if (st.st_nlink)
			return fd;
		close(fd);
	}
}

static void close_world(int fd)
{
	flock(fd, LOCK_UN); /* the mapping keeps it open */
	close(fd);
}

static bool enter(int fd)
{
	struct sn_world *w = sn.world;
	bool alone = true;

	for (int h = 0; h < SN_HOSTS; h++)
		if (lives(w->host[h]))
			alone = false;
		else if (w->host[h])
			clear_host(h);
	if (alone) { /* what was in it goes back to the system */
		if (ftruncate(fd, 0) || ftruncate(fd, sizeof(*w)))
			return !complain("the world's file");
		w->magic = MAGIC;
		w->next_name = 1;
	}
	errno = EPROTO;
	if (w->magic != MAGIC)
		return complain("another build's world; set SOFTNIC_WORLD"), false;
	for (int h = 0; h < SN_HOSTS; h++)
		if (!w->host[h]) {
			w->host[h] = sn.pid = getpid();
			sn.host = h;
			return true;
		}
	errno = EUSERS;
	return complain("the world is full"), false;
}

static void in_child(void)
{
	memset(&sn.counts, 0, sizeof(sn.counts));
	memset(sn.qp, 0, sizeof(sn.qp));
	sn.cqs = NULL;
	pthread_mutex_init(&sn.lock, NULL);
}

bool sn_attach(void)
{
	static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
	bool first = !sn.world, done;
	char path[64];
	int fd;

	if (sn.pid == getpid())
		return true;
	pthread_mutex_lock(&once);
	world_path(path);
	fd = (first && settings()) ? -1 : open_world(path);
	if (fd >= 0 && first) {
		void *map = MAP_FAILED;

		if (!ftruncate(fd, sizeof(*sn.world)))
			map = mmap(NULL, sizeof(*sn.world), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_NORESERVE, fd, 0);
		sn.world = map == MAP_FAILED ? NULL : map;
		sn.wire = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		pthread_atfork(NULL, NULL, in_child);
	}
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY); /* the others write into this process */
	done = fd >= 0 && sn.world && enter(fd);
	if (fd >= 0)
		close_world(fd);
	pthread_mutex_unlock(&once);
	return done;
}

/* ---------------------------------------------------------------- locks, names */

void sn_lock_take(struct sn_lock *lock)
{
	for (int tries = 1;; tries++) {
		int owner = 0;

		if (atomic_compare_exchange_strong(&lock->owner, &owner, sn.pid))
			return;
		if (tries % 64 == 0)
			sched_yield();
		if (tries % 65536 == 0 && owner != sn.pid && !lives(owner))
			atomic_compare_exchange_strong(&lock->owner, &owner, 0);
	}
}

void sn_lock_give(struct sn_lock *lock)
{
	atomic_store(&lock->owner, 0);
}

static char address_head[64]; /* of all names of this world */

static void name_world(void)
{
	snprintf(address_head, sizeof(address_head), "softnic.%u.%.32s.", geteuid(),
		 setting("SOFTNIC_WORLD", "0"));
}

static socklen_t address_of(struct sockaddr_un *to, uint32_t name)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	char digits[16], *digit = digits + sizeof(digits), *at;
	size_t n;

	pthread_once(&once, name_world);
	to->sun_family = AF_UNIX; /* an abstract name: nothing is left of it */
	to->sun_path[0] = 0;
	at = stpcpy(to->sun_path + 1, address_head);
	do
		*--digit = (char)('0' + name % 10);
	while (name /= 10);
	n = (size_t)(digits + sizeof(digits) - digit);
	memcpy(at, digit, n);
	return (socklen_t)(at + n - (char *)to);
}

bool sn_take(_Atomic uint32_t *next, uint32_t n, atomic_int *host, size_t size, uint32_t *number_p)
{
	for (uint32_t tries = 0; tries < n; tries++) {
		int none = 0;

		*number_p = atomic_fetch_add(next, 1) % n;
		if (atomic_compare_exchange_strong(
			    (atomic_int *)((uint8_t *)host + *number_p * size), &none, sn.host + 1))
			return true;
	}
	errno = ENOMEM;
	return false;
}

int sn_socket(uint32_t *name_p)
{
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un address;

	do
		*name_p = atomic_fetch_add(&sn.world->next_name, 1);
	while (fd >= 0 && bind(fd, (struct sockaddr *)&address, address_of(&address, *name_p)) &&
	       errno == EADDRINUSE);
	return fd;
}

void sn_tell(uint32_t name, const void *what, size_t len)
{
	struct sockaddr_un to;
	socklen_t size = address_of(&to, name);
	int error = errno;

	/* A full queue is a descriptor that can be read; a dead process needs no waking. */
	sendto(sn.wire, what, len, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&to, size);
	errno = error;
}

void *sn_map(size_t len)
{
	void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return at == MAP_FAILED ? NULL : at;
}

void sn_unmap(void *at, size_t len)
{
	if (at)
		munmap(at, len);
}

/* ---------------------------------------------------------------- counters */

void sn_count(struct sn_counts *to, const struct sn_counts *from)
{
	to->posts += from->posts;
	to->work_requests += from->work_requests;
	to->doorbells += from->doorbells;
	to->signalled += from->signalled;
	to->completions += from->completions;
	to->polls += from->polls;
	to->bytes += from->bytes;
	to->ns += from->ns;
}

/* "-": a line on stderr; else a file, %p in its name is the process. */
static void print_counts(void)
{
	struct sn_counts c = sn.counts;
	char path[512], *mark;
	FILE *to = stderr;

	for (int i = 0; i < SN_QPS; i++)
		if (sn.qp[i])
			sn_count(&c, &sn.qp[i]->counts);
	for (const struct sn_cq *cq = sn.cqs; cq; cq = cq->next)
		sn_count(&c, &(struct sn_counts){ .completions = cq->completions,
						  .polls = cq->polls,
						  .ns = cq->ns });
	if (strcmp(sn.stats, "-")) {
		mark = strstr(sn.stats, "%p");
		snprintf(path, sizeof(path), "%.*s%d%s",
			 (int)(mark ? mark - sn.stats : (long)strlen(sn.stats)), sn.stats, sn.pid,
			 mark ? mark + 2 : "");
		to = fopen(mark ? path : sn.stats, "w");
	}
	if (!to)
		return;
	fprintf(to,
		"{\"softnic\": {\"pid\": %d, \"posts\": %llu, \"work_requests\": %llu, "
		"\"doorbells\": %llu, \"signalled\": %llu, \"completions\": %llu, \"polls\": %llu, "
		"\"bytes\": %llu, \"ns\": %llu}}\n",
		sn.pid, (unsigned long long)c.posts, (unsigned long long)c.work_requests,
		(unsigned long long)c.doorbells, (unsigned long long)c.signalled,
		(unsigned long long)c.completions, (unsigned long long)c.polls,
		(unsigned long long)c.bytes, (unsigned long long)c.ns);
	if (to != stderr)
		fclose(to);
}

static __attribute__((destructor)) void leave(void)
{
	bool alone = true;
	char path[64];
	int fd;

	if (!sn.world || sn.pid != getpid())
		return;
	if (sn.timed)
		print_counts();
	world_path(path);
	fd = open_world(path);
	if (fd < 0)
		return;
	clear_host(sn.host);
	for (int h = 0; h < SN_HOSTS; h++)
		alone &= !lives(sn.world->host[h]);
	if (alone)
		unlink(path);
	close_world(fd);
}
