/* SPDX-License-Identifier: Apache-2.0 */
/* kv_comm.c -- connecting the engines of several processes with each other */
#include "kv_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/wire.h"

enum {
	BLOB_LEN = 128,
	BLOB_MAGIC = 0x6b76636d,
	COMM_RANKS_MAX = KV_PEERS_MAX,
};

/* What a rank sends to the others. */
struct rank_info {
	uint64_t comm; /* rank 0's counts */
	uint32_t rank, nranks;
	int32_t group;
	uint32_t port;
	char host[64];
};

struct kv_comm {
	struct kv_engine *engine;
	uint32_t rank, nranks;
	uint64_t id;
	struct kv_peer *peer[];
};

static void put_info(const struct rank_info *info, uint8_t blob[BLOB_LEN])
{
	struct wire_writer w = wire_writer_of(blob, BLOB_LEN);

	memset(blob, 0, BLOB_LEN);
	wire_put_u32(&w, BLOB_MAGIC);
	wire_put_u32(&w, KV_WIRE_VERSION);
	wire_put_u64(&w, info->comm);
	wire_put_u32(&w, info->rank);
	wire_put_u32(&w, info->nranks);
	wire_put_u32(&w, (uint32_t)info->group);
	wire_put_u32(&w, info->port);
	wire_put_string(&w, info->host);
}

static int get_info(const uint8_t *blob, uint32_t rank, uint32_t nranks, struct rank_info *info,
		    struct kv_error *err)
{
	struct wire_reader r = wire_reader_of(blob, BLOB_LEN);
	uint32_t magic = wire_get_u32(&r), version = wire_get_u32(&r);

	info->comm = wire_get_u64(&r);
	info->rank = wire_get_u32(&r);
	info->nranks = wire_get_u32(&r);
	info->group = (int32_t)wire_get_u32(&r);
	info->port = wire_get_u32(&r);
	wire_get_string(&r, info->host, sizeof(info->host));
	if (magic != BLOB_MAGIC || r.bad)
		return kv_fail(err, KV_ERR_PROTOCOL, "comm_init",
			       "allgather gave bytes at place %u that no rank sent", rank);
	if (version != KV_WIRE_VERSION)
		return kv_fail(err, KV_ERR_VERSION, "comm_init",
			       "rank %u speaks version %u, not %d", rank, version, KV_WIRE_VERSION);
	if (info->rank != rank || info->nranks != nranks)
		return kv_fail(err, KV_ERR_ARG, "comm_init",
			       "rank %u of %u stands at place %u of %u", info->rank, info->nranks,
			       rank, nranks);
	return 0;
}

static int check_comm_config(const struct kv_comm_config *c, struct kv_comm **comm_p,
			     struct kv_error *err)
{
	if (!c || c->size != sizeof(*c) || !comm_p)
		return kv_fail(err, KV_ERR_ARG, "comm_init",
			       "config or comm_p is NULL, or config->size is not %zu", sizeof(*c));
	if (!c->nranks || c->nranks > COMM_RANKS_MAX || c->rank >= c->nranks)
		return kv_fail(err, KV_ERR_ARG, "comm_init",
			       "rank %u of %u; there can be 1..%d ranks", c->rank, c->nranks,
			       COMM_RANKS_MAX);
	if (!c->allgather || c->group < KV_COMM_ALL)
		return kv_fail(err, KV_ERR_ARG, "comm_init", "%s",
			       c->allgather ? "group is below KV_COMM_ALL" : "allgather is NULL");
	if (c->host && strlen(c->host) >= sizeof(((struct rank_info *)0)->host))
		return kv_fail(err, KV_ERR_ARG, "comm_init", "host is longer than 63 bytes");
	return 0;
}

/* Listens if the engine does not yet, and fills in the port. */
static int make_own(struct kv_engine *engine, const struct kv_comm_config *c,
		    struct rank_info *info, struct kv_error *err)
{
	int ret = 0;

	pthread_mutex_lock(&engine->lock);
	info->port = engine->listener ? tr_listener_port(engine->listener) : 0;
	info->comm = ++engine->comms;
	pthread_mutex_unlock(&engine->lock);
	if (!info->port)
		ret = kv_listen(engine, c->host, 0, &info->port, err);
	/*
	 * Differs between processes by their incarnation, between communicators of one by the
	 * count.
	 */
	for (int i = 0; i < 8; i++)
		info->comm += (uint64_t)tr_incarnation(engine->tr)[i] << (8 * i);
	info->comm |= 1; /* 0 stands for none */
	info->rank = c->rank;
	info->nranks = c->nranks;
	info->group = c->group;
	snprintf(info->host, sizeof(info->host), "%s", c->host ? c->host : "127.0.0.1");
	return ret;
}

