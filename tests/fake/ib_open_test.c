/* SPDX-License-Identifier: Apache-2.0 */
/* ib_open_test.c -- which devices are used, and what is said when there is none or not enough */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <kvrail/kv.h>

#include "base/fault.h"
#include "ib/ib.h"
#include "lib/test.h"
#include "setting.h"

/* The soft limit on locked memory; returns what it was. */
static rlim_t limit_locked(rlim_t bytes)
{
	struct rlimit limit;
	rlim_t before;

	assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &limit), 0);
	before = limit.rlim_cur;
	limit.rlim_cur = bytes;
	assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
	return before;
}

CASE(too_little_locked_memory_names_the_limit_and_the_fix)
{
	struct fake_config config = { .max_mr_bytes = 1 << 20 };
	struct setting s;
	struct tr_mem *mem;
	struct kv_error err;
	void *big = malloc(2 << 20);
	rlim_t before = limit_locked(1 << 20);

	setting_make(&s, &config, NULL, 4096);
	assert_int_equal(tr_mem_reg(s.rig.side[0].tr, big, 2 << 20, TR_MEM_HOST, 0, &mem, &err),
			 KV_ERR_MEMLOCK);
	assert_non_null(strstr(err.message, "RLIMIT_MEMLOCK"));
	assert_non_null(strstr(err.message, "2097152"));
	assert_non_null(strstr(err.hint, "ulimit -l"));
	assert_string_equal(err.device, "fake0:1");
	limit_locked(before);
	free(big);
	setting_end(&s);
}

/*
 * Shared memory needs no pinned pages, so the device is left out; a connection over it has the
 * cause.
 */
CASE(with_shared_memory_there_a_region_goes_without_the_device)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=1", NULL };
	struct fake_config config = { .max_mr_bytes = 1 << 20 };
	struct tr_span span = { 0, 0, 4096 };
	uint8_t bytes[TR_MEM_PACK_MAX], small[4096] = { 1 };
	struct tr_mem *mem, *mem_small;
	struct tr_op *op;
	struct kv_error err;
	struct rig rig;
	size_t len;
	void *big = calloc(1, 2 << 20);
	rlim_t before = limit_locked(1 << 20);

	fake_begin(&config);
	assert_int_equal(rig_open(&rig, "auto", options, &err), 0);
	mem_small = rig_reg(&rig, 1, small, sizeof(small), TR_REMOTE_WRITE);
	kv_fault_arm(KV_FAULT_TR_MEM_WHY,
		     1); /* no room to keep why: the cause itself is the error */
	assert_int_equal(tr_mem_reg(rig.side[0].tr, big, 2 << 20, TR_MEM_HOST, 0, &mem, &err),
			 KV_ERR_MEMLOCK);
	assert_int_equal(tr_mem_reg(rig.side[0].tr, big, 2 << 20, TR_MEM_HOST, 0, &mem, &err), 0);
	assert_int_equal(rig_connect(&rig, &err), 0);
	assert_string_equal(tr_conn_transport(rig.side[0].conn), "shm");
	rig_op(&rig, 0, TR_WRITE, 1, mem, rig_see(&rig, 0, mem_small), &span, 1, TR_NOTIFY, 3);
	assert_non_null(rig_wait(&rig, 1, TR_NOTIFIED, BUDGET));
	assert_int_equal(small[0], 0);
	rig_disconnect(&rig);

	kv_fault_arm(KV_FAULT_SHM_CONNECT, 1);
	assert_int_equal(rig_connect(&rig, &err), 0);
	assert_string_equal(tr_conn_transport(rig.side[0].conn), "ib");
	for (int i = 0; i < 2; i++) {
		memset(&err, 0, sizeof(err));
		if (!i) {
			assert_int_equal(tr_mem_pack(rig.side[0].conn, mem, bytes, sizeof(bytes),
						     &len, &err),
					 KV_ERR_MEMLOCK);
		} else {
			assert_int_equal(rig_try_op(&rig, 0, TR_WRITE, 2, mem,
						    rig_see(&rig, 0, mem_small), &span, 1, 0, 0,
						    &op, &err),
					 KV_ERR_MEMLOCK);
		}
		assert_non_null(strstr(err.message, "RLIMIT_MEMLOCK"));
		assert_non_null(strstr(err.hint, "ulimit -l"));
	}
	rig_disconnect(&rig);
	assert_int_equal(tr_mem_dereg(mem, NULL), 0);
	assert_int_equal(tr_mem_dereg(mem_small, NULL), 0);
	rig_close(&rig);
	assert_true(fake_end());
	limit_locked(before);
	free(big);
}

CASE(a_machine_without_an_active_port_says_so)
{
	struct rig rig;
	struct kv_error err;

	fake_begin(NULL);
	fake_link(0, 0, false);
	assert_int_equal(rig_open(&rig, "ib", NULL, &err), KV_ERR_DEVICE);
	assert_non_null(strstr(err.message, "none of 1 RDMA devices has an active port"));
	assert_non_null(strstr(err.hint, "ibv_devinfo"));
	assert_true(fake_end());
}

