/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool.c -- memfd pools: ours passed to the peer, the peer's checked and mapped
 *
 * A pool is passed once per connection, when a region in it is first described. It is mapped when
 * it arrives, so that no descriptor of a peer is kept, and stays so until the connection is closed.
 */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/memfd.h"
#include "shm.h"

int pool_send(struct shm_conn *sc, const struct tr_mem *mem, bool *sent_p, struct kv_error *err)
{
	struct link_message message = { .kind = LINK_POOL,
					.id = mem->pool_id,
					.len = mem->pool_len,
					.pages = tr_mem_pages(mem) };
	struct link_fds fds = { .n = 1, .fd = { mem->pool_fd } };
	int ret;

	*sent_p = true;
	for (unsigned int i = 0; i < sc->sent_pools; i++)
		if (sc->sent_pool[i] == mem->pool_id)
			return 0;
	*sent_p = false;
	if (sc->sent_pools == SHM_POOLS_MAX || sc->sock < 0)
		return 0;
	ret = link_send(sc, &message, &fds, err);
	if (ret)
		return ret == TR_AGAIN ? 0 : ret;
	sc->sent_pool[sc->sent_pools++] = mem->pool_id;
	*sent_p = true;
	return 0;
}

static struct shm_pool *find_pool(struct shm_conn *sc, uint64_t id)
{
	for (unsigned int i = 0; i < sc->pools; i++)
		if (sc->pool[i].id == id)
			return &sc->pool[i];
	return NULL;
}

/* Counts the bytes against both budgets, or returns false. */
bool pool_take_budget(struct shm_conn *sc, uint64_t len)
{
	uint64_t all;

	if (len > SHM_MAP_PEER_BYTES || sc->mapped > SHM_MAP_PEER_BYTES - len)
		return false;
	all = atomic_fetch_add(&sc->ctx->mapped, len);
	if (all > SHM_MAP_ALL_BYTES - len) {
		atomic_fetch_sub(&sc->ctx->mapped, len);
		return false;
	}
	sc->mapped += len;
	return true;
}

void pool_give_budget(struct shm_conn *sc, uint64_t len)
{
	atomic_fetch_sub(&sc->ctx->mapped, len);
	sc->mapped -= len;
}

/* 0, also where there is no address space for it: then it is known and not mapped. */
static int map_peer_pool(struct shm_conn *sc, struct shm_pool *pool, int fd, struct kv_error *err)
{
	void *at;

	if (!pool_take_budget(sc, pool->len)) {
		kv_log_warn(tr_conn_tr(sc->conn)->log,
			    "a pool of %llu bytes of %s is not mapped: one peer's may have %llu "
			    "bytes, those of all peers %llu",
			    (unsigned long long)pool->len, tr_conn_address(sc->conn),
			    (unsigned long long)SHM_MAP_PEER_BYTES,
			    (unsigned long long)SHM_MAP_ALL_BYTES);
		return 0;
	}
	at = kv_fault(SHM_POOL_MMAP) ? (errno = ENOMEM, MAP_FAILED) : kv_memfd_map(fd, pool->len);
	if (at == MAP_FAILED) {
		int error = errno;

		pool_give_budget(sc, pool->len);
		/* Not opened for writing, or sealed against it. */
		if (error == EACCES || error == EPERM)
			return kv_fail_errno(err, KV_ERR_PROTOCOL, error, "shm",
					     "the peer passed a pool that cannot be written");
		kv_log_warn(tr_conn_tr(sc->conn)->log,
			    "a pool of %llu bytes of %s cannot be mapped: %s",
			    (unsigned long long)pool->len, tr_conn_address(sc->conn),
			    kv_errno_text(error));
		return 0;
	}
	madvise(at, pool->len, MADV_DONTFORK);
	pool->addr = at;
	return 0;
}

int pool_received(struct shm_conn *sc, const struct link_message *message, int fd,
		  struct kv_error *err)
{
	uint64_t id = message->id, len = message->len;
	struct shm_pool *pool = &sc->pool[sc->pools];
	int ret;

	if (trust_refuses(sc)) { /* it trusts this end more than this end trusts it */
		close(fd);
		return 0;
	}
	if (sc->pools == SHM_POOLS_MAX || find_pool(sc, id) || !memfd_is_sound(fd, len)) {
		close(fd);
		return kv_fail(err, KV_ERR_PROTOCOL, "shm",
			       "the peer passed a pool of %llu bytes that is %s",
			       (unsigned long long)len,
			       sc->pools == SHM_POOLS_MAX ? "one too many" : "no new sealed memfd");
	}
	*pool = (struct shm_pool){ .id = id, .len = len, .pages = message->pages };
	ret = map_peer_pool(sc, pool, fd, err);
	close(fd);
	if (!ret)
		sc->pools++;
	return ret;
}

int pool_find(struct shm_conn *sc, uint64_t id, uint64_t len, const struct shm_pool **pool_p,
	      struct kv_error *err)
{
	const struct shm_pool *pool;
	int ret = link_drain(sc, err);

	if (ret)
		return ret;
	pool = find_pool(sc, id);
	if (!pool)
		return kv_fail(err, KV_ERR_PROTOCOL, "mem_open",
			       "the peer describes a pool that it did not pass");
	if (pool->len != len)
		return kv_fail(err, KV_ERR_PROTOCOL, "mem_open",
			       "a region's pool has %llu bytes, but %llu were passed",
			       (unsigned long long)len, (unsigned long long)pool->len);
	*pool_p = pool;
	return 0;
}

void pool_close_all(struct shm_conn *sc)
{
	for (unsigned int i = 0; i < sc->pools; i++)
		if (sc->pool[i].addr) {
			munmap(sc->pool[i].addr, sc->pool[i].len);
			pool_give_budget(sc, sc->pool[i].len);
		}
	sc->pools = 0;
}
