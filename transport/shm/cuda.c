/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda.c -- operations with a GPU's memory at either end, copied by kernels, or by copy engines
 * where the order of the bytes does not matter
 *
 * The GPU of the local region does it, else that of the remote one. An operation's spans go into
 * batches; its commit starts the last of them and is refused until its kernel has ended, so notify,
 * order and end are those of a pool.
 */

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "shm.h"

/* The connection's failure: a kernel, or the GPU. */
static int gpu_failed(struct shm_conn *sc, const struct kv_error *cause, struct kv_error *err)
{
	shm_lose(sc, cause);
	return kv_error_copy(err, cause);
}

/* Spans, or blocks where there are no spans, from one region to another as kernels see them. */
struct move {
	struct gpu_bounds to, from; /* the regions */
	const struct tr_span *spans;
	const struct tr_blocks *blocks;
	size_t n;
	bool write;
};

/* The pieces of `some` of them, from `first` on. */
static int put_spans(struct gpu_queue *queue, const struct move *m, size_t first, unsigned int some,
		     struct gpu_piece *piece, struct kv_error *err)
{
	const struct tr_span *s = m->spans + first;
	uint64_t chunks = 0;

	for (unsigned int i = 0; i < some; i++) {
		piece[i].to = m->to.first + (m->write ? s[i].remote : s[i].local);
		piece[i].from = m->from.first + (m->write ? s[i].local : s[i].remote);
		piece[i].len = s[i].len;
		chunks += gpu_chunks(s[i].len);
	}
	return gpu_queue_put(queue, some, chunks, err);
}

/* Blocks, by the way that they go. */
struct series {
	const int64_t *to_id, *from_id;
	uint64_t to, to_stride, from, from_stride, len;
};

static struct series series_of(const struct move *m)
{
	const struct tr_blocks *b = m->blocks;
	struct series s = { .len = b->len };

	s.to_id = m->write ? b->remote : b->local;
	s.to = m->to.first + (m->write ? b->remote_base : b->local_base);
	s.to_stride = m->write ? b->remote_stride : b->local_stride;
	s.from_id = m->write ? b->local : b->remote;
	s.from = m->from.first + (m->write ? b->local_base : b->remote_base);
	s.from_stride = m->write ? b->local_stride : b->remote_stride;
	return s;
}

static bool is_long(const struct gpu_bounds *in)
{
	return in->end - in->first > (uint64_t)GPU_STEP << 31;
}

/* What gpu_queue_room_blocks asks for. */
static bool goes_by_steps(const struct move *m, const struct series *s)
{
	uint64_t bits = s->to | s->to_stride | s->from | s->from_stride | s->len | m->to.first |
			m->from.first;

	return !(bits % GPU_STEP) && s->len <= GPU_BLOCK_MAX && !is_long(&m->to) &&
	       !is_long(&m->from);
}

static void fill_blocks(const struct series *s, size_t first, unsigned int n,
			const struct gpu_piece *base, struct gpu_block *block)
{
	uint32_t to = (uint32_t)((s->to - base->to) / GPU_STEP);
	uint32_t from = (uint32_t)((s->from - base->from) / GPU_STEP);
	uint32_t to_step = (uint32_t)(s->to_stride / GPU_STEP);
	uint32_t from_step = (uint32_t)(s->from_stride / GPU_STEP);

	for (unsigned int i = 0; i < n; i++) {
		block[i].to = to + (uint32_t)s->to_id[first + i] * to_step;
		block[i].from = from + (uint32_t)s->from_id[first + i] * from_step;
	}
}

static void fill_pieces(const struct series *s, size_t first, unsigned int n,
			struct gpu_piece *piece)
{
	for (unsigned int i = 0; i < n; i++) {
		piece[i].to = s->to + (uint64_t)s->to_id[first + i] * s->to_stride;
		piece[i].from = s->from + (uint64_t)s->from_id[first + i] * s->from_stride;
		piece[i].len = s->len;
	}
}

/* Returns how many of them the queue took, or its failure. engines: for all of them. */
static long put_blocks(struct gpu_queue *queue, bool engines, const struct move *m,
		       struct kv_error *err)
{
	const struct series s = series_of(m);
	bool steps = !engines && goes_by_steps(m, &s);
	struct gpu_piece *piece, base;
	struct gpu_block *block;
	size_t done = 0;
	int ret, room;

	while (done < m->n) {
		bool short_list = steps && gpu_queue_takes_blocks(queue, &m->to, &m->from, s.len);
		unsigned int n;

		room = short_list ? gpu_queue_room_blocks(queue, &m->to, &m->from, s.len, &block,
							  &base, err)
				  : gpu_queue_room(queue, engines, &piece, err);
		if (room <= 0)
			return room ? room : (long)done;
		n = m->n - done < (size_t)room ? (unsigned int)(m->n - done) : (unsigned int)room;
		if (short_list)
			fill_blocks(&s, done, n, &base, block);
		else
			fill_pieces(&s, done, n, piece);
		ret = gpu_queue_put(queue, n, n * gpu_chunks(s.len), err);
		if (ret)
			return ret;
		done += n;
	}
	return (long)done;
}

