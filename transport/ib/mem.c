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
#include <unistd.h>

#include <kvrail/kv.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "gpu/gpu.h"
#include "ib.h"
#include "stage.h"

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

/* A module of the kernel makes the addresses of GPUs known to plain registration. */
static bool has_peermem(const struct ib_ctx *ctx, int kind)
{
	const struct gpu_kind *of = tr_kinds[kind];
	char path[256];

	for (size_t i = 0; of && i < 2 && of->modules[i]; i++) {
		snprintf(path, sizeof(path), "%s/sys/module/%s", ctx->sysroot, of->modules[i]);
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
	int reach = has_peermem(ctx, TR_MEM_CUDA) ? KV_GPU_PEERMEM : 0;

	if (ctx->v->reg_dmabuf_mr && !ctx->v->reg_dmabuf_mr(rail->pd, 0, 0, 0, -1, 0) &&
	    errno == EBADF)
		reach |= KV_GPU_DMABUF;
	return reach;
}

static int refuse_gpu(const struct ib_rail *rail, const struct tr_mem *mem, struct kv_error *err)
{
	const struct gpu_kind *of = tr_kinds[mem->kind];

	kv_fail(err, KV_ERR_UNSUPPORTED, "register",
		"%s does not reach a GPU's memory: %s, and %s is not loaded", rail->name,
		mem->dmabuf_fd < 0 ? mem->no_dmabuf : "its driver or libibverbs takes no DMA-BUF",
		of->modules[0] ? of->modules[0] : "a module for it");
	kv_error_hint(err, "%s", of->hint);
	ib_name_peer(NULL, rail, err);
	return KV_ERR_UNSUPPORTED;
}

/*
 * The buffer that holds them, and where: of all of the memory, or of a piece, whose buffer is the
 * caller's to close. -1: there is none.
 */
static int buffer_of(const struct tr_mem *mem, uint64_t from, uint64_t to, uint64_t *offset_p)
{
	int fd = -1;

	*offset_p = mem->dmabuf_off + (from - (uint64_t)(uintptr_t)mem->addr);
	if (!mem->piece_bytes)
		return mem->dmabuf_fd;
	return tr_kinds[mem->kind]->dmabuf((void *)(uintptr_t)from, to - from, &fd, offset_p, NULL)
		       ? -1
		       : fd;
}

/* Bytes [from, to) of a GPU's memory: as a DMA-BUF, or by a module. */
static int make_gpu_mr(struct ib_ctx *ctx, struct ib_rail *rail, const struct tr_mem *mem,
		       uint64_t from, uint64_t to, unsigned int access, struct ibv_mr **mr_p,
		       struct kv_error *err)
{
	uint64_t offset;
	int fd = ctx->v->reg_dmabuf_mr ? buffer_of(mem, from, to, &offset) : -1;
	int why = EOPNOTSUPP;

	*mr_p = NULL;
	if (fd >= 0) {
		*mr_p = ctx->v->reg_dmabuf_mr(rail->pd, offset, to - from, from, fd, (int)access);
		why = errno;
	}
	if (fd >= 0 && mem->piece_bytes)
		close(fd); /* what is registered keeps it */
	if (*mr_p)
		return 0;
	if (!not_offered(why)) {
		why = kv_fail_errno(err, KV_ERR_DEVICE, why, "register",
				    "%s cannot register %llu bytes at %llu of a DMA-BUF",
				    rail->name, (unsigned long long)(to - from),
				    (unsigned long long)offset);
		ib_name_peer(NULL, rail, err);
		return why;
	}
	return has_peermem(ctx, mem->kind) ? ib_mr_make(ctx, rail, (void *)(uintptr_t)from,
							to - from, access, mr_p, err)
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

	return mem->kind != TR_MEM_HOST ? make_gpu_mr(ctx, rail, mem, from, to, access, mr_p, err)
					: ib_mr_make(ctx, rail, (void *)(uintptr_t)from, to - from,
						     access, mr_p, err);
}

/* Slices as large as it takes: their keys must fit one description, whatever the region's size. */
static int cut(const struct ib_ctx *ctx, uint32_t rails, const struct tr_mem *mem, struct ib_mr *mr,
	       struct kv_error *err)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), span, begin;

	mr->first = (uint64_t)(uintptr_t)mem->addr & ~(page - 1);
	span = (uint64_t)(uintptr_t)mem->addr + mem->len - mr->first;
	mr->slice_bytes = ctx->slice_bytes;
	while ((span - 1) / mr->slice_bytes >= IB_SLICES_MAX)
		mr->slice_bytes *= 2;
	if (mem->piece_bytes) {
		begin = (uint64_t)(uintptr_t)mem->addr - mem->piece_first;
		mr->slice_bytes = mem->piece_bytes;
		mr->first = mem->piece_first + begin / mr->slice_bytes * mr->slice_bytes;
		span = (uint64_t)(uintptr_t)mem->addr + mem->len - mr->first;
	}
	if ((span - 1) / mr->slice_bytes >= IB_SLICES_MAX)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "register",
			       "%zu bytes in pieces of %llu are more than %d, and %s", mem->len,
			       (unsigned long long)mr->slice_bytes, IB_SLICES_MAX, mem->no_dmabuf);
	mr->slices = (uint32_t)((span - 1) / mr->slice_bytes + 1);
	mr->shift = ib_slice_shift(mr->slice_bytes, mr->slices);
	for (; rails; rails &= rails - 1) {
		const struct ib_rail *rail = &ctx->rail[__builtin_ctz(rails)];
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

void ib_mr_drop(struct ib_ctx *ctx, struct ib_mr *mr, uint32_t rails)
{
	for (; rails; rails &= rails - 1) {
		struct ibv_mr **mrs = &mr->mr[(uint32_t)__builtin_ctz(rails) * mr->slices];

		mr->have &= ~(rails & -rails);
		for (uint32_t s = 0; s < mr->slices; s++) {
			if (mrs[s])
				ctx->v->dereg_mr(mrs[s]);
			mrs[s] = NULL;
		}
	}
}

int ib_mr_add(struct ib_ctx *ctx, struct ib_mr *mr, int rail, struct kv_error *err)
{
	uint64_t from, to;
	int ret = 0;

	for (uint32_t s = 0; s < mr->slices && !ret; s++) {
		to = slice_end(mr, s, mr->mem, &from);
		ret = make_slice(ctx, &ctx->rail[rail], mr->mem, from, to,
				 &mr->mr[(uint32_t)rail * mr->slices + s], err);
	}
	if (ret)
		ib_mr_drop(ctx, mr, UINT32_C(1) << rail);
	else
		mr->have |= UINT32_C(1) << rail;
	return ret;
}

/* One rail. If its device fails the others are still used. */
static int serve_rail(struct ib_ctx *ctx, struct ib_mr *mr, int r, struct kv_error *why)
{
	int ret = ib_mr_add(ctx, mr, r, why);

	if (ret == KV_ERR_DEVICE &&
	    (!why->sys_errno || why->sys_errno == EIO || why->sys_errno == ENODEV))
		return 0;
	return ret;
}

/* No new connection uses a rail without the region before it is opened anew, with all of them. */
static void do_without(struct ib_ctx *ctx, uint32_t rails, const struct kv_error *why)
{
	for (; rails; rails &= rails - 1) {
		struct ib_rail *rail = &ctx->rail[__builtin_ctz(rails)];

		if (atomic_load(&rail->dead))
			continue;
		ib_rail_is_ill(ctx, rail, why);
		atomic_store(&rail->lame, true);
	}
}

/* From here on late.c knows it. Under the lock. */
static void list_mr(struct ib_ctx *ctx, struct ib_mr *mr)
{
	mr->next = ctx->mrs;
	mr->prev = &ctx->mrs;
	if (mr->next)
		mr->next->prev = &mr->next;
	ctx->mrs = mr;
}

/*
 * Every rail that works, and the one that is being added (late.c), which may come meanwhile: the
 * caller is a user of *rails_p afterwards.
 */
static int serve_rails(struct ib_ctx *ctx, struct ib_mr *mr, uint32_t *rails_p,
		       struct kv_error *err)
{
	uint32_t due = *rails_p;
	struct kv_error why;
	int ret = 0;

	kv_fail(&why, KV_ERR_DEVICE, "register", "all RDMA devices have failed");
	do {
		for (; due && !ret; due &= due - 1)
			ret = serve_rail(ctx, mr, __builtin_ctz(due), &why);
		if (!ret && mr->have)
			do_without(ctx, *rails_p & ~mr->have, &why);
		pthread_mutex_lock(&ctx->lock);
		due = ib_rails_working(ctx, ctx->taking & ~*rails_p);
		ib_rails_hold(ctx, due);
		*rails_p |= due;
		if (!due && !ret && mr->have)
			list_mr(ctx, mr);
		pthread_mutex_unlock(&ctx->lock);
	} while (due && !ret);
	return ret || !mr->have ? kv_error_copy(err, &why) : 0;
}

static int reg_direct(struct ib_ctx *ctx, struct tr_mem *mem, struct ib_mr **mr_p,
		      struct kv_error *err)
{
	const struct ib_mr *flush = mem->flush ? tr_mem_handle(mem->flush, &tr_ib_provider) : NULL;
	struct ib_mr head = { .mem = mem }, *mr = NULL;
	uint32_t rails;
	int ret;

	if (mem->no_nic)
		return kv_error_copy(err, mem->no_nic);
	if (mem->flush && !flush)
		return kv_error_copy(err, tr_mem_why(mem->flush, &tr_ib_provider));
	if (flush && !flush->slices)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "register",
			       "no NIC reaches GPU %d, which each has to flush", mem->flush->gpu);
	rails = ib_rails_use(ctx, false);
	ret = cut(ctx, rails, mem, &head, err);
	if (ret)
		goto let_go;
	mr = kv_fault(IB_MEM_ALLOC) ? NULL
				    : calloc(1, sizeof(*mr) + (uint64_t)head.slices * IB_RAILS_MAX *
								      sizeof(mr->mr[0]));
	if (!mr) {
		ret = kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate a region's keys");
		goto let_go;
	}
	*mr = head;
	ret = serve_rails(ctx, mr, &rails, err);
	if (ret) {
		ib_mr_drop(ctx, mr, mr->have);
		free(mr);
	} else {
		*mr_p = mr;
	}
let_go:
	ib_rails_let_go(ctx, rails);
	return ret;
}

