/* SPDX-License-Identifier: Apache-2.0 */
/* look.c -- finds the local sockets of processes that have an engine, and asks there */
#include "look.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/text.h"

enum {
	PATIENCE_MS = 5000,
	CHUNK = 64 << 10,
	NO_SUCH_USER = 65534, /* the kernel's word for one of another user namespace */
};

static long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

/* ---------------------------------------------------------------- finding */

/* "kvrail.PIDNS.PID.": what the names of a process begin with. */
static int name_begins(int pid, char *buf, size_t cap)
{
	char path[64], line[256];
	int inner = pid;
	struct stat ns;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/ns/pid", pid);
	if (stat(path, &ns))
		return -1;
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	file = fopen(path, "re");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, "NSpid:", 6))
			inner = (int)strtol(strrchr(line, '\t'), NULL, 10);
	fclose(file);
	snprintf(buf, cap, "kvrail.%ju.%d.", (uintmax_t)ns.st_ino, inner);
	return 0;
}

int look_find(int pid, struct look_socket *found, size_t cap)
{
	char path[64] = "/proc/net/unix", begins[64] = "kvrail.", line[512];
	size_t n = 0;
	FILE *file;

	if (pid && name_begins(pid, begins, sizeof(begins)))
		return -1;
	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/net/unix", pid);
	file = fopen(path, "re");
	if (!file)
		return -1;
	/* A connection that was accepted has its listener's name, too: that one has the flag. */
	while (n < cap && fgets(line, sizeof(line), file)) {
		char *name = strrchr(line, '@');
		unsigned int flags = 0;

		if (!name || strncmp(name + 1, begins, strlen(begins)) ||
		    sscanf(line, "%*s %*s %*s %x", &flags) != 1 || !(flags & 0x10000))
			continue;
		name[strcspn(name, "\n")] = 0;
		found[n].pid = pid;
		snprintf(found[n++].name, LOOK_NAME_MAX, "%s", name + 1);
	}
	fclose(file);
	return (int)n;
}

int look_pid(const char *text)
{
	char *end;
	long pid = strtol(text, &end, 10);

	return *text >= '1' && *text <= '9' && !*end && pid <= INT_MAX ? (int)pid : 0;
}

/* ---------------------------------------------------------------- asking */

static bool dial(int fd, const char *name, long long deadline_ms)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	size_t len = strlen(name);

	if (len >= sizeof(at.sun_path))
		return false;
	memcpy(at.sun_path + 1, name, len);
	while (connect(fd, (struct sockaddr *)&at,
		       (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len))) {
		if (errno != EAGAIN || now_ms() > deadline_ms) /* others ask, too */
			return false;
		poll(NULL, 0, 10);
	}
	return true;
}

/* A namespace of `pid` that is not this process's, or -1. */
static int other_namespace(int pid, const char *which)
{
	struct stat ours, theirs;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/ns/%s", which);
	if (stat(path, &ours))
		return -1;
	snprintf(path, sizeof(path), "/proc/%d/ns/%s", pid, which);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || (!fstat(fd, &theirs) && theirs.st_ino != ours.st_ino))
		return fd;
	close(fd);
	return -1;
}

static int dial_here(const char *name, long long deadline_ms)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || dial(fd, name, deadline_ms))
		return fd;
	close(fd);
	return -1;
}

enum { CANNOT_ENTER = 255, CANNOT_DIAL = 254 };

/*
 * In a process of its own, because a user namespace is not left again. There a process of the same
 * user as outside, or its root: outside's root may be nobody there.
 */
static int dial_inside(const char *name, int user, int network, long long deadline_ms)
{
	int fd;

	if (user >= 0 && !setns(user, CLONE_NEWUSER) &&
	    (setresgid(0, 0, 0) || setresuid(0, 0, 0)) && geteuid() == NO_SUCH_USER)
		return CANNOT_ENTER;
	if (network >= 0 && setns(network, CLONE_NEWNET))
		return CANNOT_ENTER;
	fd = dial_here(name, deadline_ms);
	return fd >= 0 && fd < CANNOT_DIAL ? fd : CANNOT_DIAL;
}

/* A connection to the socket: its name is looked up in the network of the process. */
static int connect_to(const struct look_socket *to, const char **why_p, long long deadline_ms)
{
	int user = to->pid ? other_namespace(to->pid, "user") : -1;
	int network = to->pid ? other_namespace(to->pid, "net") : -1, fd, status = 0;
	pid_t helper;

	*why_p = "it has just ended, or others ask it all the time";
	if (user < 0 && network < 0)
		return dial_here(to->name, deadline_ms);
	/* What it opens is open here: the descriptors are the same. */
	helper = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
	if (!helper)
		_exit(dial_inside(to->name, user, network, deadline_ms));
	if (helper < 0 || waitpid(helper, &status, 0) != helper || !WIFEXITED(status))
		status = -1;
	fd = status < 0 ? CANNOT_DIAL : WEXITSTATUS(status);
	if (fd == CANNOT_ENTER)
		*why_p = "it has a network, or users, of its own: ask as root, or inside of its "
			 "container (nsenter, docker exec)";
	if (user >= 0)
		close(user);
	if (network >= 0)
		close(network);
	return fd >= CANNOT_DIAL ? -1 : fd;
}

/* Anybody may have taken a name that looks like one of ours. */
static bool is_whom_we_ask(int fd, int pid, int *pid_p)
{
	struct ucred who;
	socklen_t len = sizeof(who);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len))
		return false;
	*pid_p = who.pid;
	if (pid)
		return who.pid == pid;
	return who.pid && (who.uid == geteuid() || !geteuid());
}

static bool is_stopped(int pid)
{
	char state = kv_process_state(pid);

	return state == 'T' || state == 't';
}

static char *read_all(int fd, long long deadline_ms)
{
	char *text = NULL;
	size_t len = 0, cap = 0;

	for (;;) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		long long left = deadline_ms - now_ms();
		ssize_t n;

		if (cap - len < CHUNK) {
			char *more = realloc(text, cap = len + 2 * CHUNK);

			if (!more)
				break;
			text = more;
		}
		if (left <= 0 || poll(&pfd, 1, (int)left) != 1)
			break;
		n = recv(fd, text + len, cap - len - 1, 0);
		if (n < 0)
			break;
		len += (size_t)n;
		text[len] = 0;
		if (!n && len)
			return text;
		if (!n)
			break;
	}
	free(text);
	return NULL;
}

char *look_ask(const struct look_socket *socket, const char *question, int *pid_p,
	       const char **why_p)
{
	long long deadline_ms = now_ms() + PATIENCE_MS;
	size_t len = strlen(question);
	char *text = NULL;
	int fd;

	fd = connect_to(socket, why_p, deadline_ms);
	if (fd < 0)
		return NULL;
	if (!is_whom_we_ask(fd, socket->pid, pid_p)) {
		*why_p = "the socket of its name is another process's";
		*pid_p = 0;
	} else if (is_stopped(*pid_p)) {
		*why_p = "it is stopped: kill -CONT lets it go on, or the debugger that has it";
	} else if (send(fd, question, len, MSG_NOSIGNAL) == (ssize_t)len) {
		text = read_all(fd, deadline_ms);
		*why_p = "it has not answered: it is another user's, or its machine is very busy";
	}
	close(fd);
	return text;
}
