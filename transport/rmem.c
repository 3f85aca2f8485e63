/* SPDX-License-Identifier: Apache-2.0 */
/* rmem.c -- regions of the peer: the description of one, and what comes of it at the other end */
#include <stdlib.h>

#include "base/error.h"
#include "base/fault.h"
#include "conn.h"

enum { PACKED_DEVICE = 1 << 8 }; /* beside the access bits of a description: a GPU's */

int tr_mem_pack(struct tr_conn *conn, struct tr_mem *mem, void *buf, size_t cap, size_t *len_p,
		struct kv_error *err)
{
	struct wire_writer w = wire_writer_of(buf, cap < TR_MEM_PACK_MAX ? cap : TR_MEM_PACK_MAX);
	int ret = tr_mem_usable(conn, mem, err);

	if (ret)
		return ret;
	wire_put_u32(&w, mem->id);
	wire_put_u32(&w, (mem->access & (TR_REMOTE_READ | TR_REMOTE_WRITE)) |
				 (mem->kind != TR_MEM_HOST ? PACKED_DEVICE : 0));
	wire_put_u64(&w, mem->len);
	ret = conn->provider->mem_pack(conn, mem, &w, err);
	if (ret)
		return ret;
	if (w.bad)
		return kv_fail(err, KV_ERR_ARG, "mem_pack",
			       "the description needs more than %zu bytes", w.cap);
	ret = conn_expose(conn, mem, err);
	if (ret)
		return ret;
	*len_p = w.len;
	return 0;
}

struct tr_mem *tr_conn_region(const struct tr_conn *conn, uint32_t id)
{
	struct tr_mem *mem = tr_mem_get(conn->tr, id);

	if (!mem || !tr_mem_usable(conn, mem, NULL))
		return mem;
	tr_mem_put(mem);
	return NULL;
}

struct tr_mem *tr_conn_reach(const struct tr_conn *conn, uint32_t id, uint64_t offset, uint64_t len,
			     unsigned int access)
{
	struct tr_mem *mem = tr_conn_region(conn, id);

	if (!mem || tr_mem_lets(mem, offset, len, access))
		return mem;
	tr_mem_put(mem);
	return NULL;
}

/*
 * The same registration seen again: a peer's id names one registration for the life of its context.
 */
static struct tr_rmem *find_open(struct tr_conn *conn, uint32_t id, uint64_t len,
				 unsigned int access)
{
	for (struct tr_rmem *rmem = conn->rmems; rmem; rmem = rmem->next)
		if (rmem->id == id && rmem->len == len && rmem->access == access)
			return rmem;
	return NULL;
}

int tr_mem_open(struct tr_conn *conn, const void *buf, size_t len, struct tr_rmem **rmem_p,
		struct kv_error *err)
{
	struct wire_reader r = wire_reader_of(buf, len);
	uint32_t id = wire_get_u32(&r);
	unsigned int access = wire_get_u32(&r);
	uint64_t region_len = wire_get_u64(&r);
	struct tr_rmem *rmem;
	int ret;

	if (r.bad || !region_len || region_len > INT64_MAX ||
	    (access & ~(unsigned int)(TR_REMOTE_READ | TR_REMOTE_WRITE | PACKED_DEVICE)))
		return kv_fail(err, KV_ERR_PROTOCOL, "mem_open",
			       "%zu bytes are not a memory description", len);
	rmem = find_open(conn, id, region_len, access);
	if (rmem) {
		rmem->refs++;
		*rmem_p = rmem;
		return 0;
	}
	rmem = kv_fault(TR_RMEM_ALLOC) ? NULL : calloc(1, sizeof(*rmem));
	if (!rmem)
		return kv_fail(err, KV_ERR_NOMEM, "mem_open",
			       "cannot allocate a remote region's record");
	rmem->conn = conn;
	rmem->id = id;
	rmem->access = access;
	rmem->device = access & PACKED_DEVICE;
	rmem->len = region_len;
	rmem->refs = 1;
	ret = conn->provider->mem_open(conn, rmem, &r, err);
	if (!ret && !wire_done(&r)) {
		ret = kv_fail(err, KV_ERR_PROTOCOL, "mem_open",
			      "a memory description of %zu bytes has %s", len,
			      r.bad ? "too few" : "too many");
		conn->provider->mem_close(conn, rmem);
	}
	if (ret) {
		free(rmem);
		return ret;
	}
	rmem->next = conn->rmems;
	conn->rmems = rmem;
	*rmem_p = rmem;
	return 0;
}

void tr_rmem_hold(struct tr_rmem *rmem)
{
	rmem->refs++;
}

void tr_mem_close(struct tr_rmem *rmem)
{
	struct tr_rmem **at;

	if (!rmem || --rmem->refs)
		return;
	for (at = &rmem->conn->rmems; *at != rmem; at = &(*at)->next)
		;
	*at = rmem->next;
	rmem->conn->provider->mem_close(rmem->conn, rmem);
	free(rmem);
}

size_t tr_rmem_len(const struct tr_rmem *rmem)
{
	return rmem->len;
}
