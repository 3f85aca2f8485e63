/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.c -- memory regions on every rail, in slices, and their keys for the peer
 *
 * A slice boundary is a multiple of the page size counted from the region's first page, on both
 * ends; a piece that crosses one of ours is gathered with two entries, one that crosses the peer's
 * is cut there (post.c). Each region says how large its slices are.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <kvrail/kv.h>

#include "base/error.h"
#include "base/fault.h"
#include "ib.h"

int ib_mr_make(struct ib_ctx *ctx, struct ib_rail *rail, void *addr, size_t len,
	       unsigned int access, struct ibv_mr **mr_p, struct kv_error *err)
{
	int why, ret;

	*mr_p = ctx->v->reg_mr(rail->pd, addr, len, access);
	if (*mr_p)
		return 0;
	why = errno;
	if (why == ENOMEM || why == EAGAIN || why == EPERM)
		ret = ib_mem_short(ctx, rail, len, why, err);
	else
		ret = kv_fail_errno(err, why == EFAULT ? KV_ERR_SYSTEM : KV_ERR_DEVICE, why,
				    "register", "%s cannot register %zu bytes at %p", rail->name,
				    len, addr);
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
static uint64_t slice_end(const struct ib_mr *mr, uint32_t slice, const struct tr_mem *mem,
			  uint64_t *from_p)
{
	uint64_t begin = (uint64_t)(uintptr_t)mem->addr;
	uint64_t from = mr->first + slice * mr->slice_bytes;
	uint64_t to = from + mr->slice_bytes;

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

static int make_slice(struct ib_ctx *ctx, struct ib_rail *rail, const struct tr_mem *mem,
		      uint64_t from, uint64_t to, struct ibv_mr **mr_p, struct kv_error *err)
{
	unsigned int access = access_of(ctx, mem);

	return mem->kind == TR_MEM_DEVICE ? make_gpu_mr(ctx, rail, mem, from, to, access, mr_p, err)
					  : ib_mr_make(ctx, rail, (void *)(uintptr_t)from,
						       to - from, access, mr_p, err);
}

/* Slices as large as it takes: their keys must fit one description, whatever the region's size. */
static int cut(const struct ib_ctx *ctx, const struct tr_mem *mem, struct ib_mr *mr,
	       struct kv_error *err)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), span;

	mr->first = (uint64_t)(uintptr_t)mem->addr & ~(page - 1);
	span = (uint64_t)(uintptr_t)mem->addr + mem->len - mr->first;
	mr->slice_bytes = ctx->slice_bytes;
	while ((span - 1) / mr->slice_bytes >= IB_SLICES_MAX)
		mr->slice_bytes *= 2;
	mr->slices = (uint32_t)((span - 1) / mr->slice_bytes + 1);
	mr->shift = ib_slice_shift(mr->slice_bytes, mr->slices);
	for (int r = 0; r < ctx->rails; r++) {
		const struct ib_rail *rail = &ctx->rail[r];
		uint64_t most = rail->attr.max_mr_size, need = span;

		need = need < mr->slice_bytes ? need : mr->slice_bytes;
		if (!most || need <= most) /* 0: the device does not say */
			continue;
		kv_fail(err, KV_ERR_DEVICE, "register",
			"%zu bytes need memory regions of %llu bytes each, and %s takes at most "
			"%llu",
			mem->len, (unsigned long long)need, rail->name, (unsigned long long)most);
		kv_error_hint(err, "register less at one time");
		ib_name_peer(NULL, rail, err);
		return KV_ERR_DEVICE;
	}
	return 0;
}

void ib_mr_shrink(struct ib_ctx *ctx, struct ib_mr *mr, int rails)
{
	for (; mr->rails > rails; mr->rails--)
		for (uint32_t s = 0; s < mr->slices; s++) {
			struct ibv_mr **mr_p = &mr->mr[(uint32_t)(mr->rails - 1) * mr->slices + s];

			if (*mr_p)
				ctx->v->dereg_mr(*mr_p);
			*mr_p = NULL;
			mr->have &= ~(UINT32_C(1) << (mr->rails - 1));
		}
}

int ib_mr_extend(struct ib_ctx *ctx, struct ib_mr *mr, int rail, struct kv_error *err)
{
	uint64_t from, to;
	int ret = 0;

	mr->rails = rail + 1;
	for (uint32_t s = 0; s < mr->slices && !ret; s++) {
		to = slice_end(mr, s, mr->mem, &from);
		ret = make_slice(ctx, &ctx->rail[rail], mr->mem, from, to,
				 &mr->mr[(uint32_t)rail * mr->slices + s], err);
	}
	if (ret)
		ib_mr_shrink(ctx, mr, rail);
	else
		mr->have |= UINT32_C(1) << rail;
	return ret;
}

/* The next rail. If its device fails the others are still used. */
static int serve_next(struct ib_ctx *ctx, struct ib_mr *mr, struct kv_error *why)
{
	int r = mr->rails, ret = KV_ERR_DEVICE;
	struct ib_rail *rail = &ctx->rail[r];

	if (atomic_load(&rail->dead) || atomic_load(&rail->lame))
		kv_fail(why, ret, "register", "the device of %s has failed", rail->name);
	else
		ret = ib_mr_extend(ctx, mr, r, why);
	if (ret != KV_ERR_DEVICE ||
	    (why->sys_errno && why->sys_errno != EIO && why->sys_errno != ENODEV))
		return ret;
	mr->rails = r + 1;
	return 0;
}

