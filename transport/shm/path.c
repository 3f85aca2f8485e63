/* SPDX-License-Identifier: Apache-2.0 */
/*
 * path.c -- how the bytes of a region reach it: pool, process_vm, ring, CUDA kernels; chosen once
 * per region, with the reason
 *
 * Pool and process_vm let a process store into another one's memory, and only its death stops it
 * for certain. So they are used only where the receiver said that it holds a pidfd of this process.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "shm.h"

/* As it travels in a memory description, after the core's part. */
struct description {
	uint64_t addr; /* the region's, in its process */
	uint8_t in_pool;
	uint64_t pool_id, pool_len, pool_off;
	struct gpu_share share; /* of a GPU's region, where it allows it */
	bool shared;
};

static void put_share(const struct shm_conn *sc, const struct gpu_share *share,
		      struct wire_writer *w)
{
	wire_put_u8(w, sc->we_allow_direct && share);
	if (!sc->we_allow_direct || !share)
		return;
	wire_put_bytes(w, share->uuid, sizeof(share->uuid));
	wire_put_bytes(w, share->handle.bytes, sizeof(share->handle.bytes));
	wire_put_u64(w, share->offset);
	wire_put_u64(w, share->span);
}

static void get_share(struct wire_reader *r, struct description *d)
{
	d->shared = wire_get_u8(r);
	if (!d->shared)
		return;
	wire_get_bytes(r, d->share.uuid, sizeof(d->share.uuid));
	wire_get_bytes(r, d->share.handle.bytes, sizeof(d->share.handle.bytes));
	d->share.offset = wire_get_u64(r);
	d->share.span = wire_get_u64(r);
}

int shm_mem_pack(struct tr_conn *conn, struct tr_mem *mem, struct wire_writer *w,
		 struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(conn);
	bool in_pool = false;
	int ret = 0;

	if (mem->pool_fd >= 0 && sc->we_allow_direct)
		ret = pool_send(sc, mem, &in_pool, err);
	wire_put_u64(w, (uintptr_t)mem->addr);
	wire_put_u8(w, in_pool);
	wire_put_u64(w, mem->pool_id);
	wire_put_u64(w, mem->pool_len);
	wire_put_u64(w, mem->pool_off);
	if (mem->kind != TR_MEM_HOST)
		put_share(sc, cuda_share(mem), w);
	return ret;
}

static void get_description(struct wire_reader *r, bool device, struct description *d)
{
	*d = (struct description){ 0 };
	d->addr = wire_get_u64(r);
	d->in_pool = wire_get_u8(r);
	d->pool_id = wire_get_u64(r);
	d->pool_len = wire_get_u64(r);
	d->pool_off = wire_get_u64(r);
	if (device)
		get_share(r, d);
}

/* What to write of a store: also the text of the path. */
static const char *stores_text(const struct shm_conn *sc, char *buf, size_t cap)
{
	if (sc->line_order)
		snprintf(buf, cap, "ordered stores");
	else if (sc->ctx->nt_from == UINT64_MAX)
		snprintf(buf, cap, "plain stores");
	else
		snprintf(buf, cap, "non-temporal stores (%s)", sc->ctx->nt_name);
	return buf;
}

/* Why not by the pool; NULL if it can be. */
static const char *no_pool(const struct shm_conn *sc, const struct description *d)
{
	if (sc->ctx->forced != SHM_AUTO && sc->ctx->forced != SHM_POOL)
		return "KVCACHE_SHM_PATH";
	if (trust_refuses(sc))
		return trust_refuses(sc);
	if (!sc->peer_allows_pool)
		return "the peer allows no direct writes";
	if (!d->in_pool)
		return "the region is not in a memfd pool";
	return NULL;
}

static const char *no_cma(const struct shm_conn *sc)
{
	if (sc->ctx->forced != SHM_AUTO && sc->ctx->forced != SHM_CMA)
		return "KVCACHE_SHM_PATH";
	if (trust_refuses(sc))
		return trust_refuses(sc);
	if (!sc->peer_allows_cma)
		return "the peer allows no direct writes";
	if (sc->line_order)
		return "process_vm_writev does not keep the order within lines";
	return sc->cma_works ? NULL : sc->no_cma;
}

/* The pool in which a region lies; its addr NULL: it is not mapped. */
static int open_in_pool(struct shm_conn *sc, const struct description *d, uint64_t len,
			const struct shm_pool **pool_p, struct kv_error *err)
{
	if (d->pool_off > d->pool_len || len > d->pool_len - d->pool_off)
		return kv_fail(err, KV_ERR_PROTOCOL, "mem_open",
			       "a region of %llu bytes does not lie in its pool",
			       (unsigned long long)len);
	return pool_find(sc, d->pool_id, d->pool_len, pool_p, err);
}

