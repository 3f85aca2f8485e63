/* SPDX-License-Identifier: Apache-2.0 */
/*
 * setup.c -- the handshake's ib part: the numbers of the rails, paths and queue pairs
 *
 * Every integer is little-endian.
 *   offer   (accepting side, before anything is made)  u8 version, u8 lanes per path at most, u16
 *           partition that its options ask for (P_Key, 0 = none), u8 rails that can be used now,
 *           then for each rail: u8 link (1 = Ethernet, 0 = InfiniBand), u16 Gb/s (0 = not known),
 *           gid[16] (zero = it has none)
 *   setup   (both sides, alike)  u8 version, u8 paths, u8 lanes per path,
 *           for each path: u8 own rail, u8 peer's rail, u16 Gb/s of the own one, u8 mtu,
 *                          u8 reads at one time, u16 lid, u16
 *                          lid of the peer that packets to it carry (0 = the one it sends), u16
 *                          P_Key, u8 service level, u8 static rate, u8 packets carry a GRH,
 *                          gid[16],
 *                          u64 cells, u32 key, u64 probe, u32 key
 *           for each lane: u32 queue pair, u32 packet sequence number
 * The connecting side chooses paths and lanes (rail_match.c); the accepting side's setup must
 * repeat its choice. On InfiniBand the connecting side's path record serves both directions.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/option.h"
#include "ib.h"

enum { SETUP_VERSION = 4, LID_UNICAST_MAX = 0xbfff, NUMBER_MAX = 0xffffff };

static int make_ib_conn(struct ib_ctx *ctx, struct tr_conn *conn, struct ib_conn **c_p,
			struct kv_error *err)
{
	struct ib_conn *c = kv_fault(IB_CONN_ALLOC) ? NULL : calloc(1, sizeof(*c));

	if (!c)
		return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate a connection");
	c->ctx = ctx;
	c->v = ctx->v;
	c->conn = conn;
	c->line_order = tr_conn_line_order(conn);
	if (kv_fault(IB_CONN_RANDOM) ||
	    getrandom(&c->generation, sizeof(c->generation), 0) != sizeof(c->generation)) {
		free(c);
		return kv_fail(err, KV_ERR_SYSTEM, "connect", "cannot get a random generation");
	}
	ib_late_look(ctx);
	c->uses = ib_rails_use(ctx, false);
	*c_p = c;
	return 0;
}

static int lanes_wanted(const struct ib_ctx *ctx)
{
	return (int)kv_option_int(ctx->tr->options, KV_OPT_IB_LANES);
}

static uint16_t pkey_wanted(const struct ib_ctx *ctx)
{
	return (uint16_t)kv_option_int(ctx->tr->options, KV_OPT_IB_PKEY);
}

/*
 * Rails that can be used now. The address that the peer has used for the control connection comes
 * first: it is known to reach this port, if it is one of this port's. UNSUPPORTED: there is none,
 * and another transport may carry.
 */
static int choose_rails(struct ib_conn *c, struct kv_error *err)
{
	union ibv_gid near;
	bool known = tr_conn_local(c->conn, near.raw);
	struct kv_error why;

	kv_fail(&why, KV_ERR_DEVICE, "connect", "all of them have failed");
	for (uint32_t left = c->uses; left; left &= left - 1) {
		struct ib_offered *o = &c->setup.offered[c->setup.offers];
		int i = __builtin_ctz(left);
		int ret = ib_rail_ready(c->ctx, &c->ctx->rail[i], known ? &near : NULL, &o->address,
					&why);

		if (ret == KV_ERR_NOMEM)
			return kv_error_copy(err, &why);
		if (ret)
			continue;
		o->rail_index = (uint8_t)i;
		c->setup.offers++;
	}
	if (c->setup.offers)
		return 0;
	return kv_fail(err, KV_ERR_UNSUPPORTED, "connect", "no RDMA device can be used now: %.200s",
		       why.message);
}

int ib_offer(void *arg, struct tr_conn *conn, void **priv_p, struct wire_writer *w,
	     struct kv_error *err)
{
	struct ib_ctx *ctx = arg;
	struct ib_conn *c;
	int ret = make_ib_conn(ctx, conn, &c, err);

	if (ret)
		return ret;
	c->setup.accepting = true;
	ret = choose_rails(c, err);
	if (ret) {
		ib_conn_close(c);
		return ret;
	}
	wire_put_u8(w, SETUP_VERSION);
	wire_put_u8(w, (uint8_t)lanes_wanted(ctx));
	wire_put_u16(w, pkey_wanted(ctx));
	wire_put_u8(w, (uint8_t)c->setup.offers);
	for (int i = 0; i < c->setup.offers; i++) {
		const struct ib_offered *o = &c->setup.offered[i];

		wire_put_u8(w, ctx->rail[o->rail_index].ethernet);
		wire_put_u16(w, (uint16_t)ctx->rail[o->rail_index].gigabits);
		wire_put_bytes(w, o->address.gid.raw, sizeof(o->address.gid.raw));
	}
	*priv_p = c;
	return 0;
}

