/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.c -- memory regions on every rail, in slices, and their keys for the peer
 *
 * A slice boundary is a multiple of the page size counted from the region's first page, on both
 * ends; a piece that crosses one of ours is gathered with two entries, one that crosses the peer's
 * is cut there (post.c).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <kvrail/kv.h>

#include "base/error.h"
#include "base/fault.h"
#include "ib.h"

int ib_mr_make(struct ib_ctx *ctx, struct ib_rail *rail, void *addr, size_t len,
	       unsigned int access, struct ibv_mr **mr_p, struct kv_error *err)
{
	struct rlimit limit = { 0 };
	int why, ret = KV_ERR_MEMLOCK;

	*mr_p = ctx->v->reg_mr(rail->pd, addr, len, access);
	if (*mr_p)
		return 0;
	why = errno;
	getrlimit(RLIMIT_MEMLOCK, &limit);
	if (why == ENOMEM || why == EAGAIN || why == EPERM) {
		kv_fail(err, ret, "register",
			"%s cannot lock %zu bytes: RLIMIT_MEMLOCK is %lld bytes (%s)", rail->name,
			len, limit.rlim_cur == RLIM_INFINITY ? -1LL : (long long)limit.rlim_cur,
			kv_errno_text(why));
		if (err)
			err->sys_errno = why;
		kv_error_hint(err, "ulimit -l unlimited, LimitMEMLOCK=infinity in the service, or "
				   "--ulimit memlock=-1 for a container");
	} else {
		ret = kv_fail_errno(err, why == EFAULT ? KV_ERR_SYSTEM : KV_ERR_DEVICE, why,
				    "register", "%s cannot register %zu bytes at %p", rail->name,
				    len, addr);
	}
	ib_name_peer(NULL, rail, err);
	return ret;
}

/* nvidia_peermem makes the addresses of GPUs known to plain registration. */
static bool has_peermem(const struct ib_ctx *ctx)
{
	static const char *const modules[] = { "nvidia_peermem", "nv_peer_mem" };
	char path[256];

	for (size_t i = 0; i < sizeof(modules) / sizeof(*modules); i++) {
		snprintf(path, sizeof(path), "%s/sys/module/%s", ctx->sysroot, modules[i]);
		if (!access(path, F_OK))
			return true;
	}
	return false;
}

static bool not_offered(int why)
{
	return why == EOPNOTSUPP || why == EPROTONOSUPPORT;
}

/* enum kv_gpu_reach. A device that takes DMA-BUFs says of descriptor -1 that it is none. */
int ib_gpu_reach(const struct ib_ctx *ctx, const struct ib_rail *rail)
{
	int reach = has_peermem(ctx) ? KV_GPU_PEERMEM : 0;

	if (ctx->v->reg_dmabuf_mr && !ctx->v->reg_dmabuf_mr(rail->pd, 0, 0, 0, -1, 0) &&
	    errno == EBADF)
		reach |= KV_GPU_DMABUF;
	return reach;
}

static int refuse_gpu(const struct ib_rail *rail, const struct tr_mem *mem, struct kv_error *err)
{
	kv_fail(err, KV_ERR_UNSUPPORTED, "register",
		"%s does not reach a GPU's memory: %s, and nvidia_peermem is not loaded",
		rail->name,
		mem->dmabuf_fd < 0 ? mem->no_dmabuf : "its driver or libibverbs takes no DMA-BUF");
	kv_error_hint(err, "modprobe nvidia_peermem, or the open kernel modules (apt-get install "
			   "nvidia-open) for DMA-BUF; kvrail doctor");
	ib_name_peer(NULL, rail, err);
	return KV_ERR_UNSUPPORTED;
}

