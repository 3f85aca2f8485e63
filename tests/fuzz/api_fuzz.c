/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api_fuzz.c -- every function of kv.h with arguments that the input picks, right and wrong: NULL,
 * structs of another size, ids, layers, times, counts and flags out of range, handles of another
 * engine, in any order; beside a peer that opens blocks and acknowledges
 *
 * Rules: no call crashes; one that fails has a code that kv_error.h names and says why, and has
 * written nothing; one that succeeds leaves `err` alone and had only arguments that may succeed;
 * no byte of a cache changes but where a read lands; none moves before the event or the stream that
 * it waits for (libcuda is fake_cuda.h); everything can be closed, nothing is left.
 */
#include <string.h>

#include "fake/fake_cuda.h"
#include "kv_world.h"

enum { MANY = 8, POOLS = 2, STREAMS = 3, SCRATCH = OPS, UNTOUCHED = 0xab };

/* What the bytes of an operation wait for, and which they are. */
struct start {
	struct kv_layers layers;
	size_t n;
	int stream;	   /* -1: none */
	int event[LAYERS]; /* number of its stream; -1: at once */
	void *events[LAYERS];
	bool live, by_events;
};

static struct {
	struct kv_engine *other; /* another engine, with a cache of its own */
	struct kv_cache *foreign;
	struct kv_op *op[OPS];
	struct kv_lease *lease[LEASES];
	struct kv_comm *comm;
	void *pool[POOLS];
	struct kv_group *group;
	size_t grouped; /* operations that it has collected */
	/* SCRATCH: of a blocking call. A group reads them again. */
	int64_t local[OPS + 1][MANY], remote[OPS + 1][MANY];
	struct start start[OPS + 1];
	void *stream[STREAMS], *event[STREAMS], *context; /* each has work that is not done */
	bool done[STREAMS], current;			  /* and well; the thread's is `context` */
	struct kv_error err;
	bool gives_up;
} m;

/* ---------------------------------------------------------------- what the input picks */

static int64_t some_ms(unsigned int pick)
{
	static const int64_t ms[] = {
		0, 1, 5, 50, -1, INT64_MIN, KV_TIMEOUT_MAX_MS + 1, INT64_MAX
	};

	return ms[pick % 8];
}

static bool is_time(int64_t ms)
{
	return ms >= 0 && ms <= KV_TIMEOUT_MAX_MS;
}

static size_t some_size(unsigned int pick, size_t right)
{
	const size_t wrong[] = { 0, right - 1, right + 1, SIZE_MAX };

	return pick % 8 < 4 ? right : wrong[pick % 4];
}

static uint32_t some_u32(unsigned int pick)
{
	static const uint32_t u32[] = { 0, 1, 2, 3, 8, 9, 1u << 28, UINT32_MAX };

	return u32[pick % 8];
}

static int64_t some_id(unsigned int pick)
{
	static const int64_t wrong[] = { BLOCKS, -1, INT64_MIN, INT64_MAX, INT64_C(1) << 32 };

	return pick % 16 < 11 ? pick % BLOCKS : wrong[pick % 16 - 11];
}

static struct kv_error *some_err(const struct step *s)
{
	memset(&m.err, UNTOUCHED, sizeof(m.err));
	return s->how & 0x80 ? NULL : &m.err;
}

static bool is_untouched(const void *p, size_t len)
{
	const uint8_t *byte = p;

	while (len && byte[len - 1] == UNTOUCHED)
		len--;
	return !len;
}

/* What a call has returned, and whether its arguments were such that it may succeed. */
static void judge(int ret, const struct kv_error *err, bool may_succeed)
{
	w.calls++;
	if (ret >= 0) {
		FUZZ_CHECK(may_succeed && (!err || is_untouched(err, sizeof(*err))));
		return;
	}
	FUZZ_CHECK(ret != KV_ERR_INTERNAL && strcmp(kv_error_name(ret), "UNKNOWN"));
	FUZZ_CHECK(!err || (err->code == ret && err->message[0] && err->op[0]));
}

