/* SPDX-License-Identifier: Apache-2.0 */
/* kv_hang_fake_test.c -- the dump says of a write whose NIC carries nothing that it is the NIC */
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "fake.h"
#include "loop/kv_rig.h"

static char text[1 << 16];

CASE(a_nic_that_carries_nothing_is_named)
{
	static const int64_t ids[] = { 3, 4 };
	static const struct kv_layers all_layers = { 0, 0 };
	enum { WORDS = 4 };
	static const char *const words[WORDS] = { "waits_for the transport", "requests under way",
						  "transport ib", "oldest " };
	struct kv_error err;
	struct kv_op *op;
	struct pair p;

	pair_open(&p, NULL, NULL);
	fake_mute(0, true);
	ok(kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, ids, ids, 2, NULL, &op, &err),
	   &err);
	for (int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS);;) {
		size_t i = 0;

		assert_true(kv_dump(p.a.engine, text, sizeof(text)) < (int)sizeof(text));
		while (i < WORDS && strstr(text, words[i]))
			i++;
		if (i == WORDS)
			break;
		if (kv_now_ns() >= end)
			fail_msg("it does not say \"%s\":\n%s", words[i], text);
		usleep(1000);
	}
	fake_mute(0, false);
	ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
	ok(kv_op_free(op, &err), &err);
	pair_close(&p);
}

int main(void)
{
	return run_cases(NULL, NULL);
}
