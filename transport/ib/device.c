/* SPDX-License-Identifier: Apache-2.0 */
/* device.c -- a rail: opened, the choice of its GID, how it is addressed, and what happens to it */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/fds.h"
#include "base/log.h"
#include "ib.h"

/* ---------------------------------------------------------------- which GID; pure */

static const char *const rank_text[] = {
	[IB_GID_USELESS] = "empty",	 [IB_GID_LINK_LOCAL] = "link-local",
	[IB_GID_ROCE_V1] = "RoCE v1",	 [IB_GID_IPV6] = "RoCE v2, routable IPv6",
	[IB_GID_IPV4] = "RoCE v2, IPv4",
};

void ib_gid_text(const union ibv_gid *gid, char *buf, size_t cap)
{
	if (!inet_ntop(AF_INET6, gid->raw, buf, (socklen_t)cap))
		snprintf(buf, cap, "?");
}

bool ib_gid_is_zero(const union ibv_gid *gid)
{
	static const uint8_t zero[16];

	return !memcmp(gid->raw, zero, sizeof(zero));
}

bool ib_gid_is_ipv4(const union ibv_gid *gid)
{
	static const uint8_t prefix[12] = { [10] = 0xff, [11] = 0xff };

	return !memcmp(gid->raw, prefix, sizeof(prefix));
}

bool ib_gid_is_link_local(const union ibv_gid *gid)
{
	return gid->raw[0] == 0xfe && (gid->raw[1] & 0xc0) == 0x80;
}

static enum ib_gid_rank rank_of(const struct ibv_gid_entry *entry)
{
	static const uint8_t zero[8];
	const uint8_t *raw = entry->gid.raw;

	/* A GID whose interface part is zero belongs to an interface without an address. */
	if (ib_gid_is_zero(&entry->gid) || !memcmp(raw + 8, zero, 8))
		return IB_GID_USELESS;
	if (ib_gid_is_link_local(&entry->gid))
		return IB_GID_LINK_LOCAL;
	if (entry->gid_type != IBV_GID_TYPE_ROCE_V2)
		return IB_GID_ROCE_V1;
	return ib_gid_is_ipv4(&entry->gid) ? IB_GID_IPV4 : IB_GID_IPV6;
}

static void take_gid(struct ib_gid_choice *choice, const struct ibv_gid_entry *entries, int entry,
		     bool asked, const char *why)
{
	char text[INET6_ADDRSTRLEN];

	choice->entry = entry;
	choice->rank = rank_of(&entries[entry]);
	choice->asked = asked;
	ib_gid_text(&entries[entry].gid, text, sizeof(text));
	snprintf(choice->reason, sizeof(choice->reason), "gid index %u, %s (%s): %s",
		 entries[entry].gid_index, text, rank_text[choice->rank], why);
}

/* How good an entry is, 0 = useless: the very address, then its family, then the kind. */
static int score(const struct ibv_gid_entry *entry, const union ibv_gid *near)
{
	enum { FAMILY = 10, VERY = 20 };
	enum ib_gid_rank rank = rank_of(entry);

	if (!near || rank <= IB_GID_LINK_LOCAL)
		return (int)rank;
	if (!memcmp(near->raw, entry->gid.raw, sizeof(near->raw)))
		return (int)rank + VERY;
	return ib_gid_is_ipv4(near) == ib_gid_is_ipv4(&entry->gid) ? (int)rank + FAMILY : (int)rank;
}

void ib_gid_choose(const struct ibv_gid_entry *entries, size_t n, int option,
		   const union ibv_gid *near, struct ib_gid_choice *choice)
{
	char why[64] = "the first of the best kind";
	int best = 0, found = -1;

	memset(choice, 0, sizeof(*choice));
	choice->entry = -1;
	for (size_t i = 0; i < n; i++) {
		int points = score(&entries[i], near);

		if (option >= 0 && entries[i].gid_index == (uint32_t)option && points) {
			take_gid(choice, entries, (int)i, true,
				 "KVCACHE_RDMA_GID_INDEX asks for it");
			return;
		}
		if (points > best) {
			best = points;
			found = (int)i;
		}
	}
	if (option >= 0)
		snprintf(why, sizeof(why), "the index %d of KVCACHE_RDMA_GID_INDEX is empty",
			 option);
	if (found >= 0)
		take_gid(choice, entries, found, false, why);
	else
		snprintf(choice->reason, sizeof(choice->reason), "no entry of %zu is usable", n);
}

