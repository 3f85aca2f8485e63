/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent_cost.c -- processor time that a transfer of the agent costs: ag_xfer_post until
 * ag_xfer_check says that it is done
 *
 *     agent_cost [BYTES [BLOCKS [ROUNDS [RUNS]]]]
 */
#include <stdlib.h>

#include "agent/agent_rig.h"
#include "cost.h"

void measured(void *arg, int rounds)
{
	struct kv_error err;

	for (int i = 0; i < rounds; i++) {
		int ret = ag_xfer_post(arg, NULL, 0, &err);

		while (ret == AG_AGAIN)
			ret = ag_xfer_check(arg, &err);
		COST_TRY(ret);
	}
}

int main(int argc, char **argv)
{
	size_t bytes = argc > 1 ? strtoul(argv[1], NULL, 10) : 1024;
	size_t blocks = argc > 2 ? strtoul(argv[2], NULL, 10) : 1538;
	int rounds = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 100;
	int runs = argc > 4 ? (int)strtol(argv[4], NULL, 10) : 10;
	struct ag_pair *pair = calloc(blocks, sizeof(*pair));
	struct ag_xfer *xfer;
	struct kv_error err;
	struct rig_two t;

	COST_TRY(!pair);
	rig_path("cma");
	rig_up(&t, 2 * blocks * bytes);
	for (size_t i = 0; i < blocks; i++) /* no two are neighbours */
		pair[i] = (struct ag_pair){ t.a.mem, t.rmem, (uintptr_t)t.a.buf + 2 * i * bytes,
					    (uintptr_t)t.b.buf + 2 * i * bytes, bytes };
	COST_TRY(ag_xfer_prepare(t.a.agent, "b", AG_WRITE, pair, blocks, &xfer, &err));
	measured(xfer, rounds);
	cost_report(xfer, rounds, runs, (double)rounds * (double)blocks);
	rig_release(xfer);
	rig_down(&t);
	free(pair);
	return 0;
}