/* Fills the info of every rank, through the caller's function. */
static int exchange(const struct kv_comm_config *c, const struct rank_info *own,
		    struct rank_info *all, struct kv_error *err)
{
	uint8_t mine[BLOB_LEN];
	uint8_t *blobs = kv_fault(KV_COMM_BLOBS) ? NULL : calloc(c->nranks, BLOB_LEN);
	int ret;

	if (!blobs)
		return kv_fail(err, KV_ERR_NOMEM, "comm_init", "cannot allocate %u ranks",
			       c->nranks);
	put_info(own, mine);
	ret = c->allgather(c->arg, mine, blobs, BLOB_LEN);
	if (ret)
		ret = kv_fail(err, KV_ERR_SYSTEM, "comm_init", "allgather returned %d", ret);
	for (uint32_t r = 0; !ret && r < c->nranks; r++)
		ret = get_info(blobs + (size_t)r * BLOB_LEN, r, c->nranks, &all[r], err);
	free(blobs);
	return ret;
}

static bool connected(const struct rank_info *a, const struct rank_info *b)
{
	return a->rank != b->rank && (a->group == KV_COMM_ALL || a->group != b->group);
}

/* Takes over the peers by which lower ranks of this communicator have connected to us. */
static void take_in(struct kv_comm *comm, const struct rank_info *all)
{
	for (uint32_t i = 0; i < comm->engine->peers_end; i++) {
		struct kv_peer *peer = kv_table_claim(comm->engine, i, 0);
		uint32_t r = peer ? peer->comm_rank : 0;

		if (!peer)
			continue;
		if (kv_peer_is_waif(peer) && peer->comm == comm->id && r < comm->rank &&
		    connected(&all[comm->rank], &all[r]) && !comm->peer[r]) {
			comm->peer[r] = peer;
			peer->owned = true;
		}
		kv_table_leave(peer);
	}
}

/*
 * Ends the connections of the ranks that wait for this kv_comm_init, which failed: they see it now,
 * not at their deadline.
 */
static void break_waiting_peers(struct kv_comm *comm)
{
	for (uint32_t i = 0; i < comm->engine->peers_end; i++) {
		struct kv_peer *peer = kv_table_claim(comm->engine, i, 0);

		if (!peer)
			continue;
		if (kv_peer_is_waif(peer) && peer->comm == comm->id)
			kv_peer_break(peer, KV_ERR_PEER_LOST,
				      "kv_comm_init failed at this rank, %u", comm->rank);
		kv_table_leave(peer);
	}
	kv_engine_wake(comm->engine);
}

/*
 * 0: the lower ranks have connected, the higher ones have adopted us. TR_AGAIN: not yet *missing_p,
 * which is the one that the others wait for, as far as it is known here. A higher rank that has
 * adopted us needs nothing more of ours, and may have left since.
 */
static int check_members(const struct kv_comm *comm, const struct rank_info *all,
			 uint32_t *missing_p, struct kv_error *err)
{
	int ret = 0;

	for (uint32_t r = 0; r < comm->nranks; r++) {
		const struct kv_peer *peer = comm->peer[r];
		/* Read before `adopted`, which stays. */
		bool up = peer && peer->state == KV_PEER_UP;

		if (!connected(&all[comm->rank], &all[r]) || (peer && atomic_load(&peer->adopted)))
			continue;
		if (peer && !up)
			return kv_peer_fail(peer, err, KV_ERR_PEER_LOST, "comm_init",
					    "rank %u has left the communicator", r);
		if (peer && r < comm->rank)
			continue;
		if (!ret || *missing_p > comm->rank)
			*missing_p = r;
		ret = TR_AGAIN;
	}
	return ret;
}

/*
 * Tells the lower ranks that this one has all of its own. So the ranks are done from the highest
 * one down, and who is done may leave: each that still waits for others knows that it was there.
 */
static int adopt_lower(struct kv_comm *comm, int64_t deadline_ns, struct kv_error *err)
{
	for (uint32_t r = 0; r < comm->rank; r++) {
		struct kv_peer *peer = comm->peer[r];

		if (!peer)
			continue;
		if (!kv_claim_until(&peer->claim, deadline_ns))
			return kv_fail(err, KV_ERR_TIMEOUT, "comm_init",
				       "another call on rank %u does not return", r);
		if (peer->state == KV_PEER_UP)
			kv_peer_adopt(peer);
		kv_peer_release(peer);
	}
	return 0;
}

static int await_all(struct kv_comm *comm, const struct rank_info *all, int64_t deadline_ns,
		     struct kv_error *err)
{
	struct kv_waiter *waiter = &comm->engine->waiter;
	int64_t ask_ns = kv_deadline_ns(KV_ASK_MS);

