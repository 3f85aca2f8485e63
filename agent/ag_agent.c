/* SPDX-License-Identifier: Apache-2.0 */
/* ag_agent.c -- what agent.h declares of agents and of peers */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "ag.h"
#include "base/unload.h"

/* ---------------------------------------------------------------- opening */

static int open_place(struct ag_agent *agent, struct kv_error *err)
{
	const char *address = kv_option_string(agent->options, KV_OPT_AGENT_ADDRESS);
	struct ag_place *place = &agent->place;
	int ret = ag_address_list(address, place, err);

	if (!ret)
		ret = tr_listen(agent->tr, *address ? address : "0.0.0.0", 0, &agent->listener,
				err);
	if (ret)
		return ret;
	if (getrandom(place->secret, AG_SECRET, 0) != AG_SECRET)
		return kv_fail(err, KV_ERR_SYSTEM, "open", "getrandom");
	memcpy(place->incarnation, tr_incarnation(agent->tr), AG_INCARNATION);
	place->port = (uint16_t)tr_listener_port(agent->listener);
	agent->info_len = ag_place_put(place, agent->info);
	return 0;
}

static int open_loop(struct ag_agent *agent, struct kv_error *err)
{
	struct epoll_event wake = { .events = EPOLLIN, .data.u64 = AG_TOKEN_WAKE };
	struct epoll_event knock = { .events = EPOLLIN | EPOLLONESHOT,
				     .data.u64 = AG_TOKEN_LISTENER };

	agent->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	agent->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (agent->epoll_fd < 0 || agent->wake_fd < 0 ||
	    epoll_ctl(agent->epoll_fd, EPOLL_CTL_ADD, agent->wake_fd, &wake) ||
	    epoll_ctl(agent->epoll_fd, EPOLL_CTL_ADD, tr_listener_fd(agent->listener), &knock))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "open", "epoll or eventfd");
	return 0;
}

static int open_tables(struct ag_agent *agent, const struct ag_config *config, struct kv_error *err)
{
	int ret = kv_option_read(config->options, &agent->options, err);

	if (ret)
		return ret;
	agent->peers_max = (uint32_t)kv_option_int(agent->options, KV_OPT_MAX_PEERS);
	agent->op_ms = kv_option_int(agent->options, KV_OPT_OP_TIMEOUT_MS);
	agent->handshake_ms = kv_option_int(agent->options, KV_OPT_HANDSHAKE_MS);
	agent->name = strdup(config->name);
	agent->peer = calloc(agent->peers_max, sizeof(struct ag_peer *));
	if (!agent->name || !agent->peer)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate an agent's tables");
	agent->log = kv_log_open(agent->options, config->log, config->log_arg);
	return tr_open(&(struct tr_config){ .options = agent->options, .log = agent->log },
		       &agent->tr, err);
}

/* Of one that no thread is in. */
static void free_agent(struct ag_agent *agent)
{
	ag_metrics_stop(agent);
	ag_mem_close(agent);
	if (agent->listener)
		tr_listener_close(agent->listener);
	if (agent->epoll_fd >= 0)
		close(agent->epoll_fd);
	if (agent->wake_fd >= 0)
		close(agent->wake_fd);
	if (agent->tr)
		tr_close(agent->tr);
	kv_log_close(agent->log);
	kv_option_free(agent->options);
	ag_note_free(agent);
	pthread_cond_destroy(&agent->changed);
	pthread_mutex_destroy(&agent->lock);
	free(agent->peer);
	free(agent->name);
	free(agent);
}

static void init_locks(struct ag_agent *agent)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&agent->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&agent->changed, &attr);
	pthread_condattr_destroy(&attr);
	ag_note_init(agent);
}

int ag_open(const struct ag_config *config, struct ag_agent **agent_p, struct kv_error *err)
{
	struct ag_agent *agent;
	int ret;

	if (!config->name || !*config->name || strlen(config->name) > AG_NAME_MAX)
		return kv_fail(err, KV_ERR_ARG, "open", "an agent's name has 1 to %d bytes",
			       AG_NAME_MAX);
	agent = calloc(1, sizeof(*agent));
	if (!agent)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate an agent");
	agent->pid = getpid();
	agent->epoll_fd = agent->wake_fd = -1;
	init_locks(agent);
	ret = open_tables(agent, config, err);
	if (!ret)
		ret = open_place(agent, err);
	if (!ret)
		ret = open_loop(agent, err);
	if (!ret) {
		ag_metrics_start(agent, ag_report_agent);
		ret = ag_service_start(agent, err);
	}
	if (ret) {
		free_agent(agent);
		return ret;
	}
	*agent_p = agent;
	return 0;
}

void ag_report(struct ag_agent *agent, const char *what, const struct kv_error *err)
{
	kv_log_warn(agent->log, "%s: KV_ERR_%s: %s%s%s", what, kv_error_name(err->code),
		    err->message, *err->hint ? "; " : "", err->hint);
}

const void *ag_info(const struct ag_agent *agent, size_t *len_p)
{
	*len_p = agent->info_len;
	return agent->info;
}

/* ---------------------------------------------------------------- closing */

