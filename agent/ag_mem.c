/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ag_mem.c -- regions of this agent: registered, described to peers that ask, taken back
 *
 * A region that is taken back is withdrawn first: every connection that has its description is
 * asked to stop what it has under way there, and says when it has. Only then is it deregistered, so
 * that no peer meets a device that refuses, which would end its connection.
 */
#include <stdlib.h>

#include "ag.h"
#include "base/wire.h"

bool ag_has_cuda(void)
{
	return tr_has_cuda();
}

int ag_mem_reg(struct ag_agent *agent, void *addr, size_t len, int kind, struct ag_mem **mem_p,
	       struct kv_error *err)
{
	struct ag_mem *mem = calloc(1, sizeof(*mem));
	unsigned int access = TR_REMOTE_WRITE | TR_REMOTE_READ;
	int ret;

	if (!mem)
		return kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate a region's record");
	if (kv_option_bool(agent->options, KV_OPT_RELAX_ORDERING))
		access |= TR_RELAXED;
	ret = tr_mem_reg(agent->tr, addr, len, kind == AG_CUDA ? TR_MEM_CUDA : TR_MEM_HOST, access,
			 &mem->mem, err);
	if (ret) {
		free(mem);
		return ret;
	}
	mem->agent = agent;
	mem->base = (uintptr_t)tr_mem_addr(mem->mem);
	atomic_init(&mem->refs, 1);
	pthread_mutex_lock(&agent->lock);
	mem->region = (struct ag_region){ ++agent->next_region, (uintptr_t)addr, len };
	mem->next = agent->mems;
	agent->mems = mem;
	pthread_mutex_unlock(&agent->lock);
	*mem_p = mem;
	return 0;
}

size_t ag_mem_info(const struct ag_mem *mem, uint8_t buf[AG_MEM_INFO_MAX])
{
	return ag_region_put(&mem->region, buf);
}

void ag_mem_put(struct ag_mem *mem)
{
	if (atomic_fetch_sub(&mem->refs, 1) == 1)
		free(mem);
}

/* ---------------------------------------------------------------- taking it back */

/* Under the agent's lock. */
static void unlink_mem(struct ag_agent *agent, struct ag_mem *mem)
{
	struct ag_mem **at = &agent->mems;

	while (*at != mem)
		at = &(*at)->next;
	*at = mem->next;
	agent->retiring--;
}

/* A withdrawn region that no peer and no operation uses. BUSY: one does. The lock is held. */
static int give_mem_back(struct ag_agent *agent, struct ag_mem *mem, struct kv_error *err)
{
	int ret;

	if (!mem->mem)
		return 0; /* another thread has done it */
	if (mem->told || mem->giving || atomic_load(&mem->uses))
		return kv_fail(
			err, KV_ERR_BUSY, "deregister", "%s",
			mem->told
				? "a peer that may still write there has not said that it has stopped"
				: "a transfer of this agent uses the region");
	mem->giving = true;
	pthread_mutex_unlock(&agent->lock);
	ret = tr_mem_dereg(mem->mem, err);
	pthread_mutex_lock(&agent->lock);
	mem->giving = false;
	if (ret)
		return ret;
	mem->mem = NULL;
	unlink_mem(agent, mem);
	ag_mem_put(mem);
	return 0;
}

static void wait_changed(struct ag_agent *agent, int64_t ms)
{
	int64_t until = kv_deadline_ns(ms);
	struct timespec ts = { .tv_sec = until / 1000000000, .tv_nsec = until % 1000000000 };

	pthread_cond_timedwait(&agent->changed, &agent->lock, &ts);
}

int ag_mem_dereg(struct ag_mem *mem, struct kv_error *err)
{
	struct ag_agent *agent = mem->agent;
	int64_t cut_ns = kv_deadline_ns(AG_WITHDRAW_MS), end_ns = cut_ns + cut_ns - kv_now_ns();
	int ret;

	pthread_mutex_lock(&agent->lock);
	atomic_store(&mem->withdrawn, true);
	agent->retiring++;
	for (uint32_t i = 0; mem->told && i < agent->peers_end; i++)
		if (agent->peer[i] && agent->peer[i]->incoming)
			ag_kick(agent->peer[i]);
	atomic_fetch_add(&mem->refs, 1);
	while ((ret = give_mem_back(agent, mem, err)) == KV_ERR_BUSY && kv_now_ns() < end_ns) {
		if (kv_now_ns() >= cut_ns && !atomic_exchange(&mem->overdue, true))
			ag_wake(agent);
		wait_changed(agent, 5);
	}
	pthread_mutex_unlock(&agent->lock);
	ag_mem_put(mem);
	return ret;
}

/* Under the lock: one that was not tried in this round. */
static struct ag_mem *next_retiring(struct ag_agent *agent)
{
	struct ag_mem *mem = agent->mems;

	while (mem && (!atomic_load(&mem->withdrawn) || mem->tried == agent->retire_round))
		mem = mem->next;
	if (mem)
		mem->tried = agent->retire_round;
	return mem;
}

