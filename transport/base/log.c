/* SPDX-License-Identifier: Apache-2.0 */
/* log.c -- formats a line and hands it to the callback, stderr or the log files */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "error.h"
#include "option.h"

struct kv_log {
	void (*sink)(void *arg, int level, const char *line);
	void *arg;
	int debug_fd; /* every level; -1: none */
	int error_fd; /* errors and warnings */
	bool to_stderr;
	int level;		   /* the highest that any output wants */
	atomic_uint in_sink;	   /* threads that are in the callback */
	_Atomic int64_t called_ns; /* when it was called last */
	pthread_mutex_t lock;	   /* of the files: the callback's order is its own */
};

static _Thread_local unsigned int inside; /* callbacks, in this thread */

bool kv_log_inside(void)
{
	return inside;
}

unsigned int kv_log_callers(const struct kv_log *log, int64_t *since_ns)
{
	*since_ns = log ? atomic_load_explicit(&log->called_ns, memory_order_relaxed) : 0;
	return log ? atomic_load(&log->in_sink) : 0;
}

enum { LINE_MOST = 1024, STAMP_MOST = 128, STATE_LINE = 900 };

/* O_NONBLOCK: a FIFO that nobody reads cannot be opened, and one that is full takes no line. */
enum { FILE_FLAGS = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY };

static const char *const level_names[] = { "?", "error", "warn", "info", "debug" };

/* %h is this host, %p this process, %% a percent sign; all else stays as it is. */
static int open_file(const char *pattern, int *error_p)
{
	char path[4096], host[HOST_NAME_MAX + 1] = "";
	size_t len = 0;
	int fd;

	gethostname(host, sizeof(host) - 1);
	for (const char *p = pattern; *p && len < sizeof(path) - 1; p++) {
		char *to = path + len;
		size_t cap = sizeof(path) - len;
		int n;

		if (p[0] == '%' && p[1] == 'h')
			n = snprintf(to, cap, "%s", host);
		else if (p[0] == '%' && p[1] == 'p')
			n = snprintf(to, cap, "%d", (int)getpid());
		else
			n = snprintf(to, cap, "%c", *p);
		p += *p == '%' && p[1] && strchr("hp%", p[1]);
		len += (size_t)n;
	}
	if (!pattern[0])
		return -1;
	errno = ENAMETOOLONG;
	fd = len < sizeof(path) ? open(path, FILE_FLAGS, 0666) : -1;
	*error_p = fd < 0 ? errno : 0;
	return fd;
}

struct kv_log *kv_log_open(const struct kv_option_set *options,
			   void (*sink)(void *arg, int level, const char *line), void *arg)
{
	struct kv_log *log = calloc(1, sizeof(*log));
	bool debug = kv_option_bool(options, KV_OPT_DEBUG);
	const char *debug_path = kv_option_string(options, KV_OPT_DEBUG_FILE);
	const char *error_path = kv_option_string(options, KV_OPT_ERROR_FILE);
	int debug_errno = 0, error_errno = 0;

	if (!log)
		return NULL;
	pthread_mutex_init(&log->lock, NULL);
	log->sink = sink;
	log->arg = arg;
	log->debug_fd = open_file(debug_path, &debug_errno);
	log->error_fd = open_file(error_path, &error_errno);
	/* Where it is closed its number may be given to a socket. */
	log->to_stderr =
		!sink && fcntl(STDERR_FILENO, F_GETFD) >= 0 &&
		(kv_option_bool(options, KV_OPT_DEBUG_OUTPUT) || (debug && log->debug_fd < 0));
	if (debug)
		log->level = 4;
	else if (sink || log->debug_fd >= 0 || log->to_stderr)
		log->level = 3;
	else if (log->error_fd >= 0)
		log->level = 2;
	if (debug_errno)
		kv_log_error(log, "KVCACHE_DEBUG_FILE %s cannot be opened: %s", debug_path,
			     kv_errno_text(debug_errno));
	if (error_errno)
		kv_log_error(log, "KVCACHE_ERROR_FILE %s cannot be opened: %s", error_path,
			     kv_errno_text(error_errno));
	return log;
}

void kv_log_close(struct kv_log *log)
{
	if (!log)
		return;
	if (log->debug_fd >= 0)
		close(log->debug_fd);
	if (log->error_fd >= 0)
		close(log->error_fd);
	pthread_mutex_destroy(&log->lock);
	free(log);
}

/* A file that is as long as the process may write (ulimit -f) would end it with SIGXFSZ. */
static bool may_not_grow(int fd)
{
	struct rlimit limit;
	struct stat st;

	return !getrlimit(RLIMIT_FSIZE, &limit) && !fstat(fd, &st) && S_ISREG(st.st_mode) &&
	       (rlim_t)st.st_size + LINE_MOST + STAMP_MOST > limit.rlim_cur;
}

/* Dropped where the file would have this thread wait, or would end the process (SIGPIPE). */
static void to_file(int fd, int level, const char *line)
{
	struct pollfd room = { .fd = fd, .events = POLLOUT };
	char when[32], text[LINE_MOST + STAMP_MOST];
	struct timespec ts;
	struct tm tm;
	ssize_t written;
	int len;

	if (poll(&room, 1, 0) != 1 || room.revents != POLLOUT || may_not_grow(fd))
		return;
	clock_gettime(CLOCK_REALTIME, &ts);
	localtime_r(&ts.tv_sec, &tm);
	strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
	len = snprintf(text, sizeof(text), "%s.%06ld kvrail[%d] %s: %s\n", when, ts.tv_nsec / 1000,
		       (int)getpid(), level_names[level], line);
	/* At once: lines of several processes may go to one file. */
	written = write(fd, text, (size_t)len);
	(void)written; /* a disk that is full takes none */
}

static void give_line(struct kv_log *log, int level, const char *line, bool to_sink)
{
	if (log->sink && to_sink) {
		inside++;
		atomic_store_explicit(&log->called_ns, kv_now_ns(), memory_order_relaxed);
		atomic_fetch_add(&log->in_sink, 1);
		log->sink(log->arg, level, line);
		atomic_fetch_sub(&log->in_sink, 1);
		inside--;
	}
	pthread_mutex_lock(&log->lock);
	if (log->debug_fd >= 0)
		to_file(log->debug_fd, level, line);
	if (log->error_fd >= 0 && level <= 2)
		to_file(log->error_fd, level, line);
	if (log->to_stderr)
		to_file(STDERR_FILENO, level, line);
	pthread_mutex_unlock(&log->lock);
}

void kv_log_line(struct kv_log *log, int level, const char *fmt, ...)
{
	int saved = errno;
	char line[LINE_MOST];
	va_list ap;

	if (!log || level > log->level)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	give_line(log, level, line, true);
	errno = saved;
}

/* Lines as long as the log takes, cut between two fields. */
void kv_log_state(struct kv_log *log, char *text)
{
	char *end, *next;

	if (!log || log->level < 2)
		return;
	for (char *at = text; *at; at = next) {
		size_t len = strcspn(at, "\n");

		next = at + len + (at[len] == '\n');
		if (len > STATE_LINE) {
			next = at + STATE_LINE;
			while (next > at && *next != ',')
				next--;
			next = next > at ? next + 1 : at + STATE_LINE;
			len = (size_t)(next - at);
		}
		end = at + len;
		if (end > at) {
			char kept = *end;

			*end = 0;
			give_line(log, 2, at, !atomic_load(&log->in_sink));
			*end = kept;
		}
	}
}
