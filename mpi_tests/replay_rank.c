/* SPDX-License-Identifier: Apache-2.0 */
/* replay_rank.c -- one rank from engine to result */
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "replay.h"
#include "util.h"

void replay_note(struct replay *rp, const char *format, ...)
{
	struct replay_result *res = rp->result;
	va_list args;

	if (res->notes == REPLAY_NOTES)
		return;
	va_start(args, format);
	vsnprintf(res->note[res->notes++], REPLAY_NOTE_MAX, format, args);
	va_end(args);
}

void replay_failed(struct replay *rp, const char *what, const struct kv_error *err)
{
	char line[512];

	if (err->code == KV_ERR_PEER_LOST) {
		if (rp->result->lost_ops++ == 0)
			rp->result->lost_ns = now_ns();
		return;
	}
	rp->result->errors++;
	kv_error_format(err, line, sizeof(line));
	replay_note(rp, "%s: %s", what, line);
}

uint64_t replay_order_hash(const struct replay_order *order)
{
	uint64_t h = mix64(order->tag + 1);

	h = mix64(h + ((uint64_t)order->request << 32 | order->first));
	return mix64(h + ((uint64_t)order->count << 32 | order->epoch));
}

static struct rank_slot *dying_slot;

static void die_now(int signal_number)
{
	atomic_store(&dying_slot->killed_ns, now_ns());
	kill(getpid(), SIGKILL);
}

void replay_die(struct replay *rp, uint32_t us)
{
	const struct itimerval timer = { .it_value = { .tv_usec = us } };

	dying_slot = rp->rank->slot;
	if (us == 0)
		die_now(0);
	signal(SIGALRM, die_now);
	setitimer(ITIMER_REAL, &timer, NULL);
}

/* The pool of this rank in blocks; main has made sure that it is not too small. */
static uint32_t rank_blocks(const struct replay *rp)
{
	uint64_t bytes = rp->is_decode ? rp->opt->pool_bytes : rp->opt->source_bytes;

	return (uint32_t)(bytes / (model_layer_bytes(rp->opt->model) * rp->opt->layers));
}

static int open_cache(struct replay *rp, struct kv_error *err)
{
	const struct model *m = rp->opt->model;
	struct kv_tensor tensor[MODEL_TENSORS_MAX] = { 0 };
	struct kv_layout layout = KV_INIT(kv_layout);
	uint32_t t;
	int rc;

	rp->memory = (struct replay_memory){
		.model = m,
		.layers = rp->opt->layers,
		.blocks = rank_blocks(rp),
		.seed = rp->opt->job.seed,
	};
	rc = rank_memory_open(&rp->memory.pool, rp->engine, rp->opt->job.gpu,
			      replay_memory_bytes(m, rp->opt->layers, rp->memory.blocks), err);
	if (rc)
		return rc;
	replay_memory_place(&rp->memory);
	replay_guards_fill(&rp->memory);
	for (t = 0; t < m->tensors; t++) {
		tensor[t].name = m->tensor[t].name;
		tensor[t].block_bytes = m->tensor[t].block_bytes;
		tensor[t].base = rank_memory_at(&rp->memory.pool, rp->memory.tensor[t]);
		tensor[t].layer_stride = (uint64_t)rp->memory.blocks * m->tensor[t].block_bytes;
	}
	layout.cache_id = REPLAY_CACHE;
	layout.layers = rp->opt->layers;
	layout.tensors = m->tensors;
	layout.blocks = rp->memory.blocks;
	layout.tensor = tensor;
	layout.block_tokens = m->block_tokens;
	layout.mem_kind = rank_memory_kind(&rp->memory.pool);
	return kv_cache_register(rp->engine, &layout, &rp->cache, err);
}

static int open_mail(struct replay *rp, struct kv_error *err)
{
	const struct kv_tensor tensor = { .name = "order", .block_bytes = REPLAY_MAIL_BYTES };
	struct kv_tensor placed = tensor;
	struct kv_layout layout = KV_INIT(kv_layout);
	uint32_t blocks = replay_mails(rp->opt);
	void *base;
	int rc;

	rc = kv_alloc(rp->engine, (size_t)blocks * REPLAY_MAIL_BYTES, &base, err);
	if (rc)
		return rc;
	rp->mail_memory = base;
	placed.base = base;
	placed.layer_stride = (uint64_t)blocks * REPLAY_MAIL_BYTES;
	layout.cache_id = REPLAY_MAIL;
	layout.layers = 1;
	layout.tensors = 1;
	layout.blocks = blocks;
	layout.tensor = &placed;
	layout.flags = KV_CACHE_OPEN;
	return kv_cache_register(rp->engine, &layout, &rp->mail, err);
}

/*
 * First life: all ranks connect by kv_comm_init. A replacement connects to the ranks that its
 * predecessor knew.
 */
