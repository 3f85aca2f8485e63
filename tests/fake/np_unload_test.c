/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_unload_test.c -- NCCL unloads the plugin after finalize, also while a device is still at a
 * queue pair: the thread that waits for the device must not lose its code
 */
#include <dlfcn.h>
#include <poll.h>
#include <stdio.h>

#include "lib/test.h"
#include "net_side.h"
#include "np_stuck.h"

static const char *path;

CASE(code_stays_while_a_device_is_still_at_a_queue_pair)
{
	struct side s = { .source.path = path, .sock = -1 };

	if (side_start(&s) || side_loop(&s, &s.loop) || side_loop_close(&s, &s.loop) ||
	    side_stop(&s))
		fail_msg("%s", s.reason);
	assert_true(side_log_has("has not destroyed its queue pairs"));
	net_unload();
	poll(NULL, 0, 2 * NP_STUCK_MS + 1000); /* a thread without its code ends the process */
	assert_non_null(dlopen(path, RTLD_NOW | RTLD_NOLOAD));
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: np_unload_test PLUGIN\n");
		return 2;
	}
	path = argv[1];
	return run_cases(NULL, NULL);
}
