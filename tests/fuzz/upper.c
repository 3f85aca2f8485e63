/* SPDX-License-Identifier: Apache-2.0 */
/* upper.c -- the hello is empty, the setup is a description of memory */
#include "upper.h"

#include "fuzz.h"

static int hello_put(void *arg, struct tr_conn *conn, void *buf, size_t cap)
{
	return 0;
}

static int hello_get(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	return 0;
}

static int setup_put(void *arg, struct tr_conn *conn, void *buf, size_t cap, struct kv_error *err)
{
	struct upper *upper = arg;
	size_t len;
	int ret = tr_mem_pack(conn, upper->mem, buf, cap, &len, err);

	return ret ? ret : (int)len;
}

static int setup_get(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	struct upper *upper = arg;
	int ret = len ? tr_mem_open(conn, buf, len, &upper->rmem, err) : 0;

	if (!ret && len)
		FUZZ_CHECK(tr_rmem_len(upper->rmem) && tr_rmem_len(upper->rmem) <= INT64_MAX);
	return ret;
}

const struct tr_upper_ops upper_ops = { TR_UPPER_TEST, 1,	  hello_put, hello_get,
					setup_put,     setup_get, NULL };
