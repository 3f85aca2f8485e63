/* SPDX-License-Identifier: Apache-2.0 */
/* mem_test.c -- pools, regions, the range cache */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/option.h"
#include "lib/test.h"
#include "provider.h"

static struct kv_option_set *options;
static struct tr *tr;

static int open_tr(void **state)
{
	assert_int_equal(kv_option_read(NULL, &options, NULL), 0);
	assert_int_equal(tr_open(&(struct tr_config){ .options = options }, &tr, NULL), 0);
	return 0;
}

static int close_tr(void **state)
{
	tr_close(tr);
	kv_option_free(options);
	return 0;
}

static bool is_there(uint32_t id)
{
	struct tr_mem *mem = tr_mem_get(tr, id);

	if (mem)
		tr_mem_put(mem);
	return mem;
}

CASE(a_pool_is_zeroed_page_aligned_and_cannot_shrink)
{
	struct tr_mem *mem;
	uint8_t *p;

	assert_int_equal(tr_alloc(tr, 10000, (void **)&p, NULL), 0);
	assert_int_equal((uintptr_t)p % 4096, 0);
	for (int i = 0; i < 10000; i++)
		assert_int_equal(p[i], 0);
	assert_int_equal(tr_mem_reg(tr, p + 100, 200, TR_MEM_HOST, TR_REMOTE_WRITE, &mem, NULL), 0);
	assert_true(mem->pool_fd >= 0);
	assert_int_equal(mem->pool_off, 100);
	assert_int_equal(mem->pool_len, 12288);
	assert_int_equal(ftruncate(mem->pool_fd, 0), -1);
	assert_int_equal(errno, EPERM);
	assert_int_equal(tr_free(tr, p, NULL), KV_ERR_BUSY);
	assert_int_equal(tr_mem_dereg(mem, NULL), 0);
	assert_int_equal(tr_free(tr, p, NULL), 0);
	assert_int_equal(tr_free(tr, p, NULL), KV_ERR_ARG);
}

