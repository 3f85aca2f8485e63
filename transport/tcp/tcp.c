/* SPDX-License-Identifier: Apache-2.0 */
/* tcp.c -- the tcp provider: options, what it shows of itself, the provider table */
#include "tcp.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/number.h"
#include "base/option.h"

static bool read_port(const char *text, const char **end_p, uint16_t *port_p)
{
	long long v;

	if (!kv_number(text, &v, end_p) || v < 1 || v > 65535)
		return false;
	*port_p = (uint16_t)v;
	return true;
}

/* "40000-40999", "40000", or nothing. */
static int read_ports(struct tcp_ctx *ctx, const char *text, struct kv_error *err)
{
	const char *end = text;

	if (!*text)
		return 0;
	if (read_port(text, &end, &ctx->first_port)) {
		ctx->last_port = ctx->first_port;
		if (!*end || (*end == '-' && read_port(end + 1, &end, &ctx->last_port) && !*end &&
			      ctx->first_port <= ctx->last_port))
			return 0;
	}
	return kv_fail(err, KV_ERR_ARG, "options",
		       "KVCACHE_TCP_PORTS is \"%.64s\"; it takes a port or a range (40000-40999)",
		       text);
}

static int tcp_open_provider(struct tr *tr, void **ctx_p, struct kv_error *err)
{
	struct tcp_ctx *ctx = kv_fault(TCP_CTX) ? NULL : calloc(1, sizeof(*ctx));
	int ret;

	if (!ctx)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate the tcp provider");
	ctx->tr = tr;
	ret = read_ports(ctx, kv_option_string(tr->options, KV_OPT_TCP_PORTS), err);
	if (ret) {
		free(ctx);
		return ret;
	}
	calls_open(&ctx->calls, kv_option_int(tr->options, KV_OPT_TCP_THREADS));
	*ctx_p = ctx;
	return 0;
}

static void tcp_close_provider(void *priv)
{
	struct tcp_ctx *ctx = priv;

	calls_close(&ctx->calls);
	free(ctx);
}

static int tcp_mem_reg(void *ctx, struct tr_mem *mem, void **handle_p, struct kv_error *err)
{
	*handle_p = NULL; /* nothing is needed of host memory */
	return mem->kind == TR_MEM_HOST ? 0 : stage_register(mem, err);
}

static void tcp_mem_dereg(void *ctx, void *handle)
{
}

/* The core's part of a description, id and length, is enough. */
static int tcp_mem_pack(struct tr_conn *conn, struct tr_mem *mem, struct wire_writer *w,
			struct kv_error *err)
{
	return 0;
}

static int tcp_mem_open(struct tr_conn *conn, struct tr_rmem *rmem, struct wire_reader *r,
			struct kv_error *err)
{
	return 0;
}

static void tcp_mem_close(struct tr_conn *conn, struct tr_rmem *rmem)
{
}

/* The control socket's keepalive takes the same way: there is nothing more to ask. */
static bool tcp_ask(struct tr_conn *conn)
{
	return false;
}

static int dump_stream(const struct tcp_stream *st, char *buf, size_t cap)
{
	return snprintf(
		buf, cap,
		"  stream %u: out %llu, of which %llu are queued and %llu not taken by the peer, in "
		"%llu, %u of a payload to come, notifies and messages not taken %u, reads %u, "
		"answers %u%s%s%s%s\n",
		st->index, (unsigned long long)st->queue.queued,
		(unsigned long long)queue_pending(&st->queue),
		(unsigned long long)(st->queue.queued - st->landed),
		(unsigned long long)st->in.taken, st->in.left, st->small - st->small_landed,
		st->read_tail - st->read_head, st->answer_tail - st->answer_head,
		st->in.stalled ? ", no room for events" : "",
		st->in.behind ? ", waits for another stream" : "",
		stage_runs(st->in_stage.stage) || stage_runs(st->out_stage.stage) ? ", a GPU copies"
										  : "",
		st->hung_up ? ", the peer hung up" : "");
}

static int tcp_dump(const struct tr_conn *conn, char *buf, size_t cap)
{
	const struct tcp_conn *tc = tr_conn_priv(conn);
	const struct tcp_data *d = tc->data;
	int n = snprintf(
		buf, cap, "  waiting to leave %u, to land %u, %s\n",
		d->to_send.tail - d->to_send.head, d->to_land.tail - d->to_land.head,
		d->blocked ? "out of room: the peer reads nothing, or its network carries nothing"
			   : "flowing");

	tcp_for_each (st, tc)
		n += dump_stream(st, (size_t)n < cap ? buf + n : NULL,
				 (size_t)n < cap ? cap - (size_t)n : 0);
	return n;
}

static bool tcp_places(const struct tr_conn *conn)
{
	const struct tcp_conn *tc = tr_conn_priv(conn);
	bool placed = true;

	tcp_for_each (st, tc)
		placed &= place_wait(st, INT64_MAX) != TR_AGAIN;
	return placed;
}

const struct tr_provider tr_tcp_provider = {
	.name = "tcp",
	.id = TR_PROVIDER_TCP,
	.open = tcp_open_provider,
	.close = tcp_close_provider,
	.device_get = tcp_device_get,
	.mem_reg = tcp_mem_reg,
	.mem_dereg = tcp_mem_dereg,
	.offer = tcp_offer,
	.offered = tcp_offered,
	.start = tcp_start,
	.setup_put = tcp_setup_put,
	.setup_get = tcp_setup_get,
	.stop = tcp_stop,
	.mem_pack = tcp_mem_pack,
	.mem_open = tcp_mem_open,
	.mem_close = tcp_mem_close,
	.op_begin = tcp_op_begin,
	.polled = tcp_polled,
	.await = tcp_await,
	.op_add = tcp_op_add,
	.op_commit = tcp_op_commit,
	.op_cancel = tcp_op_cancel,
	.msg = tcp_msg,
	.progress = tcp_progress,
	.arm = tcp_arm,
	.fence = tcp_fence,
	.ask = tcp_ask,
	.dump = tcp_dump,
	.places = tcp_places,
};
