/* SPDX-License-Identifier: Apache-2.0 */
/* tr_pair.c -- two processes with a connection between them */
#include "tr_pair.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "conn.h"

static int hello_put(void *arg, struct tr_conn *conn, void *buf, size_t cap)
{
	memcpy(buf, "pair", 4);
	return 4;
}

static int hello_get(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	if (len != 4 || memcmp(buf, "pair", 4))
		return kv_fail(err, KV_ERR_PROTOCOL, "test", "no pair");
	return 0;
}

static int setup_put(void *arg, struct tr_conn *conn, void *buf, size_t cap, struct kv_error *err)
{
	struct pair_side *s = arg;
	size_t len = 0;
	int ret = s->mem ? tr_mem_pack(conn, s->mem, buf, cap, &len, err) : 0;

	return ret ? ret : (int)len;
}

static int setup_get(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	struct pair_side *s = arg;

	return len ? tr_mem_open(conn, buf, len, &s->rmem, err) : 0;
}

static const struct tr_upper_ops pair_ops = {
	.id = TR_UPPER_TEST,
	.version = 1,
	.hello_put = hello_put,
	.hello_get = hello_get,
	.setup_put = setup_put,
	.setup_get = setup_get,
};

static int run_child(struct pair_side *s, pair_fn *fn)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nobody behind */
	fn(s);
	free(s);
	return 0;
}

