/* SPDX-License-Identifier: Apache-2.0 */
/* np_rig.c -- the NCCL plugin over eight fake devices */
#include "np_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/clock.h"

static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

char np_rig_log[NP_RIG_LOG];

void np_rig_logger(ncclDebugLogLevel level, unsigned long flags, const char *file, int line,
		   const char *fmt, ...)
{
	size_t at = strlen(np_rig_log);
	va_list ap;

	(void)level;
	(void)flags;
	(void)file;
	(void)line;
	va_start(ap, fmt);
	vsnprintf(np_rig_log + at, sizeof(np_rig_log) - at, fmt, ap);
	va_end(ap);
}

void np_rig_process(const char *const *variables, void (*body)(void))
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		setenv("KVCACHE_TRANSPORT", "ib", 1);
		for (; variables && *variables; variables++)
			putenv(strdup(*variables));
		fake_begin(&(struct fake_config){
			.hosts = 1, .devices = NP_RIG_DEVICES, .dmabuf = true });
		body();
		_exit(fake_end() ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

struct np_loop np_rig_join(int traffic_class, int dev)
{
	struct np_loop l = { 0 };
	uint8_t handle[NCCL_HANDLE_MAX];
	int64_t end = kv_deadline_ns(20000);

	CHECK(!net->init(&l.ctx, 1, &(ncclNetCommConfig_v10_t){ traffic_class }, np_rig_logger,
			 NULL));
	CHECK(!net->listen(l.ctx, dev, handle, &l.listen));
	while (!l.send || !l.recv) {
		if (!l.send)
			CHECK(!net->connect(l.ctx, dev, handle, &l.send, NULL));
		if (!l.recv)
			CHECK(!net->accept(l.listen, &l.recv, NULL));
		CHECK(kv_now_ns() < end);
	}
	return l;
}

void np_rig_part(struct np_loop *l)
{
	CHECK(!net->closeSend(l->send));
	CHECK(!net->closeRecv(l->recv));
	CHECK(!net->closeListen(l->listen));
	CHECK(!net->finalize(l->ctx));
}
