/* SPDX-License-Identifier: Apache-2.0 */
/* pd_rank.c -- one rank: open, and for each block size fill, write, check */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pd.h"
#include "rank_memory.h"
#include "util.h"

struct bench {
	const struct bench_options *opt;
	struct rank *rank;
	int is_decode;
	uint32_t self, peers;
	struct kv_engine *engine;
	struct kv_comm *comm;
	struct kv_cache *cache[BENCH_ROWS_MAX];
	struct kv_peer *peer[RANK_MAX];
	struct kv_op *ahead[BENCH_IN_FLIGHT_MAX]; /* under way, by their places */
	struct rank_memory memory;
	struct bench_pool pool;		/* of its bytes */
	struct bench_ids ids[RANK_MAX]; /* with each peer */
	unsigned char *floor;		/* rank 0: where the floor copies to */
	struct bench_row row;
	struct bench_report *report;
};

static const struct kv_layers all_layers = { 0, 0 };

static int failed(struct bench *b, const char *what, const struct kv_error *err)
{
	char line[256];

	kv_error_format(err, line, sizeof(line));
	snprintf(b->row.note, sizeof(b->row.note), "%s: %s", what, line);
	b->row.failed = 1;
	return -1;
}

static uint32_t blocks_of(const struct bench *b, uint64_t block_bytes)
{
	return b->is_decode ? bench_dest_blocks(b->opt, block_bytes)
			    : bench_source_blocks(b->opt, block_bytes);
}

/* The memory that the largest of the rows needs on this rank. */
static uint64_t pool_bytes(const struct bench *b, int of_decode)
{
	const struct bench_options *opt = b->opt;
	uint64_t most = 0, bytes;
	uint32_t i;

	for (i = 0; i < opt->rows; i++) {
		bytes = opt->row_bytes[i] * opt->layers * opt->tensors;
		bytes *= of_decode ? bench_dest_blocks(opt, opt->row_bytes[i])
				   : bench_source_blocks(opt, opt->row_bytes[i]);
		most = bytes > most ? bytes : most;
	}
	return most;
}

static void to_gpu(const struct bench *b)
{
	rank_memory_put(&b->memory, b->pool.base, pool_bytes(b, b->is_decode));
}

/* One cache for each block size, all over the same memory. */
static int open_caches(struct bench *b, struct kv_error *err)
{
	static const char *const names[KV_TENSORS_MAX] = { "t0", "t1", "t2", "t3",
							   "t4", "t5", "t6", "t7" };
	const struct bench_options *opt = b->opt;
	struct kv_tensor tensor[KV_TENSORS_MAX] = { 0 };
	struct kv_layout layout = KV_INIT(kv_layout);
	struct bench_pool p = { .opt = opt };
	uint32_t i, t;
	int rc = rank_memory_open(&b->memory, b->engine, opt->job.gpu, pool_bytes(b, b->is_decode),
				  err);

	p.base = b->pool.base = b->memory.bytes;
	for (i = 0; i < opt->rows && rc == 0; i++) {
		p.block_bytes = opt->row_bytes[i];
		p.blocks = blocks_of(b, p.block_bytes);
		for (t = 0; t < opt->tensors; t++) {
			tensor[t].name = names[t];
			tensor[t].block_bytes = p.block_bytes;
			tensor[t].base = rank_memory_at(&b->memory, bench_block(&p, 0, t, 0));
			tensor[t].layer_stride = p.blocks * p.block_bytes;
		}
		layout.cache_id = i;
		layout.layers = opt->layers;
		layout.tensors = opt->tensors;
		layout.blocks = p.blocks;
		layout.tensor = tensor;
		layout.mem_kind = rank_memory_kind(&b->memory);
		layout.flags = opt->two_sided ? 0 : KV_CACHE_OPEN;
		rc = kv_cache_register(b->engine, &layout, &b->cache[i], err);
	}
	return rc;
}