static struct kv_engine *some_engine(const struct step *s)
{
	return s->how & 0x40 ? NULL : w.engine;
}

static int interrupted(void *arg)
{
	return m.gives_up;
}

static void quiet(void *arg, int level, const char *line)
{
	FUZZ_CHECK(*line);
}

/* ---------------------------------------------------------------- engines and memory */

static void call_open(const struct step *s)
{
	static const char *const word[] = { "KVCACHE_SHM_PATH=ring",
					    "KVCACHE_SPIN_US=-1",
					    "KVCACHE_SPIN_US=x",
					    "KVCACHE_=",
					    "=",
					    "",
					    "KVCACHE_LANES",
					    "KVCACHE_SHM_RING=1E" };
	const char *list[] = { "KVCACHE_TRANSPORT=shm", word[s->b % 8], NULL };
	struct kv_engine_config config = { .size = some_size(s->a, sizeof(config)),
					   .progress = s->a >> 4 ? (int32_t)s->e : 1,
					   .arrivals_off = s->c & 1,
					   .log = quiet,
					   .name = s->c & 2 ? NULL : "\x01 a name",
					   .options = s->c & 4 ? NULL : list };
	struct kv_engine *engine = NULL, **engine_p = s->how & 1 ? NULL : &engine;
	struct kv_error *err = some_err(s);
	int ret;

	config.progress += !config.progress; /* no thread of its own */
	ret = kv_engine_open(&config, engine_p, err);
	judge(ret, err, config.size == sizeof(config) && config.progress == 1 && engine_p);
	FUZZ_CHECK(!ret == !!engine);
	if (engine)
		kv_engine_close(engine);
}

static void call_alloc(const struct step *s)
{
	static const size_t len[] = { 0, 1, 4096, 100000, SIZE_MAX, SIZE_MAX / 2, 1, 1 };
	void **at = &m.pool[s->a % POOLS], *ptr = NULL, **ptr_p = s->how & 1 ? NULL : &ptr;
	struct kv_error *err = some_err(s);
	int ret;

	if (!*at) {
		ret = kv_alloc(some_engine(s), len[s->b % 8], ptr_p, err);
		judge(ret, err, some_engine(s) && len[s->b % 8] && ptr_p);
		FUZZ_CHECK(!ret == !!ptr);
		*at = ptr;
		return;
	}
	ptr = s->how & 2 ? (uint8_t *)*at + 1 : s->how & 4 ? memory : s->how & 8 ? NULL : *at;
	ret = kv_free(some_engine(s), ptr, err);
	judge(ret, err, ptr == *at && some_engine(s));
	if (!ret)
		*at = NULL;
}

static void call_register(const struct step *s)
{
	static uint8_t own[2][256];
	void *base[2] = { own[0], s->how & 1 ? NULL : own[1] };
	struct kv_tensor tensor[2] = {
		{ .name = s->how & 2 ? NULL : "k",
		  .block_bytes = s->c % 32,
		  .stride = s->c >> 8 & 31,
		  .flags = s->d & 3,
		  .order = some_u32(s->d >> 4),
		  .layer_base = s->how & 4 ? base : NULL,
		  .base = s->how & 8 ? NULL : own[0],
		  .layer_stride = s->how & 16 ? UINT64_MAX : 128 },
		{ .name = "a name that is longer than fifteen", .base = own, .block_bytes = 1 },
	};
	struct kv_layout layout = { .size = some_size(s->a, sizeof(layout)),
				    .cache_id = some_u32(s->a >> 4),
				    .layers = some_u32(s->b),
				    .tensors = s->b & 0x80 ? some_u32(s->b >> 3) : 1,
				    .blocks = s->b & 0x40 ? some_u32(s->c) : 4,
				    .tensor = s->d & 0x8000 ? NULL : tensor,
				    .tp_size = some_u32(s->e & 15),
				    .tp_rank = some_u32(s->e >> 4 & 15),
				    .block_tokens = some_u32(s->e >> 8 & 15),
				    .mem_kind = s->e & 0xf000 ? 0 : (int32_t)s->f,
				    .flags = s->f & 0x70000 ? 0 : s->f,
				    .kv_heads = some_u32(s->e >> 20 & 15) };
	struct kv_cache *cache = NULL, **cache_p = s->how & 32 ? NULL : &cache;
	struct kv_error *err = some_err(s);
	int ret;

	if (layout.layers > 2 && layout.layers <= KV_LAYERS_MAX)
		layout.layers = 2; /* `base` has no more */
	if (layout.tensors > 2 && layout.tensors <= KV_TENSORS_MAX)
		layout.tensors = 2;
	ret = kv_cache_register(some_engine(s), s->d & 0x4000 ? NULL : &layout, cache_p, err);
	judge(ret, err, cache_p && some_engine(s) && layout.blocks && layout.tensors == 1);
	FUZZ_CHECK(!ret == !!cache);
	if (cache)
		FUZZ_CHECK(!kv_cache_unregister(cache, NULL));
}

