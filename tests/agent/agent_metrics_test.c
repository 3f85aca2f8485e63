/* SPDX-License-Identifier: Apache-2.0 */
/* agent_metrics_test.c -- an agent's metrics are what was moved, and go with the last agent */
#include "agent_rig.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/port.h"
#include "lib/scrape.h"

enum { LEN = 1 << 20, WRITES = 5, PIECE = 3000, TEXT_MAX = 1 << 18 };

static char text[TEXT_MAX], folder[] = "/tmp/agent_metrics_test.XXXXXX";
static uint32_t port;

static bool folder_has(const char *begins)
{
	DIR *dir = opendir(folder);
	struct dirent *e;
	bool has = false;

	assert_non_null(dir);
	while ((e = readdir(dir)))
		has = has || !strncmp(e->d_name, begins, strlen(begins));
	closedir(dir);
	return has;
}

CASE(the_metrics_are_what_was_moved)
{
	struct ag_pair p;
	struct rig_two t;

	rig_up(&t, LEN);
	p = (struct ag_pair){ t.a.mem, t.rmem, (uintptr_t)t.a.buf, (uintptr_t)t.b.buf, PIECE };
	for (int i = 0; i < WRITES; i++)
		rig_move(&t.a, "b", AG_WRITE, &p, 1, NULL, 0);
	rig_move(&t.a, "b", AG_READ, &p, 1, "read", 4);
	scrape_metrics(port, text, TEXT_MAX);
	assert_int_equal(scrape_sum(text, "kvrail_agent_bytes_total", "kind=\"write\"", "\"a\""),
			 WRITES * PIECE);
	assert_int_equal(scrape_sum(text, "kvrail_agent_bytes_total", "kind=\"read\"", "\"a\""),
			 PIECE);
	assert_int_equal(scrape_sum(text, "kvrail_agent_bytes_total", "", "agent=\"b\""), 0);
	assert_int_equal(scrape_sum(text, "kvrail_agent_transfers_total", "result=\"OK\"", ""),
			 WRITES + 1);
	assert_int_equal(scrape_sum(text, "kvrail_agent_peers", "agent=\"a\"", ""), 1);
	for (int64_t end = kv_deadline_ns(RIG_WAIT_MS); !folder_has("kvrail-agent.");) {
		assert_true(kv_now_ns() < end);
		usleep(1000);
	}
	rig_close(&t.b);
	for (int64_t end = kv_deadline_ns(RIG_WAIT_MS);;) { /* a has to notice */
		scrape_metrics(port, text, TEXT_MAX);
		if (scrape_sum(text, "kvrail_agent_peers_lost_total", "agent=\"a\"", "") == 1)
			break;
		assert_true(kv_now_ns() < end);
		usleep(1000);
	}
	ag_rmem_unload(t.rmem);
	rig_close(&t.a);
	assert_false(folder_has("kvrail-agent."));
}

int main(int argc, char **argv)
{
	int holder = port_hold(&port), failed;
	char number[16];

	if (!mkdtemp(folder))
		return 1;
	snprintf(number, sizeof(number), "%u", port);
	setenv("KVCACHE_METRICS_PORT", number, 1);
	setenv("KVCACHE_METRICS_DIR", folder, 1);
	rig_path(argc > 1 ? argv[1] : NULL);
	failed = run_cases(NULL, NULL);
	close(holder);
	rmdir(folder);
	return failed;
}