int pair_run(const struct pair_config *config, pair_fn *parent, pair_fn *child)
{
	struct pair_side *s = calloc(1, sizeof(*s));
	int down[2], up[2], status;
	pid_t pid, self = getpid();

	PAIR_CHECK(s && !pipe2(down, O_CLOEXEC) && !pipe2(up, O_CLOEXEC));
	fflush(stdout);
	fflush(stderr);
	s->config = config;
	pid = fork();
	PAIR_CHECK(pid >= 0);
	s->child = !pid;
	s->other = pid ? pid : self;
	s->to = pid ? down[1] : up[1];
	s->from = pid ? up[0] : down[0];
	close(pid ? down[0] : down[1]);
	close(pid ? up[1] : up[0]);
	if (!pid)
		_exit(run_child(s, child));
	parent(s);
	close(s->to);
	close(s->from);
	PAIR_CHECK(waitpid(pid, &status, 0) == pid);
	free(s);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

int pair_run_apart(const struct pair_config *config, pair_fn *parent, pair_fn *child)
{
	int status;
	pid_t pid = fork();

	PAIR_CHECK(pid >= 0);
	if (!pid)
		_exit(pair_run(config, parent, child) ? 1 : 0);
	PAIR_CHECK(waitpid(pid, &status, 0) == pid);
	return status;
}

/* ---------------------------------------------------------------- up and down */

void pair_open(struct pair_side *s)
{
	const char *path = s->child ? s->config->child_path : s->config->parent_path;
	bool other = path && (!strcmp(path, "ib") || !strcmp(path, "tcp"));
	char transport[64], path_text[64], ring_text[64];
	const char *list[] = { transport, path_text, ring_text, s->config->option, NULL };
	unsigned int access = s->config->access ? s->config->access
						: (unsigned int)(TR_REMOTE_READ | TR_REMOTE_WRITE);
	struct kv_error err;

	snprintf(transport, sizeof(transport), "KVCACHE_TRANSPORT=%s", other ? path : "shm");
	snprintf(path_text, sizeof(path_text), "KVCACHE_SHM_PATH=%s",
		 path && !other ? path : "auto");
	snprintf(ring_text, sizeof(ring_text), "KVCACHE_SHM_RING=%zu",
		 s->config->ring ? s->config->ring : (size_t)1 << 20);
	PAIR_CHECK(!kv_option_read(list, &s->options, &err));
	PAIR_CHECK(!tr_open(&(struct tr_config){ .options = s->options }, &s->tr, &err));
	if (!s->config->region)
		return;
	s->is_pool = s->child ? s->config->child_pool : s->config->parent_pool;
	if (s->is_pool) {
		PAIR_CHECK(!tr_alloc(s->tr, s->config->region, (void **)&s->base, &err));
	} else {
		s->base = mmap(NULL, s->config->region, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		PAIR_CHECK(s->base != MAP_FAILED);
	}
	PAIR_CHECK(
		!tr_mem_reg(s->tr, s->base, s->config->region, TR_MEM_HOST, access, &s->mem, &err));
}

static int step(struct pair_side *s, struct kv_error *err)
{
	int64_t deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);
	int ret;

	while ((ret = tr_conn_step(s->conn, err)) == TR_AGAIN) {
		PAIR_CHECK(kv_now_ns() < deadline_ns);
		tr_conn_wait(s->conn, 20);
	}
	return ret;
}

/* Both ways until one side is at its end. */
static void pump(int a, int b)
{
	struct pollfd p[] = { { .fd = a, .events = POLLIN }, { .fd = b, .events = POLLIN } };
	char buf[4096];

	while (poll(p, 2, -1) > 0)
		for (int i = 0; i < 2; i++) {
			ssize_t n = p[i].revents ? read(p[i].fd, buf, sizeof(buf)) : 1;

			if (n <= 0)
				return;
			if (p[i].revents && write(p[!i].fd, buf, (size_t)n) != n)
				return;
		}
}

uint32_t pair_relay(uint32_t port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	pid_t pid;

	PAIR_CHECK(listener >= 0 && !bind(listener, (struct sockaddr *)&sa, len) &&
		   !listen(listener, 1) && !getsockname(listener, (struct sockaddr *)&sa, &len));
	pid = fork();
	PAIR_CHECK(pid >= 0);
	if (!pid) {
		int to = socket(AF_INET, SOCK_STREAM, 0), from = accept(listener, NULL, NULL);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		sa.sin_port = htons((uint16_t)port);
		PAIR_CHECK(!connect(to, (struct sockaddr *)&sa, sizeof(sa)));
		pump(from, to);
		_exit(0);
	}
	close(listener);
	return ntohs(sa.sin_port);
}

/* The peer does not accept before the word: nothing comes of the hello until then. */
static void greet_and_stop(struct pair_side *s)
{
	struct kv_error err;

	do
		PAIR_CHECK(tr_conn_step(s->conn, &err) == TR_AGAIN);
	while (strcmp(tr_conn_stage(s->conn), "waiting for hello"));
	pair_say(s, 0);
	s->config->greeted(s);
}

int pair_connect(struct pair_side *s, struct kv_error *err)
{
	struct tr_conn_config config = { .ops = &pair_ops, .arg = s, .flags = s->config->flags };
	int ret;

	if (s->child)
		config.flags |= s->config->child_flags;
	if (!s->child) {
		uint32_t port = (uint32_t)pair_hear(s);

		if (s->config->relayed)
			port = pair_relay(port);
		ret = tr_connect(s->tr, NULL, port, &config, &s->conn, err);
		if (!ret && s->config->greeted)
			greet_and_stop(s);
		return ret ? ret : step(s, err);
	}
	if (!s->listener) {
		ret = tr_listen(s->tr, NULL, 0, &s->listener, err);
		if (ret)
			return ret;
	}
	pair_say(s, tr_listener_port(s->listener));
	if (s->config->greeted)
		pair_hear(s);
	do {
		struct pollfd p = { .fd = tr_listener_fd(s->listener), .events = POLLIN };

		PAIR_CHECK(poll(&p, 1, (int)PAIR_WAIT_MS) == 1);
		ret = tr_accept(s->listener, &config, &s->conn, err);
	} while (ret == TR_AGAIN);
	return ret ? ret : step(s, err);
}

void pair_up(struct pair_side *s)
{
	struct kv_error err;
	char line[1024];
	int ret;

	pair_open(s);
	ret = pair_connect(s, &err);
	if (ret) {
		kv_error_format(&err, line, sizeof(line));
		fprintf(stderr, "%s\n", line);
	}
	PAIR_CHECK(!ret);
	pair_settle(s);
}

void pair_down(struct pair_side *s)
{
	struct kv_error err;

	tr_conn_close(s->conn);
	tr_listener_close(s->listener);
	if (s->mem)
		PAIR_CHECK(!tr_mem_dereg(s->mem, &err));
	if (s->base && s->is_pool)
		PAIR_CHECK(!tr_free(s->tr, s->base, &err));
	else if (s->base)
		munmap(s->base, s->config->region);
	tr_close(s->tr);
	kv_option_free(s->options);
	s->conn = NULL;
	s->listener = NULL;
	s->mem = NULL;
	s->rmem = NULL;
	s->base = NULL;
	s->tr = NULL;
	s->options = NULL;
}

/* ---------------------------------------------------------------- words between the two */

void pair_say(struct pair_side *s, uint64_t word)
{
	PAIR_CHECK(write(s->to, &word, sizeof(word)) == sizeof(word));
}

uint64_t pair_hear(struct pair_side *s)
{
	uint64_t word;

	PAIR_CHECK(read(s->from, &word, sizeof(word)) == sizeof(word));
	return word;
}

void pair_meet(struct pair_side *s)
{
	struct pollfd p = { .fd = s->from, .events = POLLIN };
	int64_t deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);

	pair_say(s, 0x6d656574);
	while (!poll(&p, 1, 0)) {
		PAIR_CHECK(kv_now_ns() < deadline_ns);
		pair_poll(s, 1);
	}
	PAIR_CHECK(pair_hear(s) == 0x6d656574);
}