void ib_gid_choose_infiniband(const struct ibv_gid_entry *entries, size_t n, int option,
			      struct ib_gid_choice *choice)
{
	memset(choice, 0, sizeof(*choice));
	choice->entry = -1;
	for (size_t i = 0; i < n; i++) {
		bool asked = option >= 0 && entries[i].gid_index == (uint32_t)option;

		if (ib_gid_is_zero(&entries[i].gid) || (!asked && entries[i].gid_index))
			continue;
		choice->entry = (int)i;
		choice->asked = asked;
		if (asked)
			return;
	}
}

/* ---------------------------------------------------------------- how it is addressed */

/* The port's valid rows of its device's GID table; the caller frees them. */
static int read_gids(const struct ib_ctx *ctx, const struct ib_rail *rail,
		     struct ibv_gid_entry **entries_p, size_t *n_p, struct kv_error *err)
{
	int rows = rail->port_attr.gid_tbl_len > 0 ? rail->port_attr.gid_tbl_len : 1;
	int ports = rail->attr.phys_port_cnt ? rail->attr.phys_port_cnt : 1;
	struct ibv_gid_entry *entries;
	size_t mine = 0;
	ssize_t n;

	rows *= ports;
	entries = kv_fault(IB_GID_TABLE) ? NULL : calloc((size_t)rows, sizeof(*entries));
	if (!entries)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate a GID table of %d rows",
			       rows);
	n = ctx->v->query_gid_table(rail->context, entries, (size_t)rows);
	if (n < 0) {
		free(entries);
		return kv_fail_errno(err, KV_ERR_DEVICE, (int)-n, "open",
				     "cannot read the GID table of %s", rail->name);
	}
	for (ssize_t i = 0; i < n; i++)
		if (entries[i].port_num == rail->port)
			entries[mine++] = entries[i];
	*entries_p = entries;
	*n_p = mine;
	return 0;
}

/*
 * The rail as a new connection uses it: addresses may have come, gone or moved to another index
 * since it was opened, and its MTU or its LIDs may be others. `near` as for ib_gid_choose.
 * *address_p has a zero GID if the port has none; that is an error for RoCE, where it cannot be
 * used then, but not here.
 */
int ib_rail_address(const struct ib_ctx *ctx, struct ib_rail *rail, const union ibv_gid *near,
		    struct ib_address *address_p, struct kv_error *err)
{
	struct ibv_port_attr port;
	struct ibv_gid_entry *entries;
	struct ib_gid_choice choice;
	size_t n;
	int ret = ctx->v->query_port(rail->context, rail->port, &port);

	if (ret)
		return kv_fail_errno(err, KV_ERR_DEVICE, ret, "connect", "cannot query the port %s",
				     rail->name);
	atomic_store(&rail->down, port.state != IBV_PORT_ACTIVE);
	if (port.state != IBV_PORT_ACTIVE)
		return kv_fail(err, KV_ERR_UNREACHABLE, "connect", "the port %s is down",
			       rail->name);
	ret = read_gids(ctx, rail, &entries, &n, err);
	if (ret)
		return ret;
	if (rail->ethernet)
		ib_gid_choose(entries, n, ctx->gid_option, near, &choice);
	else
		ib_gid_choose_infiniband(entries, n, ctx->gid_option, &choice);
	memset(address_p, 0, sizeof(*address_p));
	address_p->mtu = (uint8_t)port.active_mtu;
	address_p->lid = port.lid;
	address_p->lmc = port.lmc;
	snprintf(address_p->reason, sizeof(address_p->reason), "%s", choice.reason);
	/* An address handle has 8 bits for the index. */
	if (choice.entry >= 0 && entries[choice.entry].gid_index <= UINT8_MAX) {
		address_p->gid = entries[choice.entry].gid;
		address_p->gid_index = (uint8_t)entries[choice.entry].gid_index;
	}
	free(entries);
	if (!rail->ethernet)
		snprintf(address_p->reason, sizeof(address_p->reason), "InfiniBand, lid %u",
			 port.lid);
	return 0;
}

void ib_rail_is_ill(struct ib_ctx *ctx, struct ib_rail *rail, const struct kv_error *why)
{
	if (!atomic_exchange(&rail->ill, true))
		kv_log_warn(ctx->tr->log,
			    "ib: %s fails: %s; new connections do without it until it works again",
			    rail->name, why->message);
}

