/* SPDX-License-Identifier: Apache-2.0 */
/* dump.c -- what a connection says of itself, to answer "why does it hang" */
#include <stdio.h>

#include "base/clock.h"
#include "base/report.h"
#include "conn.h"

int tr_conn_dump(const struct tr_conn *conn, char *buf, size_t cap)
{
	unsigned int open = conn->data ? conn->data->used : 0;
	int len = snprintf(buf, cap, "%s %s %s, %u operations open, path: %s\n", conn->address,
			   tr_conn_transport(conn), tr_conn_stage(conn), open, conn->path);
	size_t used = (size_t)len < cap ? (size_t)len : cap;

	if (conn->stage == CONN_READY)
		len += conn->provider->dump(conn, buf + used, cap - used);
	return len;
}

/* What the provider says in several lines, in one. */
void tr_conn_report(const struct tr_conn *conn, struct kv_report *r)
{
	char said[2048], *to = said;

	if (conn->hs)
		kv_report_text(r, "handshake", "%s", tr_conn_stage(conn));
	if (conn->hs && conn->deadline_ns != INT64_MAX) /* it is not known before the first byte */
		kv_report_int(r, "handshake_left_ms",
			      (conn->deadline_ns - kv_now_ns()) / KV_NS_PER_MS);
	if (!conn->provider)
		return;
	kv_report_text(r, "transport", "%s", tr_conn_transport(conn));
	kv_report_text(r, "path", "%s", tr_conn_path(conn));
	tr_conn_dump(conn, said, sizeof(said));
	for (const char *at = said; *at; at++)
		if (*at != '\n')
			*to++ = *at;
		else if (at[1])
			*to++ = ';';
	*to = 0;
	kv_report_text(r, "connection", "%s", said);
}
