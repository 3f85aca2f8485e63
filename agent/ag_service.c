/* SPDX-License-Identifier: Apache-2.0 */
/* ag_service.c -- the agent's thread: it sleeps until a peer, a caller or the clock needs it */
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "ag.h"
#include "base/thread.h"

enum { EVENTS = 64 };

struct service {
	int64_t tick_ns;
	bool more, soon;
	bool knocked; /* somebody waits at the listener, which says it once */
};

static void note_turn(struct service *s, struct ag_peer *peer, enum ag_turn turn)
{
	if (turn == AG_TURN_MORE || turn == AG_TURN_SOON)
		atomic_store(&peer->kicked, true);
	s->more |= turn == AG_TURN_MORE;
	s->soon |= turn == AG_TURN_SOON;
	if (turn == AG_TURN_GONE)
		ag_peer_leave(peer);
}

static void serve_turn(struct service *s, struct ag_peer *peer)
{
	enum ag_turn turn;

	atomic_store(&peer->kicked, false);
	pthread_mutex_lock(&peer->drive);
	turn = ag_drive(peer, AG_SERVICE_BYTES);
	if (turn == AG_TURN_OVER && peer->conn)
		tr_conn_rearm(peer->conn, TR_EVERY_SLOT);
	atomic_store(&peer->served, turn == AG_TURN_MORE);
	pthread_mutex_unlock(&peer->drive);
	note_turn(s, peer, turn);
}

static void serve_token(struct ag_agent *agent, struct service *s, uint64_t token)
{
	struct ag_peer *peer = ag_peer_at(agent, (uint32_t)token - AG_TOKEN_PEERS);

	if (!peer)
		return;
	if (peer->generation == (uint32_t)(token >> 32))
		serve_turn(s, peer);
	ag_peer_put(peer);
}

static void serve_kicked(struct ag_agent *agent, struct service *s, bool all)
{
	struct ag_peer *peer;
	uint32_t end;

	pthread_mutex_lock(&agent->lock);
	end = agent->peers_end;
	pthread_mutex_unlock(&agent->lock);
	for (uint32_t i = 0; i < end; i++) {
		peer = ag_peer_at(agent, i);
		if (!peer)
			continue;
		if (all || atomic_load(&peer->kicked))
			serve_turn(s, peer);
		ag_peer_put(peer);
	}
}

static void drain_wake_fd(const struct ag_agent *agent)
{
	uint64_t count;

	while (read(agent->wake_fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
}

static int timeout_ms(const struct ag_agent *agent, const struct service *s)
{
	int64_t until = s->tick_ns;

	if (s->more)
		return 0;
	if (s->soon)
		return 1;
	if (tr_listener_deadline(agent->listener) < until)
		until = tr_listener_deadline(agent->listener);
	return kv_poll_ms(until, AG_TICK_MS);
}

static void agent_turn(struct ag_agent *agent, struct service *s)
{
	struct epoll_event event[EVENTS];
	int n = epoll_wait(agent->epoll_fd, event, EVENTS, timeout_ms(agent, s));
	bool tick = kv_now_ns() >= s->tick_ns, alarm = false;

	s->more = s->soon = false;
	for (int i = 0; i < n; i++)
		if (event[i].data.u64 == AG_TOKEN_WAKE)
			drain_wake_fd(agent);
		else if (event[i].data.u64 == TR_TOKEN_ALL)
			alarm = true;
		else if (event[i].data.u64 == AG_TOKEN_LISTENER)
			s->knocked = true;
		else
			serve_token(agent, s, tr_event_token(event[i].data.u64));
	if (s->knocked || tick || kv_now_ns() >= tr_listener_deadline(agent->listener))
		s->knocked = !ag_accept(agent);
	if (alarm)
		tr_alarm(agent->tr);
	serve_kicked(agent, s, tick || alarm);
	if (tick) {
		ag_mem_retire(agent);
		s->tick_ns = kv_deadline_ns(AG_TICK_MS);
	}
}

static void *run_agent(void *arg)
{
	struct ag_agent *agent = arg;
	struct service s = { .tick_ns = kv_deadline_ns(AG_TICK_MS) };

	while (!atomic_load(&agent->stopping))
		agent_turn(agent, &s);
	pthread_mutex_lock(&agent->lock);
	atomic_store(&agent->stopped, true);
	pthread_cond_broadcast(&agent->changed);
	pthread_mutex_unlock(&agent->lock);
	return NULL;
}

int ag_service_start(struct ag_agent *agent, struct kv_error *err)
{
	int ret = kv_thread_start(&agent->thread, "kvrail-agent", run_agent, agent);

	if (ret)
		return kv_fail_errno(err, KV_ERR_SYSTEM, ret, "open",
				     "the service thread could not be started");
	agent->thread_on = true;
	return 0;
}

bool ag_service_stop(struct ag_agent *agent, int64_t deadline_ns)
{
	struct timespec ts = { .tv_sec = deadline_ns / 1000000000,
			       .tv_nsec = deadline_ns % 1000000000 };
	bool stopped;

	if (!agent->thread_on)
		return true;
	atomic_store(&agent->stopping, true);
	ag_wake(agent);
	pthread_mutex_lock(&agent->lock);
	while (!atomic_load(&agent->stopped) && kv_now_ns() < deadline_ns)
		pthread_cond_timedwait(&agent->changed, &agent->lock, &ts);
	stopped = atomic_load(&agent->stopped);
	pthread_mutex_unlock(&agent->lock);
	if (stopped)
		pthread_join(agent->thread, NULL);
	agent->thread_on = !stopped;
	return stopped;
}
