/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device.c -- the rails: which ports of which devices are used, how they are addressed, and what
 * happens to them
 */
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
#include "gid.h"
#include "ib.h"

/* True if `nics` ("mlx5_0,mlx5_1:2", "" = all) names this port. */
static bool named(const char *nics, const char *device, unsigned int port)
{
	size_t len = strlen(device);

	if (!*nics)
		return true;
	for (const char *p = nics; *p;) {
		size_t item = strcspn(p, ",");

		if (item >= len && !memcmp(p, device, len)) {
			if (item == len)
				return true;
			if (p[len] == ':' && strtoul(p + len + 1, NULL, 10) == port)
				return true;
		}
		p += item;
		p += *p == ',';
	}
	return false;
}

/* Every item of `nics` must have become a rail: a misspelt name must not lead to another device. */
static int check_names(const struct ib_ctx *ctx, const char *nics, struct kv_error *err)
{
	for (const char *p = nics; *p;) {
		size_t item = strcspn(p, ",");
		size_t device = strcspn(p, ":,");
		bool found = !item;

		for (int i = 0; i < ctx->rails; i++) {
			const char *name = ctx->rail[i].name;
			size_t len = device == item ? strcspn(name, ":") : strlen(name);

			found |= len == item && !memcmp(name, p, item);
		}
		if (!found) {
			kv_fail(err, KV_ERR_DEVICE, "open",
				"KVCACHE_RDMA_NICS names \"%.*s\", which is not a device with an "
				"active port",
				(int)item, p);
			kv_error_hint(err, "ibv_devinfo lists the devices and the state of their "
					   "ports");
			return KV_ERR_DEVICE;
		}
		p += item;
		p += *p == ',';
	}
	return 0;
}

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

	if (atomic_load(&rail->dead) || atomic_load(&rail->lame) ||
	    kv_now_ns() < atomic_load(&rail->ill_until_ns))
		return kv_fail(err, KV_ERR_DEVICE, "connect", "the device of %s has failed",
			       rail->name);
	ret = ib_rail_address(ctx, rail, near, address_p, err);
	if (ret == KV_ERR_DEVICE)
		ib_rail_is_ill(ctx, rail, err);
	return ret;
}

/* True if the GID is an address of this host's: then the peer is on it. */
bool ib_rails_have(const struct ib_ctx *ctx, const union ibv_gid *gid)
{
	struct ibv_gid_entry *entries;
	bool found = false;
	size_t n;

	for (int r = 0; r < ctx->rails && !found; r++) {
		if (read_gids(ctx, &ctx->rail[r], &entries, &n, NULL))
			continue;
		for (size_t i = 0; i < n; i++)
			found |= !memcmp(&entries[i].gid, gid, sizeof(*gid));
		free(entries);
	}
	return found;
}

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

int ib_rail_open(struct ib_ctx *ctx, struct ib_rail *rail, struct ibv_device *device, uint8_t port,
		 struct kv_error *err)
{
	const struct ib_verbs *v = ctx->v;
	int ret;

	memset(rail, 0, sizeof(*rail));
	rail->port = port;
	snprintf(rail->name, sizeof(rail->name), "%s:%u", v->get_device_name(device), port);
	ib_near_place(ctx, v->get_device_name(device), &rail->place);
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
	return ret;
}

void ib_rail_close(struct ib_ctx *ctx, struct ib_rail *rail)
{
	lend_device(rail->context, false);
	ctx->v->dealloc_pd(rail->pd);
	ctx->v->close_device(rail->context);
}

void ib_rails_close(struct ib_ctx *ctx)
{
	while (ctx->rails) {
		ctx->rails--;
		ib_rail_close(ctx, &ctx->rail[ctx->rails]);
	}
}

/*
 * The devices at this distance from the GPU, or all (PCI_DISTANCES). One that cannot be used is
 * left out with a line in the log, and its cause kept in *why; asked for by name it is an error.
 * Being out of memory or descriptors is not a fault of a device.
 */
