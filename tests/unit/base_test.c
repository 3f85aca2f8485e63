/* SPDX-License-Identifier: Apache-2.0 */
/* base_test.c -- error codes, options, log lines */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/option.h"
#include "lib/test.h"

CASE(every_code_has_a_name_a_sentence_and_a_scope)
{
#define CHECK(name, value, scope, text)                           \
	assert_string_equal(kv_error_name(KV_ERR_##name), #name); \
	assert_string_equal(kv_error_text(KV_ERR_##name), text);  \
	assert_int_equal(kv_error_scope(KV_ERR_##name), KV_SCOPE_##scope);
	KV_ERROR_LIST(CHECK)
#undef CHECK
	assert_string_equal(kv_error_name(0), "OK");
	assert_string_equal(kv_error_name(-12345), "UNKNOWN");
}

CASE(the_cause_reaches_the_line_that_people_read)
{
	struct kv_error err;
	char line[512], small[16];
	int len;

	assert_int_equal(
		kv_fail(&err, KV_ERR_BLOCK_ID, "write_blocks", "remote id %d is above %d", 70, 63),
		KV_ERR_BLOCK_ID);
	err.block_index = 5;
	err.block_id = 70;
	snprintf(err.peer, sizeof(err.peer), "10.0.0.7:4000");
	kv_error_hint(&err, "both caches must have the same ids");
	len = kv_error_format(&err, line, sizeof(line));
	assert_string_equal(
		line,
		"write_blocks: KV_ERR_BLOCK_ID: remote id 70 is above 63; peer 10.0.0.7:4000; block "
		"70 at index 5 (both caches must have the same ids)");
	assert_int_equal(kv_error_format(&err, small, sizeof(small)), len);
	assert_string_equal(small, "write_blocks: K");
}

CASE(running_out_of_descriptors_is_distinguished_from_other_errors)
{
	struct kv_error err;

	assert_int_equal(kv_fail_errno(&err, KV_ERR_SYSTEM, EMFILE, "x", "socket"), KV_ERR_NOFD);
	assert_int_equal(err.sys_errno, EMFILE);
	assert_non_null(strstr(err.hint, "ulimit"));
	assert_int_equal(kv_fail_errno(&err, KV_ERR_SYSTEM, ENOMEM, "x", "mmap"), KV_ERR_NOMEM);
	assert_int_equal(kv_fail_errno(NULL, KV_ERR_SYSTEM, EIO, "x", "read"), KV_ERR_SYSTEM);
}

static int read_one(const char *text, struct kv_option_set **set, struct kv_error *err)
{
	const char *list[] = { text, NULL };

	return kv_option_read(list, set, err);
}

CASE(a_bad_value_names_the_option_and_its_range)
{
	static const char *const bad[] = { "KVCACHE_IB_TIMEOUT=13",   "KVCACHE_IB_TIMEOUT=32",
					   "KVCACHE_IB_TIMEOUT=abc",  "KVCACHE_IB_TIMEOUT=",
					   "KVCACHE_IB_TIMEOUT=16x",  "KVCACHE_IB_TIMEOUT= 16",
					   "KVCACHE_DEBUG=maybe",     "KVCACHE_SHM_PATH=poo",
					   "KVCACHE_SHM_PATH=",	      "KVCACHE_SHM_RING=9999999G",
					   "KVCACHE_IB_TIMEOUT=0x",   "KVCACHE_IB_TIMEOUT=0b10000",
					   "KVCACHE_IB_TIMEOUT=--20", "KVCACHE_IB_TIMEOUT=024K" };
	struct kv_option_set *set;
	struct kv_error err;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(read_one(bad[i], &set, &err), KV_ERR_ARG);
		assert_non_null(strstr(err.message, "KVCACHE_"));
		assert_non_null(strstr(err.message, "it takes"));
	}
	read_one(bad[0], &set, &err);
	assert_non_null(strstr(err.message, "14..31"));
}

CASE(good_values_are_parsed)
{
	struct kv_option_set *set;
	struct kv_option_row row;

	assert_int_equal(read_one("KVCACHE_SHM_RING=2M", &set, NULL), 0);
	assert_int_equal(kv_option_int(set, KV_OPT_SHM_RING), 2 << 20);
	assert_int_equal(kv_option_int(set, KV_OPT_IB_TIMEOUT), 16);
	assert_true(kv_option_is(set, KV_OPT_SHM_PATH, "auto"));
	kv_option_row(set, KV_OPT_SHM_RING, &row);
	assert_string_equal(row.source, "config");
	assert_string_equal(row.value, "2M");
	assert_string_equal(row.def, "1048576");
	kv_option_free(set);
	assert_int_equal(read_one("KVCACHE_DEBUG=On", &set, NULL), 0);
	assert_true(kv_option_bool(set, KV_OPT_DEBUG));
	kv_option_free(set);
}

CASE(a_list_of_words_is_parsed_and_asked)
{
	static const char *const bad[] = {
		"KVCACHE_TRANSPORT=ib,",    "KVCACHE_TRANSPORT=,ib",	 "KVCACHE_TRANSPORT=ib,tc",
		"KVCACHE_TRANSPORT=ib|tcp", "KVCACHE_TRANSPORT=ib, tcp", "KVCACHE_SHM_PATH=pool,cma"
	};
	struct kv_option_set *set;
	struct kv_error err;

	assert_int_equal(read_one("KVCACHE_TRANSPORT=tcp,ib", &set, NULL), 0);
	assert_true(kv_option_has(set, KV_OPT_TRANSPORT, "ib"));
	assert_true(kv_option_has(set, KV_OPT_TRANSPORT, "tcp"));
	assert_false(kv_option_has(set, KV_OPT_TRANSPORT, "tc"));
	assert_false(kv_option_has(set, KV_OPT_TRANSPORT, "shm"));
	assert_false(kv_option_is(set, KV_OPT_TRANSPORT, "tcp"));
	kv_option_free(set);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(read_one(bad[i], &set, &err), KV_ERR_ARG);
		assert_non_null(strstr(err.message, "it takes word"));
	}
}

CASE(a_number_is_decimal_or_hexadecimal_never_octal)
{
	static const char *const twenty[] = { "KVCACHE_IB_TIMEOUT=20", "KVCACHE_IB_TIMEOUT=020",
					      "KVCACHE_IB_TIMEOUT=0x14", "KVCACHE_IB_TIMEOUT=0X14",
					      "KVCACHE_IB_TIMEOUT=+20" };
	struct kv_option_set *set;

	for (size_t i = 0; i < sizeof(twenty) / sizeof(twenty[0]); i++) {
		assert_int_equal(read_one(twenty[i], &set, NULL), 0);
		assert_int_equal(kv_option_int(set, KV_OPT_IB_TIMEOUT), 20);
		kv_option_free(set);
	}
}

CASE(the_list_beats_the_environment)
{
	struct kv_option_set *set;
	struct kv_option_row row;

	setenv("KVCACHE_IB_TIMEOUT", "20", 1);
	assert_int_equal(kv_option_read(NULL, &set, NULL), 0);
	assert_int_equal(kv_option_int(set, KV_OPT_IB_TIMEOUT), 20);
	kv_option_row(set, KV_OPT_IB_TIMEOUT, &row);
	assert_string_equal(row.source, "environment");
	kv_option_free(set);
	assert_int_equal(read_one("KVCACHE_IB_TIMEOUT=18", &set, NULL), 0);
	assert_int_equal(kv_option_int(set, KV_OPT_IB_TIMEOUT), 18);
	kv_option_free(set);
	setenv("KVCACHE_IB_TIMEOUT", "99", 1);
	assert_int_equal(kv_option_read(NULL, &set, NULL), KV_ERR_ARG);
	assert_int_equal(read_one("KVCACHE_IB_TIMEOUT=18", &set, NULL), 0);
	kv_option_free(set);
	unsetenv("KVCACHE_IB_TIMEOUT");
}

CASE(an_empty_variable_counts_as_unset)
{
	static const enum kv_option_id ids[] = { KV_OPT_IB_TIMEOUT, KV_OPT_SHM_RING, KV_OPT_DEBUG,
						 KV_OPT_TRANSPORT, KV_OPT_RDMA_NICS };
	struct kv_option_row row, unset;
	struct kv_option_set *set;

	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		assert_int_equal(kv_option_read(NULL, &set, NULL), 0);
		kv_option_row(set, ids[i], &unset);
		setenv(unset.name, "", 1);
		kv_option_free(set);
		assert_int_equal(kv_option_read(NULL, &set, NULL), 0);
		kv_option_row(set, ids[i], &row);
		assert_string_equal(row.value, row.def);
		assert_string_equal(row.source, "default");
		assert_false(kv_option_is_set(set, ids[i]));
		unsetenv(row.name);
		kv_option_free(set);
	}
	assert_int_equal(read_one("KVCACHE_IB_TIMEOUT=", &set, NULL), KV_ERR_ARG);
}

CASE(an_unknown_name_is_reported_with_its_neighbour)
{
	struct kv_option_set *set;
	const char *name, *near;
	struct kv_error err;

	setenv("KVCACHE_RDMA_NIC", "mlx5_0", 1);
	assert_int_equal(kv_option_read(NULL, &set, NULL), 0);
	assert_true(kv_option_unknown(set, 0, &name, &near));
	assert_string_equal(name, "KVCACHE_RDMA_NIC");
	assert_string_equal(near, "KVCACHE_RDMA_NICS");
	assert_false(kv_option_unknown(set, 1, &name, &near));
	kv_option_free(set);
	unsetenv("KVCACHE_RDMA_NIC");
	assert_int_equal(read_one("KVCACHE_SPIN=3", &set, &err), KV_ERR_ARG);
	assert_non_null(strstr(err.message, "KVCACHE_SPIN_US"));
}

/* SIGXFSZ would end the process. */
CASE(a_log_file_that_may_not_grow_gets_no_line)
{
	char path[] = "/tmp/kvrail-log-XXXXXX", option[64];
	const char *list[] = { option, NULL };
	struct kv_option_set *set;
	struct rlimit old, small;
	struct kv_log *log;
	struct stat st;

	close(mkstemp(path));
	snprintf(option, sizeof(option), "KVCACHE_DEBUG_FILE=%s", path);
	assert_int_equal(kv_option_read(list, &set, NULL), 0);
	log = kv_log_open(set, NULL, NULL);
	getrlimit(RLIMIT_FSIZE, &old);
	small = old;
	small.rlim_cur = 1500;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	for (int i = 0; i < 100; i++)
		kv_log_info(log, "line %d", i);
	setrlimit(RLIMIT_FSIZE, &old);
	assert_int_equal(stat(path, &st), 0);
	assert_in_range(st.st_size, 10, 1500);
	kv_log_close(log);
	kv_option_free(set);
	unlink(path);
}

CASE(log_files_receive_their_levels)
{
	char debug[] = "/tmp/kvrail-debug-XXXXXX", error[] = "/tmp/kvrail-error-XXXXXX";
	char debug_opt[80], error_opt[80], text[256] = "", host[65] = "", named[160];
	const char *list[] = { debug_opt, error_opt, NULL };
	struct kv_option_set *set;
	struct kv_log *log;
	FILE *f;

	close(mkstemp(debug));
	close(mkstemp(error));
	snprintf(debug_opt, sizeof(debug_opt), "KVCACHE_DEBUG_FILE=%s.%%p%%%%%%h%%x", debug);
	snprintf(error_opt, sizeof(error_opt), "KVCACHE_ERROR_FILE=%s", error);
	assert_int_equal(kv_option_read(list, &set, NULL), 0);
	log = kv_log_open(set, NULL, NULL);
	kv_log_info(log, "only for the debug file");
	kv_log_error(log, "for both");
	kv_log_close(log);
	kv_option_free(set);
	f = fopen(error, "r");
	assert_non_null(fgets(text, sizeof(text), f));
	assert_non_null(strstr(text, "for both"));
	assert_null(fgets(text, sizeof(text), f));
	fclose(f);
	gethostname(host, sizeof(host) - 1);
	snprintf(named, sizeof(named), "%s.%d%%%s%%x", debug, (int)getpid(), host);
	f = fopen(named, "r");
	assert_non_null(f);
	assert_non_null(fgets(text, sizeof(text), f));
	assert_non_null(strstr(text, "only for the debug file"));
	fclose(f);
	unlink(debug);
	unlink(named);
	unlink(error);
}
