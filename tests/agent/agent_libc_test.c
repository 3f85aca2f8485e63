/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent_libc_test.c -- each call of the C library that an agent makes fails once: success, or an
 * error with its cause; no crash, no hang, nothing left behind, and a second attempt works
 *
 * usage: agent_libc_test [cma|ring|tcp]; KVRAIL_LONG=1: every call, not only some of many
 */
#include "agent_rig.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "../lib/libc_sweep.h"
#include "base/error.h"

enum { LEN = 100000 };

static int64_t patience_ms;
static const char *options[4];
static char transport[64], way[64];

struct scene {
	struct ag_agent *agent[2];
	struct ag_mem *mem[2];
	struct ag_rmem *rmem;
	struct ag_xfer *xfer;
	size_t notes;
};

/* Static: no call of the C library is made for them. */
static uint8_t from[LEN], to[LEN];

static bool count_note(void *arg, const char *name, const void *note, size_t len)
{
	++*(size_t *)arg;
	return true;
}

static int scene_open(struct scene *s, struct kv_error *err)
{
	static const char *const names[] = { "a", "b" };
	uint8_t *const bytes[] = { from, to };
	int ret = 0;

	for (int i = 0; i < 2 && !ret; i++) {
		struct ag_config config = { .name = names[i], .options = options };

		ret = ag_open(&config, &s->agent[i], err);
		if (!ret)
			ret = ag_mem_reg(s->agent[i], bytes[i], LEN, AG_HOST, &s->mem[i], err);
	}
	return ret;
}

static int scene_load(struct scene *s, struct kv_error *err)
{
	uint8_t info[AG_MEM_INFO_MAX];
	size_t len, mem_len = ag_mem_info(s->mem[1], info);
	const void *place = ag_info(s->agent[1], &len);
	struct ag_pair pair = { s->mem[0], NULL, (uintptr_t)from, (uintptr_t)to, LEN };
	int ret = ag_peer_load(s->agent[0], "b", place, len, err);

	if (!ret)
		ret = ag_rmem_load(s->agent[0], "b", info, mem_len, &s->rmem, err);
	pair.rmem = s->rmem;
	return ret ? ret : ag_xfer_prepare(s->agent[0], "b", AG_WRITE, &pair, 1, &s->xfer, err);
}

static int scene_wait(struct scene *s, struct kv_error *err)
{
	int64_t deadline = kv_deadline_ns(patience_ms);
	int ret = ag_xfer_post(s->xfer, "bytes", 5, err);

	while (ret == AG_AGAIN && kv_now_ns() < deadline) {
		ret = ag_xfer_check(s->xfer, err);
		poll(NULL, 0, 1);
	}
	if (!ret)
		ret = ag_notify(s->agent[0], "b", "alone", 5, err);
	while (!ret && s->notes < 2 && kv_now_ns() < deadline) {
		ag_notes(s->agent[1], count_note, &s->notes);
		ret = ag_peer_check(s->agent[0], "b", err);
		poll(NULL, 0, 1);
	}
	if (ret < 0)
		return ret;
	return ret || s->notes < 2 ? kv_fail(err, KV_ERR_TIMEOUT, "scene", "nothing comes") : 0;
}

static int scene_play(struct kv_error *err)
{
	struct scene s = { 0 };
	struct kv_error ignored;
	int ret;

	rig_fill(from, 1, LEN);
	memset(to, 0, LEN);
	ret = scene_open(&s, err);
	if (!ret)
		ret = scene_load(&s, err);
	if (!ret)
		ret = scene_wait(&s, err);
	if (!ret && !rig_is(to, 1, LEN))
		fail_msg("success, and other bytes");
	if (s.xfer)
		rig_release(s.xfer);
	if (s.rmem)
		ag_rmem_unload(s.rmem);
	for (int i = 0; i < 2; i++)
		if (s.mem[i])
			ag_mem_dereg(s.mem[i], &ignored);
	for (int i = 0; i < 2; i++)
		ag_close(s.agent[i]);
	return ret;
}

static int play(bool patient, struct kv_error *err)
{
	patience_ms = patient ? RIG_WAIT_MS : slow_ms(400);
	return scene_play(err);
}

CASE(every_call_of_the_c_library_fails_once)
{
	libc_sweep(play);
}

int main(int argc, char **argv)
{
	const char *path = argc > 1 ? argv[1] : "cma";
	bool tcp = !strcmp(path, "tcp");

	snprintf(transport, sizeof(transport), "KVCACHE_TRANSPORT=%s", tcp ? "tcp" : "shm");
	snprintf(way, sizeof(way), "KVCACHE_SHM_PATH=%s", tcp ? "auto" : path);
	options[0] = "KVCACHE_AGENT_ADDRESS=127.0.0.1";
	options[1] = transport;
	options[2] = way;
	return run_cases(NULL, NULL);
}