static void call_unregister(const struct step *s)
{
	struct kv_error *err = some_err(s);
	int ret = kv_cache_unregister(s->how & 1 || !w.peer ? NULL : w.cache, err);

	judge(ret, err, false); /* a peer knows it */
}

/* ---------------------------------------------------------------- peers */

static void call_connect(const struct step *s)
{
	uint32_t port = s->c & 1 ? some_u32(s->b) : 4711;
	struct kv_peer *peer = NULL, **peer_p = s->how & 1 ? NULL : &peer;
	int64_t ms = some_ms(s->a);
	struct kv_error *err = some_err(s);
	bool right = some_engine(s) && peer_p && is_time(ms) && port && port <= 65535;

	if (right) /* there is one peer, and it is connected */
		return;
	judge(kv_connect(some_engine(s), "far", port, ms, peer_p, err), err, false);
	FUZZ_CHECK(!peer);
}

static void call_listen(const struct step *s)
{
	uint32_t port = s->c & 1 ? some_u32(s->b) : 0, got = 0;
	struct kv_error *err = some_err(s);
	int ret = kv_listen(some_engine(s), NULL, port, s->how & 1 ? NULL : &got, err);

	judge(ret, err, some_engine(s) && port <= 65535);
}

static void call_peer(const struct step *s)
{
	struct kv_peer_info info = { .size = some_size(s->a, sizeof(info)) };
	struct kv_peer *peer = s->how & 1 ? NULL : w.peer;
	struct kv_error *err = some_err(s);
	int ret;

	switch (s->b % 3) {
	case 0:
		ret = kv_peer_info(peer, s->how & 2 ? NULL : &info, err);
		judge(ret, err, peer && info.size == sizeof(info) && !(s->how & 2));
		break;
	case 1:
		kv_peer_set_user(peer, s->e);
		break;
	default:
		ret = kv_peer_close(peer, some_ms(s->c), err);
		judge(ret, err, peer && is_time(some_ms(s->c)));
		if (ret)
			break;
		w.peer = NULL;
		memset(m.lease, 0, sizeof(m.lease));
	}
}

/* ---------------------------------------------------------------- operations */

/* The arguments of a transfer, and whether they may succeed. */
struct call {
	struct kv_peer *peer;
	struct kv_cache *cache;
	struct kv_layers layers;
	int64_t *local, *remote;
	size_t n;
	struct kv_options opts, *opts_p;
	struct kv_op *op, **op_p;
	bool right;
};

static bool are_right(const int64_t *ids, size_t n, int64_t blocks, bool apart)
{
	for (size_t i = 0; i < n; i++) {
		if (ids[i] < 0 || ids[i] >= blocks)
			return false;
		for (size_t k = 0; apart && k < i; k++)
			if (ids[k] == ids[i])
				return false;
	}
	return true;
}

