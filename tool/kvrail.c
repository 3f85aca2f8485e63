/* SPDX-License-Identifier: Apache-2.0 */
/* kvrail.c -- the kvrail command: finds the subcommand */
#include "tool.h"

#include <stdio.h>
#include <string.h>

static const struct subcommand {
	const char *name;
	int (*main)(int argc, char **argv);
	const char *what;
} subcommands[] = {
	{ "info", info_main, "transports, devices and options of this machine" },
	{ "doctor", doctor_main, "is this machine ready for RDMA, and what to do if not" },
	{ "dump", dump_main, "what a running process waits for, also while it hangs" },
	{ "top", top_main, "running processes: bytes a second, operations, errors" },
	{ "bench", bench_main, "how fast blocks reach another host, every byte checked" },
};

static const size_t subcommands_count = sizeof(subcommands) / sizeof(subcommands[0]);

static void usage(FILE *out)
{
	fputs("usage: kvrail COMMAND [OPTION]...\n"
	      "       kvrail --version\n"
	      "\n"
	      "commands:\n",
	      out);
	for (size_t i = 0; i < subcommands_count; i++)
		fprintf(out, "  %-8s %s\n", subcommands[i].name, subcommands[i].what);
	fputs("\nkvrail COMMAND --help shows more.\n", out);
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";

	if (!strcmp(name, "--help") || !strcmp(name, "-h")) {
		usage(stdout);
		return 0;
	}
	if (!strcmp(name, "--version") || !strcmp(name, "-V")) {
		printf("kvrail %s\n", kv_version());
		return 0;
	}
	for (size_t i = 0; i < subcommands_count; i++)
		if (!strcmp(name, subcommands[i].name))
			return subcommands[i].main(argc - 1, argv + 1);
	if (*name)
		fprintf(stderr, "kvrail: there is no command \"%s\"\n", name);
	usage(stderr);
	return EXIT_USAGE;
}
