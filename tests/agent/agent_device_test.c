/* SPDX-License-Identifier: Apache-2.0 */
/* agent_device_test.c -- what a device says to an agent whose thread sleeps: the fake one */
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "agent_rig.h"
#include "fake.h"

static void look_for_loss(void *arg, int level, const char *line)
{
	if (strstr(line, "agent b is lost"))
		atomic_store((atomic_bool *)arg, true);
}

/* Nothing is under way, and nobody calls: the device's own word is all that there is. */
CASE(a_device_that_fails_is_noticed_though_nobody_polls)
{
	atomic_bool lost = false;
	struct ag_pair pair;
	struct rig_two t;
	int64_t deadline;

	rig_open_logging(&t.a, "a", 4096, look_for_loss, &lost);
	rig_open(&t.b, "b", 4096);
	rig_load(&t.a, &t.b);
	t.rmem = rig_see(&t.a, &t.b, t.b.mem);
	pair = (struct ag_pair){ .mem = t.a.mem,
				 .rmem = t.rmem,
				 .local = (uintptr_t)t.a.buf,
				 .remote = (uintptr_t)t.b.buf,
				 .len = 4096 };
	rig_move(&t.a, "b", AG_WRITE, &pair, 1, NULL, 0);
	poll(NULL, 0, 20);
	assert_false(atomic_load(&lost));
	fake_device_fatal(0, 0);
	deadline = kv_deadline_ns(RIG_WAIT_MS);
	while (!atomic_load(&lost) && kv_now_ns() < deadline)
		poll(NULL, 0, 1);
	assert_true(atomic_load(&lost));
	rig_down(&t);
}

int main(void)
{
	setenv("KVCACHE_DEBUG", "1", 1);
	setenv("KVCACHE_PEER_TIMEOUT_MS", "86400000", 1);
	return run_cases(NULL, NULL);
}
