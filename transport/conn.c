/* SPDX-License-Identifier: Apache-2.0 */
/* conn.c -- what a connection says of itself */
#include "conn.h"

#include <stdarg.h>
#include <stdio.h>

bool tr_conn_places(const struct tr_conn *conn)
{
	return conn->provider && conn->provider->places && conn->provider->places(conn);
}

int tr_conn_may(struct tr_conn *conn, const struct tr_mem *mem, uint64_t offset, uint64_t len,
		unsigned int access, uint64_t grant)
{
	if (conn->upper->may)
		return conn->upper->may(conn->upper_arg, mem, offset, len, access, grant);
	return conn_exposes(conn, mem) ? TR_PLACE : KV_ERR_PROTOCOL;
}

int64_t tr_conn_deadline(const struct tr_conn *conn)
{
	return conn->deadline_ns;
}

void tr_conn_prove(const struct tr_conn *conn, const char label[8], const uint8_t nonce[16],
		   uint8_t proof[16])
{
	auth_prove(&conn->auth, label, nonce, proof);
}

bool tr_conn_is_proof(const struct tr_conn *conn, const char label[8], const uint8_t nonce[16],
		      const uint8_t proof[16])
{
	uint8_t right[16];

	auth_prove(&conn->auth, label, nonce, right);
	return auth_equal(right, proof, sizeof(right));
}

void tr_conn_own_link(struct tr_conn *conn)
{
	conn->own_link = true;
}

const char *tr_conn_address(const struct tr_conn *conn)
{
	return conn->address;
}

const char *tr_conn_transport(const struct tr_conn *conn)
{
	return conn->provider ? conn->provider->name : "";
}

const char *tr_conn_path(const struct tr_conn *conn)
{
	return conn->path;
}

void tr_conn_set_path(struct tr_conn *conn, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(conn->path, sizeof(conn->path), fmt, ap);
	va_end(ap);
}

const uint8_t *tr_conn_incarnation(const struct tr_conn *conn)
{
	return conn->incarnation;
}

uint64_t tr_conn_features(const struct tr_conn *conn)
{
	return conn->peer_features;
}

const struct kv_error *tr_conn_error(const struct tr_conn *conn)
{
	return &conn->error;
}

void *tr_conn_priv(const struct tr_conn *conn)
{
	return conn->priv;
}

struct tr *tr_conn_tr(const struct tr_conn *conn)
{
	return conn->tr;
}

bool tr_conn_line_order(const struct tr_conn *conn)
{
	return conn->flags & TR_LINE_ORDER;
}

bool tr_conn_polled(const struct tr_conn *conn)
{
	return conn->flags & TR_POLLED;
}

bool tr_conn_moves_lists(const struct tr_conn *conn)
{
	return conn->flags & TR_LISTS;
}

bool tr_conn_passes_gpu(const struct tr_conn *conn)
{
	return conn->flags & TR_PASSES_GPU;
}

struct tr_counters *tr_conn_count(struct tr_conn *conn)
{
	return &conn->count;
}

uint64_t tr_conn_completions(const struct tr_conn *conn)
{
	return conn->count.completions;
}

void tr_conn_counters(const struct tr_conn *conn, struct tr_counters *counters)
{
	*counters = conn->count;
}
