/* SPDX-License-Identifier: Apache-2.0 */
/* pool_pages_test.c -- which pages a pool has, and what happens where memory is short */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"
#include "base/memfd.h"
#include "base/option.h"
#include "base/room.h"
#include "lib/test.h"
#include "memory.h"

enum { LEN = 8 * KV_HUGE_PAGE + 12288 };

static struct {
	struct kv_option_set *options;
	struct kv_log *log;
	struct tr *tr;
	uint8_t *pool;
	struct tr_mem *mem;
	int warnings;
	char said[512];
} now;

static void keep_line(void *arg, int level, const char *line)
{
	if (level > 2)
		return;
	now.warnings++;
	snprintf(now.said, sizeof(now.said), "%s", line);
}

static void open_mode(const char *mode)
{
	char option[64];
	const char *list[] = { "KVCACHE_TRANSPORT=shm", option, NULL };

	memset(&now, 0, sizeof(now));
	snprintf(option, sizeof(option), "KVCACHE_POOL_PAGES=%s", mode);
	assert_int_equal(kv_option_read(list, &now.options, NULL), 0);
	now.log = kv_log_open(now.options, keep_line, NULL);
	assert_int_equal(tr_open(&(struct tr_config){ .options = now.options, .log = now.log },
				 &now.tr, NULL),
			 0);
}

static void make_pool(void)
{
	assert_int_equal(tr_alloc(now.tr, LEN, (void **)&now.pool, NULL), 0);
	assert_int_equal(tr_mem_reg(now.tr, now.pool, LEN, TR_MEM_HOST, 0, &now.mem, NULL), 0);
}

/* Of the memfd, in whichever process. */
static size_t bytes_with_pages(void)
{
	struct stat st;

	assert_int_equal(fstat(now.mem->pool_fd, &st), 0);
	return (size_t)st.st_blocks * 512;
}

/* As the kernel says for the mapping at `at`. */
static size_t huge_bytes(const uint8_t *at)
{
	FILE *file = fopen("/proc/self/smaps", "re");
	unsigned long first, end, kb = 0;
	bool ours = false;
	char line[512];

	assert_non_null(file);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "%lx-%lx ", &first, &end) == 2)
			ours = first <= (uintptr_t)at && (uintptr_t)at < end;
		else if (ours && sscanf(line, "ShmemPmdMapped: %lu kB", &kb) == 1)
			break;
	fclose(file);
	return kb << 10;
}

static void drop_pool(void)
{
	assert_int_equal(tr_mem_dereg(now.mem, NULL), 0);
	assert_int_equal(tr_free(now.tr, now.pool, NULL), 0);
}

static void close_mode(void)
{
	tr_close(now.tr);
	kv_log_close(now.log);
	kv_option_free(now.options);
}

static void skip_without_huge(const struct kv_error *err, int ret)
{
	if (ret != KV_ERR_UNSUPPORTED)
		return;
	close_mode();
	print_message("skipped: %s\n", err->message);
	skip();
}

CASE(a_lazy_pool_has_no_page)
{
	open_mode("lazy");
	make_pool();
	assert_int_equal(bytes_with_pages(), 0);
	assert_int_equal(tr_mem_pages(now.mem), TR_PAGES_LAZY);
	assert_int_equal(now.warnings, 0);
	drop_pool();
	close_mode();
}

CASE(a_populated_pool_has_all_of_its_small_pages)
{
	open_mode("populate");
	make_pool();
	pages_await(now.tr->memory, now.mem);
	assert_int_equal(bytes_with_pages(), LEN);
	assert_int_equal(huge_bytes(now.pool), 0);
	assert_int_equal(tr_mem_pages(now.mem), TR_PAGES_SMALL);
	drop_pool();
	close_mode();
}