/*
 * No NIC reaches it, or the one at the other end does not reach what that has: kernels copy it
 * (slot.h).
 */
static int reg_staged(struct ib_ctx *ctx, struct tr_mem *mem, struct ib_mr **mr_p,
		      const struct kv_error *why, struct kv_error *err)
{
	struct kv_error no_stage;

	if (stage_register(mem, &no_stage))
		return kv_error_copy(err, why);
	*mr_p = kv_fault(GPU_SLOTS) ? NULL : calloc(1, sizeof(**mr_p));
	if (!*mr_p)
		return kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate a region's record");
	if (!atomic_exchange(&ctx->warned_staged, true))
		kv_log_warn(ctx->tr->log, "memory of GPU %d goes through pinned memory: %s; %s",
			    mem->gpu, why->message, why->hint);
	return 0;
}

int ib_mem_reg(void *arg, struct tr_mem *mem, void **handle_p, struct kv_error *err)
{
	struct ib_ctx *ctx = arg;
	struct ib_mr *mr = NULL;
	struct kv_error why;
	int ret = reg_direct(ctx, mem, &mr, &why);

	if (ret == KV_ERR_UNSUPPORTED && mem->kind != TR_MEM_HOST)
		ret = reg_staged(ctx, mem, &mr, &why, err);
	else if (ret)
		kv_error_copy(err, &why);
	if (ret)
		return ret;
	mr->stages = mem->kind != TR_MEM_HOST && (!mr->slices || !stage_register(mem, NULL));
	*handle_p = mr;
	return 0;
}

