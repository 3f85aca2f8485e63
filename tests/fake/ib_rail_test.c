/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_rail_test.c -- which ports carry and how much: by speed, without those that are down or fail,
 * and with them again afterwards; regions of any size
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <kvrail/kv.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/option.h"
#include "ib/ib.h"
#include "lib/test.h"
#include "setting.h"

enum { SIZE = 1 << 20, MIB = 1 << 20, BACK_MS = 20000 };
enum { EDR = 32, HDR = 64, NDR = 128, X4 = 2, X1 = 1 };

static char root[] = "/tmp/kvrail-rail-XXXXXX";

static int setup(void **state)
{
	(void)state;
	return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state)
{
	char command[64];

	(void)state;
	snprintf(command, sizeof(command), "rm -r %s", root);
	return system(command);
}

/* Below the made-up root: its folders are made as well. */
static void put_file(const char *name, const char *text)
{
	char path[256], command[512];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", root, name);
	snprintf(command, sizeof(command), "mkdir -p \"$(dirname '%s')\"", path);
	assert_int_equal(system(command), 0);
	file = fopen(path, "we");
	assert_non_null(file);
	fputs(text, file);
	fclose(file);
}

static const char *rails_of(struct rig *rig, int side)
{
	static char text[256];
	struct kv_device_info info;
	size_t used = 0;

	text[0] = 0;
	for (size_t i = 0; !tr_device_get(rig->side[side].tr, i, &info); i++)
		if (!strcmp(info.transport, "ib"))
			used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%.*s",
						 used ? " " : "", (int)strcspn(info.name, ":"),
						 info.name);
	return text;
}

static void speed(int device, uint8_t width, uint8_t code)
{
	for (int h = 0; h < 2; h++) {
		fake_port(h, device)->width = width;
		fake_port(h, device)->speed = code;
	}
}

/* Sends `calls` messages of `len` bytes each; *share: what each device of side 0 has carried. */
static void carry(struct setting *s, int calls, size_t len, uint64_t share[], int devices)
{
	for (int d = 0; d < devices; d++)
		share[d] = fake_carried(0, d);
	for (int i = 0; i < calls; i++) {
		struct tr_span span = { 0, 0, len };

		setting_fill(s, 0, (uint64_t)i);
		rig_op(&s->rig, 0, TR_WRITE, 1, s->mem[0], s->rmem[0], &span, 1, TR_NOTIFY, 2);
		setting_expect_notify(s, 1, 2);
		setting_expect_written(s, 0, 1);
		assert_memory_equal(setting_at(s, 1, 0), setting_at(s, 0, 0), len);
	}
	for (int d = 0; d < devices; d++)
		share[d] = fake_carried(0, d) - share[d];
}

CASE(ports_share_by_their_speed)
{
	struct fake_config config = { .devices = 3, .no_cm = true };
	static const size_t sizes[] = { 4096, 100000, SIZE };
	uint64_t share[3];
	struct setting s;

	fake_begin(&config);
	speed(0, X4, EDR); /* 100, 200 and 400 Gb/s */
	speed(1, X4, HDR);
	speed(2, X4, NDR);
	setting_connect(&s, NULL, SIZE, 0);
	assert_string_equal(rails_of(&s.rig, 0), "fake2 fake1 fake0");
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		double all;

		carry(&s, (int)(20 * MIB / sizes[i] < 300 ? 20 * MIB / sizes[i] : 300), sizes[i],
		      share, 3);
		all = (double)(share[0] + share[1] + share[2]);
		for (int d = 0; d < 3; d++) {
			double part = (double)share[d] / all, right = (1 << d) / 7.0;

			if (part < right * 0.8 || part > right * 1.2)
				fail_msg("%zu bytes: device %d carries %.3f, not %.3f", sizes[i], d,
					 part, right);
		}
	}
	setting_end(&s);
}

