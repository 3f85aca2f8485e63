/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool.c -- memfd pools: ours passed to the peer, the peer's checked and mapped
 *
 * A pool is passed once per connection, when a region in it is first described, and stays mapped
 * until the connection is closed.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"
#include "shm.h"

int pool_send(struct shm_conn *sc, const struct tr_mem *mem, bool *sent_p, struct kv_error *err)
{
	struct link_message message = { .kind = LINK_POOL,
					.id = mem->pool_id,
					.len = mem->pool_len };
	int ret;

	*sent_p = true;
	for (unsigned int i = 0; i < sc->sent_pools; i++)
		if (sc->sent_pool[i] == mem->pool_id)
			return 0;
	*sent_p = false;
	if (sc->sent_pools == SHM_POOLS_MAX)
		return 0;
	ret = link_send(sc, &message, mem->pool_fd, err);
	if (ret)
		return ret == TR_AGAIN ? 0 : ret;
	sc->sent_pool[sc->sent_pools++] = mem->pool_id;
	*sent_p = true;
	return 0;
}

static struct shm_pool *find(struct shm_conn *sc, uint64_t id)
{
	for (unsigned int i = 0; i < sc->pools; i++)
		if (sc->pool[i].id == id)
			return &sc->pool[i];
	return NULL;
}

/* Without the seal the peer could shrink the file under our mapping and kill us with SIGBUS. */
static bool is_sound(int fd, uint64_t len)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	return seals >= 0 && (seals & F_SEAL_SHRINK) && !fstat(fd, &st) && len &&
	       len <= INT64_MAX && st.st_size >= (int64_t)len;
}

int pool_received(struct shm_conn *sc, uint64_t id, uint64_t len, int fd, struct kv_error *err)
{
	if (sc->pools == SHM_POOLS_MAX || find(sc, id) || !is_sound(fd, len)) {
		close(fd);
		return kv_fail(err, KV_ERR_PROTOCOL, "shm",
			       "the peer passed a pool of %llu bytes that is %s",
			       (unsigned long long)len,
			       sc->pools == SHM_POOLS_MAX ? "one too many" : "no new sealed memfd");
	}
	sc->pool[sc->pools++] = (struct shm_pool){ .id = id, .len = len, .fd = fd };
	return 0;
}

int pool_map(struct shm_conn *sc, uint64_t id, uint64_t len, uint8_t **addr_p, struct kv_error *err)
{
	struct shm_pool *pool;
	void *at;
	int ret = link_drain(sc, err);

	*addr_p = NULL;
	if (ret)
		return ret;
	pool = find(sc, id);
	if (!pool)
		return 0;
	if (pool->len != len)
		return kv_fail(err, KV_ERR_PROTOCOL, "mem_open",
			       "a region's pool has %llu bytes, but %llu were passed",
			       (unsigned long long)len, (unsigned long long)pool->len);
	if (!pool->addr) {
		at = kv_fault(SHM_POOL_MMAP)
			     ? (errno = ENOMEM, MAP_FAILED)
			     : mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, pool->fd, 0);
		if (at == MAP_FAILED)
			return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "mem_open",
					     "cannot map a pool of the peer of %llu bytes",
					     (unsigned long long)len);
		madvise(at, len, MADV_DONTFORK);
		close(pool->fd);
		pool->fd = -1;
		pool->addr = at;
	}
	*addr_p = pool->addr;
	return 0;
}

void pool_close_all(struct shm_conn *sc)
{
	for (unsigned int i = 0; i < sc->pools; i++) {
		if (sc->pool[i].addr)
			munmap(sc->pool[i].addr, sc->pool[i].len);
		if (sc->pool[i].fd >= 0)
			close(sc->pool[i].fd);
	}
	sc->pools = 0;
}
