/* SPDX-License-Identifier: Apache-2.0 */
/* expose.c -- the thread that writes the file of metrics, and answers at the port and the socket */
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

#include "client.h"
#include "clock.h"
#include "dump_signal.h"
#include "error.h"
#include "fds.h"
#include "thread.h"
#include "view.h"

enum {
	WRITE_MS = 5000,  /* between two files */
	CLIENT_MS = 1000, /* for one question and its answer: one at a time */
	NAP_MS = 1,	  /* after a stranger */
	QUESTION_MAX = 4096,
	TEXT_FIRST = 64 << 10, /* most texts are shorter */
};

static struct {
	pthread_mutex_t life; /* of the thread: held by add and remove, never by the thread */
	pthread_mutex_t lock; /* the list, and what the thread serves */
	struct kv_source *first;
	struct kv_source *asked; /* by log_reports */
	pthread_t thread;
	bool runs, stops, warned;
	int wake_fd, port_fd, view_fd;
	char path[PATH_MAX], temporary[PATH_MAX]; /* "": no file */
} here = { .life = PTHREAD_MUTEX_INITIALIZER,
	   .lock = PTHREAD_MUTEX_INITIALIZER,
	   .wake_fd = -1,
	   .port_fd = -1,
	   .view_fd = -1 };

/* ---------------------------------------------------------------- the text */

static bool is_first_of_kind(const struct kv_source *source)
{
	const struct kv_source *s = here.first;

	while (!s->measured || s->families != source->families)
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
			if (s->measured && s->families == first->families)
				s->sample(s->arg, i, text);
	}
}

static void add_metrics(struct kv_report *r)
{
	for (const struct kv_source *s = here.first; s; s = s->next)
		if (s->measured && is_first_of_kind(s))
			add_kind(&r->text, s);
}

static void add_reports(struct kv_report *r)
{
	kv_report_item(r, "process");
	kv_report_int(r, "pid", getpid());
	kv_report_list(r, "engines");
	for (const struct kv_source *s = here.first; s; s = s->next)
		if (s->shown)
			s->report(s->arg, r);
	kv_report_end_list(r);
	kv_report_end_item(r);
}

/* Under `lock`. What malloc gave, of *len_p bytes; NULL: there is no memory. */
static char *render(void (*add)(struct kv_report *r), struct kv_report how, size_t *len_p)
{
	struct kv_text text = { NULL, TEXT_FIRST, 0 };

	for (;;) {
		char *buf = realloc(text.buf, text.cap);
		struct kv_report r = how;

		if (!buf) {
			free(text.buf);
			text.buf = NULL;
			break;
		}
		r.text = text = (struct kv_text){ buf, text.cap, 0 };
		add(&r);
		text.len = r.text.len;
		if (text.len < text.cap)
			break;
		text.cap = text.len + text.len / 4; /* it may have grown meanwhile */
	}
	*len_p = text.len;
	return text.buf;
}