/* Work of a GPU that the bytes wait for: of each layer, or all that is on a stream. */
static void fill_start(const struct step *s, unsigned int pick, unsigned int slot, struct call *c)
{
	struct start *start = &m.start[slot];

	*start = (struct start){ .layers = c->layers, .n = c->n, .live = true, .stream = -1 };
	start->by_events = pick == 16 || pick == 18;
	for (int i = 0; i < LAYERS && start->by_events; i++) {
		start->event[i] = (int)((s->f >> 4 * i) % (STREAMS + 1)) - 1;
		start->events[i] = start->event[i] < 0 ? NULL : m.event[start->event[i]];
		c->opts.events = start->events;
	}
	if (pick == 17 || pick == 18) {
		start->stream = (int)(s->f % STREAMS);
		c->opts.stream = m.stream[start->stream];
	}
	if (pick == 15) { /* an application of 0.1.0: there is nothing behind */
		c->opts.size = offsetof(struct kv_options, events);
		c->opts.stream = memory;
	}
}

static bool may_move(const struct start *start, uint32_t layer)
{
	int event = start->by_events ? start->event[layer - start->layers.first] : -1;

	return (event < 0 || m.done[event]) && (start->stream < 0 || m.done[start->stream]);
}

/* An operation that has this block waits for nothing more. */
static void check_start(const uint8_t *at)
{
	size_t offset = (size_t)(at - memory);
	uint32_t layer = (uint32_t)(slab_of(offset) / TENSORS);
	int64_t block = (int64_t)(offset / STRIDE % BLOCKS);
	bool may = false;

	for (int i = 0; i <= OPS && !may; i++) {
		const struct start *start = &m.start[i];
		uint32_t first = start->layers.first, count = start->layers.count;

		if (!start->live || layer < first || (count && layer >= first + count))
			continue;
		for (size_t k = 0; k < start->n && k < MANY && !may; k++)
			may = m.local[i][k] == block && may_move(start, layer);
	}
	FUZZ_CHECK(may);
}

static void (*spans)(const struct tr_op *op, const struct tr_mem *lmem, const struct tr_rmem *rmem,
		     const struct tr_span *span);

static void span_moves(const struct tr_op *op, const struct tr_mem *lmem,
		       const struct tr_rmem *rmem, const struct tr_span *span)
{
	for (uint64_t i = 0; i < span->len; i += STRIDE)
		check_start(lmem->addr + span->local + i);
	spans(op, lmem, rmem, span);
}

static void set_context(bool on)
{
	if (on != m.current)
		FUZZ_CHECK(!cuCtxSetCurrent(on ? m.context : NULL));
	m.current = on;
}

/* A stream is done, or has failed; the calling thread has a context, or none. */
static void call_cuda(const struct step *s)
{
	unsigned int which = s->b % STREAMS;

	if (s->a & 1) {
		set_context(s->a & 2);
		return;
	}
	m.done[which] = m.done[which] || !(s->a & 2);
	fake_cuda_stream_ends(m.stream[which], m.done[which] ? 0 : 1);
}

static bool may_start(const struct call *c, enum kv_op_kind kind)
{
	bool events = c->opts.events, stream = c->opts.stream && c->opts.stream != memory;

	return !(events && stream) && !((events || stream) && kind == KV_OP_RECV);
}