CASE(a_pool_beyond_the_limit_of_files_is_an_error_and_no_signal)
{
	struct rlimit before, low;
	struct kv_error err;
	void *p;
	int ret;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	low = (struct rlimit){ 4096, before.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
	ret = tr_alloc(tr, 8192, &p, &err);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	assert_int_equal(ret, KV_ERR_NOMEM);
	assert_int_equal(err.sys_errno, EFBIG);
	assert_non_null(strstr(err.hint, "ulimit -f"));
}

CASE(a_pool_is_not_inherited_by_fork)
{
	uint8_t *p;
	pid_t pid;
	int status;

	assert_int_equal(tr_alloc(tr, 4096, (void **)&p, NULL), 0);
	pid = fork();
	if (!pid) {
		unsigned char resident;

		_exit(mincore(p, 4096, &resident) == -1 && errno == ENOMEM ? 0 : 1);
	}
	waitpid(pid, &status, 0);
	assert_int_equal(status, 0);
	assert_int_equal(tr_free(tr, p, NULL), 0);
}

CASE(a_range_inside_a_region_shares_it)
{
	uint8_t *p = malloc(65536);
	struct tr_mem *whole, *part, *other;

	assert_int_equal(tr_mem_reg(tr, p, 65536, TR_MEM_HOST, TR_REMOTE_WRITE | TR_REMOTE_READ,
				    &whole, NULL),
			 0);
	assert_int_equal(tr_mem_reg(tr, p + 100, 1000, TR_MEM_HOST, TR_REMOTE_WRITE, &part, NULL),
			 0);
	assert_ptr_equal(part, whole);
	assert_int_equal(tr_mem_reg(tr, p, 65536, TR_MEM_HOST, TR_RELAXED, &other, NULL), 0);
	assert_ptr_not_equal(other, whole); /* another ordering is another region */
	assert_int_equal(tr_mem_dereg(other, NULL), 0);
	assert_int_equal(tr_mem_dereg(whole, NULL), 0);
	assert_true(is_there(part->id)); /* still registered once */
	assert_int_equal(tr_mem_dereg(part, NULL), 0);
	free(p);
}

CASE(more_access_or_a_longer_range_is_a_new_region)
{
	uint8_t *p = malloc(65536);
	struct tr_mem *a, *b, *c;

	assert_int_equal(tr_mem_reg(tr, p, 4096, TR_MEM_HOST, TR_REMOTE_WRITE, &a, NULL), 0);
	assert_int_equal(tr_mem_reg(tr, p, 4096, TR_MEM_HOST, TR_REMOTE_READ, &b, NULL), 0);
	assert_int_equal(tr_mem_reg(tr, p, 4097, TR_MEM_HOST, TR_REMOTE_WRITE, &c, NULL), 0);
	assert_ptr_not_equal(a, b);
	assert_ptr_not_equal(a, c);
	assert_int_equal(tr_mem_dereg(a, NULL), 0);
	assert_int_equal(tr_mem_dereg(b, NULL), 0);
	assert_int_equal(tr_mem_dereg(c, NULL), 0);
	free(p);
}

CASE(an_old_id_does_not_name_a_new_region)
{
	uint8_t *p = malloc(4096);
	struct tr_mem *mem;
	uint32_t old;

	assert_int_equal(tr_mem_reg(tr, p, 4096, TR_MEM_HOST, 0, &mem, NULL), 0);
	old = mem->id;
	assert_int_equal(tr_mem_dereg(mem, NULL), 0);
	for (int i = 0; i < TR_MEMS_MAX; i++) { /* once around the table */
		assert_int_equal(tr_mem_reg(tr, p, 4096, TR_MEM_HOST, 0, &mem, NULL), 0);
		assert_int_not_equal(mem->id, old);
		assert_false(is_there(old));
		assert_int_equal(tr_mem_dereg(mem, NULL), 0);
	}
	free(p);
}

CASE(a_region_in_use_is_not_deregistered)
{
	uint8_t *p = malloc(4096);
	struct kv_error err;
	struct tr_mem *mem;

	assert_int_equal(tr_mem_reg(tr, p, 4096, TR_MEM_HOST, 0, &mem, NULL), 0);
	atomic_fetch_add(&mem->in_flight, 1);
	assert_int_equal(tr_mem_dereg(mem, &err), KV_ERR_BUSY);
	assert_true(is_there(mem->id));
	atomic_fetch_sub(&mem->in_flight, 1);
	assert_int_equal(tr_mem_dereg(mem, NULL), 0);
	free(p);
}

/* NCCL registers tens of thousands. Those that cover a range are found, and no others. */
CASE(many_regions_cost_no_more_each_than_few)
{
	enum { MANY = 20000, STEP = 4096 };
	uint8_t *p = mmap(NULL, (size_t)(MANY + 1) * STEP, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	struct tr_mem **mem = calloc(MANY, sizeof(*mem)), *again, *all;
	int64_t began = kv_now_ns();

	assert_ptr_not_equal(p, MAP_FAILED);
	for (size_t i = 0; i < MANY; i++)
		assert_int_equal(tr_mem_reg(tr, p + i * STEP + i % 100, STEP - 100 + i % 100 * 2,
					    TR_MEM_HOST, 0, &mem[i], NULL),
				 0);
	for (size_t i = 0; i < MANY; i++) {
		size_t len = tr_mem_len(mem[i]);
		uint8_t *addr = tr_mem_addr(mem[i]);

		assert_int_equal(tr_mem_reg(tr, addr + len - 7, 7, TR_MEM_HOST, 0, &again, NULL),
				 0);
		assert_true((uint8_t *)tr_mem_addr(again) <= addr + len - 7 &&
			    (uint8_t *)tr_mem_addr(again) + tr_mem_len(again) >= addr + len);
		assert_true(i % 100 > 50 || !(i % 100) ||
			    again == mem[i]); /* where they do not overlap */
		assert_int_equal(tr_mem_dereg(again, NULL), 0);
	}
	assert_int_equal(tr_mem_reg(tr, p, (size_t)MANY * STEP, TR_MEM_HOST, 0, &all, NULL), 0);
	for (size_t i = 0; i < MANY; i++)
		assert_ptr_not_equal(all, mem[i]);
	assert_int_equal(tr_mem_reg(tr, p + 12345678, 65536, TR_MEM_HOST, 0, &again, NULL), 0);
	assert_ptr_equal(again, all);
	assert_int_equal(tr_mem_dereg(again, NULL), 0);
	assert_int_equal(tr_mem_dereg(all, NULL), 0);
	for (size_t i = 0; i < MANY; i++)
		assert_int_equal(tr_mem_dereg(mem[i], NULL), 0);
	assert_true(kv_now_ns() - began < 20000 * KV_NS_PER_MS); /* 60,000 calls */
	free(mem);
	munmap(p, (size_t)(MANY + 1) * STEP);
}

static struct {
	uint8_t *p;
	atomic_uint id;
	atomic_bool over;
} looked_up;

static void *look_up(void *arg)
{
	uintptr_t found = 0;

	while (!atomic_load(&looked_up.over)) {
		struct tr_mem *mem = tr_mem_get(tr, atomic_load(&looked_up.id));

		if (!mem)
			continue;
		found++;
		if (mem->addr != looked_up.p || mem->len != 4096)
			found |= (uintptr_t)1 << 60;
		tr_mem_put(mem);
	}
	return (void *)found;
}

/* As a ring's receiver does it, without the lock, while the application gives the region back. */
CASE(a_region_that_is_looked_up_is_whole_or_not_there)
{
	pthread_t thread;
	void *found;

	looked_up.p = aligned_alloc(4096, 4096);
	assert_int_equal(pthread_create(&thread, NULL, look_up, NULL), 0);
	for (int i = 0; i < 50000; i++) {
		struct tr_mem *mem;

		assert_int_equal(tr_mem_reg(tr, looked_up.p, 4096, TR_MEM_HOST, 0, &mem, NULL), 0);
		atomic_store(&looked_up.id, mem->id);
		while (tr_mem_dereg(mem, NULL)) /* it is being looked at */
			;
	}
	atomic_store(&looked_up.over, true);
	pthread_join(thread, &found);
	assert_false((uintptr_t)found >> 60);
	free(looked_up.p);
}

CASE(what_is_no_memory_is_refused)
{
	uint8_t *p =
		mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct tr_mem *mem = NULL;
	struct kv_error err;

	assert_int_equal(tr_mem_reg(tr, NULL, 4096, TR_MEM_HOST, 0, &mem, &err), KV_ERR_ARG);
	assert_int_equal(tr_mem_reg(tr, p, 0, TR_MEM_HOST, 0, &mem, &err), KV_ERR_ARG);
	assert_int_equal(tr_mem_reg(tr, p, SIZE_MAX, TR_MEM_HOST, 0, &mem, &err), KV_ERR_ARG);
	assert_int_equal(tr_mem_reg(tr, p, 4096, 7, 0, &mem, &err), KV_ERR_ARG);
	munmap(p + 4096, 4096);
	assert_int_equal(tr_mem_reg(tr, p, 3 * 4096, TR_MEM_HOST, 0, &mem, &err), KV_ERR_SYSTEM);
	assert_int_equal(err.sys_errno, EFAULT);
	assert_null(mem);
	munmap(p, 4096);
	munmap(p + 2 * 4096, 4096);
}

CASE(each_failure_leaves_nothing_behind)
{
#ifdef KVRAIL_FAULTS
	static const enum kv_fault_point points[] = { KV_FAULT_TR_POOL_ALLOC,
						      KV_FAULT_TR_POOL_MEMFD, KV_FAULT_TR_POOL_SIZE,
						      KV_FAULT_TR_POOL_MMAP };
	uint8_t *p = (uint8_t *)1;
	struct tr_mem *mem = NULL;
	struct kv_error err;
	int lowest, again;

	lowest = dup(0);
	close(lowest);
	for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		kv_fault_arm(points[i], 1);
		assert_true(tr_alloc(tr, 4096, (void **)&p, &err) < 0);
		assert_true(kv_fault_fired(points[i]));
		assert_true(err.message[0] && p == (uint8_t *)1);
		again = dup(0);
		close(again);
		assert_int_equal(again, lowest);
	}
	assert_int_equal(tr_alloc(tr, 4096, (void **)&p, &err), 0);
	kv_fault_arm(KV_FAULT_TR_MEM_ALLOC, 1);
	assert_int_equal(tr_mem_reg(tr, p, 4096, TR_MEM_HOST, 0, &mem, &err), KV_ERR_NOMEM);
	assert_null(mem);
	assert_int_equal(tr_free(tr, p, &err), 0);
#else
	print_message("skipped: built without fault points\n");
	skip();
#endif
}

int main(void)
{
	return run_cases(open_tr, close_tr);
}