void ib_mem_dereg(void *arg, void *handle)
{
	struct ib_ctx *ctx = arg;
	struct ib_mr *mr = handle;
	uint32_t rails;

	if (!mr->slices) {
		free(mr);
		return;
	}
	pthread_mutex_lock(&ctx->lock);
	while (mr->busy)
		pthread_cond_wait(&ctx->idle, &ctx->lock);
	*mr->prev = mr->next;
	if (mr->next)
		mr->next->prev = mr->prev;
	rails = mr->have; /* no job of late.c finds it any more */
	ib_rails_hold(ctx, rails);
	pthread_mutex_unlock(&ctx->lock);
	ib_mr_drop(ctx, mr, rails);
	free(mr);
	ib_rails_let_go(ctx, rails);
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
	int ret;

	if (mr->slices && c->rails & ~mr->have)
		return ib_mem_lacks(c, mr, err);
	ret = mr->slices && mem->flush && mem->access & TR_REMOTE_WRITE
		      ? ib_gpu_add(c, mem->flush, err)
		      : 0;
	if (ret)
		return ret;
	wire_put_u64(w, (uint64_t)(uintptr_t)mem->addr);
	wire_put_u64(w, mr->first);
	wire_put_u64(w, mr->slice_bytes);
	wire_put_u32(w, mr->slices);
	wire_put_u8(w, mr->slices ? (uint8_t)c->paths : 0);
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

/*
 * The slices must cover [addr, addr + len) exactly, so that no later index can leave the table.
 */
static bool slices_cover(const struct ib_rmr *r, uint64_t len)
{
	return r->slices && r->slices <= IB_SLICES_MAX && r->slice_bytes >= 4096 &&
	       r->slice_bytes % IB_LINE == 0 && r->first <= r->addr &&
	       r->addr - r->first < r->slice_bytes && len <= UINT64_MAX - r->addr && len &&
	       (r->addr + len - r->first - 1) / r->slice_bytes + 1 == r->slices;
}

int ib_mem_open(struct tr_conn *conn, struct tr_rmem *rmem, struct wire_reader *r,
		struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(conn);
	struct ib_rmr head = { 0 }, *rmr;
	uint64_t keys;
	uint8_t paths;
	bool staged;

	head.addr = wire_get_u64(r);
	head.first = wire_get_u64(r);
	head.slice_bytes = wire_get_u64(r);
	head.slices = wire_get_u32(r);
	paths = wire_get_u8(r);
	keys = (uint64_t)head.slices * paths;
	staged = !head.slices && !paths && !head.slice_bytes && rmem->device;
	if (r->bad || (!staged && !slices_cover(&head, rmem->len)) ||
	    (!staged && paths != c->paths) || wire_left(r) < keys * 4)
		return kv_fail(err, KV_ERR_PROTOCOL, "open_memory",
			       "the peer's description of region %u is malformed", rmem->id);
	rmr = kv_fault(IB_RMEM_ALLOC) ? NULL
				      : calloc(1, sizeof(*rmr) + keys * sizeof(rmr->rkey[0]));
	if (!rmr)
		return kv_fail(err, KV_ERR_NOMEM, "open_memory",
			       "cannot allocate the keys of a remote region");
	*rmr = head;
	rmr->shift = staged ? 0 : ib_slice_shift(head.slice_bytes, head.slices);
	for (uint64_t i = 0; i < keys; i++)
		rmr->rkey[i] = wire_get_u32(r);
	rmem->priv = rmr;
	rmem->device &= !staged; /* the peer says that it has placed the bytes */
	return 0;
}

void ib_mem_close(struct tr_conn *conn, struct tr_rmem *rmem)
{
	free(rmem->priv);
	rmem->priv = NULL;
}
