/* SPDX-License-Identifier: Apache-2.0 */
/*
 * route.h -- questions to librdmacm: out of which port does the route to an address go, and by what
 * path
 *
 * The questions of one connection are asked together and answered one by one on a descriptor that
 * the connection watches; nothing waits. The kernel ends each of them, at the latest after
 * `timeout_ms` for the address and the same again for the path.
 */
#ifndef IB_ROUTE_H
#define IB_ROUTE_H

#include "ib.h"

struct ib_route;

struct ib_answer {
	char port[32]; /* "mlx5_0:1", as a rail's name */
	union ibv_gid sgid;
	struct ib_record record;
};

struct ib_question {
	const union ibv_gid *from; /* NULL: the routing table chooses */
	const union ibv_gid *to;
	bool ethernet;
	uint16_t pkey; /* InfiniBand: the partition of the path */
};

/* KV_ERR_UNSUPPORTED and others: librdmacm cannot be asked on this machine, and why. */
int ib_route_open(const struct ib_conn *c, int timeout_ms, struct ib_route **route_p,
		  struct kv_error *err);
void ib_route_close(const struct ib_conn *c, struct ib_route *route);

/* Asks in slot 0 .. IB_RAILS_MAX - 1, whose earlier answer is forgotten. */
void ib_route_ask(struct ib_route *route, int slot, const struct ib_question *question);

/* TR_AGAIN while an answer is due, else 0. */
int ib_route_step(struct ib_route *route);

/* NULL: never asked or not answered; *errno_p says why. */
const struct ib_answer *ib_route_answer(const struct ib_route *route, int slot, int *errno_p);

#endif
