/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rail_match.c -- connecting side: which rail of ours is joined with which rail of the peer
 *
 * The peer's offer names its rails with their addresses. librdmacm is asked twice, each time about
 * all of them at once:
 *   1. out of which of our ports does the route to the address go; that port is the rail's partner
 *      if it is a rail, and the route's source its address;
 *   2. for the rails that are left (the routing table names one port of several in a subnet, or one
 *      that KVCACHE_RDMA_NICS excludes): our next free rail with the peer's next free one, in their
 *      order; does the first reach the second? A pair that does not is left out as long as there is
 *      another one.
 * Where librdmacm is not there or does not answer, the order alone decides, and GIDs come from the
 * GID tables. As between two ends of librdmacm, the connecting side asks and the accepting side
 * uses the path the other way round: the kernel asks the subnet manager for reversible paths only.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/option.h"
#include "route.h"

enum {
	ROUTE_MS_MAX = 500, /* for an address, or for a path */
	ROUTE_WAITS = 8,    /* four of them one after another take half of the time that is left */
	PKEY_DEFAULT = 0xffff,
};

struct peer_rail {
	bool ethernet, used;
	uint16_t gigabits;
	union ibv_gid gid;
};

struct ib_match {
	struct ib_route *route; /* NULL: librdmacm is not asked */
	bool second;		/* round */
	uint16_t peer_pkey;	/* that the peer's options ask for, 0 = none */
	int rails;
	struct peer_rail peer[IB_RAILS_MAX];
	int first_new;	     /* the first path of the second round */
	struct kv_error why; /* librdmacm was not asked, or a rail reaches no other */
};

static int read_offer(const struct ib_conn *c, struct ib_match *p, struct wire_reader *r,
		      struct kv_error *err)
{
	p->peer_pkey = wire_get_u16(r);
	p->rails = wire_get_u8(r);
	for (int i = 0; i < p->rails && i < IB_RAILS_MAX; i++) {
		p->peer[i].ethernet = wire_get_u8(r) != 0;
		p->peer[i].gigabits = wire_get_u16(r);
		wire_get_bytes(r, p->peer[i].gid.raw, sizeof(p->peer[i].gid.raw));
	}
	if (r->bad || !p->rails || p->rails > IB_RAILS_MAX)
		return kv_fail(err, KV_ERR_PROTOCOL, "connect", "the ib offer of %s is malformed",
			       tr_conn_address(c->conn));
	return 0;
}

static uint16_t wanted_pkey(const struct ib_conn *c)
{
	int64_t option = kv_option_int(c->ctx->tr->options, KV_OPT_IB_PKEY);

	return option ? (uint16_t)option : c->setup.match->peer_pkey;
}

static void ask_route(struct ib_match *p, int slot, const union ibv_gid *from, int theirs,
		      uint16_t pkey)
{
	ib_route_ask(p->route, slot,
		     &(struct ib_question){ .from = from,
					    .to = &p->peer[theirs].gid,
					    .ethernet = p->peer[theirs].ethernet,
					    .pkey = pkey ? pkey : PKEY_DEFAULT });
}

/* The routing table has no answer for a link-local address, which does not name its link. */
static bool may_ask(const struct peer_rail *peer)
{
	return !ib_gid_is_zero(&peer->gid) && !(peer->ethernet && ib_gid_is_link_local(&peer->gid));
}

int ib_match_begin(struct ib_conn *c, struct wire_reader *r, struct kv_error *err)
{
	struct ib_match *p = kv_fault(IB_PAIRING_ALLOC) ? NULL : calloc(1, sizeof(*p));
	int64_t left_ms = (tr_conn_deadline(c->conn) - kv_now_ns()) / KV_NS_PER_MS / ROUTE_WAITS;
	int ret;

	if (!p)
		return kv_fail(err, KV_ERR_NOMEM, "connect",
			       "cannot allocate the pairing of rails");
	c->setup.match = p;
	ret = read_offer(c, p, r, err);
	if (ret)
		return ret;
	if (left_ms > ROUTE_MS_MAX)
		left_ms = ROUTE_MS_MAX;
	if (!kv_option_bool(c->ctx->tr->options, KV_OPT_RDMA_CM))
		kv_fail(&p->why, KV_ERR_UNSUPPORTED, "connect", "KVCACHE_RDMA_CM is 0");
	else
		ib_route_open(c, left_ms > 1 ? (int)left_ms : 1, &p->route, &p->why);
	for (int j = 0; p->route && j < p->rails; j++)
		if (may_ask(&p->peer[j]))
			ask_route(p, j, NULL, j, wanted_pkey(c));
	return 0;
}

