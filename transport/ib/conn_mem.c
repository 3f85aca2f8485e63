/* SPDX-License-Identifier: Apache-2.0 */
/*
 * conn_mem.c -- the memory of a connection that is not the caller's: cells, probe, buffers, tables,
 * queues
 *
 * One mapping with three parts that devices reach, each with no more rights than it needs:
 *   cells    the peer's devices write notify records here: IB_RECV_DATA cells of IB_CELL bytes for
 *            each lane. Read only after the receive completion of the write that filled the cell.
 *   probe    one page that the peer's devices read 8 bytes of, behind their writes (notify.c).
 *            Never written.
 *   private  source records and messages (IB_RECV_DATA for each lane), receive buffers (IB_RECVS
 *            for each lane), the 8 bytes of each lane where a probe lands. No remote rights. Only
 *            the first lane's are as long as a message.
 * A device keeps all pages of it in memory. Another mapping, the tables, is this process's own, and
 * has the pages that were used.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"
#include "ib.h"

static size_t private_bytes(const struct ib_conn *c)
{
	return ib_conn_buffers((uint32_t)c->lanes) + (size_t)c->lanes * IB_LANDING;
}

static size_t pages(size_t len)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	return (len + page - 1) / page * page;
}

/*
 * Messages, notifies, slots and chains. Not from malloc, which may clear what it gives, and so give
 * it pages that an idle connection does not need.
 */
static int make_tables(struct ib_conn *c, struct kv_error *err)
{
	size_t slots = (size_t)c->lanes * c->ctx->sq_depth * sizeof(*c->slots), inbox;
	uint8_t *at;

	for (inbox = 1; inbox < (size_t)c->lanes * IB_RECV_DATA;)
		inbox *= 2;
	c->inbox_mask = (uint32_t)inbox - 1;
	c->tables_len = slots + inbox * sizeof(*c->inbox) + IB_RECV_DATA * sizeof(*c->msgs) +
			2 * sizeof(*c->chain[0]);
	at = kv_fault(IB_TABLES_MMAP) ? MAP_FAILED
				      : mmap(NULL, c->tables_len, PROT_READ | PROT_WRITE,
					     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot map the tables of %d lanes",
			       c->lanes);
	c->slots = (struct ib_slot *)at;
	c->inbox = (struct ib_inbox *)(at += slots);
	c->msgs = (uint8_t(*)[TR_MSG_MAX])(at += inbox * sizeof(*c->inbox));
	at += IB_RECV_DATA * sizeof(*c->msgs);
	c->chain[0] = (struct ib_chain *)at;
	c->chain[1] = c->chain[0] + 1;
	return 0;
}

static int make_memory(struct ib_conn *c, struct kv_error *err)
{
	size_t cells = pages((size_t)c->lanes * IB_RECV_DATA * IB_CELL);

	c->probe_off = cells;
	c->private_off = cells + pages(1);
	c->region_len = c->private_off + pages(private_bytes(c));
	c->region = kv_fault(IB_CONTROL_MMAP)
			    ? (errno = ENOMEM, MAP_FAILED)
			    : mmap(NULL, c->region_len, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (c->region == MAP_FAILED) {
		c->region = NULL;
		return kv_fail_errno(err, KV_ERR_NOMEM, errno, "connect",
				     "cannot map a control region of %zu bytes", c->region_len);
	}
	/* A child of fork must not take the pages that the device writes. */
	if (kv_fault(IB_CONTROL_MADVISE) ? (errno = EINVAL, -1)
					 : madvise(c->region, c->region_len, MADV_DONTFORK))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "connect",
				     "cannot keep the control region from children");
	c->lane = kv_fault(IB_LANES_ALLOC) ? NULL : calloc((size_t)c->lanes, sizeof(*c->lane));
	if (!c->lane)
		return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate %d lanes", c->lanes);
	return make_tables(c, err);
}