CASE(a_far_slower_port_is_left_out_unless_it_is_named)
{
	static const char *const named[] = { "KVCACHE_RDMA_NICS=fake0,fake1", NULL };
	struct fake_config config = { .devices = 2, .no_cm = true };
	uint64_t share[2];
	struct setting s;

	fake_begin(&config);
	speed(0, X1, EDR); /* 25 and 400 Gb/s */
	speed(1, X4, NDR);
	setting_connect(&s, NULL, SIZE, 0);
	assert_string_equal(rails_of(&s.rig, 0), "fake1");
	setting_end(&s);
	fake_begin(&config);
	speed(0, X1, EDR);
	speed(1, X4, NDR);
	setting_connect(&s, named, SIZE, 0);
	assert_string_equal(rails_of(&s.rig, 0), "fake1 fake0");
	carry(&s, 40, SIZE, share, 2);
	assert_true(share[0] && share[0] < (share[0] + share[1]) / 12);
	setting_end(&s);
	/* One whose speed nobody knows is not slow, and carries like the fastest. */
	fake_begin(&config);
	speed(0, X4, 0);
	speed(1, X4, NDR);
	setting_connect(&s, NULL, SIZE, 0);
	assert_string_equal(rails_of(&s.rig, 0), "fake0 fake1");
	carry(&s, 10, SIZE, share, 2);
	assert_true(share[0] > share[1] / 2 && share[1] > share[0] / 2);
	setting_end(&s);
}

CASE(the_best_eight_of_more_ports_are_used)
{
	struct fake_config config = { .devices = 11, .no_cm = true };
	struct setting s;

	fake_begin(&config);
	for (int d = 0; d < 11; d++)
		speed(d, X4, d < 3 ? EDR : HDR); /* storage NICs come first */
	setting_connect(&s, NULL, SIZE, 0);
	assert_string_equal(rails_of(&s.rig, 0),
			    "fake3 fake4 fake5 fake6 fake7 fake8 fake9 fake10");
	setting_end(&s);
}

CASE(the_rate_in_sysfs_counts_where_the_verb_does_not_know_it)
{
	struct kv_device_info info = { .size = sizeof(info) };
	struct fake_config config = { .devices = 3, .no_cm = true };
	struct setting s;

	put_file("sys/class/infiniband/fake0/ports/1/rate", "800 Gb/sec (4X XDR)\n");
	put_file("sys/class/infiniband/fake1/ports/1/rate", "400 Gb/sec (4X NDR)\n");
	ib_test_hook.sysroot = root;
	fake_begin(&config);
	speed(0, X4, NDR); /* what an older library says of XDR */
	speed(1, X4, 0);
	speed(2, X4, HDR);
	setting_connect(&s, NULL, SIZE, 0);
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(tr_device_get(s.rig.side[0].tr, i, &info), 0);
		if (strcmp(info.transport, "ib"))
			continue;
		assert_int_equal(info.speed_mbps, 800000 >> (info.name[4] - '0'));
	}
	assert_string_equal(rails_of(&s.rig, 0), "fake0 fake1 fake2");
	setting_end(&s);
}

/* ---------------------------------------------------------------- down, failing, and back */

static void reconnect(struct setting *s)
{
	struct kv_error err;

	rig_disconnect(&s->rig);
	if (rig_connect(&s->rig, &err))
		fail_msg("connect: %s", err.message);
	for (int i = 0; i < 2; i++)
		s->rmem[i] = rig_see(&s->rig, i, s->mem[!i]);
}

/* The connection works, and exactly these devices of side 0 carry. */
static void expect_carriers(struct setting *s, const bool carries[2])
{
	uint64_t share[2];

	carry(s, 4, SIZE, share, 2);
	for (int d = 0; d < 2; d++)
		assert_int_equal(share[d] > 0, carries[d]);
}

CASE(a_port_that_is_down_is_not_offered_on_either_side)
{
	struct fake_config config = { .devices = 2, .no_cm = true };
	struct setting s;

	for (int host = 0; host < 2; host++)
		for (int device = 0; device < 2; device++) {
			bool one[2] = { true, true };

			fake_begin(&config);
			setting_connect(&s, NULL, SIZE, 0);
			fake_link(host, device, false);
			for (int round = 0; round < 2; round++) {
				uint64_t share[2];

				reconnect(&s);
				carry(&s, 2, SIZE, share, 2);
				/* The other side joins its first rail with the one that is up. */
				assert_int_equal(!!share[0] + !!share[1], 1);
			}
			fake_link(host, device, true);
			reconnect(&s);
			expect_carriers(&s, one);
			setting_end(&s);
		}
}

