/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_cost.c -- nanoseconds of processor time that a message costs in the NCCL plugin: isend and
 * irecv until both are done
 *
 * usage: net_cost PLUGIN.so [BYTES [ROUNDS [RUNS]]]     8 messages are under way at once
 */
#include <dlfcn.h>
#include <string.h>

#include "cost.h"
#include "../net_plugin/nccl_abi.h"

enum { WINDOW = 8 };

struct cost {
	ncclNet_v12_t *net;
	void *send, *recv, *send_mr, *recv_mr;
	char *from, *to;
	size_t bytes;
};

static void quiet(ncclDebugLogLevel level, unsigned long flags, const char *file, int line,
		  const char *fmt, ...)
{
}

void measured(void *arg, int rounds)
{
	struct cost *c = arg;

	for (int round = 0; round < rounds; round++) {
		void *sent[WINDOW] = { NULL }, *got[WINDOW] = { NULL };
		int open = 2 * WINDOW, done;

		while (open) {
			for (int i = 0; i < WINDOW; i++) {
				void *data = c->to + (size_t)i * c->bytes, *phandle = NULL;
				int tag = 0;

				if (!got[i])
					COST_TRY(c->net->irecv(c->recv, 1, &data, &c->bytes, &tag,
							       &c->recv_mr, &phandle, &got[i]));
				if (!got[i])
					break;
			}
			for (int i = 0; i < WINDOW; i++) {
				if (!sent[i])
					COST_TRY(c->net->isend(
						c->send, c->from + (size_t)i * c->bytes, c->bytes,
						0, c->send_mr, NULL, &sent[i]));
				if (!sent[i])
					break;
			}
			for (int i = 0; i < 2 * WINDOW; i++) {
				void **request = i < WINDOW ? &got[i] : &sent[i - WINDOW];

				if (!*request || *request == c)
					continue;
				COST_TRY(c->net->test(*request, &done, NULL));
				if (!done)
					continue;
				*request = c; /* done */
				open--;
			}
		}
	}
}

int main(int argc, char **argv)
{
	size_t bytes = argc > 2 ? strtoul(argv[2], NULL, 10) : 4096;
	int rounds = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 500;
	int runs = argc > 4 ? (int)strtol(argv[4], NULL, 10) : 10;
	ncclNetCommConfig_v10_t config = { -1 };
	uint8_t handle[NCCL_HANDLE_MAX];
	struct cost c = { .bytes = bytes };
	void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL, *ctx, *listen;

	COST_TRY(!library);
	c.net = dlsym(library, "ncclNetPlugin_v12");
	COST_TRY(!c.net);
	COST_TRY(c.net->init(&ctx, 1, &config, quiet, NULL));
	COST_TRY(c.net->listen(ctx, 0, handle, &listen));
	while (!c.send || !c.recv) {
		if (!c.send)
			COST_TRY(c.net->connect(ctx, 0, handle, &c.send, NULL));
		if (!c.recv)
			COST_TRY(c.net->accept(listen, &c.recv, NULL));
	}
	c.from = aligned_alloc(4096, WINDOW * bytes + 4096 - (WINDOW * bytes) % 4096);
	c.to = aligned_alloc(4096, WINDOW * bytes + 4096 - (WINDOW * bytes) % 4096);
	memset(c.from, 1, WINDOW * bytes);
	memset(c.to, 2, WINDOW * bytes);
	COST_TRY(c.net->regMr(c.send, c.from, WINDOW * bytes, NCCL_PTR_HOST, &c.send_mr));
	COST_TRY(c.net->regMr(c.recv, c.to, WINDOW * bytes, NCCL_PTR_HOST, &c.recv_mr));
	measured(&c, rounds);
	cost_report(&c, rounds, runs, (double)WINDOW * rounds);
	return memcmp(c.from, c.to, WINDOW * bytes) != 0;
}
