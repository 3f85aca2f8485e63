/* SPDX-License-Identifier: Apache-2.0 */
/* expose.c -- the thread that writes the file of metrics and answers at the port */
#include "expose.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "error.h"
#include "fds.h"
#include "thread.h"

enum {
	WRITE_MS = 5000,  /* between two files */
	CLIENT_MS = 1000, /* for one question at the port and its answer: one at a time */
	QUESTION_MAX = 4096,
	TEXT_FIRST = 64 << 10, /* most texts are shorter */
};

static struct {
	pthread_mutex_t life; /* of the thread: held by add and remove, never by the thread */
	pthread_mutex_t lock; /* the list */
	struct kv_source *first;
	pthread_t thread;
	bool runs, warned;
	int stop_fd, port_fd;
	char path[PATH_MAX], temporary[PATH_MAX]; /* "": no file */
} here = { .life = PTHREAD_MUTEX_INITIALIZER,
	   .lock = PTHREAD_MUTEX_INITIALIZER,
	   .stop_fd = -1,
	   .port_fd = -1 };

/* ---------------------------------------------------------------- the text */

const char *kv_label(char *buf, size_t cap, const char *value)
{
	size_t n = 0;

	for (; *value && n + 2 < cap; value++) {
		if (*value == '"' || *value == '\\')
			buf[n++] = '\\';
		buf[n++] = *value;
	}
	buf[n] = 0;
	return buf;
}

static bool is_first_of_kind(const struct kv_source *source)
{
	const struct kv_source *s = here.first;

	while (s->families != source->families)
		s = s->next;
	return s == source;
}

static void add_kind(struct kv_text *text, const struct kv_source *first)
{
	for (size_t i = 0; i < first->n; i++) {
		const struct kv_family *f = &first->families[i];

		kv_text_add(text, "# HELP %s %s\n# TYPE %s %s\n", f->name, f->help, f->name,
			    f->type);
		for (const struct kv_source *s = first; s; s = s->next)
			if (s->families == first->families)
				s->sample(s->arg, i, text);
	}
}

/* What malloc gave, of *len_p bytes; NULL: there is no memory. */
static char *make_text(size_t *len_p)
{
	struct kv_text text = { NULL, TEXT_FIRST, 0 };

	pthread_mutex_lock(&here.lock);
	for (struct kv_source *s = here.first; s; s = s->next)
		s->look(s->arg);
	for (;;) {
		char *buf = realloc(text.buf, text.cap);

		if (!buf) {
			free(text.buf);
			text.buf = NULL;
			break;
		}
		text = (struct kv_text){ buf, text.cap, 0 };
		for (const struct kv_source *s = here.first; s; s = s->next)
			if (is_first_of_kind(s))
				add_kind(&text, s);
		if (text.len < text.cap)
			break;
		text.cap = text.len + 1;
	}
	pthread_mutex_unlock(&here.lock);
	*len_p = text.len;
	return text.buf;
}

/* ---------------------------------------------------------------- the file */

/* Once: the next file is tried all the same. */
static void warn(const char *what, const char *name)
{
	int reason = errno;

	pthread_mutex_lock(&here.lock);
	if (here.first && !here.warned)
		kv_log_warn(here.first->log, "metrics: %s %s: %s", what, name,
			    kv_errno_text(reason));
	here.warned = true;
	pthread_mutex_unlock(&here.lock);
}

static bool write_all(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = write(fd, text, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		text += n;
		len -= (size_t)n;
	}
	return true;
}

/* By a rename, so that no reader sees half of it. */
static void write_file(void)
{
	size_t len;
	char *text;
	int fd;

	if (!here.path[0])
		return;
	text = make_text(&len);
	if (!text)
		return;
	fd = open(here.temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0) {
		warn("cannot write", here.temporary);
	} else {
		bool whole = write_all(fd, text, len);

		close(fd);
		if (!whole || rename(here.temporary, here.path)) {
			warn("cannot write", here.path);
			unlink(here.temporary);
		}
	}
	free(text);
}

/* ---------------------------------------------------------------- the port */

static bool client_is_ready(int fd, short events, int64_t deadline_ns)
{
	struct pollfd pfd = { .fd = fd, .events = events };

	return poll(&pfd, 1, kv_poll_ms(deadline_ns, CLIENT_MS)) == 1;
}

/* The head of a request, whole: what follows it is not read. */
static bool read_question(int fd, char *buf, int64_t deadline_ns)
{
	size_t len = 0;

	while (len < QUESTION_MAX - 1 && client_is_ready(fd, POLLIN, deadline_ns)) {
		ssize_t n = recv(fd, buf + len, QUESTION_MAX - 1 - len, 0);

		if (n <= 0)
			return false;
		len += (size_t)n;
		buf[len] = 0;
		if (strstr(buf, "\r\n\r\n") || strstr(buf, "\n\n"))
			return true;
	}
	return false;
}