static int connect_peers(struct replay *rp, struct kv_error *err)
{
	struct kv_comm_config config = KV_INIT(kv_comm_config);
	uint32_t other = rp->is_decode ? 0 : rp->opt->job.prefills;
	const char *host = *rp->opt->job.address ? rp->opt->job.address : NULL;
	uint32_t *keep = rp->rank->slot->keep;
	uint32_t i, port;
	int rc;

	rc = kv_listen(rp->engine, host, 0, &port, err);
	if (rc)
		return rc;
	if (rp->rank->life > 0) {
		for (i = 0; i < rp->peers && rc == 0; i++)
			rc = kv_connect(rp->engine, "127.0.0.1", keep[other + i],
					rp->opt->job.timeout_ms, &rp->peer[i], err);
		return rc;
	}
	if (rank_allgather(rp->rank, &port, keep, sizeof(port))) {
		replay_note(rp, "a rank died before all had exchanged their addresses");
		return -1;
	}
	config.rank = rp->rank->rank;
	config.nranks = rp->rank->size;
	config.group = rp->is_decode;
	config.host = host;
	config.allgather = rank_allgather;
	config.arg = rp->rank;
	config.timeout_ms = rp->opt->job.timeout_ms;
	rc = kv_comm_init(rp->engine, &config, &rp->comm, err);
	for (i = 0; rc == 0 && i < rp->peers; i++)
		rp->peer[i] = kv_comm_peer(rp->comm, other + i);
	/* A rank that is to die does so later: that is a fault of work, not of connecting. */
	if (rc == 0 && rank_allgather(rp->rank, &port, keep, sizeof(port))) {
		replay_note(rp, "a rank died before all had connected");
		rc = -1;
	}
	return rc;
}

static int rank_open(struct replay *rp)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_error err = { 0 };
	char name[KV_NAME_MAX];

	snprintf(name, sizeof(name), "%s-%u", rp->is_decode ? "decode" : "prefill", rp->self);
	config.name = name;
	config.options = rank_engine_options(rp->rank);
	if (kv_engine_open(&config, &rp->engine, &err) || open_cache(rp, &err) ||
	    open_mail(rp, &err) || connect_peers(rp, &err)) {
		if (err.code)
			replay_failed(rp, "opening", &err);
		if (err.code == KV_ERR_PEER_LOST)
			replay_note(rp, "opening: %s", err.message);
		rp->result->errors += err.code == 0 || err.code == KV_ERR_PEER_LOST;
		return -1;
	}
	if (kv_peer_info(rp->peer[0], &info, &err) == 0) {
		memcpy(rp->result->transport, info.transport, sizeof(info.transport));
		memcpy(rp->result->path, info.path, sizeof(info.path));
	}
	return 0;
}

/* Nobody closes before all have finished: a rank that is still at work would see its peer go. */
static int wait_for_all(struct replay *rp)
{
	int rc;

	if (!rp->is_decode)
		return 0;
	if (rank_arrive(rp->rank))
		return -1;
	do {
		replay_beat(rp);
		rc = rank_arrived(rp->rank, REPLAY_POLL_MS);
	} while (rc == 0);
	return rc < 0 ? -1 : 0;
}

static void linger(struct replay *rp)
{
	uint64_t end = now_ns() + rp->opt->linger_s * UINT64_C(1000000000);

	while (now_ns() < end) {
		replay_beat(rp);
		poll(NULL, 0, REPLAY_POLL_MS);
	}
}

static void rank_close(struct replay *rp)
{
	struct kv_error err;

	if (rp->comm && kv_comm_free(rp->comm, 1000, &err))
		replay_note(rp, "closing the communicator: %s", err.message);
	kv_engine_close(rp->engine);
	if (rp->memory.pool.gpu)
		free(rp->memory.pool.bytes);
}

int replay_rank_run(struct rank *rank, void *arg)
{
	const struct replay_job *job = arg;
	struct replay_result *result = need_calloc(1, sizeof(*result));
	struct replay rp = {
		.opt = &job->opt,
		.trace = &job->trace,
		.schedule = &job->schedule,
		.rank = rank,
		.result = result,
		.is_decode = rank->rank >= job->opt.job.prefills,
	};
	int rc;

	rp.self = rp.is_decode ? rank->rank - job->opt.job.prefills : rank->rank;
	rp.peers = rp.is_decode ? job->opt.job.prefills : job->opt.job.decodes;
	rc = rank_open(&rp);
	if (rc == 0)
		rc = rp.is_decode ? replay_decode(&rp) : replay_prefill(&rp);
	if (rc && result->errors == 0)
		result->errors = 1;
	if (rc == 0 && wait_for_all(&rp))
		rc = 1;
	linger(&rp);
	rank_close(&rp);
	if (rank_result(rank, result, sizeof(*result)))
		rc = 1;
	free(result);
	return rc ? 1 : 0;
}