void ib_rail_is_well(struct ib_ctx *ctx, struct ib_rail *rail)
{
	if (atomic_exchange(&rail->ill, false))
		kv_log_warn(ctx->tr->log, "ib: %s works again and is used", rail->name);
}

/*
 * The same for a new connection. If one device is in trouble the others are still used: a warning
 * names it once.
 */
int ib_rail_ready(struct ib_ctx *ctx, struct ib_rail *rail, const union ibv_gid *near,
		  struct ib_address *address_p, struct kv_error *err)
{
	int ret;

	if (ib_rail_failed(rail) || kv_now_ns() < atomic_load(&rail->ill_until_ns))
		return kv_fail(err, KV_ERR_DEVICE, "connect", "the device of %s has failed",
			       rail->name);
	ret = ib_rail_address(ctx, rail, near, address_p, err);
	if (ret == KV_ERR_DEVICE)
		ib_rail_is_ill(ctx, rail, err);
	return ret;
}

/* True if the GID is an address of this host's: then the peer is on it. */
bool ib_rails_have(struct ib_ctx *ctx, const union ibv_gid *gid)
{
	uint32_t rails = ib_rails_use(ctx, true);
	struct ibv_gid_entry *entries;
	bool found = false;
	size_t n;

	for (uint32_t left = rails; left && !found; left &= left - 1) {
		if (read_gids(ctx, &ctx->rail[__builtin_ctz(left)], &entries, &n, NULL))
			continue;
		for (size_t i = 0; i < n; i++)
			found |= !memcmp(&entries[i].gid, gid, sizeof(*gid));
		free(entries);
	}
	ib_rails_let_go(ctx, rails);
	return found;
}

/* ---------------------------------------------------------------- open, close */