void ib_match_end(struct ib_conn *c)
{
	if (c->setup.match && c->setup.match->route)
		ib_route_close(c, c->setup.match->route);
	free(c->setup.match);
	c->setup.match = NULL;
}

static bool is_free(const struct ib_conn *c, int own)
{
	for (int p = 0; p < c->paths; p++)
		if (c->path[p].rail_index == own)
			return false;
	return c->uses & UINT32_C(1) << own && !atomic_load(&c->ctx->rail[own].dead);
}

/*
 * Joins two rails if packets between them can arrive: 0, or why not. `near`: as for
 * ib_rail_address.
 */
static int join_rails(struct ib_conn *c, int own, int theirs, const union ibv_gid *near,
		      const char *chosen, struct kv_error *err)
{
	struct peer_rail *peer = &c->setup.match->peer[theirs];
	struct ib_path *path = &c->path[c->paths];
	int ret;

	memset(path, 0, sizeof(*path));
	path->rail = &c->ctx->rail[own];
	path->rail_index = path->sent_index = (uint8_t)own;
	path->peer.rail = (uint8_t)theirs;
	path->chosen = chosen;
	ret = ib_rail_ready(c->ctx, path->rail, near, &path->address, err);
	if (!ret)
		ret = ib_path_check(c->ctx, path->rail, &path->address, &peer->gid, err);
	if (!ret)
		ret = ib_path_partition(c->ctx, path, wanted_pkey(c), err);
	if (ret)
		return ret;
	c->paths++;
	peer->used = true;
	return 0;
}

/* Answers of the first round. An error is one of this machine. */
static int take_first(struct ib_conn *c, struct kv_error *err)
{
	struct ib_match *p = c->setup.match;
	int why, ret;

	for (int j = 0; p->route && j < p->rails; j++) {
		const struct ib_answer *answer = ib_route_answer(p->route, j, &why);

		for (int i = 0; answer && i < c->ctx->rails; i++) {
			const struct ib_rail *rail = &c->ctx->rail[i];

			if (!is_free(c, i) || strcmp(rail->name, answer->port) ||
			    rail->ethernet != p->peer[j].ethernet)
				continue;
			ret = join_rails(c, i, j, &answer->sgid, "by librdmacm", err);
			if (ret == KV_ERR_NOMEM)
				return ret;
			if (ret)
				kv_error_copy(&p->why, err);
			else
				c->path[c->paths - 1].record = answer->record;
		}
	}
	return 0;
}

/* The rails that are left, in their order. */
static int join_rest(struct ib_conn *c, struct kv_error *err)
{
	struct ib_match *p = c->setup.match;
	int ret;

	p->second = true;
	p->first_new = c->paths;
	for (int i = 0; i < c->ctx->rails; i++)
		for (int j = 0; j < p->rails && is_free(c, i); j++) {
			if (p->peer[j].used || p->peer[j].ethernet != c->ctx->rail[i].ethernet)
				continue;
			ret = join_rails(c, i, j, &p->peer[j].gid, "by the GID table", err);
			if (ret == KV_ERR_NOMEM)
				return ret;
			if (ret)
				kv_error_copy(&p->why, err);
			else if (p->route && may_ask(&p->peer[j]))
				ask_route(p, c->paths - 1, &c->path[c->paths - 1].address.gid, j,
					  c->path[c->paths - 1].pkey);
		}
	return 0;
}

