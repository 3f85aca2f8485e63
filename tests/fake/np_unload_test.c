/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_unload_test.c -- NCCL unloads the plugin after finalize, also while a device is still at a
 * queue pair: the thread that waits for the device must not lose its code
 */
#include <dlfcn.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "np.h"
#include "np_stuck.h"

static const char *path;
static char said[65536];

static void logger(ncclDebugLogLevel level, unsigned long flags, const char *file, int line,
		   const char *fmt, ...)
{
	size_t len = strlen(said);
	va_list ap;

	(void)level;
	(void)flags;
	(void)file;
	(void)line;
	va_start(ap, fmt);
	vsnprintf(said + len, sizeof(said) - len, fmt, ap);
	va_end(ap);
}

static void code_stays_while_a_device_is_still_at_a_queue_pair(void **state)
{
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL), *ctx, *listen, *send = NULL;
	void *recv = NULL;
	ncclNetCommConfig_v10_t config = { -1 };
	char handle[NCCL_HANDLE_MAX];
	const ncclNet_v12_t *net;
	int64_t end = kv_deadline_ns(60000);

	(void)state;
	assert_non_null(library);
	net = dlsym(library, "ncclNetPlugin_v12");
	assert_non_null(net);
	assert_int_equal(net->init(&ctx, 1, &config, logger, NULL), 0);
	assert_int_equal(net->listen(ctx, 0, handle, &listen), 0);
	while (!send || !recv) {
		if (!send)
			assert_int_equal(net->connect(ctx, 0, handle, &send, NULL), 0);
		if (!recv)
			assert_int_equal(net->accept(listen, &recv, NULL), 0);
		assert_true(kv_now_ns() < end);
	}
	assert_int_equal(net->closeSend(send), 0);
	assert_int_equal(net->closeRecv(recv), 0);
	assert_int_equal(net->closeListen(listen), 0);
	assert_int_equal(net->finalize(ctx), 0);
	assert_non_null(strstr(said, "has not destroyed its queue pairs"));
	assert_int_equal(dlclose(library), 0);
	poll(NULL, 0, 2 * NP_STUCK_MS + 1000); /* a thread without its code ends the process */
	assert_non_null(dlopen(path, RTLD_NOW | RTLD_NOLOAD));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(code_stays_while_a_device_is_still_at_a_queue_pair),
	};

	if (argc != 2) {
		fprintf(stderr, "usage: np_unload_test PLUGIN\n");
		return 2;
	}
	path = argv[1];
	return cmocka_run_group_tests(tests, NULL, NULL);
}