static char *make_text(void (*add)(struct kv_report *r), struct kv_report how, size_t *len_p)
{
	char *text;

	pthread_mutex_lock(&here.lock);
	for (struct kv_source *s = here.first; s && add == add_metrics; s = s->next)
		if (s->measured && s->look)
			s->look(s->arg);
	text = render(add, how, len_p);
	pthread_mutex_unlock(&here.lock);
	return text;
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
	text = make_text(add_metrics, (struct kv_report){ .brief = true }, &len);
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

static void answer_client(int fd)
{
	int64_t deadline_ns = kv_deadline_ns(CLIENT_MS);
	char question[QUESTION_MAX], head[160], *text = NULL;
	const char *status = "404 Not Found";
	size_t len = 0;

	if (!kv_client_question(fd, question, sizeof(question), false, deadline_ns))
		return;
	if (!strncmp(question, "GET /metrics ", 13) || !strncmp(question, "GET / ", 6)) {
		text = make_text(add_metrics, (struct kv_report){ .brief = true }, &len);
		status = text ? "200 OK" : "503 Service Unavailable";
	}
	snprintf(head, sizeof(head),
		 "HTTP/1.0 %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
		 "Content-Length: %zu\r\nConnection: close\r\n\r\n",
		 status, text ? len : 0);
	kv_client_send(fd, head, strlen(head), deadline_ns);
	if (text)
		kv_client_send(fd, text, len, deadline_ns);
	free(text);
}

/* ---------------------------------------------------------------- the socket */

static void answer_look(int fd)
{
	static const struct {
		const char *question;
		struct kv_report how;
	} questions[] = { { "dump\n", { .json = false } },
			  { "dump json\n", { .json = true } },
			  { "top\n", { .json = true, .brief = true } },
			  { "top peers\n", { .json = true, .brief = true, .peers = true } } };
	int64_t deadline_ns = kv_deadline_ns(CLIENT_MS);
	char question[KV_VIEW_QUESTION_MAX];

	if (!kv_client_question(fd, question, sizeof(question), true, deadline_ns))
		return;
	for (size_t i = 0; i < sizeof(questions) / sizeof(questions[0]); i++) {
		size_t len;
		char *text;

		if (strcmp(question, questions[i].question))
			continue;
		text = make_text(add_reports, questions[i].how, &len);
		if (text)
			kv_client_send(fd, text, len, deadline_ns);
		free(text);
	}
}

/* ---------------------------------------------------------------- the signal */

static void add_one(struct kv_report *r)
{
	here.asked->report(here.asked->arg, r);
}

/* Under `lock`. Each engine to its own log. */
static void log_reports(void)
{
	for (struct kv_source *s = here.first; s; s = s->next) {
		size_t len;
		char *text;

		if (!s->logged)
			continue;
		here.asked = s;
		text = render(add_one, (struct kv_report){ .json = false }, &len);
		if (text)
			kv_log_state(s->log, text);
		free(text);
	}
}

/* ---------------------------------------------------------------- the thread */

/* One client; true: nothing more of this kind for a moment, so that this is not a busy loop. */
static bool serve_port(int port_fd)
{
	int fd = kv_fd_new(accept4(port_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));

	if (fd >= 0)
		answer_client(fd);
	kv_fd_close(fd);
	return fd < 0;
}

static bool serve_view(int view_fd)
{
	int nap, fd = kv_view_accept(view_fd, &nap);

	if (fd >= 0)
		answer_look(fd);
	kv_fd_close(fd);
	return nap;
}

static void *expose_main(void *arg)
{
	int64_t next_ns = 0;

	for (;;) {
		struct pollfd pfd[3];
		bool stops, writes, tired;
		uint64_t n;

		pthread_mutex_lock(&here.lock);
		pfd[0] = (struct pollfd){ .fd = here.wake_fd, .events = POLLIN };
		pfd[1] = (struct pollfd){ .fd = here.port_fd, .events = POLLIN };
		pfd[2] = (struct pollfd){ .fd = here.view_fd, .events = POLLIN };
		stops = here.stops;
		if (!stops && kv_dump_signal_came())
			log_reports();
		writes = here.path[0];
		pthread_mutex_unlock(&here.lock);
		if (stops)
			return NULL;
		if (writes && kv_now_ns() >= next_ns) {
			write_file();
			next_ns = kv_deadline_ns(WRITE_MS);
		}
		if (poll(pfd, 3, writes ? kv_poll_ms(next_ns, WRITE_MS) : -1) <= 0)
			continue;
		if (pfd[0].revents && read(pfd[0].fd, &n, sizeof(n)) == sizeof(n))
			continue;
		tired = pfd[1].revents && serve_port(pfd[1].fd);
		tired |= pfd[2].revents && serve_view(pfd[2].fd);
		if (tired)
			poll(pfd, 1, NAP_MS);
	}
}

const char *kv_expose_process(char buf[static KV_PROCESS_MAX])
{
	char host[64] = "";

	gethostname(host, sizeof(host) - 1);
	snprintf(buf, KV_PROCESS_MAX, "%s.%d", host, (int)getpid());
	return buf;
}

static void name_file(const char *folder, const char *file, struct kv_log *log)
{
	char process[KV_PROCESS_MAX];
	int len = snprintf(here.path, sizeof(here.path), "%s/%s.%s.prom", folder, file,
			   kv_expose_process(process));

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
	kv_dump_signal_off();
	here.first = NULL;
	here.runs = here.warned = false;
	if (here.wake_fd >= 0)
		close(here.wake_fd);
	/* The others were closed with every socket (fds.h). */
	here.wake_fd = here.port_fd = here.view_fd = -1;
	here.path[0] = 0;
}

static void install_at_fork(void)
{
	pthread_atfork(NULL, NULL, forget_in_child);
}

static void wake_thread(void)
{
	uint64_t one = 1;

	while (write(here.wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

/* Under `life`. */
static void stop_thread(void)
{
	if (!here.runs)
		return;
	pthread_mutex_lock(&here.lock);
	here.stops = true;
	pthread_mutex_unlock(&here.lock);
	wake_thread();
	pthread_join(here.thread, NULL);
	close(here.wake_fd);
	here.wake_fd = -1;
	here.runs = here.stops = false;
}

/* Under `life`. One that runs looks again at what there is to serve. */
static void start_thread(struct kv_log *log)
{
	if (here.runs) {
		wake_thread();
		return;
	}
	here.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (here.wake_fd >= 0 && !kv_thread_start(&here.thread, "kvrail-view", expose_main, NULL)) {
		here.runs = true;
		return;
	}
	kv_log_warn(log, "metrics and kvrail dump: no thread could be started: %s",
		    kv_errno_text(errno));
	if (here.wake_fd >= 0)
		close(here.wake_fd);
	here.wake_fd = -1;
}

bool kv_expose_measures(const struct kv_option_set *options)
{
	return *kv_option_string(options, KV_OPT_METRICS_DIR) ||
	       kv_option_int(options, KV_OPT_METRICS_PORT);
}

bool kv_expose_is_wanted(const struct kv_option_set *options)
{
	return kv_expose_measures(options) || kv_option_bool(options, KV_OPT_VIEW) ||
	       !kv_option_is(options, KV_OPT_DUMP_SIGNAL, "none");
}

void kv_expose_add(const struct kv_option_set *options, struct kv_source *source)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	const char *folder = kv_option_string(options, KV_OPT_METRICS_DIR);
	int port = (int)kv_option_int(options, KV_OPT_METRICS_PORT);
	struct kv_source **at = &here.first;

	if (!kv_expose_is_wanted(options))
		return;
	source->measured = kv_expose_measures(options);
	source->shown = source->report && kv_option_bool(options, KV_OPT_VIEW);
	source->logged = source->report && !kv_option_is(options, KV_OPT_DUMP_SIGNAL, "none");
	pthread_once(&once, install_at_fork);
	pthread_mutex_lock(&here.life);
	pthread_mutex_lock(&here.lock);
	while (*at)
		at = &(*at)->next;
	source->next = NULL;
	*at = source;
	if (*folder && !here.path[0])
		name_file(folder, source->file, source->log);
	if (port && here.port_fd < 0)
		open_port(port, source->log);
	if (source->shown && here.view_fd < 0)
		here.view_fd = kv_view_open(source->log);
	pthread_mutex_unlock(&here.lock);
	if (here.path[0] || here.port_fd >= 0 || here.view_fd >= 0 || source->logged)
		start_thread(source->log);
	if (here.runs && source->logged)
		kv_dump_signal_on(kv_option_string(options, KV_OPT_DUMP_SIGNAL), here.wake_fd,
				  source->log);
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
		kv_dump_signal_off();
		stop_thread();
		if (here.path[0])
			unlink(here.path);
		kv_fd_close(here.port_fd);
		kv_fd_close(here.view_fd);
		here.port_fd = here.view_fd = -1;
		here.path[0] = 0;
		here.warned = false;
	}
	pthread_mutex_unlock(&here.life);
}
