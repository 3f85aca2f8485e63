/* SPDX-License-Identifier: Apache-2.0 */
/*
 * route.c -- questions to librdmacm: out of which port does the route to an address go, and by what
 * path
 *
 * RoCE: a GID is an IP address, resolved by the routing and neighbour tables
 * (rdma_resolve_addr(3)). InfiniBand: a GID is asked for as it is (AF_IB), so no IPoIB interface is
 * needed; the path record comes from the subnet manager (rdma_resolve_route(3), IBTA volume 1,
 * 15.2.5.16 PathRecord).
 */
#include "route.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <infiniband/ib.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fault.h"

struct asked {
	struct rdma_cm_id *id; /* NULL: nothing is under way */
	bool ethernet;
	int error; /* 0: answered */
	struct ib_answer answer;
};

struct ib_route {
	const struct ib_cm *cm;
	const struct ib_verbs *v;
	struct rdma_event_channel *channel;
	int timeout_ms;
	struct asked asked[IB_RAILS_MAX];
};

int ib_route_open(const struct ib_conn *c, int timeout_ms, struct ib_route **route_p,
		  struct kv_error *err)
{
	const struct ib_cm *cm = ib_cm_load(err);
	struct ib_route *route;
	int ret;

	if (!cm)
		return KV_ERR_UNSUPPORTED;
	route = kv_fault(IB_ROUTE_ALLOC) ? NULL : calloc(1, sizeof(*route));
	if (!route)
		return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate a route question");
	route->cm = cm;
	route->v = c->v;
	route->timeout_ms = timeout_ms;
	for (int i = 0; i < IB_RAILS_MAX; i++)
		route->asked[i].error = ENODATA;
	route->channel = cm->create_event_channel();
	if (!route->channel) {
		ret = kv_fail_errno(err, KV_ERR_UNSUPPORTED, errno, "connect",
				    "librdmacm gives no event channel");
		free(route);
		return ret;
	}
	if (kv_fault(IB_ROUTE_FCNTL) ? (errno = EBADF, -1)
				     : fcntl(route->channel->fd, F_SETFL, O_NONBLOCK))
		ret = kv_fail_errno(err, KV_ERR_SYSTEM, errno, "connect",
				    "cannot make librdmacm's event channel non-blocking");
	else
		ret = tr_conn_watch(c->conn, route->channel->fd, err);
	if (ret) {
		cm->destroy_event_channel(route->channel);
		free(route);
		return ret;
	}
	*route_p = route;
	return 0;
}

static void end_question(struct ib_route *route, struct asked *asked, int error)
{
	/* Closes a descriptor's share in the kernel; what it returns changes nothing here. */
	route->cm->destroy_id(asked->id);
	asked->id = NULL;
	asked->error = error;
}

void ib_route_close(const struct ib_conn *c, struct ib_route *route)
{
	tr_conn_unwatch(c->conn, route->channel->fd);
	for (int i = 0; i < IB_RAILS_MAX; i++)
		if (route->asked[i].id)
			end_question(route, &route->asked[i], ECANCELED);
	route->cm->destroy_event_channel(route->channel);
	free(route);
}

static void set_address(struct sockaddr_storage *address, const struct ib_question *question,
			const union ibv_gid *gid)
{
	struct sockaddr_in *ipv4 = (struct sockaddr_in *)address;
	struct sockaddr_in6 *ipv6 = (struct sockaddr_in6 *)address;
	struct sockaddr_ib *ib = (struct sockaddr_ib *)address;

	memset(address, 0, sizeof(*address));
	if (!question->ethernet) {
		ib->sib_family = AF_IB;
		ib->sib_pkey = htons(question->pkey);
		memcpy(&ib->sib_addr, gid->raw, sizeof(gid->raw));
	} else if (ib_gid_is_ipv4(gid)) {
		ipv4->sin_family = AF_INET;
		memcpy(&ipv4->sin_addr, gid->raw + 12, sizeof(ipv4->sin_addr));
	} else {
		ipv6->sin6_family = AF_INET6;
		memcpy(&ipv6->sin6_addr, gid->raw, sizeof(ipv6->sin6_addr));
	}
}