static int open_engine(struct bench *b)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_comm_config comm = KV_INIT(kv_comm_config);
	uint32_t other = b->is_decode ? 0 : b->opt->job.prefills, i;
	struct kv_error err;

	config.arrivals_off = 1;
	config.options = rank_engine_options(b->rank);
	if (kv_engine_open(&config, &b->engine, &err) || open_caches(b, &err))
		return failed(b, "opening", &err);
	comm.rank = b->rank->rank;
	comm.nranks = b->rank->size;
	comm.group = b->is_decode;
	comm.host = *b->opt->job.address ? b->opt->job.address : NULL;
	comm.allgather = rank_allgather;
	comm.arg = b->rank;
	comm.timeout_ms = b->opt->job.timeout_ms;
	if (kv_comm_init(b->engine, &comm, &b->comm, &err))
		return failed(b, "connecting", &err);
	for (i = 0; i < b->peers; i++)
		b->peer[i] = kv_comm_peer(b->comm, other + i);
	return 0;
}

static int barrier(struct bench *b)
{
	char mine = 0, all[RANK_MAX];

	atomic_fetch_add(&b->rank->slot->beat, 1);
	return rank_allgather(b->rank, &mine, all, 1);
}

static struct kv_options op_options(const struct bench *b, uint32_t it)
{
	struct kv_options o = KV_INIT(kv_options);

	o.timeout_ms = b->opt->job.timeout_ms;
	o.tag = it;
	return o;
}

static int write_one(struct bench *b, uint32_t row, uint32_t it)
{
	const struct bench_ids *ids = &b->ids[0];
	size_t at = (size_t)(it % ids->batches) * ids->batch;
	struct kv_options o = op_options(b, it);
	struct kv_error err;
	int rc;

	if (b->opt->two_sided)
		rc = kv_send_blocks(b->peer[0], b->cache[row], all_layers, ids->source + at,
				    ids->batch, it, &o, &err);
	else
		rc = kv_write_blocks(b->peer[0], b->cache[row], all_layers, ids->source + at,
				     ids->dest + at, ids->batch, &o, &err);
	return rc ? failed(b, "writing", &err) : 0;
}

/* Waits for the operation in this place, if there is one. */
static int end_ahead(struct bench *b, uint32_t place)
{
	struct kv_op *op = b->ahead[place];
	struct kv_error err;

	b->ahead[place] = NULL;
	if (op && (kv_wait(op, KV_ACKED, b->opt->job.timeout_ms, &err) || kv_op_free(op, &err)))
		return failed(b, "writing", &err);
	return 0;
}

static int end_all_ahead(struct bench *b)
{
	int rc = 0;

	for (uint32_t i = 0; i < BENCH_IN_FLIGHT_MAX; i++)
		rc |= end_ahead(b, i);
	return rc;
}

/* A batch, begun while those before it are under way. */
static int write_ahead(struct bench *b, uint32_t row, uint32_t it)
{
	const struct bench_ids *ids = &b->ids[0];
	size_t at = (size_t)(it % ids->batches) * ids->batch;
	uint32_t place = it % b->opt->in_flight;
	struct kv_options o = op_options(b, it);
	struct kv_error err;

	if (end_ahead(b, place))
		return -1;
	if (kv_write_blocks_async(b->peer[0], b->cache[row], all_layers, ids->source + at,
				  ids->dest + at, ids->batch, &o, &b->ahead[place], &err))
		return failed(b, "writing", &err);
	return 0;
}

/* One batch to every decode rank, posted together. */
static int write_group(struct bench *b, uint32_t row, uint32_t it)
{
	struct kv_options o = op_options(b, it);
	struct kv_op *op[RANK_MAX] = { NULL };
	struct kv_error err;
	uint32_t d;
	size_t at;
	int rc;

	if (kv_group_start(b->engine, &o.group, &err))
		return failed(b, "kv_group_start", &err);
	for (d = 0, rc = 0; d < b->peers && rc == 0; d++) {
		const struct bench_ids *ids = &b->ids[d];

		at = (size_t)(it % ids->batches) * ids->batch;
		if (b->opt->two_sided)
			rc = kv_send_blocks_async(b->peer[d], b->cache[row], all_layers,
						  ids->source + at, ids->batch, it, &o, &op[d],
						  &err);
		else
			rc = kv_write_blocks_async(b->peer[d], b->cache[row], all_layers,
						   ids->source + at, ids->dest + at, ids->batch, &o,
						   &op[d], &err);
	}
	if (rc)
		failed(b, "writing", &err);
	if (kv_group_end(o.group, b->opt->job.timeout_ms, NULL, &err) && rc == 0)
		rc = failed(b, "kv_group_end", &err);
	for (d = 0; d < b->peers; d++)
		if (op[d] && kv_op_free(op[d], &err) && rc == 0)
			rc = failed(b, "kv_op_free", &err);
	return rc;
}