/* No new connection uses a rail without the region before it is opened anew, with all of them. */
static void do_without(struct ib_ctx *ctx, const struct ib_mr *mr, const struct kv_error *why)
{
	for (int r = 0; r < mr->rails; r++) {
		struct ib_rail *rail = &ctx->rail[r];

		if (mr->have & UINT32_C(1) << r || atomic_load(&rail->dead))
			continue;
		ib_rail_is_ill(ctx, rail, why);
		atomic_store(&rail->lame, true);
	}
}

/*
 * Every rail that there is, and the one that is being added (late.c), which may come or go
 * meanwhile. Under the lock; not while a verb registers.
 */
static int serve_rails(struct ib_ctx *ctx, struct ib_mr *mr, struct kv_error *err)
{
	struct kv_error why = { 0 };
	int ret = 0;

	while (!ret && mr->rails != ctx->taking) {
		int taking = ctx->taking;

		pthread_mutex_unlock(&ctx->lock);
		while (!ret && mr->rails < taking)
			ret = serve_next(ctx, mr, &why);
		ib_mr_shrink(ctx, mr, ret ? 0 : taking);
		pthread_mutex_lock(&ctx->lock);
	}
	if (ret || !mr->have)
		return kv_error_copy(err, &why);
	do_without(ctx, mr, &why);
	return 0;
}

int ib_mem_reg(void *arg, struct tr_mem *mem, void **handle_p, struct kv_error *err)
{
	struct ib_ctx *ctx = arg;
	struct ib_mr head = { .mem = mem }, *mr;
	int ret = mem->no_nic ? kv_error_copy(err, mem->no_nic) : cut(ctx, mem, &head, err);

	if (ret)
		return ret;
	mr = kv_fault(IB_MEM_ALLOC) ? NULL
				    : calloc(1, sizeof(*mr) + (uint64_t)head.slices * IB_RAILS_MAX *
								      sizeof(mr->mr[0]));
	if (!mr)
		return kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate a region's keys");
	*mr = head;
	pthread_mutex_lock(&ctx->lock);
	ctx->regs++;
	ret = serve_rails(ctx, mr, err);
	if (!ret) {
		mr->next = ctx->mrs;
		mr->prev = &ctx->mrs;
		if (mr->next)
			mr->next->prev = &mr->next;
		ctx->mrs = mr;
	}
	ctx->regs--;
	pthread_cond_broadcast(&ctx->idle);
	pthread_mutex_unlock(&ctx->lock);
	if (ret)
		free(mr);
	else
		*handle_p = mr;
	return ret;
}

void ib_mem_dereg(void *arg, void *handle)
{
	struct ib_ctx *ctx = arg;
	struct ib_mr *mr = handle;

	pthread_mutex_lock(&ctx->lock);
	while (mr->busy)
		pthread_cond_wait(&ctx->idle, &ctx->lock);
	*mr->prev = mr->next;
	if (mr->next)
		mr->next->prev = mr->prev;
	pthread_mutex_unlock(&ctx->lock);
	ib_mr_shrink(ctx, mr, 0);
	free(mr);
}

/* A device has failed since the connection was made, and the region came later. */
int ib_mem_lacks(struct ib_conn *c, const struct ib_mr *mr, struct kv_error *err)
{
	unsigned int rail = (unsigned int)__builtin_ctz(c->rails & ~mr->have);
	struct kv_error cause;

	kv_fail(&cause, KV_ERR_DEVICE, "register",
		"%s could not register the memory, and the connection uses it",
		c->ctx->rail[rail].name);
	kv_error_hint(&cause, "connect again: a new connection does without that device");
	ib_name_peer(c, &c->ctx->rail[rail], &cause);
	cause.scope = KV_SCOPE_PEER;
	if (c->state == IB_LIVE)
		ib_break(c, &cause);
	return kv_error_copy(err, &cause);
}

int ib_mem_pack(struct tr_conn *conn, struct tr_mem *mem, struct wire_writer *w,
		struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(conn);
	const struct ib_mr *mr = tr_mem_handle(mem, &tr_ib_provider);

	if (c->rails & ~mr->have)
		return ib_mem_lacks(c, mr, err);
	wire_put_u64(w, (uint64_t)(uintptr_t)mem->addr);
	wire_put_u64(w, mr->first);
	wire_put_u64(w, mr->slice_bytes);
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
	    head.slice_bytes < 4096 || head.slice_bytes % IB_LINE || head.first > head.addr ||
	    head.addr - head.first >= head.slice_bytes || rmem->len > UINT64_MAX - head.addr ||
	    !rmem->len ||
	    (head.addr + rmem->len - head.first - 1) / head.slice_bytes + 1 != head.slices ||
	    wire_left(r) < keys * 4)
		return kv_fail(err, KV_ERR_PROTOCOL, "open_memory",
			       "the peer's description of region %u is malformed", rmem->id);
	rmr = kv_fault(IB_RMEM_ALLOC) ? NULL
				      : calloc(1, sizeof(*rmr) + keys * sizeof(rmr->rkey[0]));
	if (!rmr)
		return kv_fail(err, KV_ERR_NOMEM, "open_memory",
			       "cannot allocate the keys of a remote region");
	*rmr = head;
	rmr->shift = ib_slice_shift(head.slice_bytes, head.slices);
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
