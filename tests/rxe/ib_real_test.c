/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_real_test.c -- the ib provider on real verbs: two ends in one process, rxe0 and rxe1 or both
 * devices on both ends
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/option.h"
#include "lib/test.h"
#include "rig.h"

enum { GUARD = 4096, SIZE = 4 << 20, BUDGET = 4000000, BLANK = 0xee, COUNT_MS = 20000 };

struct pair {
	struct rig rig;
	uint8_t *buf[2];
	struct tr_mem *mem[2];
	struct tr_rmem *rmem[2]; /* what side i sees of the other */
};

/* "rxe": side 0 on rxe0 and side 1 on rxe1; "ib" with no fake begun: both devices on both sides. */
struct way {
	const char *transport;
	const char *options[3];
};
static const struct way one_lane = { "rxe", { "KVCACHE_IB_LANES=1" } };
static const struct way four_lanes = { "rxe", { "KVCACHE_IB_LANES=4" } };
static const struct way two_devices = { "ib", { "KVCACHE_IB_LANES=2" } };
static const struct way *const ways[] = { &one_lane, &four_lanes, &two_devices };
enum { WAYS = 3 };

static void up(struct pair *p, const struct way *way)
{
	memset(p, 0, sizeof(*p));
	rig_make(&p->rig, way->transport, way->options);
	for (int i = 0; i < 2; i++) {
		p->buf[i] = aligned_alloc(4096, SIZE + 2 * GUARD);
		memset(p->buf[i], BLANK, SIZE + 2 * GUARD);
		p->mem[i] = rig_reg(&p->rig, i, p->buf[i] + GUARD, SIZE,
				    TR_REMOTE_WRITE | TR_REMOTE_READ);
	}
	for (int i = 0; i < 2; i++)
		p->rmem[i] = rig_see(&p->rig, i, p->mem[!i]);
}

/* BUSY while a device still works for a connection that was closed without a fence. */
static void dereg(struct tr_mem *mem)
{
	int64_t end = kv_deadline_ns(60000);
	int ret;

	while ((ret = tr_mem_dereg(mem, NULL)) == KV_ERR_BUSY && kv_now_ns() < end)
		usleep(1000);
	assert_int_equal(ret, 0);
}

static void down(struct pair *p)
{
	for (int i = 0; i < 2; i++)
		for (size_t g = 0; g < GUARD; g++) {
			assert_int_equal(p->buf[i][g], BLANK);
			assert_int_equal(p->buf[i][GUARD + SIZE + g], BLANK);
		}
	rig_disconnect(&p->rig);
	for (int i = 0; i < 2; i++) {
		dereg(p->mem[i]);
		free(p->buf[i]);
	}
	rig_close(&p->rig);
}

static uint8_t *at(struct pair *p, int side, uint64_t offset)
{
	return p->buf[side] + GUARD + offset;
}

static void fill(struct pair *p, int side, uint64_t epoch)
{
	for (size_t i = 0; i < SIZE; i++)
		*at(p, side, i) = rig_byte(epoch, i);
}

static struct rig_event *expect(struct pair *p, int side, int kind)
{
	struct rig_event *event = rig_wait(&p->rig, side, kind, BUDGET);

	if (!event) {
		struct rig_event *lost = rig_find(&p->rig, side, TR_PEER_LOST);

		fail_msg("no event %d: %s", kind, lost ? lost->cause.message : "nothing happened");
	}
	return event;
}

/* The packets that both devices have sent so far, as they count them. */
static uint64_t packets_sent(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < 2; i++) {
		char path[96];
		unsigned long long n = 0;
		FILE *file;

		snprintf(path, sizeof(path),
			 "/sys/class/infiniband/rxe%d/ports/1/hw_counters/sent_pkts", i);
		file = fopen(path, "r");
		assert_non_null(file);
		assert_int_equal(fscanf(file, "%llu", &n), 1);
		fclose(file);
		sum += n;
	}
	return sum;
}

/* Soft-RoCE counts a packet when it has sent it, which the peer's answer may overtake. */
static void await_packets(uint64_t wanted)
{
	int64_t end = kv_deadline_ns(COUNT_MS);

	while (packets_sent() < wanted && kv_now_ns() < end)
		usleep(1000);
	assert_true(packets_sent() >= wanted);
}

/*
 * Blocks in order go to the places of a permutation, every second block; the others must stay as
 * they are.
 */