static void set_lanes(struct ib_conn *c, int per_path)
{
	c->lanes_per_path = per_path;
	c->lanes = c->paths * per_path;
	c->chunk = IB_CHUNK;
	if (c->ctx->slice_bytes < c->chunk)
		c->chunk = (uint32_t)c->ctx->slice_bytes;
	for (int p = 0; p < c->paths; p++) {
		uint32_t most = c->path[p].rail->port_attr.max_msg_sz;

		if (most && most < c->chunk) /* 0: the device does not say */
			c->chunk = most;
	}
}

/*
 * A device that cannot make what the connection needs is not tried again soon; on the connecting
 * side the other paths go on without it.
 */
static int make_paths(struct ib_conn *c, int per_path, struct kv_error *err)
{
	int bad, ret;

	for (;;) {
		c->rails = 0;
		for (int p = 0; p < c->paths; p++)
			c->rails |= UINT32_C(1) << c->path[p].rail_index;
		set_lanes(c,
			  per_path < IB_LANES_MAX / c->paths ? per_path : IB_LANES_MAX / c->paths);
		ret = ib_conn_mem_make(c, &bad, err);
		for (int p = 0; p < c->paths && !ret; p++)
			ib_rail_is_well(c->ctx, c->path[p].rail);
		if (!ret) {
			ib_rails_let_go(c->ctx, c->uses & ~c->rails);
			c->uses = c->rails;
		}
		if (ret != KV_ERR_DEVICE || bad < 0)
			return ret;
		atomic_store(&c->path[bad].rail->ill_until_ns, kv_deadline_ns(IB_ILL_MS));
		ib_rail_is_ill(c->ctx, c->path[bad].rail, err);
		ib_lanes_destroy(c);
		if (c->setup.accepting || c->paths == 1 || ib_has_lanes(c))
			return ret;
		ib_conn_mem_free(c);
		c->paths--;
		memmove(&c->path[bad], &c->path[bad + 1],
			(size_t)(c->paths - bad) * sizeof(c->path[0]));
	}
}

static int setup_begin(struct ib_ctx *ctx, struct tr_conn *conn, struct ib_conn **c_p,
		       struct wire_reader *r, struct kv_error *err)
{
	uint8_t version = wire_get_u8(r);
	uint8_t lanes = wire_get_u8(r);
	int ret;

	if (!r->bad && version != SETUP_VERSION)
		return kv_fail(err, KV_ERR_VERSION, "connect",
			       "the peer's ib setup has version %u, this one %d", version,
			       SETUP_VERSION);
	if (r->bad || !lanes)
		return kv_fail(err, KV_ERR_PROTOCOL, "connect", "the peer's ib offer is malformed");
	ret = make_ib_conn(ctx, conn, c_p, err);
	if (ret)
		return ret;
	(*c_p)->lanes_per_path = lanes < lanes_wanted(ctx) ? lanes : lanes_wanted(ctx);
	ret = ib_match_begin(*c_p, r, err);
	if (ret)
		ib_stop(conn, *c_p);
	return ret;
}

int ib_start(void *arg, struct tr_conn *conn, void **priv_p, struct wire_reader *r,
	     struct kv_error *err)
{
	struct ib_conn *c = *priv_p;
	int ret = 0;

	if (!c)
		ret = setup_begin(arg, conn, &c, r, err);
	if (ret)
		return ret;
	*priv_p = c;
	ret = ib_match_step(c, err);
	if (ret == TR_AGAIN)
		return ret;
	ib_match_end(c);
	if (!ret)
		ret = make_paths(c, c->lanes_per_path, err);
	if (ret)
		ib_stop(conn, c);
	return ret;
}

