/* SPDX-License-Identifier: Apache-2.0 */
/* rig.c -- two contexts and a connection between them in one thread */
#include "rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/option.h"
#include "lib/test.h"

/* The packets of the loopback interface have a thread of their own on a busy machine. */
enum { CONNECT_MS = 60000 };

static int hello_put(void *arg, struct tr_conn *conn, void *buf, size_t cap)
{
	return 0;
}

static int hello_get(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	return len ? KV_ERR_PROTOCOL : 0;
}

static const struct tr_upper_ops upper = {
	.id = TR_UPPER_TEST,
	.version = 1,
	.hello_put = hello_put,
	.hello_get = hello_get,
};

/*
 * The options of a side: the rig's own, then those of the list that are for both or begin with "0:"
 * or "1:" for it.
 */
static int read_options(int side, const char *own, const char *nics, const char *const *options,
			struct kv_option_set **set_p, struct kv_error *err)
{
	const char *list[RIG_OPTIONS] = { own };
	int n = 1;

	if (nics)
		list[n++] = nics;
	for (; options && *options && n < RIG_OPTIONS - 1; options++) {
		bool one_side = (*options)[1] == ':';

		if (!one_side || (*options)[0] == '0' + side)
			list[n++] = *options + (one_side ? 2 : 0);
	}
	return kv_option_read(list, set_p, err);
}

int rig_open(struct rig *rig, const char *transport, const char *const *options,
	     struct kv_error *err)
{
	bool rxe = !strcmp(transport, "rxe");
	char word[64], nics[64];
	int ret = 0;

	memset(rig, 0, sizeof(*rig));
	snprintf(word, sizeof(word), "KVCACHE_TRANSPORT=%s", rxe ? "ib" : transport);
	if (rxe)
		ib_test_hook.verbs = NULL;
	for (int i = 0; i < 2 && !ret; i++) {
		struct rig_side *side = &rig->side[i];
		struct tr_config config = { 0 };

		fake_host(i);
		snprintf(nics, sizeof(nics), "KVCACHE_RDMA_NICS=rxe%d", i);
		side->event = calloc(RIG_EVENTS, sizeof(*side->event));
		ret = read_options(i, word, rxe ? nics : NULL, options, &side->options, err);
		config.options = side->options;
		if (!ret)
			ret = tr_open(&config, &side->tr, err);
	}
	fake_host(0);
	if (!ret)
		ret = tr_listen(rig->side[1].tr, NULL, 0, &rig->listener, err);
	if (ret)
		rig_close(rig);
	return ret;
}

/* Side 1, once its end is made. */
static bool stops_there(const struct rig *rig)
{
	return rig->half && !strcmp(tr_conn_stage(rig->side[1].conn), "waiting for ready");
}

int rig_connect(struct rig *rig, struct kv_error *err)
{
	struct tr_conn_config config = { .ops = &upper, .flags = rig->flags };
	int64_t end = kv_deadline_ns(CONNECT_MS);
	struct kv_error why[2] = { { 0 }, { 0 } };
	int ret[2] = { TR_AGAIN, TR_AGAIN };

	ret[0] = tr_connect(rig->side[0].tr, NULL, tr_listener_port(rig->listener), &config,
			    &rig->side[0].conn, err);
	if (ret[0])
		return ret[0];
	ret[0] = TR_AGAIN;
	while ((ret[0] == TR_AGAIN || (ret[1] == TR_AGAIN && !rig->half)) && kv_now_ns() < end) {
		if (!rig->side[1].conn && ret[1] == TR_AGAIN) {
			int got = tr_accept(rig->listener, &config, &rig->side[1].conn, &why[1]);

			ret[1] = got < 0 ? got : TR_AGAIN;
		}
		if (ret[0] == TR_AGAIN)
			ret[0] = tr_conn_step(rig->side[0].conn, &why[0]);
		if (rig->side[1].conn && ret[1] == TR_AGAIN && !stops_there(rig))
			ret[1] = tr_conn_step(rig->side[1].conn, &why[1]);
		if (ret[0] < 0 && !rig->side[1].conn)
			break;
	}
	if (!ret[0] && (!ret[1] || rig->half))
		return 0;
	/* The side that decided, not the one that was refused. */
	for (int i = 0; i < 2; i++)
		if (ret[i] < 0 && !strstr(why[i].message, "refused") &&
		    !strstr(why[i].message, "closed the connection"))
			return kv_error_copy(err, &why[i]);
	for (int i = 0; i < 2; i++)
		if (ret[i] < 0)
			return kv_error_copy(err, &why[i]);
	return kv_fail(err, KV_ERR_TIMEOUT, "rig", "the handshake does not end");
}

