/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dial.h -- a TCP connection to a host by name: all of its addresses are tried
 *
 * The name is resolved in a thread of its own (resolve.h). Then, in the order of its answer: the
 * next one begins when one fails, or has not answered for a moment, and those that have begun go
 * on. The first that stands is taken (RFC 8305's way, without its two queues). How long all of it
 * may take is the caller's to say: it stops calling.
 */
#ifndef TR_DIAL_H
#define TR_DIAL_H

#include "resolve.h"
#include "tr.h"

struct dial;

/* Begins. The sockets are watched by the connection's epoll. */
int dial_start(struct tr_conn *conn, const char *host, uint32_t port, struct dial **dial_p,
	       struct kv_error *err);
/*
 * 0: conn->sock stands, the others are closed, and the dial is freed. TR_AGAIN, or the error that
 * names each address.
 */
int dial_finish(struct tr_conn *conn, struct kv_error *err);
bool dial_resolves(const struct dial *dial); /* the name is still being asked for */
void dial_free(struct dial *dial); /* closes what conn has not taken; NULL is none */

#endif