/* Answers of the second round: paths that have none are left out unless none has one. */
static void take_second(struct ib_conn *c)
{
	struct ib_match *p = c->setup.match;
	const struct ib_answer *answer[IB_RAILS_MAX] = { NULL };
	int why[IB_RAILS_MAX] = { 0 }, answered = p->first_new, kept = p->first_new;

	for (int i = p->first_new; p->route && i < c->paths; i++) {
		if (may_ask(&p->peer[c->path[i].peer.rail]))
			answer[i] = ib_route_answer(p->route, i, &why[i]);
		answered += answer[i] != NULL;
	}
	for (int i = p->first_new; i < c->paths; i++) {
		struct ib_path *path = &c->path[i];
		bool silent = p->route && !answer[i] && may_ask(&p->peer[path->peer.rail]);

		if (silent)
			kv_fail_errno(&p->why, KV_ERR_UNREACHABLE, why[i], "connect",
				      "librdmacm finds no route from %s to the peer's rail %u",
				      path->rail->name, path->peer.rail);
		if (silent && answered) {
			kv_log_info(c->ctx->tr->log, "ib: %s is not used towards %s: %s",
				    path->rail->name, tr_conn_address(c->conn), p->why.message);
			continue;
		}
		if (answer[i]) {
			path->chosen = "by order and librdmacm";
			path->record = answer[i]->record;
		}
		c->path[kept++] = *path;
	}
	c->paths = kept;
}

static int refuse_rails(const struct ib_conn *c, struct kv_error *err)
{
	const struct ib_match *p = c->setup.match;

	if (p->why.code == KV_ERR_UNREACHABLE || p->why.code == KV_ERR_DEVICE)
		return kv_error_copy(err, &p->why);
	return kv_fail(err, KV_ERR_UNREACHABLE, "connect",
		       "no working rail of the %d here is of the same kind (RoCE or InfiniBand) as "
		       "one of the peer's %d",
		       c->ctx->rails, p->rails);
}

/*
 * A subnet manager's packet lifetime is often far from what packets take: the option decides, and a
 * log line names both.
 */
static void compare_timeout(const struct ib_conn *c, const struct ib_path *path)
{
	int64_t timeout = kv_option_int(c->ctx->tr->options, KV_OPT_IB_TIMEOUT);

	/* An answer may take twice the lifetime of a packet (IBTA volume 1, 12.7.34). */
	if (path->record.life >= timeout)
		kv_log_info(c->ctx->tr->log,
			    "ib: %s: the path record's packet lifetime would make "
			    "KVCACHE_IB_TIMEOUT %d; it is %lld",
			    path->rail->name, path->record.life + 1, (long long)timeout);
}

/*
 * The partition that the path record names, if neither side asks for one, and a line for people
 * about each choice.
 */
static int finish_paths(struct ib_conn *c, struct kv_error *err)
{
	const struct ib_match *p = c->setup.match;
	uint16_t pkey = wanted_pkey(c);
	int ret = 0;

	for (int i = 0; i < c->paths && !ret; i++) {
		struct ib_path *path = &c->path[i];
		const union ibv_gid *to = &p->peer[path->peer.rail].gid;
		char text[INET6_ADDRSTRLEN];

		ib_gid_text(to, text, sizeof(text));
		kv_log_info(c->ctx->tr->log,
			    "ib: to %s: %s (%s) with the peer's rail %u (%s) %s%s%s",
			    tr_conn_address(c->conn), path->rail->name, path->address.reason,
			    path->peer.rail, text, path->chosen,
			    path->record.known || !p->why.code ? "" : ": ",
			    path->record.known ? "" : p->why.message);
		compare_timeout(c, path);
		if (!pkey && path->record.pkey)
			ret = ib_path_partition(c->ctx, path, path->record.pkey, err);
	}
	return ret;
}

int ib_match_step(struct ib_conn *c, struct kv_error *err)
{
	struct ib_match *p = c->setup.match;
	int ret;

	if (p->route && ib_route_step(p->route))
		return TR_AGAIN;
	if (!p->second) {
		ret = take_first(c, err);
		if (!ret)
			ret = join_rest(c, err);
		if (ret)
			return ret;
		if (p->route && ib_route_step(p->route))
			return TR_AGAIN;
	}
	take_second(c);
	return c->paths ? finish_paths(c, err) : refuse_rails(c, err);
}