static void fill_call(const struct step *s, enum kv_op_kind kind, unsigned int slot, struct call *c)
{
	static const size_t beyond[] = { 0, KV_CALL_BLOCKS_MAX + 1, SIZE_MAX, SIZE_MAX / 8 + 1 };
	bool two = kind == KV_OP_SEND || kind == KV_OP_RECV, writes = kind != KV_OP_READ;
	unsigned int pick = s->how & 31;

	c->peer = pick == 1 ? NULL : w.peer;
	c->cache = pick == 2 ? NULL : pick == 3 ? m.foreign : w.cache;
	c->layers = (struct kv_layers){ 0, s->b >> 6 };
	if (pick == 4)
		c->layers = (struct kv_layers){ some_u32(s->b), some_u32(s->b >> 3) };
	for (int i = 0; i < MANY; i++) {
		m.local[slot][i] = some_id(pick == 5 ? s->e >> 4 * i : (unsigned int)i + s->c % 8);
		m.remote[slot][i] = some_id(pick == 6 ? s->e >> 4 * i : (unsigned int)i + s->d % 8);
	}
	c->local = pick == 7 ? NULL : m.local[slot];
	c->remote = pick == 8 || two ? NULL : m.remote[slot];
	c->n = pick == 9 ? beyond[s->b % 4] : 1u + s->b % MANY;
	c->opts = (struct kv_options){ .size = some_size(pick == 10 ? s->c : 0, sizeof(c->opts)),
				       .timeout_ms = some_ms(pick == 11 ? s->c : 3),
				       .tag = s->d % 4,
				       .group = s->how & 0x20 ? m.group : NULL };
	c->opts.lease = pick == 12 ? s->f : w.grant_id[s->f % SLOTS];
	c->opts_p = pick == 13 ? NULL : &c->opts;
	c->op_p = pick == 14 ? NULL : &c->op;
	fill_start(s, pick, slot, c);
	c->right = c->peer && c->cache == w.cache &&
		   (!c->opts_p || ((c->opts.size == sizeof(c->opts) || pick == 15) &&
				   is_time(c->opts.timeout_ms) && may_start(c, kind))) &&
		   c->layers.first < LAYERS && c->layers.count <= LAYERS - c->layers.first &&
		   (!c->n ||
		    (c->n <= MANY && c->local && (two || c->remote) &&
		     are_right(c->local, c->n, BLOCKS, kind == KV_OP_READ || kind == KV_OP_RECV) &&
		     (two || are_right(c->remote, c->n, w.far.blocks, writes))));
}

static void call_async(const struct step *s, enum kv_op_kind kind)
{
	unsigned int slot = s->a % OPS;
	struct kv_error *err;
	struct call c = { 0 };
	int ret;

	if (m.op[slot])
		return;
	fill_call(s, kind, slot, &c);
	err = some_err(s);
	if (kind == KV_OP_WRITE)
		ret = kv_write_blocks_async(c.peer, c.cache, c.layers, c.local, c.remote, c.n,
					    c.opts_p, c.op_p, err);
	else if (kind == KV_OP_READ)
		ret = kv_read_blocks_async(c.peer, c.cache, c.layers, c.local, c.remote, c.n,
					   c.opts_p, c.op_p, err);
	else if (kind == KV_OP_SEND)
		ret = kv_send_blocks_async(c.peer, c.cache, c.layers, c.local, c.n, c.opts.tag,
					   c.opts_p, c.op_p, err);
	else
		ret = kv_recv_blocks_async(c.peer, c.cache, c.layers, c.local, c.n, c.opts.tag,
					   c.opts_p, c.op_p, err);
	judge(ret, err, c.right && c.op_p);
	FUZZ_CHECK(!ret == !!c.op);
	m.op[slot] = c.op;
	m.start[slot].live = !ret;
}

static void call_blocking(const struct step *s, enum kv_op_kind kind)
{
	struct kv_error *err;
	struct call c = { 0 };
	int ret;

	fill_call(s, kind, SCRATCH, &c);
	err = some_err(s);
	if (kind == KV_OP_WRITE)
		ret = kv_write_blocks(c.peer, c.cache, c.layers, c.local, c.remote, c.n, c.opts_p,
				      err);
	else if (kind == KV_OP_READ)
		ret = kv_read_blocks(c.peer, c.cache, c.layers, c.local, c.remote, c.n, c.opts_p,
				     err);
	else if (kind == KV_OP_SEND)
		ret = kv_send_blocks(c.peer, c.cache, c.layers, c.local, c.n, c.opts.tag, c.opts_p,
				     err);
	else
		ret = kv_recv_blocks(c.peer, c.cache, c.layers, c.local, c.n, c.opts.tag, c.opts_p,
				     err);
	judge(ret, err, c.right);
}