static void put_path(struct ib_conn *c, const struct ib_path *path, struct wire_writer *w)
{
	const struct ib_rail *rail = path->rail;
	int reads =
		rail->attr.max_qp_rd_atom < IB_RD_ATOMIC ? rail->attr.max_qp_rd_atom : IB_RD_ATOMIC;

	wire_put_u8(w, path->sent_index);
	wire_put_u8(w, path->peer.rail);
	wire_put_u16(w, (uint16_t)rail->gigabits);
	wire_put_u8(w, (uint8_t)ib_path_mtu(path));
	wire_put_u8(w, (uint8_t)reads);
	wire_put_u16(w, rail->ethernet ? 0 : ib_path_lid(path));
	wire_put_u16(w, rail->ethernet ? 0 : path->record.dlid);
	wire_put_u16(w, path->pkey);
	wire_put_u8(w, ib_path_sl(path, c->ctx->tr->options));
	wire_put_u8(w, rail->ethernet ? 0 : path->record.rate);
	wire_put_u8(w, ib_path_wants_grh(path));
	wire_put_bytes(w, path->address.gid.raw, sizeof(path->address.gid.raw));
	wire_put_u64(w, (uint64_t)(uintptr_t)c->region);
	wire_put_u32(w, path->mr_cells->rkey);
	wire_put_u64(w, (uint64_t)(uintptr_t)(c->region + c->probe_off));
	wire_put_u32(w, path->mr_probe->rkey);
}

int ib_setup_put(struct tr_conn *conn, struct wire_writer *w, struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(conn);

	wire_put_u8(w, SETUP_VERSION);
	wire_put_u8(w, (uint8_t)c->paths);
	wire_put_u8(w, (uint8_t)c->lanes_per_path);
	for (int p = 0; p < c->paths; p++)
		put_path(c, &c->path[p], w);
	for (int i = 0; i < c->lanes; i++) {
		wire_put_u32(w, c->lane[i].qp->qp_num);
		wire_put_u32(w, c->lane[i].psn);
	}
	if (w->bad)
		return kv_fail(err, KV_ERR_INTERNAL, "connect", "the ib setup does not fit");
	return 0;
}

struct path_numbers {
	uint8_t own, other;
	struct ib_end end;
};

static bool get_path(struct wire_reader *r, struct path_numbers *numbers)
{
	struct ib_end *end = &numbers->end;

	numbers->own = wire_get_u8(r);
	numbers->other = wire_get_u8(r);
	end->rail = numbers->own;
	end->gigabits = wire_get_u16(r);
	end->mtu = wire_get_u8(r);
	end->rd_atomic = wire_get_u8(r);
	end->lid = wire_get_u16(r);
	end->to_lid = wire_get_u16(r);
	end->pkey = wire_get_u16(r);
	end->sl = wire_get_u8(r);
	end->rate = wire_get_u8(r);
	end->grh = wire_get_u8(r) != 0;
	wire_get_bytes(r, end->gid.raw, sizeof(end->gid.raw));
	end->cells = wire_get_u64(r);
	end->cells_rkey = wire_get_u32(r);
	end->probe = wire_get_u64(r);
	end->probe_rkey = wire_get_u32(r);
	return !r->bad && end->mtu >= IBV_MTU_256 && end->mtu <= IBV_MTU_4096 && end->rd_atomic &&
	       end->rd_atomic <= IB_RD_ATOMIC && end->lid <= LID_UNICAST_MAX && end->sl < 16 &&
	       end->cells && end->cells <= UINT64_MAX - IB_LANES_MAX * IB_RECV_DATA * IB_CELL &&
	       end->probe && end->probe <= UINT64_MAX - 8;
}

/*
 * Accepting side: the path as the connecting side has chosen it, seen from here. False: it makes no
 * sense.
 */
static bool follow(struct ib_conn *c, int p, const struct path_numbers *numbers)
{
	const struct ib_end *end = &numbers->end;
	struct ib_path *path = &c->path[p];
	const struct ib_rail *rail;

	if (numbers->other >= c->setup.offers || numbers->own >= IB_RAILS_MAX)
		return false;
	for (int i = 0; i < p; i++)
		if (c->path[i].sent_index == numbers->other || c->path[i].peer.rail == numbers->own)
			return false;
	path->sent_index = numbers->other;
	path->rail_index = c->setup.offered[numbers->other].rail_index;
	path->address = c->setup.offered[numbers->other].address;
	rail = path->rail = &c->ctx->rail[path->rail_index];
	path->chosen = "by the peer";
	c->paths = p + 1;
	if (rail->ethernet)
		return true;
	path->record = (struct ib_record){ .slid = end->to_lid, .sl = end->sl, .rate = end->rate };
	return !end->to_lid || !((end->to_lid ^ path->address.lid) >> path->address.lmc);
}

/* On the accepting side the first setup decides the paths; on the other it must repeat ours. */
static bool accept_path(struct ib_conn *c, int p, const struct path_numbers *numbers)
{
	struct ib_path *path = &c->path[p];

	if (c->setup.accepting
		    ? !follow(c, p, numbers)
		    : numbers->other != path->sent_index || numbers->own != path->peer.rail)
		return false;
	if (path->rail->ethernet
		    ? ib_gid_is_zero(&numbers->end.gid)
		    : !numbers->end.lid || !numbers->end.pkey ||
			      (path->record.dlid && path->record.dlid != numbers->end.lid))
		return false;
	path->peer = numbers->end;
	return true;
}