static void send_all(int fd, const char *p, size_t len, int64_t deadline_ns)
{
	while (len && client_is_ready(fd, POLLOUT, deadline_ns)) {
		ssize_t n = send(fd, p, len, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		p += n;
		len -= (size_t)n;
	}
}

static void answer_client(int fd)
{
	int64_t deadline_ns = kv_deadline_ns(CLIENT_MS);
	char question[QUESTION_MAX], head[160], *text = NULL;
	const char *status = "404 Not Found";
	size_t len = 0;

	if (!read_question(fd, question, deadline_ns))
		return;
	if (!strncmp(question, "GET /metrics ", 13) || !strncmp(question, "GET / ", 6)) {
		text = make_text(&len);
		status = text ? "200 OK" : "503 Service Unavailable";
	}
	snprintf(head, sizeof(head),
		 "HTTP/1.0 %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
		 "Content-Length: %zu\r\nConnection: close\r\n\r\n",
		 status, text ? len : 0);
	send_all(fd, head, strlen(head), deadline_ns);
	if (text)
		send_all(fd, text, len, deadline_ns);
	free(text);
}

/* ---------------------------------------------------------------- the thread */

static void *expose_main(void *arg)
{
	int64_t next_ns = 0;

	(void)arg;
	for (;;) {
		struct pollfd pfd[] = { { .fd = here.stop_fd, .events = POLLIN },
					{ .fd = here.port_fd, .events = POLLIN } };

		if (kv_now_ns() >= next_ns) {
			write_file();
			next_ns = kv_deadline_ns(WRITE_MS);
		}
		poll(pfd, 2, here.path[0] ? kv_poll_ms(next_ns, WRITE_MS) : -1);
		if (pfd[0].revents)
			return NULL;
		if (pfd[1].revents) {
			int fd = kv_fd_new(
				accept4(here.port_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));

			if (fd >= 0)
				answer_client(fd);
			else
				poll(pfd, 1,
				     CLIENT_MS); /* no descriptor is left: not a busy loop */
			kv_fd_close(fd);
		}
	}
}

static void name_file(const char *folder, struct kv_log *log)
{
	char host[64] = "";
	int len;

	gethostname(host, sizeof(host) - 1);
	len = snprintf(here.path, sizeof(here.path), "%s/kvrail.%s.%d.prom", folder, host,
		       (int)getpid());
	if (len >= (int)sizeof(here.path) - 4) {
		kv_log_warn(log, "metrics: KVCACHE_METRICS_DIR is too long");
		here.path[0] = 0;
		return;
	}
	snprintf(here.temporary, sizeof(here.temporary), "%.*s.new", len, here.path);
}

static void open_port(int port, struct kv_log *log)
{
	struct sockaddr_in at = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = kv_fd_new(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)), on = 1;

	if (fd >= 0 && !setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) &&
	    !bind(fd, (struct sockaddr *)&at, sizeof(at)) && !listen(fd, 8)) {
		here.port_fd = fd;
		return;
	}
	kv_log_warn(log,
		    "metrics: cannot listen on 127.0.0.1:%d: %s; of several processes each needs a "
		    "port of its own, or KVCACHE_METRICS_DIR",
		    port, kv_errno_text(errno));
	kv_fd_close(fd);
}

static void forget_in_child(void)
{
	pthread_mutex_init(&here.life, NULL);
	pthread_mutex_init(&here.lock, NULL);
	here.first = NULL;
	here.runs = here.warned = false;
	if (here.stop_fd >= 0)
		close(here.stop_fd);
	here.stop_fd = here.port_fd = -1; /* the port was closed with every socket (fds.h) */
	here.path[0] = 0;
}

static void install_at_fork(void)
{
	pthread_atfork(NULL, NULL, forget_in_child);
}

/* Under `life`. A thread that runs is stopped: it does not look at the list without the lock. */
static void stop_thread(void)
{
	uint64_t one = 1;

	if (!here.runs)
		return;
	if (write(here.stop_fd, &one, sizeof(one)) == sizeof(one))
		pthread_join(here.thread, NULL);
	close(here.stop_fd);
	here.stop_fd = -1;
	here.runs = false;
}

static void start_thread(struct kv_log *log)
{
	here.stop_fd = eventfd(0, EFD_CLOEXEC);
	if (here.stop_fd >= 0 &&
	    !kv_thread_start(&here.thread, "kvrail-metrics", expose_main, NULL)) {
		here.runs = true;
		return;
	}
	kv_log_warn(log, "metrics: no thread could be started: %s", kv_errno_text(errno));
	if (here.stop_fd >= 0)
		close(here.stop_fd);
	here.stop_fd = -1;
}

void kv_expose_add(const struct kv_option_set *options, struct kv_source *source)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	const char *folder = kv_option_string(options, KV_OPT_METRICS_DIR);
	int port = (int)kv_option_int(options, KV_OPT_METRICS_PORT);
	struct kv_source **at = &here.first;

	if (!*folder && !port)
		return;
	pthread_once(&once, install_at_fork);
	pthread_mutex_lock(&here.life);
	stop_thread(); /* it reads where to without a lock */
	pthread_mutex_lock(&here.lock);
	while (*at)
		at = &(*at)->next;
	source->next = NULL;
	*at = source;
	pthread_mutex_unlock(&here.lock);
	if (*folder && !here.path[0])
		name_file(folder, source->log);
	if (port && here.port_fd < 0)
		open_port(port, source->log);
	if (here.path[0] || here.port_fd >= 0)
		start_thread(source->log);
	pthread_mutex_unlock(&here.life);
}

void kv_expose_remove(struct kv_source *source)
{
	struct kv_source **at = &here.first;

	pthread_mutex_lock(&here.life);
	pthread_mutex_lock(&here.lock);
	while (*at && *at != source)
		at = &(*at)->next;
	if (*at)
		*at = source->next;
	pthread_mutex_unlock(&here.lock);
	if (!here.first) {
		stop_thread();
		if (here.path[0])
			unlink(here.path);
		kv_fd_close(here.port_fd);
		here.port_fd = -1;
		here.path[0] = 0;
		here.warned = false;
	}
	pthread_mutex_unlock(&here.life);
}