/* Bytes [from, to) of a GPU's memory: as a DMA-BUF, or by nvidia_peermem. */
static int make_gpu_mr(struct ib_ctx *ctx, struct ib_rail *rail, const struct tr_mem *mem,
		       uint64_t from, uint64_t to, unsigned int access, struct ibv_mr **mr_p,
		       struct kv_error *err)
{
	uint64_t offset = mem->dmabuf_off + (from - (uint64_t)(uintptr_t)mem->addr);
	int why = EOPNOTSUPP;

	if (mem->dmabuf_fd >= 0 && ctx->v->reg_dmabuf_mr) {
		*mr_p = ctx->v->reg_dmabuf_mr(rail->pd, offset, to - from, from, mem->dmabuf_fd,
					      (int)access);
		if (*mr_p)
			return 0;
		why = errno;
	}
	if (!not_offered(why)) {
		why = kv_fail_errno(err, KV_ERR_DEVICE, why, "register",
				    "%s cannot register %llu bytes at %llu of a DMA-BUF",
				    rail->name, (unsigned long long)(to - from),
				    (unsigned long long)offset);
		ib_name_peer(NULL, rail, err);
		return why;
	}
	return has_peermem(ctx) ? ib_mr_make(ctx, rail, (void *)(uintptr_t)from, to - from, access,
					     mr_p, err)
				: refuse_gpu(rail, mem, err);
}

/* Bytes [*from_p, return) of the region are in slice `slice`. */
static uint64_t slice_end(const struct ib_mr *mr, uint64_t slice_bytes, uint32_t slice,
			  const struct tr_mem *mem, uint64_t *from_p)
{
	uint64_t begin = (uint64_t)(uintptr_t)mem->addr;
	uint64_t from = mr->first + slice * slice_bytes;
	uint64_t to = from + slice_bytes;

	*from_p = from > begin ? from : begin;
	return to < begin + mem->len ? to : begin + mem->len;
}

static unsigned int access_of(const struct ib_ctx *ctx, const struct tr_mem *mem)
{
	unsigned int access = IBV_ACCESS_LOCAL_WRITE; /* the landing place of reads */

	if (mem->access & TR_REMOTE_WRITE)
		access |= IBV_ACCESS_REMOTE_WRITE;
	if (mem->access & TR_REMOTE_READ)
		access |= IBV_ACCESS_REMOTE_READ;
	if ((mem->access & TR_RELAXED) && ctx->relaxed)
		access |= IBV_ACCESS_RELAXED_ORDERING;
	return access;
}

static void free_mr(struct ib_ctx *ctx, struct ib_mr *mr)
{
	for (uint32_t i = 0; i < mr->slices * (uint32_t)ctx->rails; i++)
		if (mr->mr[i])
			ctx->v->dereg_mr(mr->mr[i]);
	free(mr);
}

static int make_slice(struct ib_ctx *ctx, struct ib_rail *rail, const struct tr_mem *mem,
		      uint64_t from, uint64_t to, struct ibv_mr **mr_p, struct kv_error *err)
{
	unsigned int access = access_of(ctx, mem);

	return mem->kind == TR_MEM_DEVICE ? make_gpu_mr(ctx, rail, mem, from, to, access, mr_p, err)
					  : ib_mr_make(ctx, rail, (void *)(uintptr_t)from,
						       to - from, access, mr_p, err);
}

int ib_mem_reg(void *arg, struct tr_mem *mem, void **handle_p, struct kv_error *err)
{
	struct ib_ctx *ctx = arg;
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t first = (uint64_t)(uintptr_t)mem->addr & ~(page - 1);
	uint64_t span = (uint64_t)(uintptr_t)mem->addr + mem->len - first;
	uint64_t slices = (span + ctx->slice_bytes - 1) / ctx->slice_bytes;
	struct ib_mr *mr;
	uint64_t from, to;
	int ret;

	if (slices > IB_SLICES_MAX)
		return kv_fail(err, KV_ERR_ARG, "register",
			       "a region of %zu bytes has more than %d slices", mem->len,
			       IB_SLICES_MAX);
	mr = kv_fault(IB_MEM_ALLOC)
		     ? NULL
		     : calloc(1, sizeof(*mr) + slices * (uint64_t)ctx->rails * sizeof(mr->mr[0]));
	if (!mr)
		return kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate a region's keys");
	mr->first = first;
	mr->slices = (uint32_t)slices;
	for (int r = 0; r < ctx->rails; r++)
		for (uint32_t s = 0; s < mr->slices; s++) {
			to = slice_end(mr, ctx->slice_bytes, s, mem, &from);
			ret = make_slice(ctx, &ctx->rail[r], mem, from, to,
					 &mr->mr[(uint32_t)r * mr->slices + s], err);
			if (ret) {
				free_mr(ctx, mr);
				return ret;
			}
		}
	*handle_p = mr;
	return 0;
}