CASE(device_rows_describe_each_rail_or_the_lack_of_one)
{
	struct fake_config config = { .devices = 2 };
	struct kv_device_info info = { .size = sizeof(info) };
	struct setting s;

	setting_make(&s, &config, NULL, 4096);
	assert_int_equal(tr_ib_provider.device_get(s.rig.side[0].tr->provider_ctx[0], 1, &info), 0);
	assert_string_equal(info.name, "fake1:1");
	assert_true(info.usable);
	assert_non_null(strstr(info.detail, "RoCE v2, IPv4"));
	assert_int_equal(tr_ib_provider.device_get(s.rig.side[0].tr->provider_ctx[0], 2, &info),
			 KV_ERR_ARG);
	setting_end(&s);

	fake_begin(NULL);
	fake_link(0, 0, false);
	assert_int_equal(tr_ib_provider.device_get(NULL, 0, &info), 0);
	assert_false(info.usable);
	assert_non_null(strstr(info.detail, "none of 1 RDMA devices has an active port"));
	assert_true(fake_end());
}

CASE(a_misspelt_device_name_is_refused)
{
	static const char *const wrong[] = { "KVCACHE_RDMA_NICS=fake0,mlx5_9", NULL };
	static const char *const second[] = { "KVCACHE_RDMA_NICS=fake1:1", NULL };
	struct fake_config config = { .devices = 3 };
	struct rig rig;
	struct kv_error err;

	fake_begin(&config);
	assert_int_equal(rig_open(&rig, "ib", wrong, &err), KV_ERR_DEVICE);
	assert_non_null(strstr(err.message, "mlx5_9"));
	rig_make(&rig, "ib", second);
	assert_non_null(strstr(tr_conn_path(rig.side[0].conn), "fake1:1"));
	rig_close(&rig);
	assert_true(fake_end());
}

CASE(a_broken_device_is_left_out_unless_it_is_named)
{
	static const char *const by_name[] = { "KVCACHE_RDMA_NICS=fake0", NULL };
	struct fake_config config = { .devices = 2 };
	struct rig rig;
	struct kv_error err;

	fake_begin(&config);
	fake_fail_verb(FAKE_alloc_pd, 1, EIO);
	rig_make(&rig, "ib", NULL);
	assert_non_null(strstr(tr_conn_path(rig.side[0].conn), "fake1:1"));
	rig_close(&rig);
	fake_fail_verb(FAKE_alloc_pd, 1, EIO);
	assert_int_equal(rig_open(&rig, "ib", by_name, &err), KV_ERR_DEVICE);
	assert_non_null(strstr(err.message, "protection domain on fake0:1"));
	assert_true(fake_end());
}

CASE(an_unusable_gid_index_is_replaced)
{
	static const char *const empty[] = { "KVCACHE_RDMA_GID_INDEX=1", NULL };
	struct kv_device_info info = { .size = sizeof(info) };
	struct rig rig;

	fake_begin(NULL);
	rig_make(&rig, "ib", empty); /* index 0, 1 and 2 do not reach the other host */
	assert_int_equal(tr_ib_provider.device_get(rig.side[0].tr->provider_ctx[0], 0, &info), 0);
	assert_non_null(strstr(info.detail, "gid index 3"));
	rig_close(&rig);
	assert_true(fake_end());
}

/* Only the pages that are written exist. */
CASE(a_region_of_5_gib_is_three_slices_of_at_most_2)
{
	const size_t len = (size_t)5 << 30, edge = (size_t)2 << 30, size = 16384;
	struct setting s;
	struct tr_mem *mem;
	struct tr_rmem *rmem;
	uint8_t *big = mmap(NULL, len, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int before;

	assert_ptr_not_equal(big, MAP_FAILED);
	setting_make(&s, NULL, NULL, size);
	before = fake_regions(1, IBV_ACCESS_REMOTE_WRITE);
	mem = rig_reg(&s.rig, 1, big, len, TR_REMOTE_WRITE);
	assert_int_equal(fake_regions(1, IBV_ACCESS_REMOTE_WRITE) - before, 3);
	rmem = rig_see(&s.rig, 0, mem);
	setting_fill(&s, 0, 4);
	for (size_t slice = 1; slice < 3; slice++) {
		struct tr_span span = { 0, slice * edge - size / 2 + 100, size };

		rig_op(&s.rig, 0, TR_WRITE, slice, s.mem[0], rmem, &span, 1, TR_NOTIFY, slice);
		setting_expect_notify(&s, 1, slice);
		setting_expect_written(&s, 0, slice);
		assert_memory_equal(big + span.remote, setting_at(&s, 0, 0), size);
		assert_int_equal(big[span.remote - 1], 0);
		assert_int_equal(big[span.remote + size], 0);
	}
	tr_mem_close(rmem);
	assert_int_equal(tr_mem_dereg(mem, NULL), 0);
	setting_end(&s);
	munmap(big, len);
}
