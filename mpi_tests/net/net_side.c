/* SPDX-License-Identifier: Apache-2.0 */
/* net_side.c -- what every conformance case needs */
#include "net_side.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { GROUP_MAX = 8 };

static int say(struct side *s, int verdict, const char *fmt, va_list ap)
{
	int n = snprintf(s->reason, sizeof(s->reason), "%s",
			 s->sock < 0 ? ""
			 : s->sender ? "sender: "
				     : "receiver: ");

	vsnprintf(s->reason + n, sizeof(s->reason) - (size_t)n, fmt, ap);
	return verdict;
}

int side_fail(struct side *s, const char *fmt, ...)
{
	va_list ap;
	int ret;

	va_start(ap, fmt);
	ret = say(s, FAIL, fmt, ap);
	va_end(ap);
	return ret;
}

int side_skip(struct side *s, const char *fmt, ...)
{
	va_list ap;
	int ret;

	va_start(ap, fmt);
	ret = say(s, SKIP, fmt, ap);
	va_end(ap);
	return ret;
}

int64_t side_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int64_t side_slept_ms(void)
{
	unsigned long long ran_ns = 0, could_run_ns = 0;
	FILE *f = fopen("/proc/thread-self/schedstat", "re");

	/* A kernel without it: then also the time that others take from this thread counts. */
	if (f && fscanf(f, "%llu %llu", &ran_ns, &could_run_ns) != 2)
		ran_ns = could_run_ns = 0;
	if (f)
		fclose(f);
	return side_ms() - (int64_t)((ran_ns + could_run_ns) / 1000000);
}

int side_count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = -3; /* . and .. and the directory itself */

	while (dir && readdir(dir))
		n++;
	if (dir)
		closedir(dir);
	return n;
}

/*
 * A thread that has been joined is listed until the kernel has put it away; it is marked as exiting
 * before that.
 */
static bool lives(const char *tid)
{
	enum { EXITING = 0x4 }; /* PF_EXITING, proc(5): flags */
	char path[64], line[512] = "";
	unsigned int flags = EXITING;
	const char *name_end;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%s/stat", tid);
	f = fopen(path, "re");
	name_end = f && fgets(line, sizeof(line), f) ? strrchr(line, ')') : NULL;
	if (f)
		fclose(f);
	return name_end && sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 &&
	       !(flags & EXITING);
}

int side_count_threads(void)
{
	DIR *dir = opendir("/proc/self/task");
	const struct dirent *entry;
	int n = 0;

	while (dir && (entry = readdir(dir)))
		n += entry->d_name[0] != '.' && lives(entry->d_name);
	if (dir)
		closedir(dir);
	return n;
}

/* ---------------------------------------------------------------- plugin */

static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned int log_lines;
static char log_text[65536];

unsigned int side_log_lines(void)
{
	unsigned int n;

	pthread_mutex_lock(&log_lock);
	n = log_lines;
	pthread_mutex_unlock(&log_lock);
	return n;
}

unsigned int side_log_has(const char *text)
{
	unsigned int n = 0;

	pthread_mutex_lock(&log_lock);
	for (const char *at = log_text; (at = strstr(at, text)); at++)
		n++;
	pthread_mutex_unlock(&log_lock);
	return n;
}

void side_logger(ncclDebugLogLevel level, unsigned long flags, const char *file, int line,
		 const char *fmt, ...)
{
	char text[1024];
	size_t len;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&log_lock);
	len = strlen(log_text);
	snprintf(log_text + len, sizeof(log_text) - len, "%s\n", text);
	log_lines++;
	pthread_mutex_unlock(&log_lock);
	if (getenv("NET_LOG"))
		fprintf(stderr, "[%d] %d %#lx %s:%d %s\n", (int)getpid(), (int)level, flags, file,
			line, text);
}

int side_start(struct side *s)
{
	const char *why = "";
	int ndev = 0;

	s->net = net_load(&s->source, &s->version, &why);
	if (!s->net && s->source.version)
		return side_skip(s, "no v%d in the library", s->source.version);
	REQUIRE(s, s->net, "%s", why);
	OK(s, s->net->init(&s->ctx, 1, &(ncclNetCommConfig_v10_t){ -1 }, side_logger, NULL));
	OK(s, s->net->devices(&ndev));
	if (!ndev)
		return side_skip(s, "the plugin has no device here");
	return PASS;
}

int side_attributes(struct side *s)
{
	ncclNetAttr_v11_t attr = { .sendCommAttr = { 1, 1, 1, 1 },
				   .recvCommAttr = { 1, 1, 1, 1 },
				   .op = 1 << 4,
				   .algo = 1 << 1,
				   .proto = 1 << 2 };

	if (s->net->setNetAttr)
		OK(s, s->net->setNetAttr(s->ctx, &attr));
	return PASS;
}

int side_stop(struct side *s)
{
	OK(s, s->net->finalize(s->ctx));
	s->ctx = NULL;
	return PASS;
}

