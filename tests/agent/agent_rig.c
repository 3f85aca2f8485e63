/* SPDX-License-Identifier: Apache-2.0 */
/* agent_rig.c -- agents with a buffer each */
#include "agent_rig.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static const char *options[4];
static char transport[64], way[64];

void rig_path(const char *path)
{
	const char **at = options;

	*at++ = "KVCACHE_AGENT_ADDRESS=127.0.0.1";
	if (path) {
		bool shm = strcmp(path, "tcp") && strcmp(path, "ib");

		snprintf(transport, sizeof(transport), "KVCACHE_TRANSPORT=%s", shm ? "shm" : path);
		snprintf(way, sizeof(way), "KVCACHE_SHM_PATH=%s", shm ? path : "auto");
		*at++ = transport;
		*at++ = way;
	}
	*at = NULL;
}

/* The cause of a failure that a test does not expect. */
static int fine(int ret, const struct kv_error *err)
{
	if (ret < 0)
		fprintf(stderr, "KV_ERR_%s: %s\n", kv_error_name(ret), err->message);
	return ret;
}

void rig_open(struct rig_end *end, const char *name, size_t len)
{
	rig_open_logging(end, name, len, NULL, NULL);
}

void rig_open_logging(struct rig_end *end, const char *name, size_t len,
		      void (*log)(void *arg, int level, const char *line), void *log_arg)
{
	struct ag_config config = {
		.name = name, .options = options, .log = log, .log_arg = log_arg
	};
	struct kv_error err;

	snprintf(end->name, sizeof(end->name), "%s", name);
	assert_int_equal(fine(ag_open(&config, &end->agent, &err), &err), 0);
	end->len = len;
	end->buf = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(end->buf, MAP_FAILED);
	assert_int_equal(
		fine(ag_mem_reg(end->agent, end->buf, len, AG_HOST, &end->mem, &err), &err), 0);
}

void rig_close(struct rig_end *end)
{
	ag_close(end->agent);
	munmap(end->buf, end->len);
}

void rig_load(struct rig_end *from, const struct rig_end *to)
{
	struct kv_error err;
	size_t len;
	const void *info = ag_info(to->agent, &len);

	assert_int_equal(fine(ag_peer_load(from->agent, to->name, info, len, &err), &err), 0);
}

struct ag_rmem *rig_see(struct rig_end *from, const struct rig_end *to, const struct ag_mem *mem)
{
	uint8_t info[AG_MEM_INFO_MAX];
	struct ag_rmem *rmem;
	struct kv_error err;
	size_t len = ag_mem_info(mem, info);

	assert_int_equal(fine(ag_rmem_load(from->agent, to->name, info, len, &rmem, &err), &err),
			 0);
	return rmem;
}

static void nap(int *naps)
{
	poll(NULL, 0, ++*naps > 100 ? 1 : 0);
}

void rig_up(struct rig_two *t, size_t len)
{
	rig_open(&t->a, "a", len);
	rig_open(&t->b, "b", len);
	rig_load(&t->a, &t->b);
	t->rmem = rig_see(&t->a, &t->b, t->b.mem);
}

void rig_down(struct rig_two *t)
{
	ag_rmem_unload(t->rmem);
	rig_close(&t->a);
	rig_close(&t->b);
}

int rig_end_of(struct ag_xfer *xfer, struct kv_error *err)
{
	int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);
	int ret, naps = 0;

	while ((ret = ag_xfer_check(xfer, err)) == AG_AGAIN) {
		assert_true(kv_now_ns() < deadline);
		nap(&naps);
	}
	return ret;
}

void rig_release(struct ag_xfer *xfer)
{
	int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);
	int naps = 0;

	while (ag_xfer_release(xfer) == AG_AGAIN) {
		assert_true(kv_now_ns() < deadline);
		nap(&naps);
	}
}

void rig_move(struct rig_end *from, const char *to, int kind, const struct ag_pair *pairs, size_t n,
	      const void *note, size_t note_len)
{
	struct ag_xfer *xfer;
	struct kv_error err;

	assert_int_equal(fine(ag_xfer_prepare(from->agent, to, kind, pairs, n, &xfer, &err), &err),
			 0);
	assert_true(fine(ag_xfer_post(xfer, note, note_len, &err), &err) >= 0);
	assert_int_equal(fine(rig_end_of(xfer, &err), &err), 0);
	rig_release(xfer);
}

struct taker {
	char *name;
	void *buf;
	size_t cap, len, n, max;
};

static bool take(void *arg, const char *name, const void *note, size_t len)
{
	struct taker *t = arg;

	if (t->n == t->max)
		return false;
	t->n++;
	t->len = len;
	if (t->name)
		snprintf(t->name, 64, "%s", name);
	if (t->buf)
		memcpy(t->buf, note, len < t->cap ? len : t->cap);
	return true;
}

size_t rig_note(struct rig_end *end, char *name, void *buf, size_t cap)
{
	struct taker t = { .name = name, .buf = buf, .cap = cap, .max = 1 };
	int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);
	int naps = 0;

	while (!ag_notes(end->agent, take, &t)) {
		assert_true(kv_now_ns() < deadline);
		nap(&naps);
	}
	return t.len;
}

size_t rig_notes_now(struct rig_end *end)
{
	struct taker t = { .max = SIZE_MAX };

	return ag_notes(end->agent, take, &t);
}

static uint8_t rig_byte(unsigned int seed, size_t i)
{
	uint64_t x =
		(i / 8 + 1) * UINT64_C(0x9e3779b97f4a7c15) + seed * UINT64_C(0xd1b54a32d192ed03);

	return (uint8_t)((x ^ x >> 29) >> (8 * (i & 7)));
}

void rig_fill(void *p, unsigned int seed, size_t len)
{
	for (size_t i = 0; i < len; i++)
		((uint8_t *)p)[i] = rig_byte(seed, i);
}

bool rig_is(const void *p, unsigned int seed, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (((const uint8_t *)p)[i] != rig_byte(seed, i)) {
			fprintf(stderr, "byte %zu of %zu differs\n", i, len);
			return false;
		}
	return true;
}