static int unblock_channel(int fd)
{
	int flags = kv_fault(IB_CHANNEL_FCNTL) ? (errno = EBADF, -1) : fcntl(fd, F_GETFL);

	return flags < 0 ? -1 : fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

/*
 * A completion queue holds every completion that its lanes can have at one time: it cannot overrun.
 */
static int make_queues(struct ib_conn *c, struct ib_path *path, struct kv_error *err)
{
	const struct ib_verbs *v = c->v;
	struct ib_rail *rail = path->rail;
	int sends = c->lanes_per_path * (int)c->ctx->sq_depth;
	int recvs = c->lanes_per_path * IB_RECVS;

	if (!tr_conn_polled(c->conn))
		path->channel = v->create_comp_channel(rail->context);
	if (!path->channel && !tr_conn_polled(c->conn))
		return kv_fail_errno(err, KV_ERR_DEVICE, errno, "connect",
				     "cannot make a completion channel on %s", rail->name);
	if (path->channel && unblock_channel(path->channel->fd))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "connect",
				     "cannot make a completion channel non-blocking");
	path->scq = v->create_cq(rail->context, sends, c, path->channel, 0);
	if (path->scq)
		path->rcq = v->create_cq(rail->context, recvs, c, path->channel, 0);
	if (!path->rcq)
		return kv_fail_errno(err, KV_ERR_DEVICE, errno, "connect",
				     "cannot make completion queues of %d and %d entries on %s",
				     sends, recvs, rail->name);
	return 0;
}

static int make_keys(struct ib_conn *c, struct ib_path *path, struct kv_error *err)
{
	const struct {
		struct ibv_mr **mr_p;
		size_t from, to;
		unsigned int access;
	} parts[] = {
		{ &path->mr_cells, 0, c->probe_off,
		  IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE },
		{ &path->mr_probe, c->probe_off, c->private_off, IBV_ACCESS_REMOTE_READ },
		{ &path->mr_private, c->private_off, c->region_len, IBV_ACCESS_LOCAL_WRITE },
	};

	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		int ret = ib_mr_make(c->ctx, path->rail, c->region + parts[i].from,
				     parts[i].to - parts[i].from, parts[i].access, parts[i].mr_p,
				     err);

		if (ret)
			return ret;
	}
	return 0;
}

int ib_conn_mem_make(struct ib_conn *c, int *bad_p, struct kv_error *err)
{
	int ret = make_memory(c, err);

	*bad_p = -1;
	for (int p = 0; p < c->paths && !ret; p++) {
		struct ib_path *path = &c->path[p];

		*bad_p = p;
		ret = make_queues(c, path, err);
		if (!ret)
			ret = make_keys(c, path, err);
	}
	for (int i = 0; i < c->lanes && !ret; i++) {
		struct ib_lane *lane = &c->lane[i];

		lane->c = c;
		lane->index = (uint16_t)i;
		*bad_p = i / c->lanes_per_path;
		lane->path = &c->path[*bad_p];
		lane->slot = &c->slots[(size_t)i * c->ctx->sq_depth];
		ret = ib_lane_make(lane, err);
	}
	return ret;
}

static void free_path(struct ib_conn *c, struct ib_path *path)
{
	const struct ib_verbs *v = c->v;

	if (path->rcq)
		v->destroy_cq(path->rcq);
	if (path->scq)
		v->destroy_cq(path->scq);
	if (path->channel)
		v->destroy_comp_channel(path->channel);
	if (path->mr_private)
		v->dereg_mr(path->mr_private);
	if (path->mr_probe)
		v->dereg_mr(path->mr_probe);
	if (path->mr_cells)
		v->dereg_mr(path->mr_cells);
	path->rcq = path->scq = NULL;
	path->channel = NULL;
	path->mr_private = path->mr_probe = path->mr_cells = NULL;
}

/* Undoes ib_conn_mem_make, however far it came. false: the device keeps a queue pair. */
bool ib_conn_mem_free(struct ib_conn *c)
{
	bool destroyed;

	ib_lanes_destroy(c);
	destroyed = !ib_has_lanes(c);
	ib_staged_free(c);
	for (int p = 0; p < c->paths; p++)
		free_path(c, &c->path[p]);
	if (c->slots)
		munmap(c->slots, c->tables_len);
	free(c->lane);
	if (c->region)
		munmap(c->region, c->region_len);
	c->chain[0] = c->chain[1] = NULL;
	c->msgs = NULL;
	c->inbox = NULL;
	c->slots = NULL;
	c->lane = NULL;
	c->region = NULL;
	return destroyed;
}