/* ---------------------------------------------------------------- events */

static void take(struct pair_side *s, const struct tr_event *e)
{
	switch (e->kind) {
	case TR_NOTIFIED:
		if (s->on_notify)
			s->on_notify(s, e->value);
		s->notified[s->notifies++ % PAIR_EVENTS_MAX] = e->value;
		break;
	case TR_MSG:
		s->msg_len[s->msgs % PAIR_EVENTS_MAX] = e->len;
		memcpy(s->msg[s->msgs++ % PAIR_EVENTS_MAX], e->msg, e->len < 16 ? e->len : 16);
		break;
	case TR_PEER_LOST:
		PAIR_CHECK(!s->lost && e->cause);
		s->lost = true;
		s->cause = *e->cause;
		break;
	default:
		PAIR_CHECK(!s->lost);
		s->ended++;
		s->last_end = e->kind;
		s->last_user = e->user;
	}
}

/* Nothing came in all of the time that a test waits: where does everything stand? */
static void dump(const struct pair_side *s)
{
	char text[4096];

	tr_conn_dump(s->conn, text, sizeof(text));
	fprintf(stderr, "process %d waited in vain: %u notifies, %u messages, %u ended\n%s\n",
		(int)getpid(), s->notifies, s->msgs, s->ended, text);
}

int pair_poll(struct pair_side *s, int sleep_ms)
{
	struct tr_event events[16];
	int n = tr_poll(s->conn, events, 16);

	for (int i = 0; i < n; i++)
		take(s, &events[i]);
	if (!n && sleep_ms && !tr_conn_arm(s->conn) && !tr_conn_wait(s->conn, sleep_ms) &&
	    sleep_ms == PAIR_WAIT_MS)
		dump(s);
	return n;
}

/* Sleeps long on purpose: a wake-up that is lost becomes a failure. */
#define WAIT_UNTIL(s, cond, ms)                                \
	do {                                                   \
		int64_t deadline_ns = kv_deadline_ns(ms);      \
                                                               \
		while (!(cond)) {                              \
			PAIR_CHECK(kv_now_ns() < deadline_ns); \
			pair_poll(s, (int)(ms));               \
		}                                              \
	} while (0)

void pair_settle(struct pair_side *s)
{
	int64_t deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);

	while (s->conn->own_link && s->conn->sock >= 0) {
		PAIR_CHECK(kv_now_ns() < deadline_ns);
		pair_poll(s, 1);
	}
}

void pair_wait_notifies(struct pair_side *s, unsigned int n)
{
	WAIT_UNTIL(s, s->notifies >= n, PAIR_WAIT_MS);
}

void pair_wait_msgs(struct pair_side *s, unsigned int n)
{
	WAIT_UNTIL(s, s->msgs >= n, PAIR_WAIT_MS);
}

void pair_wait_lost(struct pair_side *s, int64_t within_ms)
{
	WAIT_UNTIL(s, s->lost, within_ms);
}

void pair_wait_ended(struct pair_side *s, unsigned int n)
{
	WAIT_UNTIL(s, s->ended >= n, PAIR_WAIT_MS);
}

/* ---------------------------------------------------------------- operations */

