/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_cm.c -- librdmacm's answers about the world's ports: out of which does the route to an
 * address go, by what path
 *
 * A question without a source is one of the host that fake_host named in this thread. An event that
 * is there is at first said not to be: its owner asks again.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <infiniband/ib.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "fake_world.h"

enum { EVENTS = 32 };

struct channel {
	struct rdma_event_channel channel;
	struct rdma_cm_event event[EVENTS];
	unsigned int head, tail;
	int host, ids;
	unsigned int asked;
};

struct id {
	struct rdma_cm_id id;
	struct ibv_context context; /* only its device is looked at */
	struct ibv_sa_path_rec record;
	struct fake_device *from, *to;
	uint16_t pkey; /* of the question */
	int unacked;
};

static struct channel *channel_of(struct rdma_event_channel *channel)
{
	return (struct channel *)channel;
}

static struct rdma_event_channel *create_event_channel(void)
{
	struct channel *c = NULL;

	fake_lock();
	if (!fake_fault(FAKE_cm_create_event_channel)) {
		c = calloc(1, sizeof(*c));
		c->channel.fd = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);
		c->host = fake_current_host();
		world.counts.cms++;
	}
	fake_unlock();
	return c ? &c->channel : NULL;
}

static void destroy_event_channel(struct rdma_event_channel *channel)
{
	struct channel *c = channel_of(channel);

	fake_lock();
	if (c->ids)
		fake_misuse("destroy_event_channel with ids in it");
	world.counts.cms--;
	fake_unlock();
	close(channel->fd);
	free(c);
}

static int create_id(struct rdma_event_channel *channel, struct rdma_cm_id **id_p, void *context,
		     enum rdma_port_space ps)
{
	struct id *id = NULL;

	fake_lock();
	if (!fake_fault(FAKE_cm_create_id)) {
		id = calloc(1, sizeof(*id));
		id->id.channel = channel;
		id->id.context = context;
		id->id.ps = ps;
		channel_of(channel)->ids++;
		world.counts.cms++;
		*id_p = &id->id;
	}
	fake_unlock();
	return id ? 0 : -1;
}

static int destroy_id(struct rdma_cm_id *cm_id)
{
	struct id *id = (struct id *)cm_id;
	struct channel *c = channel_of(cm_id->channel);
	unsigned int to = c->head;

	fake_lock();
	if (id->unacked)
		fake_misuse("rdma_destroy_id before its event was acknowledged");
	for (unsigned int from = c->head; from != c->tail; from++)
		if (c->event[from % EVENTS].id != cm_id)
			c->event[to++ % EVENTS] = c->event[from % EVENTS];
	c->tail = to;
	c->ids--;
	world.counts.cms--;
	fake_unlock();
	free(id);
	return 0;
}

static void push(struct id *id, enum rdma_cm_event_type type, int status)
{
	struct channel *c = channel_of(id->id.channel);

	c->event[c->tail++ % EVENTS] =
		(struct rdma_cm_event){ .id = &id->id, .event = type, .status = status };
	eventfd_write(c->channel.fd, 1);
}

/* The GID that a socket address means; what it means for a link-local one is not known. */
static union ibv_gid gid_of(const struct sockaddr *address)
{
	union ibv_gid gid = { .raw = { [10] = 0xff, [11] = 0xff } };

	if (address->sa_family == AF_IB)
		memcpy(gid.raw, &((const struct sockaddr_ib *)(const void *)address)->sib_addr, 16);
	else if (address->sa_family == AF_INET6)
		memcpy(gid.raw, &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr,
		       16);
	else
		memcpy(gid.raw + 12, &((const struct sockaddr_in *)(const void *)address)->sin_addr,
		       4);
	return gid;
}

static struct fake_device *owner(const union ibv_gid *gid)
{
	for (int h = 0; h < world.config.hosts; h++)
		for (int d = 0; d < world.config.devices; d++)
			for (int i = 0; i < MODEL_GIDS; i++)
				if (!memcmp(&world.device[h][d].gid[i].gid, gid, sizeof(*gid)))
					return &world.device[h][d];
	return NULL;
}

/* The address of a port that packets to this one would carry; zero if it has none of the family. */
static union ibv_gid source(const struct fake_device *device, const union ibv_gid *to)
{
	static const union ibv_gid none;

	for (int i = 1; !world.config.infiniband && i < MODEL_GIDS; i++)
		if (device->gid[i].gid_type == IBV_GID_TYPE_ROCE_V2 &&
		    device->gid[i].gid.global.interface_id &&
		    (device->gid[i].gid.raw[10] == 0xff) == (to->raw[10] == 0xff))
			return device->gid[i].gid;
	return world.config.infiniband ? device->gid[0].gid : none;
}

