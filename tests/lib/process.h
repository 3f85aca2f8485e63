/* SPDX-License-Identifier: Apache-2.0 */
/* process.h -- what a process holds; for tests of what stays behind, and of what it costs */
#ifndef PROCESS_H
#define PROCESS_H

#include <dirent.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Entries of a folder of /proc; 2 of them are dots. */
static inline int process_entries(pid_t pid, const char *folder)
{
	char path[64];
	DIR *dir;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, folder);
	dir = opendir(path);
	if (!dir)
		abort();
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* And three more, always the same: two dots and the folder that is being read. */
static inline int count_descriptors(void)
{
	return process_entries(getpid(), "fd");
}

/* Whether no more are open than that: a thread that ends closes its own a moment later. */
static inline bool descriptors_have_gone(int left)
{
	for (int i = 0; i < 5000; i++) {
		if (count_descriptors() <= left)
			return true;
		usleep(1000);
	}
	return false;
}

static inline int count_threads(void)
{
	return process_entries(getpid(), "task") - 2;
}

/* Threads of this process by that name. */
static inline int threads_named(const char *name)
{
	DIR *dir = opendir("/proc/self/task");
	const struct dirent *entry;
	int n = 0;

	if (!dir)
		abort();
	while ((entry = readdir(dir))) {
		char path[300], comm[32] = "";
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", entry->d_name);
		f = fopen(path, "r");
		if (!f)
			continue;
		if (fgets(comm, sizeof(comm), f))
			n += !strncmp(comm, name, strlen(name));
		fclose(f);
	}
	closedir(dir);
	return n;
}

/* Whether no more are left than that: one that was joined may be listed a moment longer. */
static inline bool threads_have_gone(int left)
{
	for (int i = 0; i < 5000; i++) {
		if (count_threads() <= left)
			return true;
		usleep(1000);
	}
	return false;
}

/* Returns when every thread of that child stands still: one that runs may go on until then. */
static inline bool stop_process(pid_t pid)
{
	int how;

	return !kill(pid, SIGSTOP) && waitpid(pid, &how, WUNTRACED) == pid && WIFSTOPPED(how);
}

/*
 * A race detector has up to so many bytes of its own for one of the program, and threads beside
 * the program's last one: two in a child that was forked.
 */
#ifdef __SANITIZE_THREAD__
enum { RESIDENT_FACTOR = 8, THREADS_LAST = 3 };
#else
enum { RESIDENT_FACTOR = 1, THREADS_LAST = 1 };
#endif

static inline long resident_kib(pid_t pid)
{
	long pages = 0, unused;
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)pid);
	f = fopen(path, "re");
	if (!f || fscanf(f, "%ld %ld", &unused, &pages) != 2)
		abort();
	fclose(f);
	return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

#endif
