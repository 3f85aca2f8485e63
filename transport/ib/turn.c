/* SPDX-License-Identifier: Apache-2.0 */
/* turn.c -- which lane carries the next chain: by turns, or by what the paths have carried */
#include "ib.h"

/* The lanes by turns: each path's first, then each path's second. */
struct ib_lane *ib_next_lane(struct ib_conn *c)
{
	uint32_t turn = c->turn, paths = (uint32_t)c->paths;

	c->turn = (turn + 1) % (uint32_t)c->lanes;
	return &c->lane[turn % paths * (uint32_t)c->lanes_per_path + turn / paths];
}

static struct ib_lane *lane_with_room(struct ib_conn *c, uint32_t *room_p)
{
	for (int i = 0; i < c->lanes; i++) {
		struct ib_lane *lane = ib_next_lane(c);

		*room_p = ib_lane_room(lane, IB_SQ_NOTIFY);
		if (*room_p)
			return lane;
	}
	return NULL;
}

/* The next lane with room of this path; NULL if there is none. */
static struct ib_lane *lane_of_path(struct ib_conn *c, struct ib_path *path, uint32_t *room_p)
{
	struct ib_lane *first = &c->lane[(path - c->path) * c->lanes_per_path];

	for (int i = 0; i < c->lanes_per_path; i++) {
		struct ib_lane *lane = &first[(path->turn + i) % c->lanes_per_path];

		*room_p = ib_lane_room(lane, IB_SQ_NOTIFY);
		if (*room_p)
			return lane;
	}
	return NULL;
}

/* Where paths are not equally fast: the one that has carried least for its speed. */
static struct ib_lane *lane_by_weight(struct ib_conn *c, uint32_t *room_p)
{
	struct ib_lane *best = NULL;

	for (int p = 0; p < c->paths; p++) {
		struct ib_path *path = &c->path[p];
		struct ib_lane *lane;
		uint32_t room;

		if (best && path->load >= best->path->load)
			continue;
		lane = lane_of_path(c, path, &room);
		if (!lane)
			continue;
		best = lane;
		*room_p = room;
	}
	if (best)
		best->path->turn = (uint16_t)((best->path->turn + 1) % c->lanes_per_path);
	return best;
}

static void build_chain(struct ib_chain *chain, enum ibv_wr_opcode opcode)
{
	for (int i = 0; i < IB_CHAIN; i++) {
		struct ib_request *r = &chain->request[i];

		r->wr.opcode = opcode;
		r->wr.sg_list = r->sge;
		r->wr.next = i + 1 < IB_CHAIN ? &r[1].wr : NULL;
	}
}

/* Of one path, the lane that holds a message is the next one. */
bool ib_chain_begin(struct ib_conn *c, struct ib_chain *chain, const struct tr_op *op)
{
	struct ib_lane *lane;

	if (c->paths == 1 && c->lane[0].held)
		c->turn = 0;
	lane = c->uneven ? lane_by_weight(c, &chain->room) : lane_with_room(c, &chain->room);
	if (!lane)
		return false;
	if (chain->room > IB_CHAIN)
		chain->room = IB_CHAIN;
	if (!chain->request[0].wr.sg_list) /* its first use */
		build_chain(chain, op->kind == TR_WRITE ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ);
	chain->lane = lane;
	chain->op = op;
	c->open = chain;
	chain->path = (uint32_t)(lane->path - c->path);
	chain->id = IB_WR_ID(ib_kind_of(op), lane->index, c->generation, 0);
	chain->number = lane->posted + lane->held;
	chain->n = 0;
	chain->bytes = chain->end = 0;
	return true;
}