bool ag_mem_retire(struct ag_agent *agent)
{
	struct ag_mem *mem;
	bool none;

	pthread_mutex_lock(&agent->lock);
	agent->retire_round++;
	while (agent->retiring && (mem = next_retiring(agent))) {
		atomic_fetch_add(&mem->refs, 1);
		give_mem_back(agent, mem, NULL);
		ag_mem_put(mem);
	}
	none = !agent->retiring;
	pthread_mutex_unlock(&agent->lock);
	return none;
}

/* Every connection is closed, and no other thread is left. */
void ag_mem_close(struct ag_agent *agent)
{
	while (agent->mems) {
		struct ag_mem *mem = agent->mems;

		agent->mems = mem->next;
		if (tr_mem_dereg(mem->mem, NULL))
			tr_mem_abandon(mem->mem);
		ag_mem_put(mem);
	}
}

/* ---------------------------------------------------------------- what a peer knows */

/* Under the agent's lock. */
static struct ag_mem *find_mem(const struct ag_agent *agent, uint64_t id)
{
	struct ag_mem *mem = agent->mems;

	while (mem && mem->region.id != id)
		mem = mem->next;
	return mem && !atomic_load(&mem->withdrawn) ? mem : NULL;
}

static struct ag_told **find_told(struct ag_peer *peer, uint64_t id)
{
	struct ag_told **at = &peer->told;

	while (*at && (*at)->mem->region.id != id)
		at = &(*at)->next;
	return at;
}

static void forget_told(struct ag_peer *peer, struct ag_told **at)
{
	struct ag_agent *agent = peer->agent;
	struct ag_told *told = *at;

	*at = told->next;
	pthread_mutex_lock(&agent->lock);
	told->mem->told--;
	pthread_cond_broadcast(&agent->changed);
	pthread_mutex_unlock(&agent->lock);
	ag_mem_put(told->mem);
	free(told);
}

/* The peer's entry for a region that is there, new or old; *told_p NULL: it is not there. */
static int tell(struct ag_peer *peer, uint64_t id, struct ag_told **told_p, struct kv_error *err)
{
	struct ag_agent *agent = peer->agent;
	struct ag_told *told = *find_told(peer, id);
	struct ag_mem *mem;

	*told_p = told && !told->said ? told : NULL;
	if (told)
		return 0;
	told = calloc(1, sizeof(*told));
	if (!told)
		return kv_fail(err, KV_ERR_NOMEM, "describe", "cannot allocate a row");
	pthread_mutex_lock(&agent->lock);
	mem = find_mem(agent, id);
	if (mem) {
		mem->told++;
		atomic_fetch_add(&mem->refs, 1);
	}
	pthread_mutex_unlock(&agent->lock);
	if (!mem) {
		free(told);
		return 0;
	}
	told->mem = mem;
	told->next = peer->told;
	peer->told = told;
	*told_p = told;
	return 0;
}

int ag_mem_pack(struct ag_peer *peer, uint64_t id, struct ag_record **answer_p,
		struct kv_error *err)
{
	uint8_t body[16 + TR_MEM_PACK_MAX];
	struct wire_writer w = wire_writer_of(body, sizeof(body));
	struct ag_told *told;
	struct kv_error why;
	size_t len = 0;
	int ret = tell(peer, id, &told, err);

	if (ret)
		return ret;
	wire_put_u64(&w, id);
	wire_put_u64(&w, told ? told->mem->base : 0);
	if (told &&
	    tr_mem_pack(peer->conn, told->mem->mem, body + w.len, TR_MEM_PACK_MAX, &len, &why)) {
		kv_log_warn(peer->agent->log, "%s gets no description of a region: %s", peer->name,
			    why.message);
		len = 0;
		forget_told(peer, find_told(peer, id));
	}
	*answer_p = ag_record_new(AG_PACK, body, w.len + len, err);
	return *answer_p ? 0 : KV_ERR_NOMEM;
}

int ag_mem_withdraw(struct ag_peer *peer, struct kv_error *err)
{
	int n = 0;

	for (struct ag_told *told = peer->told; told; told = told->next) {
		struct ag_record *record;
		uint8_t id[8];
		struct wire_writer w = wire_writer_of(id, sizeof(id));

		if (atomic_load(&told->mem->overdue))
			return kv_fail(err, KV_ERR_TIMEOUT, "deregister",
				       "%s has not left a region within %d ms", peer->name,
				       AG_WITHDRAW_MS);
		if (told->said || !atomic_load(&told->mem->withdrawn))
			continue;
		wire_put_u64(&w, told->mem->region.id);
		record = ag_record_new(AG_WITHDRAW, id, sizeof(id), NULL);
		if (!record)
			break; /* at the next tick */
		told->said = true;
		ag_records_add(&peer->out, record);
		n++;
	}
	return n;
}

void ag_mem_left(struct ag_peer *peer, uint64_t id)
{
	struct ag_told **at = find_told(peer, id);

	if (*at && (*at)->said)
		forget_told(peer, at);
}

void ag_mem_left_all(struct ag_peer *peer)
{
	while (peer->told)
		forget_told(peer, &peer->told);
}
