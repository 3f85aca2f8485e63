/* SPDX-License-Identifier: Apache-2.0 */
/*
 * look.h -- asks running processes that have an engine, at their local sockets
 * (transport/base/view.h says how they are named and what they answer)
 */
#ifndef KVRAIL_TOOL_LOOK_H
#define KVRAIL_TOOL_LOOK_H

#include <stddef.h>

enum { LOOK_SOCKETS_MAX = 256, LOOK_NAME_MAX = 108 };

/* A process may have several: each copy of the library in it has one. */
struct look_socket {
	int pid; /* whose network its name belongs to; 0: this process's */
	char name[LOOK_NAME_MAX];
};

int look_pid(const char *text); /* 0: not the number of a process */
/* Those of `pid`; with pid 0 those of every process in this network. -1: errno says why not. */
int look_find(int pid, struct look_socket *found, size_t cap);
/*
 * The answer, of malloc, and the process that gave it; NULL: *why says it in words. A socket of a
 * process that is not `socket->pid`, or of another user, is not asked: *pid_p is 0.
 */
char *look_ask(const struct look_socket *socket, const char *question, int *pid_p,
	       const char **why_p);

#endif
