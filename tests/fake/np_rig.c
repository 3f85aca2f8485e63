/* SPDX-License-Identifier: Apache-2.0 */
/* np_rig.c -- the conformance rig over eight fake devices */
#include "np_rig.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "lib/test.h"

void np_rig_await(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

void np_rig_process(const char *const *variables, void (*body)(void))
{
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
	np_rig_await(pid);
}

struct side np_rig_init(int traffic_class, int dev)
{
	struct side s = { .net = &ncclNetPlugin_v12, .dev = dev, .sock = -1 };

	CHECK(!s.net->init(&s.ctx, 1, &(ncclNetCommConfig_v10_t){ traffic_class }, side_logger,
			   NULL));
	return s;
}

struct side np_rig_join(int traffic_class, int dev, size_t bytes)
{
	struct side s = np_rig_init(traffic_class, dev);

	PASSES(&s, side_loop(&s, &s.loop));
	PASSES(&s, side_buffer(&s, s.loop.send, bytes, &s.from));
	PASSES(&s, side_buffer(&s, s.loop.recv, bytes, &s.to));
	return s;
}

void np_rig_part(struct side *s)
{
	PASSES(s, side_buffer_free(s, s->loop.send, &s->from));
	PASSES(s, side_buffer_free(s, s->loop.recv, &s->to));
	PASSES(s, side_loop_close(s, &s->loop));
	PASSES(s, side_stop(s));
}

void np_rig_join_old(const ncclNetCommConfig_v10_t *config, bool connects_first, struct loop *l)
{
	int64_t end = kv_deadline_ns(SIDE_WAIT_MS);
	uint8_t handle[NCCL_HANDLE_MAX];

	*l = (struct loop){ 0 };
	CHECK(!ncclNetPlugin_v10.listen(0, handle, &l->listen));
	while (!l->send || !l->recv) {
		if (!l->send)
			CHECK(!ncclNetPlugin_v10.connect(0, (void *)config, handle, &l->send,
							 NULL));
		if (!l->recv && (l->send || !connects_first))
			CHECK(!ncclNetPlugin_v10.accept(l->listen, &l->recv, NULL));
		CHECK(kv_now_ns() < end);
	}
}