static int write_batch(struct bench *b, uint32_t row, uint32_t it)
{
	atomic_fetch_add(&b->rank->slot->beat, 1);
	if (b->opt->in_flight > 1)
		return write_ahead(b, row, it);
	return b->peers == 1 ? write_one(b, row, it) : write_group(b, row, it);
}

/* Warm-up, the measured iterations, and one more with fresh data that only the check sees. */
static int prefill_row(struct bench *b, uint32_t row)
{
	const struct bench_options *opt = b->opt;
	uint32_t it, total = opt->warmup + opt->iters, d;
	uint64_t before, after;

	for (it = 0; it < total; it++) {
		before = now_ns();
		if (write_batch(b, row, it))
			return -1;
		after = now_ns();
		if (it < opt->warmup)
			continue;
		if (it == opt->warmup)
			b->row.begin_ns = before;
		b->row.end_ns = after;
		hist_add(&b->row.batch, after - before);
	}
	if (end_all_ahead(b))
		return -1;
	b->row.bytes = (uint64_t)opt->iters * opt->batch * b->peers * opt->layers * opt->tensors *
		       opt->row_bytes[row];
	if (!opt->check)
		return 0;
	for (d = 0; d < b->peers; d++)
		bench_refill(&b->pool, b->self,
			     b->ids[d].source + (size_t)(it % b->ids[d].batches) * opt->batch,
			     opt->batch, 1);
	to_gpu(b);
	return write_batch(b, row, it) | end_all_ahead(b);
}

static int open_recvs(struct bench *b, uint32_t row, uint32_t it, struct kv_op **op)
{
	struct kv_options o = op_options(b, it);
	struct kv_error err;
	uint32_t p;

	for (p = 0; p < b->peers; p++) {
		const struct bench_ids *ids = &b->ids[p];

		if (kv_recv_blocks_async(b->peer[p], b->cache[row], all_layers,
					 ids->dest + (size_t)(it % ids->batches) * ids->batch,
					 ids->batch, it, &o, &op[p], &err))
			return failed(b, "kv_recv_blocks_async", &err);
	}
	return 0;
}

static int wait_recvs(struct bench *b, struct kv_op **op)
{
	struct kv_error err;
	uint32_t p;

	atomic_fetch_add(&b->rank->slot->beat, 1);
	for (p = 0; p < b->peers; p++) {
		if (kv_wait(op[p], KV_ACKED, b->opt->job.timeout_ms, &err))
			return failed(b, "kv_recv_blocks", &err);
		if (kv_op_free(op[p], &err))
			return failed(b, "kv_op_free", &err);
	}
	return 0;
}

/* Two-sided: the next batch is open before this one has arrived; the two share no block. */
static int decode_row(struct bench *b, uint32_t row)
{
	uint32_t total = b->opt->warmup + b->opt->iters + (b->opt->check ? 1 : 0);
	uint32_t window = b->opt->hot ? 1 : 2, it;
	struct kv_op *op[2][RANK_MAX];

	if (!b->opt->two_sided)
		return 0;
	for (it = 0; it < window && it < total; it++)
		if (open_recvs(b, row, it, op[it]))
			return -1;
	for (it = 0; it < total; it++) {
		if (wait_recvs(b, op[it % window]))
			return -1;
		if (it + window < total && open_recvs(b, row, it + window, op[it % window]))
			return -1;
	}
	return 0;
}

static void prepare_row(struct bench *b, uint32_t row)
{
	uint32_t i;

	memset(&b->row, 0, sizeof(b->row));
	b->pool.opt = b->opt;
	b->pool.row = row;
	b->pool.block_bytes = b->opt->row_bytes[row];
	b->pool.blocks = blocks_of(b, b->pool.block_bytes);
	for (i = 0; i < b->peers; i++)
		bench_ids_create(&b->ids[i], b->opt, row, b->is_decode ? i : b->self,
				 b->is_decode ? b->self : i);
	if (b->is_decode && b->opt->check)
		bench_stamp(&b->pool);
	else if (!b->is_decode)
		bench_fill_source(&b->pool, b->self);
	to_gpu(b);
}