static char warnings[8192];

static void keep_log(void *arg, int level, const char *line)
{
	size_t used = strlen(warnings);

	(void)arg;
	(void)level;
	snprintf(warnings + used, sizeof(warnings) - used, "%s\n", line);
}

static int count_of(const char *text)
{
	int n = 0;

	for (const char *at = warnings; (at = strstr(at, text)); at++)
		n++;
	return n;
}

CASE(one_failing_device_is_left_out_until_it_works_again)
{
	static const enum fake_sickness ways[] = { FAKE_SICK, FAKE_MAKES_NOTHING };
	static const bool second[2] = { false, true }, both[2] = { true, true };
	struct fake_config config = { .devices = 2, .no_cm = true };

	for (int host = 0; host < 2; host++)
		for (size_t w = 0; w < sizeof(ways) / sizeof(ways[0]); w++) {
			int64_t end = kv_deadline_ns(BACK_MS);
			struct kv_error err;
			struct setting s;
			struct kv_log *log;

			fake_begin(&config);
			setting_connect(&s, NULL, SIZE, 0);
			warnings[0] = 0;
			log = kv_log_open(s.rig.side[host].options, keep_log, NULL);
			s.rig.side[host].tr->log = log;
			fake_sicken(host, 0, ways[w]);
			rig_disconnect(&s.rig);
			/* The accepting side cannot go back on what the peer has chosen. */
			if (host && ways[w] == FAKE_MAKES_NOTHING) {
				assert_int_equal(rig_connect(&s.rig, &err), KV_ERR_DEVICE);
				rig_disconnect(&s.rig);
			}
			for (int round = 0; round < 3; round++) {
				reconnect(&s);
				if (!host)
					expect_carriers(&s, second);
			}
			assert_int_equal(count_of("fake0:1 fails"), 1);
			fake_sicken(host, 0, FAKE_WELL);
			for (int host_d = 0; host_d < 2; host_d++)
				atomic_store(
					&((struct ib_ctx *)s.rig.side[host].tr->provider_ctx[0])
						 ->rail[host_d]
						 .ill_until_ns,
					0); /* not to wait for it */
			reconnect(&s);
			expect_carriers(&s, both);
			assert_int_equal(count_of("works again and is used"), 1);
			assert_true(kv_now_ns() < end);
			s.rig.side[host].tr->log = NULL;
			setting_end(&s);
			kv_log_close(log);
		}
}

CASE(where_every_device_fails_the_peer_learns_the_cause)
{
	struct kv_error err;
	struct setting s;

	setting_make(&s, NULL, NULL, SIZE);
	rig_disconnect(&s.rig);
	fake_sicken(1, 0, FAKE_SICK);
	assert_int_equal(rig_connect(&s.rig, &err), KV_ERR_UNREACHABLE);
	assert_non_null(strstr(err.message, "cannot query the port fake0:1"));
	fake_sicken(1, 0, FAKE_WELL);
	rig_disconnect(&s.rig);
	reconnect(&s);
	setting_end(&s);
}

CASE(a_failing_device_does_not_keep_shared_memory_away)
{
	struct kv_error err;
	struct rig rig;

	fake_begin(NULL);
	assert_int_equal(rig_open(&rig, "auto", NULL, &err), 0);
	fake_sicken(1, 0, FAKE_SICK);
	assert_int_equal(rig_connect(&rig, &err), 0);
	assert_string_equal(tr_conn_transport(rig.side[0].conn), "shm");
	rig_close(&rig);
	assert_true(fake_end());
}