static void call_op(const struct step *s)
{
	struct kv_op **at = &m.op[s->a % OPS], *op = s->how & 1 ? NULL : *at;
	struct kv_error *err = some_err(s);
	int64_t ms = some_ms(s->c);
	int grade = (int)(s->d % 6) - 1, ret;

	switch (s->b % 4) {
	case 0:
		judge(kv_test(op, err), err, op);
		break;
	case 1:
		ret = kv_wait(op, grade, ms, err);
		judge(ret, err, op && grade >= KV_SENT && grade <= KV_ACKED && is_time(ms));
		break;
	case 2:
		judge(kv_cancel(op, ms, err), err, op && is_time(ms));
		break;
	default:
		ret = kv_op_free(op, err);
		judge(ret, err, true);
		if (!ret && op) {
			*at = NULL;
			m.start[s->a % OPS].live = false;
		}
	}
}

static void call_group(const struct step *s)
{
	struct kv_error *err = some_err(s);
	struct kv_group *group = NULL, **group_p = s->how & 1 ? NULL : &group;
	size_t failed = 0;
	int ret;

	if (!m.group) {
		ret = kv_group_start(some_engine(s), group_p, err);
		judge(ret, err, some_engine(s) && group_p);
		FUZZ_CHECK(!ret == !!group);
		m.group = group;
		return;
	}
	if (s->how & 2) {
		judge(kv_group_end(NULL, 0, NULL, err), err, false);
	} else if (!is_time(some_ms(s->b))) {
		judge(kv_group_end(m.group, some_ms(s->b), &failed, err), err, false);
	} else {
		ret = kv_group_end(m.group, some_ms(s->b), &failed, err);
		FUZZ_CHECK(!ret == !failed);
		judge(ret, err, true);
		m.group = NULL;
	}
}

/* ---------------------------------------------------------------- leases, arrivals, groups */

static void call_lease(const struct step *s)
{
	struct kv_lease **at = &m.lease[s->a % LEASES], *lease = NULL;
	struct kv_lease **lease_p = s->how & 8 ? NULL : &lease;
	struct kv_error *err = some_err(s);
	int64_t ms = some_ms(s->b);
	struct call c = { 0 };
	int ret;

	if (*at) {
		lease = s->how & 1 ? NULL : *at;
		ret = kv_revoke(lease, ms, err);
		judge(ret, err, lease && is_time(ms));
		if (!ret)
			*at = NULL;
		return;
	}
	fill_call(s, KV_OP_RECV, SCRATCH, &c);
	ret = kv_blocks_open(c.peer, c.cache, c.local, c.n, c.opts.tag, ms, lease_p, err);
	judge(ret, err,
	      c.peer && c.cache == w.cache && lease_p && is_time(ms) && c.n && c.n <= MANY &&
		      c.local && are_right(c.local, c.n, BLOCKS, true));
	FUZZ_CHECK(!ret == !!lease);
	if (lease)
		FUZZ_CHECK(kv_lease_id(lease));
	*at = lease;
}

static void call_arrivals(const struct step *s)
{
	struct kv_arrival arrival[4];
	size_t max = s->a & 4 ? SIZE_MAX : s->a % 4;
	struct kv_error *err = some_err(s);
	int ret = kv_poll_arrivals(some_engine(s), s->how & 1 ? NULL : arrival, max, err);

	judge(ret, err, some_engine(s) && max <= 4 && (!max || !(s->how & 1)));
	ret = kv_arrivals_fd(some_engine(s));
	judge(ret, NULL, some_engine(s));
}

static int allgather(void *arg, const void *mine, void *all, size_t len)
{
	const struct step *s = arg;

	memcpy(all, mine, len);
	((uint8_t *)all)[s->c % len] ^= (uint8_t)s->d;
	return s->how & 8;
}