static int scan(struct ib_ctx *ctx, struct ibv_device **list, int n, const char *nics,
		enum pci_distance distance, struct kv_log *log, struct kv_error *why)
{
	for (int i = 0; i < n; i++) {
		const char *name = ctx->v->get_device_name(list[i]);
		unsigned int ports = 2; /* until the device has been asked */

		if (distance != PCI_DISTANCES && ib_near_distance(ctx, name) != distance)
			continue;
		for (unsigned int port = 1; port <= ports && ctx->rails < IB_PORTS_MAX; port++) {
			struct ib_rail *rail = &ctx->rail[ctx->rails];
			int ret;

			if (!named(nics, name, port))
				continue;
			ret = ib_rail_open(ctx, rail, list[i], (uint8_t)port, why);
			if (rail->attr.phys_port_cnt)
				ports = rail->attr.phys_port_cnt;
			if (!ret) {
				ctx->rails++;
			} else if (ret == KV_ERR_UNSUPPORTED || ret == KV_ERR_UNREACHABLE ||
				   (ret == KV_ERR_DEVICE && !*nics)) {
				kv_log_info(log, "ib: %s is not used: %s", rail->name,
					    why->message);
				ib_late_note(ctx, name, (uint8_t)port);
			} else if (ret != KV_ERR_ARG) {
				return ret;
			}
		}
	}
	return 0;
}

/*
 * All devices, or only the nearest of those that can be used: a farther one does not help where a
 * nearer one is its rail's equal.
 */
static int scan_nearest(struct ib_ctx *ctx, struct ibv_device **list, int n, const char *nics,
			struct kv_log *log, struct kv_error *why)
{
	int ret = 0;

	if (*nics || !*ctx->gpu.address) {
		ret = scan(ctx, list, n, nics, PCI_DISTANCES, log, why);
	} else {
		for (int d = PCI_PIX; d < PCI_DISTANCES && !ctx->rails && !ret; d++)
			ret = scan(ctx, list, n, nics, (enum pci_distance)d, log, why);
	}
	if (!ret)
		ib_speed_choose(ctx, *ctx->gpu.address && !*nics, *nics, log);
	for (int i = 0; i < ctx->rails && !ret; i++) {
		const struct ib_rail *rail = &ctx->rail[i];
		enum pci_distance d = pci_between(&ctx->gpu, &rail->place);

		kv_log_info(log, "ib: rail %d is %s%s%s%s%s: %s", i, rail->name,
			    *ctx->gpu.address ? ", " : "",
			    *ctx->gpu.address ? pci_distance_name(d) : "",
			    *ctx->gpu.address ? " from GPU " : "", ctx->gpu.address,
			    rail->address.reason);
	}
	return ret;
}

static int refuse_none(int n, const struct kv_error *why, struct kv_error *err)
{
	if (!n) {
		kv_fail(err, KV_ERR_UNSUPPORTED, "open", "this machine has no RDMA device");
		kv_error_hint(err, "a software one: rdma link add rxe0 type rxe netdev eth0");
	} else if (why->code == KV_ERR_DEVICE) {
		kv_fail(err, KV_ERR_UNSUPPORTED, "open",
			"none of %d RDMA devices can be used; the last: %.160s", n, why->message);
	} else {
		kv_fail(err, KV_ERR_UNSUPPORTED, "open",
			"none of %d RDMA devices has an active port", n);
		kv_error_hint(err, "bring the link up; ibv_devinfo shows the ports");
	}
	return KV_ERR_UNSUPPORTED;
}

int ib_rails_open(struct ib_ctx *ctx, const char *nics, struct kv_log *log, struct kv_error *err)
{
	struct ibv_device **list;
	struct kv_error why = { 0 };
	int n = 0, ret;

	list = ctx->v->get_device_list(&n);
	if (!list && errno != ENOSYS)
		return kv_fail_errno(err, *nics ? KV_ERR_DEVICE : KV_ERR_UNSUPPORTED, errno, "open",
				     "cannot list the RDMA devices");
	ret = scan_nearest(ctx, list, n, nics, log, &why);
	if (list)
		ctx->v->free_device_list(list);
	if (ret)
		kv_error_copy(err, &why);
	else
		ret = check_names(ctx, nics, err);
	if (!ret && !ctx->rails)
		ret = refuse_none(n, &why, err);
	if (ret)
		ib_rails_close(ctx);
	ctx->taking = ctx->rails;
	return ret;
}

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
		atomic_store(&lane->async, (int)event->event_type + 1);
		break;
	case IBV_EVENT_CQ_ERR:
		c = event->element.cq->cq_context;
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

void ib_async_drain(struct ib_ctx *ctx)
{
	struct ibv_async_event event;

	for (int i = 0; i < ctx->rails; i++)
		while (!ctx->v->get_async_event(ctx->rail[i].context, &event)) {
			note_event(&ctx->rail[i], &event);
			ctx->v->ack_async_event(&event);
		}
}