static void choose_cuda(struct shm_conn *sc, struct shm_rmem *rm, const struct description *d,
			char say[PATH_TEXT])
{
	const char *why = sc->ctx->forced == SHM_RING ? "KVCACHE_SHM_PATH" : trust_refuses(sc);

	if (!why && !d->shared)
		why = "the peer does not share that memory of its GPU";
	rm->path = why ? SHM_RING : SHM_CUDA;
	rm->addr = (uint8_t *)(uintptr_t)d->addr;
	rm->share = d->share;
	if (why)
		snprintf(say, PATH_TEXT, "ring to the peer's GPU (%s)", why);
	else
		snprintf(say, PATH_TEXT, "CUDA kernels, %d multiprocessors", sc->ctx->sms);
}

static int choose_path(struct shm_conn *sc, struct shm_rmem *rm, const struct description *d,
		       uint64_t len, char say[PATH_TEXT], struct kv_error *err)
{
	enum shm_path forced = sc->ctx->forced;
	const char *pool_why = no_pool(sc, d), *cma_why = no_cma(sc);
	const struct shm_pool *pool = NULL;
	char text[48];

	if (!pool_why) {
		int ret = open_in_pool(sc, d, len, &pool, err);

		if (ret)
			return ret;
		if (!pool->addr)
			pool_why = "the peer's pools are too large to map";
	}
	if (!pool_why) {
		rm->path = SHM_POOL;
		rm->addr = pool->addr + d->pool_off;
		snprintf(say, PATH_TEXT, "memfd pool, %s%s", stores_text(sc, text, sizeof(text)),
			 tr_pages_text(pool->pages));
		return 0;
	}
	if (forced == SHM_POOL)
		return kv_fail(err, KV_ERR_UNREACHABLE, "mem_open",
			       "KVCACHE_SHM_PATH is pool, but %s", pool_why);
	rm->addr = (uint8_t *)(uintptr_t)d->addr;
	if (!cma_why) {
		rm->path = SHM_CMA;
		snprintf(say, PATH_TEXT, "process_vm_writev, %d spans a call (%s)", SHM_CMA_SPANS,
			 pool_why);
		return 0;
	}
	if (forced == SHM_CMA)
		return kv_fail(err, KV_ERR_UNREACHABLE, "mem_open",
			       "KVCACHE_SHM_PATH is cma, but %s", cma_why);
	rm->path = SHM_RING;
	rm->cma_any_order = forced == SHM_AUTO && sc->line_order && sc->peer_allows_cma &&
			    !trust_refuses(sc) && sc->cma_works;
	snprintf(say, PATH_TEXT, "ring (%s)%s", cma_why,
		 rm->cma_any_order ? ", process_vm for any order" : "");
	return 0;
}

/* A connection says each way that its regions take, and of those of one way the last. */
static void connection_says(struct shm_conn *sc, enum shm_path way, const char *say)
{
	char all[PATH_TEXT * SHM_WAYS] = "";
	size_t n = 0;

	snprintf(sc->says[way], sizeof(sc->says[way]), "%s", say);
	for (int i = 0; i < SHM_WAYS; i++)
		if (sc->says[i][0])
			n += (size_t)snprintf(all + n, sizeof(all) - n, "%s%s", n ? "; " : "",
					      sc->says[i]);
	tr_conn_set_path(sc->conn, "%s", all);
}

bool path_falls_back(struct shm_rmem *rm, int error)
{
	if (error != EFAULT || rm->path != SHM_RING)
		return false;
	rm->cma_any_order = false;
	return true;
}

int shm_mem_open(struct tr_conn *conn, struct tr_rmem *rmem, struct wire_reader *r,
		 struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(conn);
	struct description d;
	struct shm_rmem *rm;
	char say[PATH_TEXT];
	int ret;

	get_description(r, rmem->device, &d);
	if (r->bad || d.in_pool > 1 || d.addr + rmem->len < d.addr ||
	    (d.share.span &&
	     (d.share.offset > d.share.span || rmem->len > d.share.span - d.share.offset)))
		return kv_fail(err, KV_ERR_PROTOCOL, "mem_open",
			       "a memory description is malformed");
	rm = kv_fault(SHM_RMEM) ? NULL : calloc(1, sizeof(*rm));
	if (!rm)
		return kv_fail(err, KV_ERR_NOMEM, "mem_open",
			       "cannot allocate a remote region's path");
	ret = rmem->device ? (choose_cuda(sc, rm, &d, say), 0)
			   : choose_path(sc, rm, &d, rmem->len, say, err);
	if (!ret && (rm->path == SHM_CMA || rm->cma_any_order))
		ret = call_open(sc, err);
	if (ret) {
		free(rm);
		return ret;
	}
	rmem->priv = rm;
	kv_log_info(tr_conn_tr(conn)->log, "region %u of %s (%llu bytes): %s", rmem->id,
		    tr_conn_address(conn), (unsigned long long)rmem->len, say);
	connection_says(sc, rm->path, say);
	return 0;
}

void shm_mem_close(struct tr_conn *conn, struct tr_rmem *rmem)
{
	cuda_forget(tr_conn_priv(conn), rmem->priv);
	free(rmem->priv);
	rmem->priv = NULL;
}
