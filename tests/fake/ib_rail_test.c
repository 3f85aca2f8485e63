/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_rail_test.c -- which ports carry and how much, by their speed; regions of any size
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <kvrail/kv.h>

#include "ib/ib.h"
#include "lib/test.h"
#include "setting.h"

enum { SIZE = 1 << 20, MIB = 1 << 20 };
enum { EDR = 32, HDR = 64, NDR = 128, X4 = 2, X1 = 1 };

static char root[] = "/tmp/kvrail-rail-XXXXXX";

static int setup(void **state)
{
	return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state)
{
	char command[64];

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

static void speed(int device, uint8_t width, uint8_t code)
{
	for (int h = 0; h < 2; h++) {
		fake_port(h, device)->width = width;
		fake_port(h, device)->speed = code;
	}
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
	assert_string_equal(setting_rails(&s.rig, 0), "fake2 fake1 fake0");
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		double all;

		setting_carry(&s, (int)(20 * MIB / sizes[i] < 300 ? 20 * MIB / sizes[i] : 300),
			      sizes[i], share, 3);
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
	assert_string_equal(setting_rails(&s.rig, 0), "fake1");
	setting_end(&s);
	fake_begin(&config);
	speed(0, X1, EDR);
	speed(1, X4, NDR);
	setting_connect(&s, named, SIZE, 0);
	assert_string_equal(setting_rails(&s.rig, 0), "fake1 fake0");
	setting_carry(&s, 40, SIZE, share, 2);
	assert_true(share[0] && share[0] < (share[0] + share[1]) / 12);
	setting_end(&s);
	/* One whose speed nobody knows is not slow, and carries like the fastest. */
	fake_begin(&config);
	speed(0, X4, 0);
	speed(1, X4, NDR);
	setting_connect(&s, NULL, SIZE, 0);
	assert_string_equal(setting_rails(&s.rig, 0), "fake0 fake1");
	setting_carry(&s, 10, SIZE, share, 2);
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
	assert_string_equal(setting_rails(&s.rig, 0),
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
	assert_string_equal(setting_rails(&s.rig, 0), "fake0 fake1 fake2");
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
	assert_string_equal(setting_rails(&s.rig, 0), "fake0");
	setting_carry(&s, 2, SIZE, share, 2);
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
