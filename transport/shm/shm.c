/* SPDX-License-Identifier: Apache-2.0 */
/* shm.c -- the shared-memory provider: options, what it shows of itself, the provider table */
#include "shm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kvrail/kv.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/option.h"
#include "base/text.h"
#include "base/unload.h"

static enum shm_path path_by_name(const char *word)
{
	if (!strcmp(word, "pool"))
		return SHM_POOL;
	if (!strcmp(word, "cma"))
		return SHM_CMA;
	return !strcmp(word, "ring") ? SHM_RING : SHM_AUTO;
}

/* Positions are masked, so the size is a power of two: the largest that is not above the option. */
static uint64_t ring_bytes(uint64_t option)
{
	uint64_t bytes = RING_BYTES_MIN;

	while (bytes * 2 <= option && bytes < RING_BYTES_MAX)
		bytes *= 2;
	return bytes;
}

/*
 * auto: non-temporal from 256 bytes on. On cold pools they are faster than plain stores at every
 * block size from 1 KiB, and still not slower once the receiver's first read is counted
 * (docs/benchmarks.md, made by kv_floor).
 */
static uint64_t nt_from(const char *word)
{
	if (!strcmp(word, "plain"))
		return UINT64_MAX;
	return strcmp(word, "nt") ? 256 : 0;
}

static int shm_open_provider(struct tr *tr, void **ctx_p, struct kv_error *err)
{
	struct shm_ctx *ctx = kv_fault(SHM_CTX) ? NULL : calloc(1, sizeof(*ctx));
	int threads = (int)kv_option_int(tr->options, KV_OPT_NET_COPY_THREADS), ret;

	if (!ctx)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate the shm provider");
	ctx->tr = tr;
	ctx->forced = path_by_name(kv_option_string(tr->options, KV_OPT_SHM_PATH));
	ctx->nt_from = nt_from(kv_option_string(tr->options, KV_OPT_SHM_STORES));
	ctx->spin_ns = kv_option_int(tr->options, KV_OPT_SPIN_US) * 1000;
	ctx->ring_bytes = ring_bytes((uint64_t)kv_option_int(tr->options, KV_OPT_SHM_RING));
	ctx->nt = store_nt(&ctx->nt_name);
	ret = trust_read(ctx, err);
	ctx->split = threads > 0;
	ctx->gpu = tr->gpu[TR_MEM_CUDA];
	ctx->sms = (int)kv_option_int(tr->options, KV_OPT_GPU_SMS);
	if (!ret)
		ret = copy_open(threads, ctx->spin_ns, &ctx->copy, err);
	if (ret) {
		free(ctx);
		return ret;
	}
	pthread_mutex_init(&ctx->pin_lock, NULL);
	*ctx_p = ctx;
	return 0;
}

static void shm_close_provider(void *priv)
{
	struct shm_ctx *ctx = priv;

	pthread_mutex_destroy(&ctx->pin_lock);
	if (copy_close(ctx->copy)) {
		free(ctx);
		return;
	}
	kv_stay_loaded();
	kv_log_warn(ctx->tr->log,
		    "a call into the memory of another process has not returned; its thread "
		    "goes on until that process ends");
}

static int shm_device_get(void *ctx, size_t index, struct kv_device_info *info)
{
	const char *nt_name;

	if (index)
		return KV_ERR_ARG;
	store_nt(&nt_name);
	info->usable = ctx != NULL;
	snprintf(info->transport, sizeof(info->transport), "shm");
	snprintf(info->name, sizeof(info->name), "host memory");
	if (ctx)
		snprintf(info->detail, sizeof(info->detail),
			 "peers of this host by memfd pool (%s%s), process_vm_writev or ring",
			 nt_name, tr_pages_text(tr_pages_here(((const struct shm_ctx *)ctx)->tr)));
	else
		snprintf(info->detail, sizeof(info->detail), "not allowed by KVCACHE_TRANSPORT");
	return 0;
}

/* What the kernel says of the peer: the reason of most waits that do not end. */
static const char *state_of_process(pid_t pid)
{
	switch (kv_process_state((int)pid)) {
	case 'T':
		return ", which is stopped";
	case 't':
		return ", which a debugger has stopped";
	case 'Z':
		return ", which has ended";
	default:
		return "";
	}
}

static int shm_dump(const struct tr_conn *conn, char *buf, size_t cap)
{
	const struct shm_conn *sc = tr_conn_priv(conn);

	return snprintf(
		buf, cap,
		"  peer process %d%s, ring of %llu: out %llu of which %llu not taken, in %llu, %llu to be "
		"read here\n"
		"  rest of a span %llu, waiting for the peer %u, reads %u, answers %u, %s%s%s%s\n",
		(int)sc->pid, state_of_process(sc->pid), (unsigned long long)sc->out.size,
		(unsigned long long)sc->out.tail, (unsigned long long)(sc->out.tail - sc->out.head),
		(unsigned long long)sc->in.head,
		(unsigned long long)(atomic_load(&sc->in.shared->tail) - sc->in.head),
		(unsigned long long)(sc->rest.op ? sc->rest.left : 0), sc->waits,
		sc->read_tail - sc->read_head, sc->answer_tail - sc->answer_head,
		sc->blocked ? "out of room: the peer takes nothing from the ring" : "flowing",
		sc->gathering || sc->scattering ? ", a GPU copies" : "",
		sc->armed ? ", asleep" : "", sc->hung_up ? ", the peer hung up" : "");
}

/* What a kernel of this side is placing is waited for. */
static bool shm_places(const struct tr_conn *conn)
{
	struct shm_conn *sc = tr_conn_priv(conn);

	return !sc->we_allow_direct && !scatter_end(sc, INT64_MAX, &sc->failure);
}

const struct tr_provider tr_shm_provider = {
	.name = "shm",
	.id = TR_PROVIDER_SHM,
	.open = shm_open_provider,
	.close = shm_close_provider,
	.device_get = shm_device_get,
	.mem_reg = shm_mem_reg,
	.mem_dereg = shm_mem_dereg,
	.offer = shm_offer,
	.start = shm_start,
	.setup_put = shm_setup_put,
	.setup_get = shm_setup_get,
	.stop = shm_stop,
	.mem_pack = shm_mem_pack,
	.mem_open = shm_mem_open,
	.mem_close = shm_mem_close,
	.op_bytes = sizeof(struct shm_op),
	.op_begin = shm_op_begin,
	.computes = cuda_runs,
	.op_add = shm_op_add,
	.takes_blocks = cuda_takes_blocks,
	.op_add_blocks = cuda_add_blocks,
	.op_commit = shm_op_commit,
	.op_cancel = shm_op_cancel,
	.msg = shm_msg,
	.progress = shm_progress,
	.arm = shm_arm,
	.fence = shm_fence,
	.stops_at_once = true,
	.flushed = true,
	.ask = shm_ask,
	.dump = shm_dump,
	.places = shm_places,
	.help = shm_help,
};