	for (;;) {
		uint32_t seq = kv_waiter_enter(waiter), missing = 0;
		int64_t soon = kv_deadline_ns(1); /* a claimed peer was passed over */
		int ret;

		take_in(comm, all);
		ret = check_members(comm, all, &missing, err);
		if (ret == TR_AGAIN && kv_now_ns() < deadline_ns)
			kv_service_sleep(comm->engine, waiter, seq, soon, deadline_ns);
		kv_waiter_leave(waiter);
		if (ret != TR_AGAIN)
			return ret;
		if (kv_now_ns() >= deadline_ns)
			return kv_fail(err, KV_ERR_TIMEOUT, "comm_init",
				       missing < comm->rank ? "rank %u has not connected to rank %u"
							    : "rank %u has not accepted rank %u",
				       missing, comm->rank);
		if (kv_engine_given_up(comm->engine, &ask_ns))
			return kv_fail(err, KV_ERR_CANCELLED, "comm_init",
				       "the application gave up");
	}
}

static int comm_join(struct kv_comm *comm, const struct rank_info *all, int64_t deadline_ns,
		     struct kv_error *err)
{
	const struct rank_info *own = &all[comm->rank];
	int ret = 0;

	comm->id = all[0].comm;
	for (uint32_t r = comm->rank + 1; !ret && r < comm->nranks; r++)
		if (connected(own, &all[r]))
			ret = kv_peer_connect(comm->engine, all[r].host, all[r].port, deadline_ns,
					      comm->id, comm->rank, &comm->peer[r], err);
	if (!ret)
		ret = await_all(comm, all, deadline_ns, err);
	if (!ret)
		ret = adopt_lower(comm, deadline_ns, err);
	if (ret)
		break_waiting_peers(comm);
	return ret;
}

/* The caller gets no communicator with which it could close later what cannot be closed now. */
static void comm_give_up(struct kv_comm *comm)
{
	if (!kv_comm_free(comm, KV_CLOSE_MS, NULL))
		return;
	for (uint32_t r = 0; r < comm->nranks; r++)
		if (comm->peer[r])
			kv_peer_abandon(comm->peer[r]);
	free(comm);
}

int kv_comm_init(struct kv_engine *engine, const struct kv_comm_config *config,
		 struct kv_comm **comm_p, struct kv_error *err)
{
	struct rank_info *all = NULL, own = { .comm = 0 };
	struct kv_comm *comm = NULL;
	int64_t deadline;
	int ret = kv_engine_use(engine, "comm_init", err);

	if (!ret)
		ret = check_comm_config(config, comm_p, err);
	if (!ret)
		ret = kv_engine_deadline(config->timeout_ms ? config->timeout_ms : KV_COMM_MS,
					 "comm_init", &deadline, err);
	if (!ret)
		ret = make_own(engine, config, &own, err);
	if (ret)
		return ret;
	if (!kv_fault(KV_COMM_ALLOC)) {
		comm = calloc(1, sizeof(*comm) + config->nranks * sizeof(struct kv_peer *));
		all = calloc(config->nranks, sizeof(*all));
	}
	if (!comm || !all) {
		ret = kv_fail(err, KV_ERR_NOMEM, "comm_init", "cannot allocate %u ranks",
			      config->nranks);
	} else {
		comm->engine = engine;
		comm->rank = config->rank;
		comm->nranks = config->nranks;
		atomic_fetch_add(&engine->joining, 1);
		ret = exchange(config, &own, all, err);
		if (!ret)
			ret = comm_join(comm, all, deadline, err);
		atomic_fetch_sub(&engine->joining, 1);
	}
	free(all);
	if (ret)
		comm_give_up(comm);
	else
		*comm_p = comm;
	return ret;
}

struct kv_peer *kv_comm_peer(struct kv_comm *comm, uint32_t rank)
{
	return comm && rank < comm->nranks ? comm->peer[rank] : NULL;
}

int kv_comm_free(struct kv_comm *comm, int64_t timeout_ms, struct kv_error *err)
{
	int64_t deadline;
	int ret;

	if (!comm)
		return 0;
	ret = kv_engine_use(comm->engine, "comm_free", err);
	if (!ret)
		ret = kv_engine_deadline(timeout_ms, "comm_free", &deadline, err);
	for (uint32_t r = 0; !ret && r < comm->nranks; r++) {
		if (!comm->peer[r])
			continue;
		ret = kv_peer_close(comm->peer[r], kv_poll_ms(deadline, KV_TIMEOUT_MAX_MS), err);
		if (!ret)
			comm->peer[r] = NULL;
	}
	if (!ret)
		free(comm); /* otherwise what is left can be closed by another call */
	return ret;
}