/* Down, or without a working device, when the contexts were opened. */
CASE(a_port_is_used_once_it_works_although_it_did_not_at_open)
{
	static const bool second[2] = { false, true }, both[2] = { true, true };

	for (int threads = 0; threads < 2; threads++)
		for (int down = 0; down < 2; down++) {
			struct fake_config config = { .devices = 2,
						      .no_cm = true,
						      .threads = threads };
			int64_t end = kv_deadline_ns(BACK_MS);
			struct tr_mem *later;
			struct setting s;

			fake_begin(&config);
			assert_int_equal(fake_fork_inits(), 0);
			for (int h = 0; h < 2; h++) {
				if (down)
					fake_link(h, 0, false);
				else
					fake_sicken(h, 0, FAKE_SICK);
			}
			setting_connect(&s, NULL, SIZE, 0);
			assert_true(fake_fork_inits() > 0);
			assert_string_equal(rails_of(&s.rig, 0), "fake1");
			expect_carriers(&s, second);
			for (int h = 0; h < 2; h++) {
				fake_sicken(h, 0, FAKE_WELL);
				fake_link(h, 0, true);
			}
			later = rig_reg(&s.rig, 0, warnings, sizeof(warnings), 0);
			/* Opened beside the first connections, so that none waits for it. */
			while (strcmp(rails_of(&s.rig, 0), "fake1 fake0") ||
			       strcmp(rails_of(&s.rig, 1), "fake1 fake0")) {
				assert_true(kv_now_ns() < end);
				reconnect(&s);
				poll(NULL, 0, 20);
			}
			reconnect(&s);
			expect_carriers(&s, both);
			assert_int_equal(tr_mem_dereg(later, NULL), 0);
			for (int i = 0; i < 2; i++)
				while (tr_fence(s.rig.side[i].conn, 0, NULL) == TR_AGAIN)
					assert_true(kv_now_ns() < end);
			setting_end(&s);
		}
}

/* Its device opens, and is not well yet when the memory is registered with it. */
CASE(a_port_that_does_not_take_the_memory_is_tried_again)
{
	struct fake_config config = { .devices = 2, .no_cm = true };
	int64_t end = kv_deadline_ns(BACK_MS);
	struct ib_ctx *ctx;
	struct setting s;
	struct kv_log *log;

	fake_begin(&config);
	fake_sicken(0, 0, FAKE_SICK);
	setting_connect(&s, NULL, SIZE, 0);
	ctx = s.rig.side[0].tr->provider_ctx[0];
	warnings[0] = 0;
	log = kv_log_open(s.rig.side[0].options, keep_log, NULL);
	s.rig.side[0].tr->log = log;
	fake_sicken(0, 0, FAKE_MAKES_NOTHING);
	for (int i = 0; i < 3; i++) {
		ctx->late_next_ns = 0; /* not to wait for it */
		reconnect(&s);
		assert_string_equal(rails_of(&s.rig, 0), "fake1");
	}
	assert_int_equal(count_of("fake0:1 works now, but not for all registered memory"), 1);
	fake_sicken(0, 0, FAKE_WELL);
	ctx->late_next_ns = 0;
	reconnect(&s);
	assert_string_equal(rails_of(&s.rig, 0), "fake1 fake0");
	assert_true(kv_now_ns() < end);
	s.rig.side[0].tr->log = NULL;
	setting_end(&s);
	kv_log_close(log);
}

/* A context keeps a failed port's place for its life, so it says when there is none left. */
CASE(a_device_that_fails_too_often_is_given_up_with_a_warning)
{
	static const bool second[2] = { false, true }, both[2] = { true, true };
	struct fake_config config = { .devices = 2, .no_cm = true };
	struct ib_ctx *ctx;
	struct setting s;
	struct kv_log *log;

	fake_begin(&config);
	setting_connect(&s, NULL, SIZE, 0);
	ctx = s.rig.side[0].tr->provider_ctx[0];
	log = kv_log_open(s.rig.side[0].options, keep_log, NULL);
	s.rig.side[0].tr->log = log;
	for (int opened = 2; opened <= IB_RAILS_MAX; opened++) {
		bool full = opened == IB_RAILS_MAX;

		warnings[0] = 0;
		fake_device_fatal(0, 0);
		assert_non_null(rig_wait(&s.rig, 0, TR_PEER_LOST, BUDGET));
		reconnect(&s);
		expect_carriers(&s, second);
		fake_device_back(0, 0);
		ctx->late_next_ns = 0; /* not to wait for it */
		reconnect(&s);
		reconnect(&s);
		expect_carriers(&s, full ? second : both);
		assert_int_equal(count_of("fake0 has failed, and is not looked for again"), full);
	}
	s.rig.side[0].tr->log = NULL;
	setting_end(&s);
	kv_log_close(log);
}