void rig_disconnect(struct rig *rig)
{
	for (int i = 0; i < 2; i++) {
		tr_conn_close(rig->side[i].conn);
		rig->side[i].conn = NULL;
		rig->side[i].events = 0;
	}
}

void rig_close(struct rig *rig)
{
	rig_disconnect(rig);
	if (rig->listener)
		tr_listener_close(rig->listener);
	for (int i = 0; i < 2; i++) {
		tr_close(rig->side[i].tr);
		kv_option_free(rig->side[i].options);
		free(rig->side[i].event);
	}
	memset(rig, 0, sizeof(*rig));
}

void rig_make(struct rig *rig, const char *transport, const char *const *options)
{
	struct kv_error err;

	if (rig_open(rig, transport, options, &err))
		fail_msg("open: %s", err.message);
	if (rig_connect(rig, &err))
		fail_msg("connect: %s", err.message);
	assert_string_equal(tr_conn_transport(rig->side[0].conn),
			    strcmp(transport, "rxe") ? transport : "ib");
}

void rig_pump_side(struct rig *rig, int i)
{
	struct rig_side *side = &rig->side[i];
	struct tr_event events[16];
	int n = side->conn ? tr_poll(side->conn, events, 16) : 0;

	for (int e = 0; e < n; e++) {
		struct rig_event *to = &side->event[side->events++ % RIG_EVENTS];

		*to = (struct rig_event){ .kind = events[e].kind,
					  .status = events[e].status,
					  .user = events[e].user,
					  .value = events[e].value,
					  .len = events[e].len };
		if (events[e].msg)
			memcpy(to->msg, events[e].msg, events[e].len);
		if (events[e].cause)
			to->cause = *events[e].cause;
	}
}

void rig_pump(struct rig *rig)
{
	rig_pump_side(rig, 0);
	rig_pump_side(rig, 1);
}

struct rig_event *rig_find(struct rig *rig, int i, int kind)
{
	struct rig_side *side = &rig->side[i];

	for (int e = side->events > RIG_EVENTS ? side->events - RIG_EVENTS : 0; e < side->events;
	     e++) {
		struct rig_event *event = &side->event[e % RIG_EVENTS];

		if (event->kind != kind || event->taken)
			continue;
		event->taken = true;
		return event;
	}
	return NULL;
}

struct rig_event *rig_wait(struct rig *rig, int side, int kind, int budget)
{
	struct rig_event *event = rig_find(rig, side, kind);

	while (!event && budget--) {
		rig_pump(rig);
		event = rig_find(rig, side, kind);
	}
	return event;
}

struct tr_mem *rig_reg(struct rig *rig, int side, void *addr, size_t len, unsigned int access)
{
	struct kv_error err;
	struct tr_mem *mem = NULL;

	if (tr_mem_reg(rig->side[side].tr, addr, len, TR_MEM_HOST, access, &mem, &err))
		fail_msg("register: %s", err.message);
	return mem;
}

struct tr_rmem *rig_see(struct rig *rig, int side, struct tr_mem *mem)
{
	uint8_t buf[TR_MEM_PACK_MAX];
	struct tr_rmem *rmem = NULL;
	struct kv_error err;
	size_t len;

	if (tr_mem_pack(rig->side[!side].conn, mem, buf, sizeof(buf), &len, &err) ||
	    tr_mem_open(rig->side[side].conn, buf, len, &rmem, &err))
		fail_msg("pack and open: %s", err.message);
	return rmem;
}

int rig_try_op(struct rig *rig, int side, int kind, uint64_t user, struct tr_mem *lmem,
	       struct tr_rmem *rmem, const struct tr_span *spans, size_t n, unsigned int flags,
	       uint64_t value, struct tr_op **op_p, struct kv_error *err)
{
	struct tr_conn *conn = rig->side[side].conn;
	int ret;

	while ((ret = tr_op_begin(conn, kind, user, op_p, err)) == TR_AGAIN)
		rig_pump(rig);
	while (!ret && n) {
		long added = tr_op_add(*op_p, lmem, rmem, spans, n, err);

		if (added < 0)
			return (int)added;
		spans += added;
		n -= (size_t)added;
		if (n)
			rig_pump(rig);
	}
	if (ret)
		return ret;
	while ((ret = tr_op_commit(*op_p, flags, value, err)) == TR_AGAIN)
		rig_pump(rig);
	return ret;
}

struct tr_op *rig_op(struct rig *rig, int side, int kind, uint64_t user, struct tr_mem *lmem,
		     struct tr_rmem *rmem, const struct tr_span *spans, size_t n,
		     unsigned int flags, uint64_t value)
{
	struct kv_error err;
	struct tr_op *op;

	if (rig_try_op(rig, side, kind, user, lmem, rmem, spans, n, flags, value, &op, &err))
		fail_msg("operation: %s", err.message);
	return op;
}
