/* SPDX-License-Identifier: Apache-2.0 */
/* main.c -- main of programs that have none of their own: [PATH of the rig] [pattern of cases] */
#include "test.h"

void rig_path(const char *path) __attribute__((weak)); /* where tests/loop/kv_rig.c is linked */

int main(int argc, char **argv)
{
	if (rig_path && argc > 1) {
		rig_path(argv[1]);
		argc--, argv++;
	}
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return run_cases(NULL, NULL);
}