void ib_route_ask(struct ib_route *route, int slot, const struct ib_question *question)
{
	struct asked *asked = &route->asked[slot];
	struct sockaddr_storage from, to;

	memset(asked, 0, sizeof(*asked));
	asked->ethernet = question->ethernet;
	if (route->cm->create_id(route->channel, &asked->id, asked,
				 question->ethernet ? RDMA_PS_TCP : RDMA_PS_IB)) {
		asked->id = NULL;
		asked->error = errno;
		return;
	}
	set_address(&to, question, question->to);
	if (question->from)
		set_address(&from, question, question->from);
	if (route->cm->resolve_addr(asked->id, question->from ? (struct sockaddr *)&from : NULL,
				    (struct sockaddr *)&to, route->timeout_ms))
		end_question(route, asked, errno);
}

/* The address is resolved: the id is bound to a port now. */
static void address_resolved(struct ib_route *route, struct asked *asked)
{
	const struct rdma_cm_id *id = asked->id;

	if (!id->verbs) { /* a loopback address, which belongs to no device */
		end_question(route, asked, ENODEV);
		return;
	}
	snprintf(asked->answer.port, sizeof(asked->answer.port), "%.27s:%u",
		 route->v->get_device_name(id->verbs->device), id->port_num);
	asked->answer.sgid = id->route.addr.addr.ibaddr.sgid;
	if (route->cm->resolve_route(asked->id, route->timeout_ms))
		end_question(route, asked, errno);
}

/* The path record is there; of a RoCE path only the MTU means something. */
static void routed(struct ib_route *route, struct asked *asked)
{
	const struct ibv_sa_path_rec *path = asked->id->route.path_rec;

	if (!asked->id->route.num_paths) {
		end_question(route, asked, ENODATA);
		return;
	}
	asked->answer.record = (struct ib_record){ .known = true, .mtu = path->mtu };
	if (!asked->ethernet)
		asked->answer.record = (struct ib_record){
			.known = true,
			.slid = ntohs(path->slid),
			.dlid = ntohs(path->dlid),
			.pkey = ntohs(path->pkey),
			.sl = path->sl,
			.mtu = path->mtu,
			.rate = path->rate,
			.hop_limit = path->hop_limit,
			.life = path->packet_life_time,
		};
	end_question(route, asked, 0);
}

/* Takes one event; false: none is there. */
static bool take_cm_event(struct ib_route *route)
{
	struct rdma_cm_event *event;
	enum rdma_cm_event_type type;
	struct asked *asked;
	int status;

	if (route->cm->get_cm_event(route->channel, &event)) {
		status = errno;
		for (int i = 0; i < IB_RAILS_MAX && status != EAGAIN; i++)
			if (route->asked[i].id)
				end_question(route, &route->asked[i], status);
		return false;
	}
	type = event->event;
	status = abs(event->status);
	asked = event->id->context;
	/* An id cannot be destroyed before its events are acknowledged. */
	route->cm->ack_cm_event(event);
	if (type == RDMA_CM_EVENT_ADDR_RESOLVED)
		address_resolved(route, asked);
	else if (type == RDMA_CM_EVENT_ROUTE_RESOLVED)
		routed(route, asked);
	else
		end_question(route, asked, status ? status : EHOSTUNREACH);
	return true;
}

int ib_route_step(struct ib_route *route)
{
	while (take_cm_event(route))
		;
	for (int i = 0; i < IB_RAILS_MAX; i++)
		if (route->asked[i].id)
			return TR_AGAIN;
	return 0;
}

const struct ib_answer *ib_route_answer(const struct ib_route *route, int slot, int *errno_p)
{
	const struct asked *asked = &route->asked[slot];

	*errno_p = asked->error;
	return asked->error ? NULL : &asked->answer;
}