static bool has_pkey(const struct fake_device *device, uint16_t pkey)
{
	for (int i = 0; i < FAKE_PKEYS; i++)
		if (device->port.pkey[i] && !((device->port.pkey[i] ^ pkey) & 0x7fff))
			return true;
	return false;
}

static int resolve_addr(struct rdma_cm_id *cm_id, struct sockaddr *src, struct sockaddr *dst,
			int timeout_ms)
{
	struct id *id = (struct id *)cm_id;
	union ibv_gid to = gid_of(dst), from = { .raw = { 0 } };
	int host = channel_of(cm_id->channel)->host;
	int ret = 0;

	fake_lock();
	id->to = owner(&to);
	id->pkey = dst->sa_family == AF_IB ? ntohs(((struct sockaddr_ib *)(void *)dst)->sib_pkey)
					   : 0xffff;
	if (src) {
		from = gid_of(src);
		id->from = owner(&from);
	} else if (id->to) {
		id->from = &world.device[host][id->to->port.routed_from[host] - 1];
		from = source(id->from, &to);
	}
	if (fake_fault(FAKE_cm_resolve_addr)) {
		ret = -1;
	} else if (src && (src->sa_family != dst->sa_family || !id->from)) {
		errno = src->sa_family != dst->sa_family ? EINVAL : EADDRNOTAVAIL;
		ret = -1;
	} else if (dst->sa_family == AF_IB && id->from && !has_pkey(id->from, id->pkey)) {
		errno = ENODEV;
		ret = -1;
	} else if (!id->to || id->to->port.unreachable || !id->from->up ||
		   !from.global.interface_id) {
		push(id, RDMA_CM_EVENT_ADDR_ERROR, -ETIMEDOUT);
	} else {
		id->context.device = &id->from->device;
		cm_id->verbs = &id->context;
		cm_id->port_num = 1;
		cm_id->route.addr.addr.ibaddr.sgid = from;
		cm_id->route.addr.addr.ibaddr.dgid = to;
		push(id, RDMA_CM_EVENT_ADDR_RESOLVED, 0);
	}
	fake_unlock();
	return ret;
}

static int resolve_route(struct rdma_cm_id *cm_id, int timeout_ms)
{
	struct id *id = (struct id *)cm_id;
	const struct fake_sa *sa = &world.sa;
	int ret = 0;

	fake_lock();
	if (fake_fault(FAKE_cm_resolve_route)) {
		ret = -1;
	} else if (sa->dead) {
		push(id, RDMA_CM_EVENT_ROUTE_ERROR, -ETIMEDOUT);
	} else {
		id->record = (struct ibv_sa_path_rec){
			.sgid = cm_id->route.addr.addr.ibaddr.sgid,
			.dgid = cm_id->route.addr.addr.ibaddr.dgid,
			.slid = htons((uint16_t)(id->from->lid + sa->path_bits)),
			.dlid = htons((uint16_t)(id->to->lid + sa->path_bits)),
			.pkey = htons(sa->pkey ? sa->pkey : id->pkey),
			.sl = sa->sl,
			.mtu = sa->mtu ? sa->mtu : IBV_MTU_4096,
			.rate = sa->rate,
			.hop_limit = sa->hop_limit,
			.packet_life_time = 18,
			.reversible = 1,
		};
		cm_id->route.path_rec = &id->record;
		cm_id->route.num_paths = 1;
		push(id, RDMA_CM_EVENT_ROUTE_RESOLVED, 0);
	}
	fake_unlock();
	return ret;
}

static int get_cm_event(struct rdma_event_channel *channel, struct rdma_cm_event **event_p)
{
	struct channel *c = channel_of(channel);
	int ret = -1;

	fake_lock();
	if (fake_fault(FAKE_cm_get_cm_event)) {
		/* errno is set */
	} else if (c->head == c->tail || c->asked++ % 2 == 0) {
		errno = EAGAIN;
	} else {
		*event_p = malloc(sizeof(**event_p));
		**event_p = c->event[c->head++ % EVENTS];
		((struct id *)(*event_p)->id)->unacked++;
		ret = 0;
	}
	fake_unlock();
	return ret;
}

static int ack_cm_event(struct rdma_cm_event *event)
{
	fake_lock();
	((struct id *)event->id)->unacked--;
	fake_unlock();
	free(event);
	return 0;
}

const struct ib_cm fake_cm_table = {
	.create_event_channel = create_event_channel,
	.destroy_event_channel = destroy_event_channel,
	.create_id = create_id,
	.destroy_id = destroy_id,
	.resolve_addr = resolve_addr,
	.resolve_route = resolve_route,
	.get_cm_event = get_cm_event,
	.ack_cm_event = ack_cm_event,
};
