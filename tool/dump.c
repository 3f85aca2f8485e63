/* SPDX-License-Identifier: Apache-2.0 */
/* dump.c -- kvrail dump: what a running process waits for */
#include "tool.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "look.h"

static void usage(FILE *out)
{
	fputs("usage: kvrail dump PID [--json]\n"
	      "\n"
	      "Says what a running process waits for: the operations of its engines, the oldest first, with\n"
	      "stage, age and peer; then its peers with state, address, path, when they were last heard, leases\n"
	      "and credits; the last error with its cause. Also while every thread of the application hangs: a\n"
	      "thread of the library answers. The process belongs to the same user, or you are root, and its\n"
	      "KVCACHE_VIEW is not 0. Times are in milliseconds.\n"
	      "Exit status: 0, or 1 if there is no answer.\n",
	      out);
}

static int tell_why(int pid, const char *why)
{
	fprintf(stderr, "kvrail dump: process %d: %s\n", pid, why);
	return 1;
}

/* The engines of every copy of the library in the process, in one document. */
static int join_json(json_t **all_p, const char *text)
{
	json_t *one = json_loads(text, 0, NULL);

	if (!one)
		return -1;
	if (!*all_p) {
		*all_p = one;
		return 0;
	}
	json_array_extend(json_object_get(*all_p, "engines"), json_object_get(one, "engines"));
	json_decref(one);
	return 0;
}

static int dump_process(int pid, bool json)
{
	static struct look_socket sockets[LOOK_SOCKETS_MAX];
	int n = look_find(pid, sockets, LOOK_SOCKETS_MAX), answers = 0, from;
	const char *why = "it has no engine of kvrail open, or KVCACHE_VIEW is 0 there";
	json_t *all = NULL;

	if (n < 0)
		return tell_why(pid, errno == ENOENT   ? "there is no such process"
				     : errno == EACCES ? "it is another user's"
						       : strerror(errno));
	for (int i = 0; i < n; i++) {
		char *text = look_ask(&sockets[i], json ? "dump json\n" : "dump\n", &from, &why);

		if (text && json && join_json(&all, text))
			why = "its answer is cut off: its machine is very busy";
		else if (text)
			answers++;
		if (text && !json)
			fputs(text, stdout);
		free(text);
	}
	if (all) {
		json_dumpf(all, stdout, JSON_INDENT(2));
		printf("\n");
		json_decref(all);
	}
	return answers ? 0 : tell_why(pid, why);
}

int dump_main(int argc, char **argv)
{
	bool json = false;
	int ret = flags_json(argc, argv, usage, &json), pid;

	if (ret >= 0)
		return ret;
	pid = optind + 1 == argc ? look_pid(argv[optind]) : 0;
	if (!pid) {
		fprintf(stderr, "kvrail dump: it takes the number of one process\n");
		usage(stderr);
		return EXIT_USAGE;
	}
	return dump_process(pid, json);
}