/* It was registered while one device failed: the others carry it, that one when it is back. */
CASE(a_region_goes_without_a_failing_device)
{
	static const bool second[2] = { false, true };
	struct fake_config config = { .devices = 2, .no_cm = true };
	int64_t end = kv_deadline_ns(BACK_MS);
	uint64_t share[2] = { 0 };
	struct kv_error err;
	struct setting s;

	fake_begin(&config);
	setting_connect(&s, NULL, SIZE, 0);
	fake_sicken(0, 0, FAKE_SICK);
	assert_int_equal(tr_mem_dereg(s.mem[0], NULL), 0);
	s.mem[0] = rig_reg(&s.rig, 0, setting_at(&s, 0, 0), SIZE, TR_REMOTE_WRITE);
	/* The connection that uses it ends, with the cause; the next does without it. */
	{
		struct tr_span span = { 0, 0, SIZE };
		struct tr_op *op;

		assert_int_equal(rig_try_op(&s.rig, 0, TR_WRITE, 1, s.mem[0], s.rmem[0], &span, 1,
					    0, 0, &op, &err),
				 KV_ERR_DEVICE);
		assert_non_null(strstr(err.message, "fake0:1 could not register"));
		assert_non_null(rig_wait(&s.rig, 0, TR_PEER_LOST, BUDGET));
	}
	reconnect(&s);
	expect_carriers(&s, second);
	fake_sicken(0, 0, FAKE_WELL);
	while (!share[0]) {
		assert_true(kv_now_ns() < end);
		poll(NULL, 0, 50);
		reconnect(&s);
		carry(&s, 1, SIZE, share, 2);
	}
	assert_true(share[1]);
	fake_sicken(0, 0, FAKE_SICK);
	fake_sicken(0, 1, FAKE_SICK);
	{
		struct tr_mem *mem;

		assert_int_equal(tr_mem_reg(s.rig.side[0].tr, warnings, sizeof(warnings),
					    TR_MEM_HOST, 0, &mem, &err),
				 KV_ERR_DEVICE);
		assert_non_null(strstr(err.message, "fake"));
	}
	setting_end(&s);
}

/* ---------------------------------------------------------------- sizes */

CASE(a_region_of_any_size_has_keys_that_fit)
{
	struct fake_config config = { .devices = 8, .no_cm = true };
	const size_t lens[] = { (size_t)300 << 30, (size_t)1 << 40, (size_t)3 << 40 };
	struct setting s;

	fake_begin(&config);
	setting_connect(&s, NULL, SIZE, 0);
	setting_fill(&s, 0, 9);
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		uint8_t *big = mmap(NULL, lens[i], PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		struct tr_span spans[3] = { { 0, 0, 4096 },
					    { 4096, lens[i] / 2 - 2048, 8192 },
					    { 65536, lens[i] - SIZE / 2, SIZE / 2 } };
		struct tr_rmem *rmem;
		struct tr_mem *mem;

		if (big == MAP_FAILED && i)
			break; /* a sanitizer's address space is smaller */
		assert_ptr_not_equal(big, MAP_FAILED);
		mem = rig_reg(&s.rig, 1, big, lens[i], TR_REMOTE_WRITE);
		rmem = rig_see(&s.rig, 0, mem);
		rig_op(&s.rig, 0, TR_WRITE, 1, s.mem[0], rmem, spans, 3, TR_NOTIFY, 2);
		setting_expect_notify(&s, 1, 2);
		setting_expect_written(&s, 0, 1);
		for (int k = 0; k < 3; k++)
			assert_memory_equal(big + spans[k].remote,
					    setting_at(&s, 0, spans[k].local), spans[k].len);
		tr_mem_close(rmem);
		assert_int_equal(tr_mem_dereg(mem, NULL), 0);
		munmap(big, lens[i]);
	}
	setting_end(&s);
}