static void check_row(struct bench *b)
{
	const struct bench_options *opt = b->opt;
	uint32_t p;

	rank_memory_get(&b->memory, b->pool.base, pool_bytes(b, b->is_decode));
	if (opt->corrupt && b->self == 0)
		bench_block(&b->pool, 0, 0, b->pool.blocks - 1)[b->pool.block_bytes - 1] ^= 1;
	for (p = 0; p < b->peers; p++) {
		atomic_fetch_add(&b->rank->slot->beat, 1);
		b->row.wrong += bench_check(&b->pool, &b->ids[p], p, opt->warmup + opt->iters + 1,
					    b->row.note, sizeof(b->row.note));
	}
}

/* All phases of one block size; everybody waits for everybody between them. */
static int run_row(struct bench *b, uint32_t row, struct bench_row *rows)
{
	uint32_t i;
	int rc = 0;

	prepare_row(b, row);
	if (barrier(b))
		return -1;
	rc = b->is_decode ? decode_row(b, row) : prefill_row(b, row);
	if (barrier(b))
		return -1;
	if (rc == 0 && b->is_decode && b->opt->check)
		check_row(b);
	if (barrier(b))
		return -1;
	if (rc == 0 && b->floor)
		bench_floor(&b->pool, b->floor, bench_dest_blocks(b->opt, b->opt->row_bytes[row]),
			    &b->ids[0], &b->rank->slot->beat, &b->row.memcpy_ns, &b->row.nt_ns);
	for (i = 0; i < b->peers; i++)
		bench_ids_destroy(&b->ids[i]);
	if (rank_allgather(b->rank, &b->row, rows, sizeof(b->row)))
		return -1;
	if (b->report)
		bench_report_row(b->report, row, rows);
	for (i = 0; i < b->rank->size; i++)
		if (rows[i].failed)
			return -1;
	return 0;
}

/* Rank 0 prints and measures the floor. */
static int open_lead(struct bench *b)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_option_info option = KV_INIT(kv_option_info);
	const char *spin = "?";
	struct kv_error err;
	size_t i, bytes = pool_bytes(b, 1);

	if (kv_peer_info(b->peer[0], &info, &err))
		return failed(b, "kv_peer_info", &err);
	for (i = 0; kv_option_get(b->engine, i, &option, &err) == 0; i++)
		if (strcmp(option.name, "KVCACHE_SPIN_US") == 0)
			spin = option.value;
	b->report = bench_report_begin(b->opt, info.transport, info.path, spin);
	if (b->memory.gpu) /* of CPUs, between pools of the host */
		return 0;
	b->floor = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (b->floor == MAP_FAILED) {
		b->floor = NULL;
		fprintf(stderr, "no memory for the floor: its columns stay empty\n");
	} else {
		memset(b->floor, 1, bytes);
	}
	return 0;
}

static void close_engine(struct bench *b)
{
	struct kv_error err;

	if (b->comm && kv_comm_free(b->comm, 1000, &err))
		fprintf(stderr, "rank %u: closing the communicator: %s\n", b->rank->rank,
			err.message);
	kv_engine_close(b->engine);
	if (b->memory.gpu)
		free(b->memory.bytes);
}

int bench_rank_run(struct rank *rank, void *arg)
{
	const struct bench_options *opt = arg;
	struct bench *b = need_calloc(1, sizeof(*b));
	struct bench_row *rows = need_calloc(rank->size, sizeof(*rows));
	struct bench_result result = { 0 };
	uint32_t row, i;
	int rc;

	b->opt = opt;
	b->rank = rank;
	b->is_decode = rank->rank >= opt->job.prefills;
	b->self = b->is_decode ? rank->rank - opt->job.prefills : rank->rank;
	b->peers = b->is_decode ? opt->job.prefills : opt->job.decodes;
	rc = open_engine(b);
	if (rc == 0 && rank->rank == 0)
		rc = open_lead(b);
	if (rc)
		fprintf(stderr, "rank %u: %s\n", rank->rank, b->row.note);
	for (row = 0; row < opt->rows && rc == 0; row++) {
		rc = run_row(b, row, rows);
		atomic_fetch_add(&rank->slot->done, 1);
		result.rows += rc == 0;
		for (i = 0; i < rank->size; i++)
			result.wrong += rows[i].wrong;
	}
	if (b->report && bench_report_end(b->report))
		rc = -1;
	result.failed = rc != 0;
	close_engine(b);
	rc |= rank_result(rank, &result, sizeof(result));
	free(rows);
	free(b);
	return rc ? 1 : 0;
}