CASE(a_huge_pool_has_huge_pages_and_a_rest)
{
	struct kv_error err;
	int ret;

	open_mode("huge");
	ret = tr_alloc(now.tr, KV_HUGE_PAGE, (void **)&now.pool, &err);
	skip_without_huge(&err, ret);
	assert_int_equal(ret, 0);
	assert_int_equal(tr_free(now.tr, now.pool, NULL), 0);
	make_pool();
	pages_await(now.tr->memory, now.mem);
	assert_int_equal((uintptr_t)now.pool % KV_HUGE_PAGE, 0);
	assert_int_equal(huge_bytes(now.pool), LEN - 12288);
	assert_int_equal(bytes_with_pages(), LEN);
	assert_int_equal(tr_mem_pages(now.mem), TR_PAGES_HUGE);
	drop_pool();
	close_mode();
}

/* Whatever the kernel gives: every page is there, and what was written meanwhile stays. */
CASE(what_is_written_while_pages_are_made_stays)
{
	char text[256];

	open_mode("auto");
	make_pool();
	for (size_t i = 0; i < LEN; i += 512)
		now.pool[i] = (uint8_t)(i / 512 * 37);
	pages_await(now.tr->memory, now.mem);
	assert_int_equal(bytes_with_pages(), LEN);
	for (size_t i = 0; i < LEN; i += 512)
		assert_int_equal(now.pool[i], (uint8_t)(i / 512 * 37));
	assert_in_range(tr_mem_pages(now.mem), TR_PAGES_SMALL, TR_PAGES_HUGE);
	tr_pools_dump(now.tr, text, sizeof(text));
	assert_non_null(strstr(text, "pools: 1 of 16789504 bytes, "));
	assert_non_null(strstr(text, ", 0 of them still get theirs\n"));
	assert_int_equal(now.warnings, 0);
	drop_pool();
	close_mode();
}

CASE(a_pool_is_freed_and_a_context_closed_while_its_pages_are_made)
{
	open_mode("auto");
	for (int i = 0; i < 8; i++) {
		assert_int_equal(tr_alloc(now.tr, LEN, (void **)&now.pool, NULL), 0);
		assert_int_equal(tr_free(now.tr, now.pool, NULL), 0);
	}
	for (int i = 0; i < 4; i++)
		assert_int_equal(tr_alloc(now.tr, LEN, (void **)&now.pool, NULL), 0);
	close_mode();
}