static void write_blocks(struct pair *p, size_t block, uint64_t epoch, unsigned int flags)
{
	size_t n = SIZE / block;
	struct tr_span *spans = calloc(n / 2, sizeof(*spans));
	uint64_t before = packets_sent();

	fill(p, 0, epoch);
	memset(at(p, 1, 0), BLANK, SIZE);
	for (size_t i = 0; i < n / 2; i++)
		spans[i] = (struct tr_span){ i * block, (i * 7 + 3) % (n / 2) * 2 * block, block };
	rig_op(&p->rig, 0, TR_WRITE, epoch, p->mem[0], p->rmem[0], spans, n / 2, flags, epoch * 3);
	if (flags & TR_NOTIFY)
		assert_int_equal(expect(p, 1, TR_NOTIFIED)->value, epoch * 3);
	else
		assert_int_equal(expect(p, 0, TR_WRITTEN)->user, epoch);
	for (size_t i = 0; i < n / 2; i++) {
		assert_memory_equal(at(p, 1, spans[i].remote), at(p, 0, spans[i].local), block);
		for (size_t b = 0; b < block; b += 61)
			assert_int_equal(*at(p, 1, spans[i].remote + block + b), BLANK);
	}
	if (flags & TR_NOTIFY)
		assert_int_equal(expect(p, 0, TR_WRITTEN)->user, epoch);
	/* The device itself has seen the bytes leave: no packet has more than 4096 of them. */
	await_packets(before + n / 2 * ((block + 4095) / 4096));
	free(spans);
}

CASE(blocks_arrive_whole_and_nothing_else_changes)
{
	static const size_t blocks[] = { 256, 4096, 65536, 1 << 20 };

	for (int w = 0; w < WAYS; w++) {
		struct pair p;

		up(&p, ways[w]);
		for (size_t b = 0; b < 4; b++) {
			write_blocks(&p, blocks[b], b + 1, TR_NOTIFY);
			write_blocks(&p, blocks[b], b + 11, TR_PROVEN);
		}
		down(&p);
	}
}

CASE(reads_bring_the_peers_bytes)
{
	for (int w = 0; w < WAYS; w++) {
		struct tr_span spans[64];
		struct pair p;

		up(&p, ways[w]);
		fill(&p, 1, 9);
		for (size_t i = 0; i < 64; i++)
			spans[i] = (struct tr_span){ i * 4096, (63 - i) * 4096, 4000 };
		rig_op(&p.rig, 0, TR_READ_OP, 77, p.mem[0], p.rmem[0], spans, 64, 0, 0);
		assert_int_equal(expect(&p, 0, TR_READ)->user, 77);
		for (size_t i = 0; i < 64; i++) {
			assert_memory_equal(at(&p, 0, spans[i].local), at(&p, 1, spans[i].remote),
					    4000);
			for (size_t g = 4000; g < 4096; g++)
				assert_int_equal(*at(&p, 0, i * 4096 + g), BLANK);
		}
		down(&p);
	}
}

/* Each message comes after the bytes of the operation that was notified before it. */
CASE(messages_come_in_order_behind_the_bytes)
{
	for (int w = 0; w < WAYS; w++) {
		struct tr_span span = { 0, 0, SIZE };
		struct pair p;

		up(&p, ways[w]);
		for (uint64_t round = 1; round <= 5; round++) {
			fill(&p, 0, round);
			rig_op(&p.rig, 0, TR_WRITE, round, p.mem[0], p.rmem[0], &span, 1, TR_NOTIFY,
			       round);
			for (uint32_t n = 0; n < 3; n++)
				assert_int_equal(tr_msg(p.rig.side[0].conn, &n, sizeof(n), NULL),
						 0);
			for (uint32_t n = 0; n < 3; n++) {
				struct rig_event *event = expect(&p, 1, TR_MSG);

				assert_int_equal(event->len, sizeof(n));
				assert_memory_equal(event->msg, &n, sizeof(n));
				assert_memory_equal(at(&p, 0, 0), at(&p, 1, 0), SIZE);
			}
			assert_int_equal(expect(&p, 1, TR_NOTIFIED)->value, round);
			assert_int_equal(expect(&p, 0, TR_WRITTEN)->user, round);
		}
		down(&p);
	}
}

/*
 * Credits of notifies and messages run out, come back and wrap around, in both directions at once.
 */
CASE(both_directions_go_on_for_ever)
{
	uint32_t sent[2] = { 0 }, got[2] = { 0 };
	struct pair p;

	up(&p, &two_devices);
	for (int i = 0; i < BUDGET && (got[0] < 1000 || got[1] < 1000); i++)
		for (int side = 0; side < 2; side++) {
			struct rig_event *event;

			while (sent[side] < 1000 &&
			       !tr_msg(p.rig.side[side].conn, &sent[side], 4, NULL))
				sent[side]++;
			rig_pump_side(&p.rig, side);
			while ((event = rig_find(&p.rig, side, TR_MSG)))
				assert_int_equal(*(uint32_t *)(void *)event->msg, got[side]++);
			assert_null(rig_find(&p.rig, side, TR_PEER_LOST));
			p.rig.side[side].events = 0;
		}
	assert_int_equal(got[0], 1000);
	assert_int_equal(got[1], 1000);
	down(&p);
}