struct tr_op *pair_begin(struct pair_side *s, int kind, uint64_t user)
{
	int64_t deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);
	struct kv_error err;
	struct tr_op *op;
	int ret;

	while ((ret = tr_op_begin(s->conn, kind, user, &op, &err)) == TR_AGAIN) {
		PAIR_CHECK(kv_now_ns() < deadline_ns);
		pair_poll(s, (int)PAIR_WAIT_MS);
	}
	PAIR_CHECK(!ret);
	return op;
}

void pair_add(struct pair_side *s, struct tr_op *op, const struct tr_span *spans, size_t n)
{
	int64_t deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);
	struct kv_error err;

	while (n) {
		long done = tr_op_add(op, s->mem, s->rmem, spans, n, &err);

		if (done < 0)
			fprintf(stderr, "add: %s\n", err.message);
		PAIR_CHECK(done >= 0 && (size_t)done <= n && kv_now_ns() < deadline_ns);
		spans += done;
		n -= (size_t)done;
		if (n)
			pair_poll(s, (int)PAIR_WAIT_MS);
	}
}

void pair_commit(struct pair_side *s, struct tr_op *op, unsigned int flags, uint64_t value)
{
	int64_t deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);
	struct kv_error err;
	int ret;

	while ((ret = tr_op_commit(op, flags, value, &err)) == TR_AGAIN) {
		PAIR_CHECK(kv_now_ns() < deadline_ns);
		pair_poll(s, (int)PAIR_WAIT_MS);
	}
	PAIR_CHECK(!ret);
}

void pair_send(struct pair_side *s, const void *buf, size_t len)
{
	int64_t deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);
	struct kv_error err;
	int ret;

	while ((ret = tr_msg(s->conn, buf, len, &err)) == TR_AGAIN) {
		PAIR_CHECK(kv_now_ns() < deadline_ns);
		pair_poll(s, (int)PAIR_WAIT_MS);
	}
	PAIR_CHECK(!ret);
}

/* ---------------------------------------------------------------- bytes */

void pair_fill(uint8_t *p, uint64_t seed, uint64_t offset, size_t len)
{
	for (size_t i = 0; i < len; i++)
		p[i] = pair_byte(seed, offset + i);
}

int64_t pair_differs(const uint8_t *p, uint64_t seed, uint64_t offset, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != pair_byte(seed, offset + i))
			return (int64_t)i;
	return -1;
}

void pair_suffer(struct pair_side *s, uint64_t seed, const char *text)
{
	size_t region = s->config->region;

	pair_fill(s->base, seed, 0, region);
	pair_meet(s);
	pair_wait_lost(s, PAIR_SOON_MS);
	if (s->cause.code != KV_ERR_PROTOCOL || !strstr(s->cause.message, text))
		fprintf(stderr, "not \"%s\": %d %s\n", text, s->cause.code, s->cause.message);
	PAIR_CHECK(s->cause.code == KV_ERR_PROTOCOL);
	PAIR_CHECK(strstr(s->cause.message, text));
	PAIR_CHECK(!s->notifies && !s->msgs);
	PAIR_CHECK(pair_differs(s->base, seed, 0, region) < 0);
}

void pair_swap(struct pair_side *s, const char *path)
{
	size_t len = s->config->region, half = len / 2;
	uint64_t mine = s->child ? 2 : 1, theirs = s->child ? 1 : 2;
	struct tr_span span = { .local = 1, .remote = half + 3, .len = half - 7 };
	struct tr_op *op;

	pair_up(s);
	pair_fill(s->base, mine, 0, len);
	pair_meet(s);
	if (!strstr(tr_conn_path(s->conn), path))
		fprintf(stderr, "path: %s\n", tr_conn_path(s->conn));
	PAIR_CHECK(strstr(tr_conn_path(s->conn), path));
	op = pair_begin(s, TR_WRITE, 1);
	pair_add(s, op, &span, 1);
	pair_commit(s, op, TR_NOTIFY, 5);
	pair_wait_ended(s, 1);
	pair_wait_notifies(s, 1);
	PAIR_CHECK(pair_differs(s->base, mine, 0, half + 3) < 0);
	PAIR_CHECK(pair_differs(s->base + half + 3, theirs, 1, half - 7) < 0);
	PAIR_CHECK(pair_differs(s->base + len - 4, mine, len - 4, 4) < 0);
	pair_meet(s);
}