static void call_comm(const struct step *s)
{
	struct kv_comm_config config = {
		.size = some_size(s->a, sizeof(config)),
		.rank = s->b & 1 ? some_u32(s->b >> 1) : 0,
		.nranks = s->b & 16 ? some_u32(s->b >> 5) : 1,
		.group = (int32_t)(s->e % 4) - 2,
		.allgather = s->how & 2 ? NULL : allgather,
		.arg = &(struct step){ .how = s->how, .c = s->c, .d = s->d },
		.timeout_ms = some_ms(s->f)
	};
	struct kv_comm *comm = NULL, **comm_p = s->how & 1 ? NULL : &comm;
	struct kv_error *err = some_err(s);
	int ret;

	if (m.comm) {
		FUZZ_CHECK(!kv_comm_peer(m.comm, some_u32(s->a)));
		ret = kv_comm_free(s->how & 4 ? NULL : m.comm, config.timeout_ms, err);
		judge(ret, err, is_time(config.timeout_ms) || s->how & 4);
		if (!ret && !(s->how & 4))
			m.comm = NULL;
		return;
	}
	if (config.nranks > 1 && config.nranks <= 8)
		config.nranks = 1; /* there are no others */
	ret = kv_comm_init(some_engine(s), s->how & 4 ? NULL : &config, comm_p, err);
	judge(ret, err,
	      config.size == sizeof(config) && config.nranks == 1 && !config.rank && comm_p &&
		      config.allgather && config.group >= -1 && is_time(config.timeout_ms));
	FUZZ_CHECK(!ret == !!comm);
	m.comm = comm;
}

static void call_look(const struct step *s)
{
	struct kv_stats stats = { .size = some_size(s->a, sizeof(stats)) };
	struct kv_option_info option = { .size = some_size(s->a, sizeof(option)) };
	struct kv_device_info device = { .size = some_size(s->a, sizeof(device)) };
	size_t index = s->c & 1 ? SIZE_MAX - s->d % 3 : s->d % 80, cap = s->d % 300;
	struct kv_error *err = some_err(s);
	char text[300];
	bool null = s->how & 1;
	int ret;

	switch (s->b % 5) {
	case 0:
		ret = kv_stats(some_engine(s), null ? NULL : &stats, err);
		judge(ret, err, some_engine(s) && !null && stats.size == sizeof(stats));
		break;
	case 1:
		memset(text, UNTOUCHED, sizeof(text));
		ret = kv_dump(some_engine(s), null ? NULL : text, cap);
		judge(ret, NULL, some_engine(s) && (!null || !cap));
		FUZZ_CHECK(is_untouched(text + cap, sizeof(text) - cap));
		FUZZ_CHECK(null || !cap || memchr(text, 0, cap));
		break;
	case 2:
		ret = kv_option_get(some_engine(s), index, null ? NULL : &option, err);
		judge(ret, err, !null && option.size == sizeof(option) && index < 80);
		break;
	case 3:
		ret = kv_device_get(some_engine(s), index, null ? NULL : &device, err);
		judge(ret, err, some_engine(s) && !null && device.size <= sizeof(device));
		break;
	default:
		m.gives_up = s->c & 1;
		kv_engine_set_interrupt(some_engine(s), s->c & 2 ? interrupted : NULL, NULL);
	}
}

/* ---------------------------------------------------------------- */

static void run_step(const struct step *s)
{
	static void (*const calls[])(const struct step *s) = {
		call_open,   call_alloc, call_register, call_unregister, call_connect,
		call_listen, call_peer,	 call_op,	call_op,	 call_group,
		call_lease,  call_lease, call_arrivals, call_comm,	 call_look,
	};
	enum { CALLS = sizeof(calls) / sizeof(calls[0]) };
	unsigned int what = s->what % (CALLS + 12);
	struct kv_error *err;

	if (what < CALLS)
		calls[what](s);
	else if (what < CALLS + 4)
		call_async(s, (enum kv_op_kind)(what - CALLS));
	else if (what < CALLS + 8)
		call_blocking(s, (enum kv_op_kind)(what - CALLS - 4));
	else if (what == CALLS + 8)
		time_passes(s->c % 300);
	else if (what == CALLS + 9 && w.peer)
		far_says(&(struct step){ .what = (uint8_t)(s->how % 12),
					 .how = s->how >> 4,
					 .a = s->a,
					 .b = s->b,
					 .c = s->c,
					 .d = s->d });
	else if (what == CALLS + 11)
		call_cuda(s);
	else {
		err = some_err(s);
		judge(kv_progress(some_engine(s), some_ms(s->a), err), err,
		      some_engine(s) && is_time(some_ms(s->a)));
	}
	FUZZ_CHECK(!memcmp(memory, shadow, MEMORY));
}