/* ---------------------------------------------------------------- the other process */

static int wait_for(struct side *s, short events)
{
	struct pollfd p = { .fd = s->sock, .events = events };
	int ret;

	do
		ret = poll(&p, 1, SIDE_WAIT_MS);
	while (ret < 0 && errno == EINTR);
	if (ret == 1)
		return PASS;
	return side_fail(s, "the other process did not answer in %d ms", SIDE_WAIT_MS);
}

int side_put(struct side *s, const void *buf, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n;

		TRY(wait_for(s, POLLOUT));
		n = write(s->sock, (const uint8_t *)buf + done, len - done);
		REQUIRE(s, n > 0, "the other process is gone");
		done += (size_t)n;
	}
	return PASS;
}

int side_get(struct side *s, void *buf, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n;

		TRY(wait_for(s, POLLIN));
		n = read(s->sock, (uint8_t *)buf + done, len - done);
		REQUIRE(s, n > 0, "the other process is gone");
		done += (size_t)n;
	}
	return PASS;
}

int side_barrier(struct side *s)
{
	char c = 'b';

	TRY(side_put(s, &c, 1));
	return side_get(s, &c, 1);
}

/* ---------------------------------------------------------------- connections */

void side_handle_init(struct handle *handle)
{
	memset(handle, SIDE_POISON, sizeof(*handle));
	memset(handle->bytes, 0, sizeof(handle->bytes));
}

bool side_handle_intact(const struct handle *handle)
{
	for (int i = 0; i < SIDE_GUARD; i++)
		if (handle->before[i] != SIDE_POISON || handle->after[i] != SIDE_POISON)
			return false;
	return true;
}

int side_wait_connect(struct side *s, struct handle *handle, void **comm)
{
	int64_t end = side_ms() + SIDE_WAIT_MS;

	for (*comm = NULL; !*comm;) {
		ncclNetDeviceHandle_v7_t *device = NULL;

		OK(s, s->net->connect(s->ctx, s->dev, handle->bytes, comm, &device));
		REQUIRE(s, side_ms() < end, "connect did not finish in %d ms", SIDE_WAIT_MS);
		if (!*comm)
			usleep(100);
	}
	return PASS;
}

int side_wait_accept(struct side *s, void *listen, void **comm)
{
	int64_t end = side_ms() + SIDE_WAIT_MS;

	for (*comm = NULL; !*comm;) {
		ncclNetDeviceHandle_v7_t *device = NULL;

		OK(s, s->net->accept(listen, comm, &device));
		REQUIRE(s, side_ms() < end, "accept did not finish in %d ms", SIDE_WAIT_MS);
		if (!*comm)
			usleep(100);
	}
	return PASS;
}

int side_link(struct side *s, void **comm)
{
	struct handle handle;
	void *listen = NULL;

	side_handle_init(&handle);
	if (s->sender) {
		TRY(side_get(s, handle.bytes, sizeof(handle.bytes)));
		return side_wait_connect(s, &handle, comm);
	}
	OK(s, s->net->listen(s->ctx, s->dev, handle.bytes, &listen));
	TRY(side_put(s, handle.bytes, sizeof(handle.bytes)));
	TRY(side_wait_accept(s, listen, comm));
	OK(s, s->net->closeListen(listen));
	return PASS;
}

int side_unlink(struct side *s, void *comm)
{
	if (s->sender)
		OK(s, s->net->closeSend(comm));
	else
		OK(s, s->net->closeRecv(comm));
	return PASS;
}

int side_join(struct side *s, struct loop *loop, struct handle *handle)
{
	int64_t end = side_ms() + SIDE_WAIT_MS;

	while (!loop->send || !loop->recv) {
		ncclNetDeviceHandle_v7_t *d = NULL;

		if (!loop->send)
			OK(s, s->net->connect(s->ctx, s->dev, handle->bytes, &loop->send, &d));
		if (!loop->recv)
			OK(s, s->net->accept(loop->listen, &loop->recv, &d));
		REQUIRE(s, side_ms() < end, "no connection in %d ms", SIDE_WAIT_MS);
	}
	return PASS;
}

int side_loop(struct side *s, struct loop *loop)
{
	struct handle handle;

	memset(loop, 0, sizeof(*loop));
	side_handle_init(&handle);
	OK(s, s->net->listen(s->ctx, s->dev, handle.bytes, &loop->listen));
	return side_join(s, loop, &handle);
}

int side_loop_close(struct side *s, struct loop *loop)
{
	OK(s, s->net->closeSend(loop->send));
	OK(s, s->net->closeRecv(loop->recv));
	OK(s, s->net->closeListen(loop->listen));
	return PASS;
}

/* ---------------------------------------------------------------- buffers */