static void await_peers(struct ag_agent *agent, int64_t deadline_ns)
{
	struct timespec ts = { .tv_sec = deadline_ns / 1000000000,
			       .tv_nsec = deadline_ns % 1000000000 };

	pthread_mutex_lock(&agent->lock);
	for (uint32_t i = 0; i < agent->peers_end; i++)
		if (agent->peer[i]) {
			atomic_store(&agent->peer[i]->dropped, true);
			ag_kick(agent->peer[i]);
		}
	while (agent->peers && kv_now_ns() < deadline_ns)
		pthread_cond_timedwait(&agent->changed, &agent->lock, &ts);
	pthread_mutex_unlock(&agent->lock);
}

/* Those that could not be fenced in time: their memory stays with the device until it lets go. */
static void close_rest(struct ag_agent *agent)
{
	for (uint32_t i = 0; i < agent->peers_max; i++) {
		struct ag_peer *peer = agent->peer[i];

		if (!peer)
			continue;
		atomic_store(&peer->fenced, true); /* as far as it can be */
		ag_mem_left_all(peer);
		ag_rmem_drop_all(peer);
		tr_conn_close(peer->conn);
		peer->conn = NULL;
		ag_peer_leave(peer);
	}
}

void ag_close(struct ag_agent *agent)
{
	int64_t deadline = kv_deadline_ns(AG_CLOSE_MS);

	if (!agent || agent->pid != getpid())
		return;
	await_peers(agent, deadline);
	if (!ag_service_stop(agent, deadline + AG_CLOSE_MS * KV_NS_PER_MS)) {
		kv_stay_loaded(); /* its thread does not return from a device */
		return;
	}
	close_rest(agent);
	free_agent(agent);
}

/* ---------------------------------------------------------------- peers */

static int new_peer(struct ag_agent *agent, const char *name, const void *info, size_t len,
		    struct ag_peer **peer_p, struct kv_error *err)
{
	struct ag_peer *peer;
	int ret = ag_peer_new(agent, false, &peer, err);

	if (ret)
		return ret;
	peer->name = strdup(name);
	peer->info = malloc(len);
	ret = ag_place_get(&peer->place, info, len, err);
	if (!ret && (!peer->name || !peer->info))
		ret = kv_fail(err, KV_ERR_NOMEM, "load", "cannot keep %zu bytes", len);
	if (ret) {
		ag_peer_put(peer);
		return ret;
	}
	memcpy(peer->info, info, len);
	peer->info_len = len;
	*peer_p = peer;
	return 0;
}

static void drop_peer(struct ag_peer *peer)
{
	atomic_store(&peer->dropped, true);
	ag_kick(peer);
}

/* Why it was not reached, or 0. Once it is given the peer may be dialled anew. */
static int take_reason(struct ag_peer *peer, struct kv_error *err)
{
	int ret = 0;

	pthread_mutex_lock(&peer->inbox);
	if (peer->unreached)
		ret = kv_error_copy(err, &peer->reason);
	peer->unreached = false;
	pthread_mutex_unlock(&peer->inbox);
	return ret;
}

/* Under the agent's lock. 0: there is none any more. AG_AGAIN: it is there, as it is to be. */
static int make_way(struct ag_peer *old, const void *info, size_t len, struct kv_error *err)
{
	if (!old)
		return 0;
	if (atomic_load(&old->state) == AG_LOST || take_reason(old, NULL)) {
		drop_peer(old);
		return 0;
	}
	if (old->info_len == len && !memcmp(old->info, info, len))
		return AG_AGAIN;
	kv_fail(err, KV_ERR_BUSY, "load", "%.200s was loaded with other bytes, and is not lost",
		old->name);
	kv_error_hint(err, "drop it first");
	return KV_ERR_BUSY;
}

int ag_peer_load(struct ag_agent *agent, const char *name, const void *info, size_t len,
		 struct kv_error *err)
{
	struct ag_peer *peer;
	int ret;

	if (!*name || strlen(name) > AG_NAME_MAX || !len || len > AG_INFO_MAX)
		return kv_fail(err, KV_ERR_ARG, "load",
			       "the name has %zu bytes, what it is loaded with %zu", strlen(name),
			       len);
	ret = new_peer(agent, name, info, len, &peer, err);
	if (ret)
		return ret;
	pthread_mutex_lock(&agent->lock);
	ret = make_way(ag_peer_find(agent, name), info, len, err);
	if (!ret)
		ret = ag_peer_enter(peer, err);
	pthread_mutex_unlock(&agent->lock);
	if (!ret)
		ag_try_drive(peer, 0, true);
	ag_peer_put(peer);
	return ret == AG_AGAIN ? 0 : ret;
}

int ag_peer_check(struct ag_agent *agent, const char *name, struct kv_error *err)
{
	struct ag_peer *peer = ag_peer_get(agent, name, "check", err);
	int ret;

	if (!peer)
		return KV_ERR_ARG;
	ret = ag_peer_gone(peer, err);
	if (!ret && (ret = take_reason(peer, err)))
		ag_kick(peer);
	if (!ret && atomic_load(&peer->state) == AG_CONNECTING)
		ret = AG_AGAIN;
	ag_peer_put(peer);
	return ret;
}

void ag_peer_drop(struct ag_agent *agent, const char *name)
{
	struct ag_peer *peer;

	pthread_mutex_lock(&agent->lock);
	peer = ag_peer_find(agent, name);
	if (peer)
		drop_peer(peer);
	pthread_mutex_unlock(&agent->lock);
}