CASE(a_fork_while_pages_are_made_disturbs_neither)
{
	int status;
	pid_t pid;

	open_mode("auto");
	make_pool();
	pid = fork();
	if (!pid)
		_exit(0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	pages_await(now.tr->memory, now.mem);
	assert_int_equal(bytes_with_pages(), LEN);
	drop_pool();
	close_mode();
}

#ifdef KVRAIL_FAULTS
CASE(a_pool_without_memory_for_it_is_refused_or_stays_lazy)
{
	struct kv_error err;

	open_mode("populate");
	kv_fault_arm(KV_FAULT_TR_POOL_ROOM, 1);
	assert_int_equal(tr_alloc(now.tr, LEN, (void **)&now.pool, &err), KV_ERR_NOMEM);
	assert_non_null(strstr(err.hint, "KVCACHE_POOL_PAGES=lazy"));
	assert_int_equal(now.warnings, 0);
	close_mode();
	open_mode("auto");
	kv_fault_arm(KV_FAULT_TR_POOL_ROOM, 1);
	make_pool();
	pages_await(now.tr->memory, now.mem);
	assert_int_equal(bytes_with_pages(), 0);
	assert_int_equal(now.warnings, 1);
	assert_non_null(strstr(now.said, "gets its pages when they are first written"));
	now.pool[LEN - 1] = 1;
	drop_pool();
	close_mode();
}

/* Where a kernel without pages is an error the caller makes the first KV_HUGE_PAGE bytes. */
CASE(the_thread_stops_where_memory_ends)
{
	static const struct {
		enum kv_fault_point point;
		uint32_t nth;
		const char *mode;
	} rows[] = {
		{ KV_FAULT_TR_POOL_ROOM, 2, "auto" },
		{ KV_FAULT_TR_POOL_ROOM, 2, "populate" },
		{ KV_FAULT_TR_POOL_POPULATE, 2, "populate" },
		{ KV_FAULT_TR_POOL_THREAD, 1, "auto" },
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		open_mode(rows[i].mode);
		kv_fault_arm(rows[i].point, rows[i].nth);
		make_pool();
		pages_await(now.tr->memory, now.mem);
		assert_true(kv_fault_fired(rows[i].point));
		assert_int_equal(bytes_with_pages(),
				 strcmp(rows[i].mode, "auto") ? KV_HUGE_PAGE : 0);
		assert_int_equal(now.warnings, 1);
		assert_non_null(strstr(now.said, "first written"));
		memset(now.pool, 1, LEN);
		drop_pool();
		close_mode();
	}
}

CASE(a_kernel_without_huge_pages_gives_small_ones)
{
	struct kv_error err;

	open_mode("auto");
	kv_fault_arm(KV_FAULT_TR_POOL_HUGE, 1);
	make_pool();
	pages_await(now.tr->memory, now.mem);
	assert_int_equal(tr_mem_pages(now.mem), TR_PAGES_SMALL);
	assert_int_equal(bytes_with_pages(), LEN);
	assert_int_equal(huge_bytes(now.pool), 0);
	drop_pool();
	close_mode();
	open_mode("huge");
	kv_fault_arm(KV_FAULT_TR_POOL_HUGE, 1);
	assert_int_equal(tr_alloc(now.tr, LEN, (void **)&now.pool, &err), KV_ERR_UNSUPPORTED);
	assert_non_null(strstr(err.hint, "KVCACHE_POOL_PAGES=auto"));
	close_mode();
}
#endif

/* ---------------------------------------------------------------- how much memory is left */

static void put_file(const char *root, const char *path, const char *text)
{
	char name[512], *slash;
	FILE *file;

	snprintf(name, sizeof(name), "%s/%s", root, path);
	for (slash = name + strlen(root); (slash = strchr(slash + 1, '/'));) {
		*slash = '\0';
		mkdir(name, 0700);
		*slash = '/';
	}
	file = fopen(name, "we");
	assert_non_null(file);
	fputs(text, file);
	fclose(file);
}

static void expect_room(const char *root, uint64_t bytes, const char *limit)
{
	struct kv_room room;

	kv_room(root, &room);
	assert_int_equal(room.bytes, bytes);
	assert_non_null(strstr(room.limit, limit));
}

CASE(the_room_is_that_of_the_tightest_limit)
{
	static const uint64_t mib = 1 << 20;
	char root[] = "/tmp/pool_pages_test.XXXXXX", command[64];

	assert_non_null(mkdtemp(root));
	expect_room(root, UINT64_MAX, "");
	put_file(root, "proc/meminfo", "MemTotal: 3276800 kB\nMemAvailable:    1048576 kB\n");
	expect_room(root, 1024 * mib - 100 * mib, "MemAvailable");
	put_file(root, "proc/self/cgroup", "4:memory:/job/rank\n0::/a/b\n");
	/* Version 2: the parent is tighter than the group itself; caches of files can go. */
	put_file(root, "sys/fs/cgroup/a/b/memory.max", "max\n");
	put_file(root, "sys/fs/cgroup/a/memory.max", "671088640\n");
	put_file(root, "sys/fs/cgroup/a/memory.current", "419430400\n");
	put_file(root, "sys/fs/cgroup/a/memory.stat",
		 "anon 1\ninactive_file 62914560\nactive_file 41943040\n");
	expect_room(root, 340 * mib - 20 * mib, "cgroup/a/memory.max");
	/* Version 1, in a container that does not see the path of its group. */
	put_file(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "335544320\n");
	put_file(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "167772160\n");
	expect_room(root, 160 * mib - 10 * mib, "memory.limit_in_bytes");
	put_file(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "335544321\n");
	expect_room(root, 0, "memory.limit_in_bytes");
	snprintf(command, sizeof(command), "rm -r %s", root);
	assert_int_equal(system(command), 0);
}