/* How many of `n` spans are large, or not, as the first of them is. */
static unsigned int count_alike(const struct tr_span *spans, unsigned int n)
{
	unsigned int i = 1;

	while (i < n && (spans[i].len >= GPU_LARGE) == (spans[0].len >= GPU_LARGE))
		i++;
	return i;
}

/* The same; may: the copy engines those that are large. */
static long put_pieces(struct gpu_queue *queue, bool engines, bool may, const struct move *m,
		       struct kv_error *err)
{
	struct gpu_piece *piece;
	size_t done = 0;

	while (done < m->n) {
		bool large = may && m->spans[done].len >= GPU_LARGE;
		int ret, room = gpu_queue_room(queue, engines || large, &piece, err);
		unsigned int some;

		if (room <= 0)
			return room ? room : (long)done;
		some = m->n - done < (size_t)room ? (unsigned int)(m->n - done)
						  : (unsigned int)room;
		if (may)
			some = count_alike(m->spans + done, some);
		ret = put_spans(queue, m, done, some, piece, err);
		if (ret)
			return ret;
		done += some;
	}
	return (long)done;
}

/*
 * Apart no GPU sees host memory that the application has pinned, so it goes through memory of the
 * queue: done with when this returns. LL, whose lines a GPU watches, has words of 8 bytes.
 */
static long put_staged(struct gpu_queue *queue, uint64_t to, const uint8_t *from,
		       const struct tr_span *spans, size_t n, struct kv_error *err)
{
	for (size_t i = 0; i < n; i++) {
		struct gpu_piece *piece;
		int ret, room = gpu_queue_room(queue, true, &piece, err);

		if (room <= 0)
			return room ? room : (long)i;
		if (spans[i].len > GPU_STAGE)
			return kv_fail(
				err, KV_ERR_UNSUPPORTED, "gpu",
				"%llu bytes of host memory at once to a GPU: %d are the most",
				(unsigned long long)spans[i].len, GPU_STAGE);
		ret = gpu_queue_put_host(queue, to + spans[i].remote, from + spans[i].local,
					 spans[i].len, err);
		if (ret)
			return ret;
	}
	return (long)n;
}

/* `m` lacks where the two are. */
static long add_move(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem, struct move *m,
		     struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(op->conn);
	struct gpu_queue *queue;
	uint64_t local, remote;
	struct kv_error cause;
	int place, ret = cuda_find_ends(sc, lmem, rmem, &place, &local, &remote, err);
	long took;

	sc->cut |= ret == TR_AGAIN;
	if (ret)
		return ret == TR_AGAIN ? 0 : ret;
	queue = sc->cuda->queue[place];
	/* Of two queues the first has to end before the second begins. */
	if (cuda_has(sc, op) && sc->cuda->op[op->index].queue != queue) {
		ret = cuda_end(sc, op, err);
		if (ret)
			return ret == TR_AGAIN ? 0 : ret;
	}
	m->write = op->kind == TR_WRITE;
	m->to.first = m->write ? remote : local;
	m->to.end = m->to.first + (m->write ? rmem->len : lmem->len);
	m->from.first = m->write ? local : remote;
	m->from.end = m->from.first + (m->write ? lmem->len : rmem->len);
	if (lmem->kind == TR_MEM_HOST && m->write && gpu_is_apart(sc->ctx->gpu))
		took = put_staged(queue, remote, lmem->addr, m->spans, m->n, &cause);
	else if (m->spans)
		took = put_pieces(queue, op->any_order,
				  !sc->line_order && gpu_queue_takes_large(queue), m, &cause);
	else
		took = put_blocks(queue, op->any_order, m, &cause);
	if (took < 0)
		return gpu_failed(sc, &cause, err);
	sc->cut |= (size_t)took < m->n;
	if (took) {
		sc->cuda->op[op->index].queue = queue;
		sc->cuda->op[op->index].batch = gpu_queue_last(queue);
	}
	return took;
}

/* The same; UNSUPPORTED: kernels do not reach the two, and the log has why. */
static long try_move(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem, struct move *m,
		     struct kv_error *err)
{
	struct shm_rmem *rm = rmem->priv;
	struct kv_error why;
	long done = add_move(op, lmem, rmem, m, &why);

	if (done >= 0)
		return done;
	if (done == KV_ERR_UNSUPPORTED && !rm->told)
		kv_log_info(tr_conn_tr(op->conn)->log, "region %u of %s: ring (%s)", rmem->id,
			    tr_conn_address(op->conn), why.message);
	rm->told |= done == KV_ERR_UNSUPPORTED;
	return kv_error_copy(err, &why);
}

long cuda_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
	      const struct tr_span *spans, size_t n, struct kv_error *err)
{
	struct move m = { .spans = spans, .n = n };

	return try_move(op, lmem, rmem, &m, err);
}