/* Whether the setups of both sides fit together; on the accepting side before anything is made. */
static int check_paths(struct ib_conn *c, struct kv_error *err)
{
	uint16_t option = pkey_wanted(c->ctx);
	int ret = 0;

	for (int p = 0; p < c->paths && !ret; p++) {
		struct ib_path *path = &c->path[p];

		ret = ib_path_check(c->ctx, path->rail, &path->address, &path->peer.gid, err);
		if (!ret && c->setup.accepting)
			ret = ib_path_partition(c->ctx, path, option ? option : path->peer.pkey,
						err);
		if (!ret)
			ret = ib_path_agree(path, err);
	}
	return ret;
}

static int get_lanes(struct ib_conn *c, struct wire_reader *r, struct kv_error *err)
{
	int ret;

	for (int i = 0; i < c->lanes; i++) {
		struct ib_lane *lane = &c->lane[i];

		lane->peer_qpn = wire_get_u32(r);
		lane->peer_psn = wire_get_u32(r);
		if (r->bad || !lane->peer_qpn || lane->peer_qpn > NUMBER_MAX ||
		    lane->peer_psn > NUMBER_MAX)
			return kv_fail(err, KV_ERR_PROTOCOL, "connect",
				       "lane %d of the peer's ib setup is malformed", i);
		lane->credits = IB_RECV_DATA;
		ret = ib_lane_connect(lane, err);
		if (ret)
			return ret;
	}
	return 0;
}

/*
 * Soft-RoCE that sends a message of several packets again, while late acknowledgements of the first
 * time still come in, may lose count of its packets (docs/rdma.md, section 7). With one packet it
 * cannot.
 */
static void set_message(struct ib_conn *c)
{
	c->message = c->chunk;
	for (int p = 0; p < c->paths; p++) {
		const struct ib_path *path = &c->path[p];

		if (path->rail->attr.vendor_id == IB_SOFT_ROCE && ib_path_packet(path) < c->message)
			c->message = ib_path_packet(path);
	}
}

static int watch_channels(struct ib_conn *c, struct kv_error *err)
{
	int ret;

	for (int p = 0; p < c->paths && !tr_conn_polled(c->conn); p++) {
		struct ib_path *path = &c->path[p];

		ret = tr_conn_watch(c->conn, path->channel->fd, err);
		if (ret)
			return ret;
		path->watched = true;
		ret = tr_conn_watch_shared(c->conn, path->rail->context->async_fd, err);
		if (ret)
			return ret;
		path->watched_async = true;
	}
	return 0;
}

int ib_setup_get(struct tr_conn *conn, struct wire_reader *r, struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(conn);
	uint8_t version = wire_get_u8(r);
	uint8_t paths = wire_get_u8(r);
	uint8_t per_path = wire_get_u8(r);
	struct path_numbers numbers;
	int ret;

	if (r->bad || version != SETUP_VERSION || !paths || paths > IB_RAILS_MAX || !per_path ||
	    per_path > IB_LANES_MAX / paths ||
	    (c->setup.accepting ? per_path > lanes_wanted(c->ctx)
				: paths != c->paths || per_path != c->lanes_per_path))
		return kv_fail(err, KV_ERR_PROTOCOL, "connect", "the peer's ib setup is malformed");
	for (int p = 0; p < paths; p++)
		if (!get_path(r, &numbers) || !accept_path(c, p, &numbers))
			return kv_fail(err, KV_ERR_PROTOCOL, "connect",
				       "path %d of the peer's ib setup is malformed", p);
	ret = check_paths(c, err);
	if (!ret && c->setup.accepting)
		ret = make_paths(c, per_path, err);
	if (!ret)
		ret = get_lanes(c, r, err);
	if (!ret)
		ret = watch_channels(c, err);
	if (ret)
		return ret;
	set_message(c);
	ib_speed_weigh(c);
	ib_set_path(c);
	c->state = IB_LIVE;
	return 0;
}

void ib_stop(struct tr_conn *conn, void *priv)
{
	struct ib_conn *c = priv;

	for (int p = 0; p < c->paths; p++) {
		struct ib_path *path = &c->path[p];

		if (path->watched)
			tr_conn_unwatch(conn, path->channel->fd);
		if (path->watched_async)
			tr_conn_unwatch(conn, path->rail->context->async_fd);
	}
	ib_match_end(c);
	ib_conn_close(c);
}
