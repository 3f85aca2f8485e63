/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem_fuzz.c -- a memory description from a hostile peer of the same host: refused, or a region of
 * the length that it says, reached by the ring, whose receiver checks every record
 */
#include <string.h>

#include "conn.h"
#include "fuzz.h"
#include "shm/shm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct shm_ctx ctx = { .forced = SHM_RING };
	static struct shm_conn sc = { .ctx = &ctx };
	static struct tr tr = { .provider = { &tr_shm_provider }, .providers = 1 };
	static struct tr_conn conn = { .tr = &tr, .provider = &tr_shm_provider, .priv = &sc };
	struct tr_rmem *rmem, *again;
	struct kv_error err;

	sc.conn = &conn;
	if (tr_mem_open(&conn, data, size, &rmem, &err)) {
		FUZZ_CHECK(err.code == KV_ERR_PROTOCOL && err.message[0] && !conn.rmems);
		return 0;
	}
	FUZZ_CHECK(tr_rmem_len(rmem) && tr_rmem_len(rmem) <= INT64_MAX);
	FUZZ_CHECK(!tr_mem_open(&conn, data, size, &again, &err) && again == rmem);
	tr_mem_close(again);
	tr_mem_close(rmem);
	FUZZ_CHECK(!conn.rmems);
	return 0;
}
