/* SPDX-License-Identifier: Apache-2.0 */
/* ag_peer.c -- a peer's record, its place in the agent's table, who still holds it */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ag.h"

void ag_wake(struct ag_agent *agent)
{
	const uint64_t one = 1;

	while (write(agent->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void ag_kick(struct ag_peer *peer)
{
	if (!atomic_exchange(&peer->kicked, true))
		ag_wake(peer->agent);
}

void ag_kick_all(struct ag_agent *agent, bool incoming_only)
{
	pthread_mutex_lock(&agent->lock);
	for (uint32_t i = 0; i < agent->peers_end; i++)
		if (agent->peer[i] && (!incoming_only || agent->peer[i]->incoming))
			ag_kick(agent->peer[i]);
	pthread_mutex_unlock(&agent->lock);
}

int ag_peer_new(struct ag_agent *agent, bool incoming, struct ag_peer **peer_p,
		struct kv_error *err)
{
	struct ag_peer *peer = calloc(1, sizeof(*peer));

	if (!peer)
		return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate a peer's record");
	peer->agent = agent;
	peer->incoming = incoming;
	atomic_init(&peer->refs, 1);
	pthread_mutex_init(&peer->inbox, NULL);
	pthread_mutex_init(&peer->drive, NULL);
	ag_xfers_init(&peer->posted);
	ag_xfers_init(&peer->queue);
	ag_xfers_init(&peer->flight);
	ag_records_init(&peer->said);
	ag_records_init(&peer->out);
	*peer_p = peer;
	return 0;
}

/* By the last holder: its connection is closed. */
static void free_peer(struct ag_peer *peer)
{
	ag_records_free(&peer->said);
	ag_records_free(&peer->out);
	free(peer->hearing.buf);
	pthread_mutex_destroy(&peer->inbox);
	pthread_mutex_destroy(&peer->drive);
	free(peer->info);
	free(peer->name);
	free(peer);
}

void ag_peer_put(struct ag_peer *peer)
{
	if (atomic_fetch_sub(&peer->refs, 1) == 1)
		free_peer(peer);
}

int ag_peer_enter(struct ag_peer *peer, struct kv_error *err)
{
	struct ag_agent *agent = peer->agent;
	uint32_t i = 0;

	while (i < agent->peers_end && agent->peer[i])
		i++;
	if (i == agent->peers_max) {
		kv_fail(err, KV_ERR_BUSY, "connect", "this agent has %u peers already",
			agent->peers_max);
		kv_error_hint(err, "raise KVCACHE_MAX_PEERS");
		return KV_ERR_BUSY;
	}
	peer->index = i;
	peer->generation = ++agent->next_generation;
	agent->peer[i] = peer;
	if (i == agent->peers_end)
		agent->peers_end++;
	agent->peers++;
	atomic_fetch_add(&peer->refs, 1);
	return 0;
}

void ag_peer_leave(struct ag_peer *peer)
{
	struct ag_agent *agent = peer->agent;

	pthread_mutex_lock(&agent->lock);
	agent->peer[peer->index] = NULL;
	agent->peers--;
	while (agent->peers_end && !agent->peer[agent->peers_end - 1])
		agent->peers_end--;
	pthread_cond_broadcast(&agent->changed);
	pthread_mutex_unlock(&agent->lock);
	ag_peer_put(peer);
}

struct ag_peer *ag_peer_at(struct ag_agent *agent, uint32_t index)
{
	struct ag_peer *peer;

	pthread_mutex_lock(&agent->lock);
	peer = index < agent->peers_end ? agent->peer[index] : NULL;
	if (peer)
		atomic_fetch_add(&peer->refs, 1);
	pthread_mutex_unlock(&agent->lock);
	return peer;
}

struct ag_peer *ag_peer_find(struct ag_agent *agent, const char *name)
{
	for (uint32_t i = 0; i < agent->peers_end; i++) {
		struct ag_peer *peer = agent->peer[i];

		if (peer && !peer->incoming && !atomic_load(&peer->dropped) &&
		    !strcmp(peer->name, name))
			return peer;
	}
	return NULL;
}

struct ag_peer *ag_peer_get(struct ag_agent *agent, const char *name, const char *what,
			    struct kv_error *err)
{
	struct ag_peer *peer;

	pthread_mutex_lock(&agent->lock);
	peer = ag_peer_find(agent, name);
	if (peer)
		atomic_fetch_add(&peer->refs, 1);
	pthread_mutex_unlock(&agent->lock);
	if (!peer)
		kv_fail(err, KV_ERR_ARG, what, "no peer was loaded by the name %.200s", name);
	return peer;
}

int ag_peer_gone(const struct ag_peer *peer, struct kv_error *err)
{
	if (atomic_load(&peer->state) == AG_LOST)
		return kv_error_copy(err, &peer->error);
	if (atomic_load(&peer->dropped))
		return kv_fail(err, KV_ERR_PEER_LOST, "post", "the peer was dropped");
	return 0;
}