void ib_mem_dereg(void *ctx, void *handle)
{
	free_mr(ctx, handle);
}

int ib_mem_pack(struct tr_conn *conn, struct tr_mem *mem, struct wire_writer *w,
		struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(conn);
	const struct ib_mr *mr = tr_mem_handle(mem, &tr_ib_provider);

	wire_put_u64(w, (uint64_t)(uintptr_t)mem->addr);
	wire_put_u64(w, mr->first);
	wire_put_u64(w, c->ctx->slice_bytes);
	wire_put_u32(w, mr->slices);
	wire_put_u8(w, (uint8_t)c->paths);
	for (int p = 0; p < c->paths; p++)
		for (uint32_t s = 0; s < mr->slices; s++)
			wire_put_u32(w, mr->mr[c->path[p].rail_index * mr->slices + s]->rkey);
	if (w->bad)
		return kv_fail(err, KV_ERR_ARG, "pack",
			       "the keys of %u slices on %d paths do not fit a description of %d "
			       "bytes",
			       mr->slices, c->paths, TR_MEM_PACK_MAX);
	return 0;
}

int ib_mem_open(struct tr_conn *conn, struct tr_rmem *rmem, struct wire_reader *r,
		struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(conn);
	struct ib_rmr head = { 0 }, *rmr;
	uint64_t keys;
	uint8_t paths;

	head.addr = wire_get_u64(r);
	head.first = wire_get_u64(r);
	head.slice_bytes = wire_get_u64(r);
	head.slices = wire_get_u32(r);
	paths = wire_get_u8(r);
	keys = (uint64_t)head.slices * paths;
	/*
	 * The slices must cover [addr, addr + len) exactly, so that no later index can leave the
	 * table.
	 */
	if (r->bad || paths != c->paths || !head.slices || head.slices > IB_SLICES_MAX ||
	    head.slice_bytes < 4096 || head.slice_bytes > IB_SLICE_BYTES ||
	    head.slice_bytes % IB_LINE || head.first > head.addr ||
	    head.addr - head.first >= head.slice_bytes || rmem->len > UINT64_MAX - head.addr ||
	    !rmem->len ||
	    (head.addr + rmem->len - head.first + head.slice_bytes - 1) / head.slice_bytes !=
		    head.slices ||
	    wire_left(r) < keys * 4)
		return kv_fail(err, KV_ERR_PROTOCOL, "open_memory",
			       "the peer's description of region %u makes no sense", rmem->id);
	rmr = kv_fault(IB_RMEM_ALLOC) ? NULL
				      : calloc(1, sizeof(*rmr) + keys * sizeof(rmr->rkey[0]));
	if (!rmr)
		return kv_fail(err, KV_ERR_NOMEM, "open_memory",
			       "cannot allocate the keys of a remote region");
	*rmr = head;
	for (uint64_t i = 0; i < keys; i++)
		rmr->rkey[i] = wire_get_u32(r);
	rmem->priv = rmr;
	return 0;
}

void ib_mem_close(struct tr_conn *conn, struct tr_rmem *rmem)
{
	(void)conn;
	free(rmem->priv);
	rmem->priv = NULL;
}
