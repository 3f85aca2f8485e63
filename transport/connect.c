/* SPDX-License-Identifier: Apache-2.0 */
/* connect.c -- the life of a connection: made, described, closed */
#include <stdlib.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/fds.h"
#include "base/option.h"
#include "conn.h"
#include "dial.h"

/* What a connection costs before its hello is accepted (invariant 6 of the design). */
_Static_assert(sizeof(struct tr_conn) + sizeof(struct conn_handshake) + FRAME_HEADER +
			       TR_HELLO_MAX + FRAME_HELLO_FIXED + MAC_BYTES <=
		       4096,
	       "a connection costs more than 4 KiB before its hello is accepted");

int conn_new(struct tr *tr, const struct tr_conn_config *config, bool accepting,
	     struct tr_conn **conn_p, struct kv_error *err)
{
	struct tr_conn *conn = kv_fault(TR_CONN_ALLOC) ? NULL : calloc(1, sizeof(*conn));

	if (!conn)
		return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate a connection");
	conn->tr = tr;
	conn->accepting = accepting;
	conn->sock = -1;
	conn->epoll_fd = -1;
	conn->upper = config->ops;
	conn->upper_arg = config->arg;
	conn->flags = config->flags;
	conn->features = config->features;
	conn->handshake_ms = config->handshake_ms ? config->handshake_ms
						  : kv_option_int(tr->options, KV_OPT_HANDSHAKE_MS);
	conn->deadline_ns = INT64_MAX;
	conn->hs = kv_fault(TR_CONN_ALLOC) ? NULL : calloc(1, sizeof(*conn->hs));
	if (!conn->hs) {
		tr_conn_close(conn);
		return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate a handshake");
	}
	*conn_p = conn;
	return 0;
}

int tr_connect(struct tr *tr, const char *host, uint32_t port, const struct tr_conn_config *config,
	       struct tr_conn **conn_p, struct kv_error *err)
{
	struct tr_conn *conn;
	int ret = conn_new(tr, config, false, &conn, err);

	if (ret)
		return ret;
	ret = dial_start(conn, host, port, &conn->hs->dial, err);
	if (ret) {
		tr_conn_close(conn);
		return ret;
	}
	*conn_p = conn;
	return 0;
}

void tr_conn_close(struct tr_conn *conn)
{
	if (!conn)
		return;
	tr_conn_leave_set(conn);
	control_goodbye(conn);
	silence_end(conn);
	/* Remote regions first: the provider that made them is still whole. */
	while (conn->rmems) {
		struct tr_rmem *rmem = conn->rmems;

		conn->rmems = rmem->next;
		conn->provider->mem_close(conn, rmem);
		free(rmem);
	}
	if (conn->provider)
		conn->provider->stop(conn, conn->priv);
	handshake_free(conn);
	op_free_data(conn);
	free(conn->exposed);
	kv_fd_close(conn->sock);
	free(conn->watch);
	free(conn);
}

const char *tr_conn_stage(const struct tr_conn *conn)
{
	static const char *const stages[] = {
		[CONN_CONNECTING] = "connecting",
		[CONN_WAIT_CHALLENGE] = "waiting for challenge",
		[CONN_WAIT_HELLO] = "waiting for hello",
		[CONN_STARTING] = "starting the transport",
		[CONN_WAIT_SETUP] = "waiting for setup",
		[CONN_WAIT_READY] = "waiting for ready",
		[CONN_READY] = "ready",
		[CONN_FAILED] = "refused",
		[CONN_BREAKING] = "breaking",
		[CONN_LOST] = "lost",
	};

	if (conn->hs && conn->hs->dial && dial_resolves(conn->hs->dial))
		return "resolving the name";
	if (conn->hs && conn->stage == CONN_READY)
		return "sending the last frame";
	return stages[conn->stage];
}