int side_buffer(struct side *s, void *comm, size_t size, struct buffer *buffer)
{
	memset(buffer, 0, sizeof(*buffer));
	buffer->size = size;
	buffer->base = aligned_alloc(4096, (size + 2 * SIDE_GUARD + 8191) & ~(size_t)4095);
	REQUIRE(s, buffer->base, "out of memory");
	buffer->bytes = buffer->base + SIDE_GUARD;
	side_poison(buffer);
	OK(s, s->net->regMr(comm, buffer->bytes, size ? size : 1, NCCL_PTR_HOST, &buffer->mhandle));
	return PASS;
}

int side_buffer_free(struct side *s, void *comm, struct buffer *buffer)
{
	OK(s, s->net->deregMr(comm, buffer->mhandle));
	free(buffer->base);
	return PASS;
}

void side_poison(struct buffer *buffer)
{
	memset(buffer->base, SIDE_POISON, buffer->size + 2 * SIDE_GUARD);
}

static uint64_t word_of(uint64_t seed, uint64_t i)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15u + i * 0xbf58476d1ce4e5b9u;

	return (x ^ x >> 29) * 0x94d049bb133111ebu;
}

void side_fill(uint8_t *bytes, size_t size, uint64_t seed)
{
	size_t i;

	for (i = 0; i + 8 <= size; i += 8) {
		uint64_t word = word_of(seed, i);

		memcpy(bytes + i, &word, 8);
	}
	for (; i < size; i++)
		bytes[i] = (uint8_t)word_of(seed, i);
}

int side_check_at(struct side *s, const uint8_t *bytes, size_t size, uint64_t seed)
{
	size_t i;

	for (i = 0; i + 8 <= size; i += 8) {
		uint64_t word = word_of(seed, i);

		REQUIRE(s, !memcmp(bytes + i, &word, 8), "wrong bytes at %zu of %zu", i, size);
	}
	for (; i < size; i++)
		REQUIRE(s, bytes[i] == (uint8_t)word_of(seed, i), "wrong byte at %zu of %zu", i,
			size);
	return PASS;
}

int side_check(struct side *s, const struct buffer *buffer, size_t size, uint64_t seed)
{
	size_t end = buffer->size + SIDE_GUARD;

	TRY(side_check_at(s, buffer->bytes, size, seed));
	for (size_t i = 0; i < SIDE_GUARD; i++)
		REQUIRE(s, buffer->base[i] == SIDE_POISON, "byte %zu before the buffer changed",
			SIDE_GUARD - i);
	for (size_t i = size; i < end; i++)
		REQUIRE(s, buffer->bytes[i] == SIDE_POISON,
			"byte %zu changed, past a message of %zu", i, size);
	return PASS;
}

/* ---------------------------------------------------------------- requests */

int side_isend(struct side *s, void *comm, void *data, size_t size, int tag, void *mhandle,
	       void **request)
{
	int64_t end = side_ms() + SIDE_WAIT_MS;

	for (*request = NULL; !*request;) {
		OK(s, s->net->isend(comm, data, size, tag, mhandle, NULL, request));
		if (!*request)
			sched_yield();
		REQUIRE(s, *request || side_ms() < end, "isend of %zu: no request in %d ms", size,
			SIDE_WAIT_MS);
	}
	return PASS;
}

int side_irecv(struct side *s, void *comm, int n, void **data, size_t *sizes, int *tags,
	       void **mhandles, void **request)
{
	int64_t end = side_ms() + SIDE_WAIT_MS;
	void *phandles[GROUP_MAX] = { 0 };

	for (*request = NULL; !*request;) {
		OK(s, s->net->irecv(comm, n, data, sizes, tags, mhandles, phandles, request));
		if (!*request)
			sched_yield();
		REQUIRE(s, *request || side_ms() < end, "irecv: no request in %d ms", SIDE_WAIT_MS);
	}
	return PASS;
}

int side_irecv_rows(struct side *s, void *comm, const struct buffer *b, size_t at, size_t room,
		    int n, const int *tags, void **request)
{
	void *data[GROUP_MAX], *mhandles[GROUP_MAX];
	size_t rooms[GROUP_MAX];
	int tag[GROUP_MAX];

	for (int i = 0; i < n; i++) {
		data[i] = b->bytes + at + (size_t)i * room;
		mhandles[i] = b->mhandle;
		rooms[i] = room;
		tag[i] = tags[i];
	}
	return side_irecv(s, comm, n, data, rooms, tag, mhandles, request);
}

int side_irecv1(struct side *s, void *comm, struct buffer *b, size_t size, int tag, void **request)
{
	void *data = b->bytes;

	return side_irecv(s, comm, 1, &data, &size, &tag, &b->mhandle, request);
}

int side_wait(struct side *s, void *request, int *sizes)
{
	int64_t end = side_ms() + SIDE_WAIT_MS;
	int done = 0;

	while (!done) {
		OK(s, s->net->test(request, &done, sizes));
		if (!done)
			sched_yield();
		REQUIRE(s, done || side_ms() < end, "a request was not done in %d ms",
			SIDE_WAIT_MS);
	}
	return PASS;
}