bool cuda_takes_blocks(const struct tr_mem *lmem, const struct tr_rmem *rmem)
{
	const struct shm_conn *sc = tr_conn_priv(rmem->conn);
	const struct shm_rmem *rm = rmem->priv;

	return !rm->told && !gpu_is_apart(sc->ctx->gpu) &&
	       (rm->path == SHM_CUDA || (rm->path == SHM_POOL && lmem->kind != TR_MEM_HOST));
}

/* The block behind the one before it at both ends. */
static bool follows(const struct tr_blocks *b, size_t i)
{
	return b->local[i] == b->local[i - 1] + 1 && b->remote[i] == b->remote[i - 1] + 1;
}

/* Where the first GPU_LARGE bytes without a gap at either end begin; n: there are none. */
static size_t first_large(const struct tr_blocks *b, size_t n)
{
	size_t least = (GPU_LARGE + b->len - 1) / b->len, i = 0;

	if (b->local_stride != b->len || b->remote_stride != b->len)
		return n;
	while (i + least <= n) {
		size_t k = i + least - 1; /* its run begins so far back: no earlier one is long */

		while (k > i && follows(b, k))
			k--;
		if (k == i)
			return i;
		i = k;
	}
	return n;
}

long cuda_add_blocks(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		     const struct tr_blocks *blocks, size_t n, struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(op->conn);
	struct move m = { .blocks = blocks, .n = n };
	size_t run = 1, large = first_large(blocks, n);
	struct tr_span all;
	long done;

	if (large) {
		m.n = large; /* and then that */
	} else {
		while (run < n && follows(blocks, run))
			run++;
		all = tr_block_span(blocks, 0);
		all.len *= run;
		m = (struct move){ .spans = &all, .n = 1 };
	}
	done = try_move(op, lmem, rmem, &m, err);
	if (m.spans && done > 0)
		done = (long)run;
	if (done != KV_ERR_UNSUPPORTED)
		return done;
	sc->cut = true; /* they come again, as spans */
	return 0;
}

int cuda_end(struct shm_conn *sc, struct tr_op *op, struct kv_error *err)
{
	struct shm_cuda *cuda = sc->cuda;
	struct kv_error cause;
	int ret = gpu_queue_end(cuda->op[op->index].queue, cuda->op[op->index].batch, &cause);

	if (ret < 0)
		return gpu_failed(sc, &cause, err);
	if (!ret) {
		cuda->op[op->index].queue = NULL;
		return 0;
	}
	sc->cut = true; /* nothing but a look shows that it has ended: the caller comes again */
	return TR_AGAIN;
}

bool cuda_runs(const struct tr_conn *conn)
{
	const struct shm_cuda *cuda = ((const struct shm_conn *)tr_conn_priv(conn))->cuda;
	int i = 0;

	while (cuda && i < SHM_GPUS && cuda->queue[i] && !gpu_queue_runs(cuda->queue[i]))
		i++;
	return cuda && i < SHM_GPUS && cuda->queue[i];
}

void cuda_go(struct shm_conn *sc)
{
	for (int i = 0; i < SHM_GPUS && sc->cuda->queue[i]; i++)
		gpu_queue_go(sc->cuda->queue[i]);
}

bool cuda_cancel(struct shm_conn *sc, struct tr_op *op, int64_t deadline_ns)
{
	struct shm_cuda *cuda = sc->cuda;
	int ret = cuda_end(sc, op, NULL);

	if (ret == TR_AGAIN && !cuda->op[op->index].stop_ns) {
		cuda->op[op->index].stop_ns = deadline_ns > 0 ? deadline_ns : 1;
		cuda->stopping++;
	}
	return ret;
}

static void give_up_kernel(struct shm_conn *sc, struct tr_op *op)
{
	struct kv_error cause;

	kv_fail(&cause, KV_ERR_TIMEOUT, "cancel",
		"a copy on GPU %d for %s has not ended before a cancelled operation's deadline",
		gpu_queue_device(sc->cuda->op[op->index].queue), tr_conn_address(sc->conn));
	kv_error_hint(&cause, "other kernels hold the GPU, or it hangs (nvidia-smi)");
	op->state = TR_OP_COMMITTED; /* it ends in doubt */
	shm_lose(sc, &cause);
}

struct tr_op *cuda_ended(struct shm_conn *sc)
{
	struct shm_cuda *cuda = sc->cuda;

	for (unsigned int i = 0; cuda->stopping && i < tr_conn_ops(sc->conn); i++) {
		struct tr_op *op = tr_conn_op(sc->conn, i);
		int64_t stop_ns = cuda->op[i].stop_ns;
		int ret = stop_ns ? cuda_end(sc, op, NULL) : TR_AGAIN;

		if (!ret) {
			cuda->op[i].stop_ns = 0;
			cuda->stopping--;
			return op;
		}
		if (stop_ns && ret == TR_AGAIN && kv_now_ns() >= stop_ns)
			give_up_kernel(sc, op);
	}
	return NULL;
}