CASE(what_a_device_cannot_register_is_refused_at_once)
{
	struct fake_config config = { .max_mr_size = (uint64_t)4 << 30 };
	const size_t len = (size_t)1 << 40;
	uint8_t *big =
		mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct kv_error err;
	struct setting s;
	struct tr_mem *mem;

	assert_ptr_not_equal(big, MAP_FAILED);
	setting_make(&s, &config, NULL, SIZE);
	assert_int_equal(tr_mem_reg(s.rig.side[0].tr, big, len, TR_MEM_HOST, 0, &mem, &err),
			 KV_ERR_DEVICE);
	assert_non_null(strstr(err.message, "fake0:1 takes at most 4294967296"));
	munmap(big, len);
	setting_end(&s);
}

CASE(a_port_that_does_not_say_its_longest_message_takes_ours)
{
	struct fake_config config = { .devices = 2, .no_cm = true };
	uint64_t share[2];
	struct setting s;

	fake_begin(&config);
	for (int h = 0; h < 2; h++) {
		fake_port(h, 0)->max_msg = 0;
		fake_port(h, 1)->max_msg = 512; /* no port of the kind exists */
	}
	setting_connect(&s, NULL, SIZE, 0);
	assert_string_equal(rails_of(&s.rig, 0), "fake0");
	carry(&s, 2, SIZE, share, 2);
	setting_end(&s);
}

/* ---------------------------------------------------------------- no room for memory */

static void expect_shortage(int errno_of_device, int code, const char *in_message)
{
	struct fake_config config = { .max_mr_bytes = 1 << 20, .mr_errno = errno_of_device };
	void *big = malloc(2 << 20);
	struct kv_error err;
	struct setting s;
	struct tr_mem *mem;

	ib_test_hook.sysroot = root; /* the end of a world clears it */
	setting_make(&s, &config, NULL, 4096);
	assert_int_equal(tr_mem_reg(s.rig.side[0].tr, big, 2 << 20, TR_MEM_HOST, 0, &mem, &err),
			 code);
	if (!strstr(err.message, in_message))
		fail_msg("\"%s\" is not in \"%s\"", in_message, err.message);
	assert_true(err.hint[0]);
	assert_string_equal(err.device, "fake0:1");
	free(big);
	setting_end(&s);
}

CASE(the_cause_of_a_shortage_is_the_one_that_is)
{
	struct rlimit before, limit;

	assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &before), 0);
	limit = before;
	put_file("proc/self/status", "Name:\tengine\nVmLck:\t       0 kB\nVmPin:\t    1024 kB\n");
	limit.rlim_cur = 2 << 20; /* of which a half is in use */
	assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
	expect_shortage(ENOMEM, KV_ERR_MEMLOCK,
			"RLIMIT_MEMLOCK is 2097152 bytes, of which 1048576");
	limit.rlim_cur = 3 << 20; /* enough */
	assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
	expect_shortage(ENOMEM, KV_ERR_DEVICE, "has no room to register 2097152 bytes");
	put_file("proc/self/cgroup", "0::/pod/engine\n");
	put_file("sys/fs/cgroup/pod/engine/rdma.max", "fake0 hca_handle=max hca_object=max\n");
	put_file("sys/fs/cgroup/pod/engine/rdma.current", "fake0 hca_handle=1 hca_object=70\n");
	expect_shortage(EAGAIN, KV_ERR_DEVICE, "has no room to register 2097152 bytes");
	put_file("sys/fs/cgroup/pod/rdma.max",
		 "fake1 hca_object=7\nfake0 hca_handle=2 hca_object=70\n");
	put_file("sys/fs/cgroup/pod/rdma.current", "fake0 hca_handle=1 hca_object=70\n");
	expect_shortage(EAGAIN, KV_ERR_DEVICE, "cgroup /pod allows 70");
	assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &before), 0);
}

int main(void)
{
	return run_cases(setup, teardown);
}