/* Asynchronous events are read without waiting, by whichever connection looks first. */
static int unblock_async(int fd)
{
	int flags = kv_fault(IB_ASYNC_FCNTL) ? (errno = EBADF, -1) : fcntl(fd, F_GETFL);

	return flags < 0 ? -1 : fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

/*
 * The kernel keeps queue pairs as long as any process has this descriptor open: a forked child
 * would go on receiving for a parent that was killed. (Devices that are not real have none.)
 */
static void lend_device(const struct ibv_context *context, bool on)
{
	if (context->cmd_fd > STDERR_FILENO)
		(on ? kv_fd_lend : kv_fd_unlend)(context->cmd_fd);
}

void ib_rail_place(const struct ib_ctx *ctx, const char *device, struct pci_place *place)
{
	char link[128];

	snprintf(link, sizeof(link), "class/infiniband/%s/device", device);
	pci_place_find(ctx->sysroot, link, place);
}

int ib_rail_open(struct ib_ctx *ctx, struct ib_rail *rail, struct ibv_device *device, uint8_t port,
		 struct kv_error *err)
{
	const struct ib_verbs *v = ctx->v;
	int ret;

	memset(rail, 0, sizeof(*rail));
	rail->port = port;
	snprintf(rail->name, sizeof(rail->name), "%s:%u", v->get_device_name(device), port);
	ib_rail_place(ctx, v->get_device_name(device), &rail->place);
	rail->context = v->open_device(device);
	if (!rail->context)
		return kv_fail_errno(err, KV_ERR_DEVICE, errno, "open", "cannot open the device %s",
				     v->get_device_name(device));
	ret = v->query_device(rail->context, &rail->attr);
	if (ret) {
		ret = kv_fail_errno(err, KV_ERR_DEVICE, ret, "open",
				    "cannot query the device of %s", rail->name);
		goto close;
	}
	if (port > rail->attr.phys_port_cnt) {
		ret = kv_fail(err, KV_ERR_ARG, "open", "%s does not exist", rail->name);
		goto close;
	}
	ret = v->query_port(rail->context, port, &rail->port_attr);
	if (ret) {
		ret = kv_fail_errno(err, KV_ERR_DEVICE, ret, "open", "cannot query the port %s",
				    rail->name);
		goto close;
	}
	if (rail->port_attr.state != IBV_PORT_ACTIVE) {
		ret = kv_fail(err, KV_ERR_UNSUPPORTED, "open", "the port %s is not active",
			      rail->name);
		goto close;
	}
	if (rail->port_attr.max_msg_sz && rail->port_attr.max_msg_sz < IB_MSG_LEAST) {
		ret = kv_fail(err, KV_ERR_DEVICE, "open",
			      "%s takes messages of at most %u bytes, less than %d", rail->name,
			      rail->port_attr.max_msg_sz, IB_MSG_LEAST);
		goto close;
	}
	ib_speed_find(ctx, rail);
	rail->ethernet = rail->port_attr.link_layer == IBV_LINK_LAYER_ETHERNET;
	ret = ib_rail_address(ctx, rail, NULL, &rail->address, err);
	if (!ret && rail->ethernet && ib_gid_is_zero(&rail->address.gid))
		ret = kv_fail(err, KV_ERR_DEVICE, "open", "%s has no usable GID: %s", rail->name,
			      rail->address.reason);
	if (ret)
		goto close;
	if (unblock_async(rail->context->async_fd)) {
		ret = kv_fail_errno(err, KV_ERR_SYSTEM, errno, "open",
				    "cannot make the event descriptor of %s non-blocking",
				    rail->name);
		goto close;
	}
	rail->pd = v->alloc_pd(rail->context);
	if (rail->pd) {
		lend_device(rail->context, true);
		return 0;
	}
	ret = kv_fail_errno(err, KV_ERR_DEVICE, errno, "open",
			    "cannot allocate a protection domain on %s", rail->name);
close:
	v->close_device(rail->context);
	rail->context = NULL;
	return ret;
}

void ib_loop_close(const struct ib_ctx *ctx, struct ib_rail *rail)
{
	struct ib_loop *loop = rail->loop;

	if (!loop)
		return;
	if (loop->qp)
		ctx->v->destroy_qp(loop->qp);
	if (loop->cq)
		ctx->v->destroy_cq(loop->cq);
	if (loop->mr)
		ctx->v->dereg_mr(loop->mr);
	free(loop);
	rail->loop = NULL;
}

void ib_rail_close(struct ib_ctx *ctx, struct ib_rail *rail)
{
	lend_device(rail->context, false);
	ib_loop_close(ctx, rail);
	ctx->v->dealloc_pd(rail->pd);
	ctx->v->close_device(rail->context);
	rail->context = NULL;
}

/* ---------------------------------------------------------------- what happens to it */

void ib_rail_describe(const struct ib_rail *rail, char *buf, size_t cap)
{
	snprintf(buf, cap, "%s, %u Gb/s, mtu %u, %s%s", rail->ethernet ? "RoCE" : "InfiniBand",
		 rail->gigabits, 128u << rail->port_attr.active_mtu, rail->address.reason,
		 atomic_load(&rail->dead)   ? "; the device has failed"
		 : atomic_load(&rail->ill)  ? "; its verbs fail"
		 : atomic_load(&rail->down) ? "; the port is down"
					    : "");
}

static void note_event(struct ib_rail *rail, const struct ibv_async_event *event)
{
	struct ib_conn *c;
	struct ib_lane *lane;

	switch (event->event_type) {
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
		/*
		 * A queue cannot be destroyed, nor what it points to freed, before the event is
		 * acknowledged.
		 */
		lane = event->element.qp->qp_context;
		if (lane) /* NULL: flush_gpu.c sees it by itself */
			atomic_store(&lane->async, (int)event->event_type + 1);
		break;
	case IBV_EVENT_CQ_ERR:
		c = event->element.cq->cq_context;
		if (c)
			atomic_store(&c->cq_error, true);
		break;
	case IBV_EVENT_DEVICE_FATAL:
		atomic_store(&rail->dead, true);
		break;
	case IBV_EVENT_PORT_ERR:
	case IBV_EVENT_PORT_ACTIVE:
		if (event->element.port_num == rail->port)
			atomic_store(&rail->down, event->event_type == IBV_EVENT_PORT_ERR);
		break;
	default:
		break;
	}
}

void ib_async_drain(struct ib_ctx *ctx, uint32_t rails)
{
	struct ibv_async_event event;

	for (; rails; rails &= rails - 1) {
		struct ib_rail *rail = &ctx->rail[__builtin_ctz(rails)];

		while (!ctx->v->get_async_event(rail->context, &event)) {
			note_event(rail, &event);
			ctx->v->ack_async_event(&event);
		}
	}
}