CASE(a_key_that_is_no_longer_valid_is_refused_with_its_cause)
{
	struct tr_span span = { 0, 0, 4096 };
	struct rig_event *event;
	struct tr_mem *gone;
	struct tr_rmem *seen;
	struct pair p;
	uint8_t *more = aligned_alloc(4096, 8192);

	up(&p, &one_lane);
	memset(more, BLANK, 8192);
	gone = rig_reg(&p.rig, 1, more, 8192, TR_REMOTE_WRITE);
	seen = rig_see(&p.rig, 0, gone);
	assert_int_equal(tr_mem_dereg(gone, NULL), 0);
	rig_op(&p.rig, 0, TR_WRITE, 5, p.mem[0], seen, &span, 1, TR_PROVEN, 0);
	event = expect(&p, 0, TR_IN_DOUBT);
	assert_int_equal(event->user, 5);
	assert_int_equal(event->cause.wc_status, IBV_WC_REM_ACCESS_ERR);
	assert_non_null(strstr(event->cause.device, "rxe0"));
	assert_true(event->cause.qp_num != 0);
	expect(&p, 0, TR_PEER_LOST);
	for (size_t i = 0; i < 8192; i++)
		assert_int_equal(more[i], BLANK);
	down(&p);
	free(more);
}

/*
 * The dump's lines about the connecting side's paths; only what is between "; " and "; ", the
 * address, is kept.
 */
static void addresses(struct pair *p, const char *chosen, char *buf, size_t cap)
{
	char dump[4096];
	const char *at = dump;
	size_t len = 0;

	tr_conn_dump(p->rig.side[0].conn, dump, sizeof(dump));
	*buf = 0;
	while ((at = strstr(at, "  path "))) {
		const char *from = strstr(at, "; "), *to = from ? strstr(from + 2, "; ") : NULL;

		if (!to || !memmem(at, (size_t)(from - at), chosen, strlen(chosen)))
			fail_msg("not %s:\n%s", chosen, dump);
		len += (size_t)snprintf(buf + len, cap - len, "%.*s\n", (int)(to - from), from);
		at = to;
	}
	assert_true(len > 0);
}

CASE(librdmacm_and_the_gid_tables_choose_alike)
{
	/*
	 * Side 0 has only rxe0: the route to rxe1, of the same kernel, goes out of rxe1, so that
	 * rails are tried in order.
	 */
	static const char *const chosen[] = { ", by order and librdmacm",
					      ", by order and librdmacm", ", by librdmacm" };

	for (int w = 0; w < WAYS; w++) {
		struct way tables = *ways[w];
		char by_route[512], by_table[512];
		struct pair p;

		up(&p, ways[w]);
		addresses(&p, chosen[w], by_route, sizeof(by_route));
		assert_non_null(strstr(by_route, "::ffff:10.77.0.1"));
		write_blocks(&p, 65536, 1, TR_NOTIFY);
		down(&p);
		for (int missing = 0; missing < 2; missing++) {
			tables.options[1] = missing ? NULL : "KVCACHE_RDMA_CM=0";
			kv_fault_arm(KV_FAULT_IB_CM_DLOPEN, (uint32_t)missing);
			up(&p, &tables);
			kv_fault_arm(KV_FAULT_IB_CM_DLOPEN, 0);
			addresses(&p, ", by the GID table", by_table, sizeof(by_table));
			assert_string_equal(by_route, by_table);
			down(&p);
		}
	}
}

CASE(routable_ipv6_works)
{
	static const struct way way = { "ib", { "KVCACHE_RDMA_GID_INDEX=2" } };
	char address[512];
	struct pair p;

	up(&p, &way);
	addresses(&p, ", by librdmacm", address, sizeof(address));
	assert_non_null(strstr(address, "gid index 2, fd77::1 (RoCE v2, routable IPv6)"));
	assert_non_null(strstr(address, "gid index 2, fd77::2 (RoCE v2, routable IPv6)"));
	write_blocks(&p, 65536, 1, TR_NOTIFY);
	write_blocks(&p, 65536, 2, TR_PROVEN);
	down(&p);
}

/* A memfd, mapped nowhere, is as good as a DMA-BUF to a driver that takes none. */
CASE(a_gpus_memory_is_refused_with_the_cause)
{
	int fd = memfd_create("gpu", MFD_CLOEXEC);
	struct kv_error err = { 0 };
	struct tr_mem *mem;
	struct pair p;

	up(&p, &one_lane);
	assert_int_equal(
		tr_mem_reg_dmabuf(p.rig.side[0].tr, (void *)4096, 4096, fd, 0, 0, &mem, &err),
		KV_ERR_UNSUPPORTED);
	assert_string_equal(err.message,
			    "rxe0:1 does not reach a GPU's memory: its driver or libibverbs takes "
			    "no DMA-BUF, and nvidia_peermem is not loaded");
	close(fd);
	down(&p);
}

int main(void)
{
	if (access("/sys/class/infiniband/rxe1", F_OK)) {
		printf("skipped: there are no devices rxe0 and rxe1; tests/rxe/rxe makes a guest "
		       "with them\n");
		return 77;
	}
	return run_cases(NULL, NULL);
}
