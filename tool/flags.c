/* SPDX-License-Identifier: Apache-2.0 */
/* flags.c -- the arguments of a command that has --json and no other flag */
#include "tool.h"

#include <getopt.h>

int flags_json(int argc, char **argv, void (*usage)(FILE *out), bool *json)
{
	static const struct option flags[] = { { "json", no_argument, NULL, 'j' },
					       { "help", no_argument, NULL, 'h' },
					       { 0 } };
	int flag;

	while ((flag = getopt_long(argc, argv, "jh", flags, NULL)) != -1) {
		if (flag == 'h') {
			usage(stdout);
			return 0;
		}
		if (flag != 'j') {
			usage(stderr);
			return EXIT_USAGE;
		}
		*json = true;
	}
	return -1;
}