static void open_other(void)
{
	static const char *const options[] = { "KVCACHE_TRANSPORT=shm", NULL };
	static uint8_t bytes[64];
	struct kv_tensor tensor = { .name = "k", .block_bytes = 8, .base = bytes };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_layout layout = KV_INIT(kv_layout);

	config.progress = KV_PROGRESS_CALLER;
	config.options = options;
	layout.layers = layout.tensors = 1;
	layout.blocks = 8;
	layout.tensor = &tensor;
	FUZZ_CHECK(!kv_engine_open(&config, &m.other, NULL));
	FUZZ_CHECK(!kv_cache_register(m.other, &layout, &m.foreign, NULL));
}

static void open_cuda(void)
{
	FUZZ_CHECK(!cuDevicePrimaryCtxRetain(&m.context, 3));
	set_context(true);
	for (int i = 0; i < STREAMS; i++) {
		m.stream[i] = fake_cuda_stream();
		FUZZ_CHECK(!cuEventCreate(&m.event[i], 2) &&
			   !cuEventRecord(m.event[i], m.stream[i]));
	}
}

static void close_cuda(void)
{
	for (int i = 0; i < STREAMS; i++) {
		cuEventDestroy_v2(m.event[i]);
		free(m.stream[i]);
	}
	set_context(false);
	cuDevicePrimaryCtxRelease_v2(3);
	FUZZ_CHECK(!fake_cuda.open && !fake_cuda.contexts);
}

static void close_all(void)
{
	struct kv_error err;

	kv_engine_set_interrupt(w.engine, NULL, NULL);
	if (m.group)
		kv_group_end(m.group, 0, NULL, NULL);
	if (w.peer)
		FUZZ_CHECK(!kv_peer_close(w.peer, 5000, &err));
	for (int i = 0; i < OPS; i++)
		FUZZ_CHECK(!kv_op_free(m.op[i], &err));
	for (int i = 0; i < POOLS; i++)
		FUZZ_CHECK(!m.pool[i] || !kv_free(w.engine, m.pool[i], &err));
	FUZZ_CHECK(!kv_comm_free(m.comm, 0, &err));
	kv_engine_close(w.engine);
	kv_engine_close(m.other);
	kv_engine_close(NULL);
	close_cuda();
	FUZZ_CHECK(!memcmp(memory, shadow, MEMORY));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct step steps[STEPS_MAX];
	size_t n = steps_of(data, size, steps);
	struct step first = { .a = 3 << 2 };

	rig_begin();
	rig_tick_ns = 20000; /* calls wait for a peer that may say nothing */
	memset(&w, 0, sizeof(w));
	memset(&m, 0, sizeof(m));
	memset(memory, 0x11, MEMORY);
	memset(shadow, 0x11, MEMORY);
	w.flags = KV_CACHE_OPEN | KV_CACHE_READABLE;
	first.a = (uint8_t)(first.a | w.flags); /* of the peer's cache */
	end_open(&first);
	open_other();
	open_cuda();
	far_words(&first);
	end_connect(false);
	spans = rig.span;
	rig.span = span_moves;
	FUZZ_CHECK(w.peer);
	for (size_t i = 0; i < n; i++)
		run_step(&steps[i]);
	FUZZ_CHECK(rig_heap() < (2 << 20));
	close_all();
	rig_end();
	return 0;
}
