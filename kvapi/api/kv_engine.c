/* SPDX-License-Identifier: Apache-2.0 */
/* kv_engine.c -- opening and closing an engine */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/expose.h"
#include "base/unload.h"
#include "kv_api.h"
#include "kv_digest.h"
#include "kv_range.h"

enum { LIFE_PAGE = 4096 };

/* The page by which a forked child knows that it is one, without a system call at each use. */
static int make_life(struct kv_engine *engine, struct kv_error *err)
{
	void *page = kv_fault(KV_LIFE_MMAP) ? (errno = ENOMEM, MAP_FAILED)
					    : mmap(NULL, LIFE_PAGE, PROT_READ | PROT_WRITE,
						   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		return kv_fail_errno(err, KV_ERR_NOMEM, errno, "open", "mmap of a page failed");
	engine->life = page;
	*engine->life = KV_ALIVE;
	engine->pid = getpid();
	engine->wiped = !madvise(page, LIFE_PAGE, MADV_WIPEONFORK);
	return 0;
}

static int make_descriptors(struct kv_engine *engine, struct kv_error *err)
{
	struct epoll_event event = { .events = EPOLLIN };

	engine->epoll_fd = kv_fault(KV_EPOLL) ? (errno = EMFILE, -1) : epoll_create1(EPOLL_CLOEXEC);
	if (engine->epoll_fd < 0)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "open", "epoll_create1 failed");
	engine->wake_fd = kv_fault(KV_EVENTFD) ? (errno = EMFILE, -1)
					       : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (engine->wake_fd < 0)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "open", "eventfd failed");
	engine->nudge_fd = kv_fault(KV_NUDGE)
				   ? (errno = EMFILE, -1)
				   : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
	if (engine->nudge_fd < 0)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "open", "eventfd failed");
	if (epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, engine->wake_fd, &event))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "open", "epoll_ctl failed");
	return kv_arrivals_open(engine, err);
}

static void read_options(struct kv_engine *engine)
{
	const struct kv_option_set *set = engine->options;

	engine->spin_ns = kv_option_int(set, KV_OPT_SPIN_US) * KV_NS_PER_US;
	if (!kv_option_is_set(set, KV_OPT_SPIN_US) && sysconf(_SC_NPROCESSORS_ONLN) < 2)
		engine->spin_ns = 0; /* one CPU: while this thread spins, nothing else can run */
	kv_linger_open(engine);
	engine->op_timeout_ms = kv_option_int(set, KV_OPT_OP_TIMEOUT_MS);
	engine->handshake_ms = kv_option_int(set, KV_OPT_HANDSHAKE_MS);
	engine->peers_max = (uint32_t)kv_option_int(set, KV_OPT_MAX_PEERS);
	engine->address_max = (uint32_t)kv_option_int(set, KV_OPT_MAX_PER_ADDRESS);
	if (!engine->address_max)
		engine->address_max = engine->peers_max - engine->peers_max / 4;
	engine->pending_max = (uint32_t)kv_option_int(set, KV_OPT_MAX_PENDING);
	engine->heartbeat_ns = kv_option_int(set, KV_OPT_HEARTBEAT_MS) * KV_NS_PER_MS;
	engine->ack_read = kv_option_is(set, KV_OPT_ACK, "read");
	engine->checks = kv_option_bool(set, KV_OPT_CHECKSUM);
	engine->timed = kv_expose_measures(set);
}

void kv_engine_set_interrupt(struct kv_engine *engine, int (*interrupted)(void *arg), void *arg)
{
	if (kv_engine_use(engine, "set_interrupt", NULL))
		return;
	engine->interrupted = interrupted;
	engine->interrupted_arg = arg;
}

static void warn_options(struct kv_engine *engine)
{
	const char *name, *near;

	for (size_t i = 0; kv_option_unknown(engine->options, i, &name, &near); i++)
		kv_log_warn(engine->log, "%s is not an option of kvrail%s%s", name,
			    *near ? "; did you mean " : "", near);
	if (kv_option_bool(engine->options, KV_OPT_VERIFY_READ))
		kv_log_warn(engine->log,
			    "KVCACHE_VERIFY_READ changes nothing: a write succeeds only "
			    "when its receiver has said that every byte is there");
}

static void name_engine(struct kv_engine *engine, const char *name)
{
	char host[KV_NAME_MAX - 16] = "";

	if (!name) {
		gethostname(host, sizeof(host) - 1);
		snprintf(engine->name, sizeof(engine->name), "%s:%d", host, (int)getpid());
	} else {
		snprintf(engine->name, sizeof(engine->name), "%s", name);
	}
	/* The wire takes no control characters. */
	for (char *c = engine->name; *c; c++)
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			*c = '?';
}

static int check_engine_config(const struct kv_engine_config *config, struct kv_error *err)
{
	if (!config)
		return 0;
	if (config->size != sizeof(*config))
		return kv_fail(err, KV_ERR_ARG, "open",
			       "kv_engine_config.size is %zu; this version knows %zu", config->size,
			       sizeof(*config));
	if (config->progress != KV_PROGRESS_AUTO && config->progress != KV_PROGRESS_CALLER)
		return kv_fail(err, KV_ERR_ARG, "open", "progress is %d; it must be %d or %d",
			       config->progress, KV_PROGRESS_AUTO, KV_PROGRESS_CALLER);
	return 0;
}

/* Frees what there is; also of an engine that was never finished. */
static void free_engine(struct kv_engine *engine)
{
	if (engine->tr)
		tr_close(engine->tr);
	kv_op_pool_free(engine);
	kv_group_free_left(engine);
	kv_lease_pool_free(engine);
	kv_arrivals_close(engine);
	if (engine->wake_fd >= 0)
		close(engine->wake_fd);
	if (engine->nudge_fd >= 0)
		close(engine->nudge_fd);
	if (engine->epoll_fd >= 0)
		close(engine->epoll_fd);
	kv_log_close(engine->log);
	kv_option_free(engine->options);
	if (engine->life)
		munmap(engine->life, LIFE_PAGE);
	pthread_mutex_destroy(&engine->turn);
	pthread_mutex_destroy(&engine->lock);
	pthread_mutex_destroy(&engine->pool_lock);
	engine->magic = KV_MAGIC_DEAD;
	free(engine);
}

static int fill_engine(struct kv_engine *engine, const struct kv_engine_config *config,
		       struct kv_error *err)
{
	static const struct kv_engine_config defaults = { .size = sizeof(defaults) };
	const struct kv_engine_config *c = config ? config : &defaults;
	struct tr_config tr_config = { 0 };
	int ret = kv_option_read(c->options, &engine->options, err);

	if (ret)
		return ret;
	read_options(engine);
	if (engine->checks && !kv_digest_works())
		return kv_fail(
			err, KV_ERR_UNSUPPORTED, "open",
			"KVCACHE_CHECKSUM is on, and this processor has no instruction for CRC-32C");
	engine->caller_mode = c->progress == KV_PROGRESS_CALLER;
	engine->arrivals_off = c->arrivals_off != 0;
	engine->log = kv_log_open(engine->options, c->log, c->log_arg);
	if (!engine->log)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate the log");
	warn_options(engine);
	name_engine(engine, c->name);
	ret = make_life(engine, err);
	if (!ret)
		ret = make_descriptors(engine, err);
	if (ret)
		return ret;
	tr_config.options = engine->options;
	tr_config.log = engine->log;
	return tr_open(&tr_config, &engine->tr, err);
}

int kv_engine_open(const struct kv_engine_config *config, struct kv_engine **engine_p,
		   struct kv_error *err)
{
	struct kv_engine *engine;
	int ret = check_engine_config(config, err);

	if (ret)
		return ret;
	if (!engine_p)
		return kv_fail(err, KV_ERR_ARG, "open", "engine_p is NULL");
	ret = kv_not_in_callback("open", err);
	if (ret)
		return ret;
	engine = kv_fault(KV_ENGINE_ALLOC) ? NULL : calloc(1, sizeof(*engine));
	if (!engine)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate the engine");
	engine->epoll_fd = engine->wake_fd = engine->nudge_fd = engine->arrivals.fd = -1;
	engine->listener_ns = KV_NO_DEADLINE;
	pthread_mutex_init(&engine->turn, NULL);
	pthread_mutex_init(&engine->lock, NULL);
	pthread_mutex_init(&engine->pool_lock, NULL);
	ret = fill_engine(engine, config, err);
	if (!ret && !engine->caller_mode)
		ret = kv_service_start(engine, err);
	if (ret) {
		free_engine(engine);
		return ret;
	}
	engine->magic = KV_MAGIC_ENGINE;
	kv_metrics_start(engine);
	KV_RANGES_LOOK();
	*engine_p = engine;
	return 0;
}

/* Returns the number of peers that another thread still holds. */
static int shut_peers(struct kv_engine *engine)
{
	int64_t deadline = kv_deadline_ns(KV_CLOSE_MS);
	int left = 0;

	for (uint32_t i = 0; i < engine->peers_end; i++) {
		struct kv_peer *peer = engine->peer[i];
		struct kv_error err;

		if (!peer)
			continue;
		/* A thread that is in a call on this peer, against the rules, must come back. */
		if (!kv_claim_until(&peer->claim, deadline + KV_STOP_MS * KV_NS_PER_MS)) {
			kv_log_error(engine->log, "a call on %s has not returned", peer->name);
			left++;
			continue;
		}
		if (kv_peer_shut(peer, deadline, &err))
			kv_log_error(engine->log, "closed the engine although %s", err.message);
		kv_peer_free(peer);
	}
	return left;
}

void kv_engine_close(struct kv_engine *engine)
{
	bool stopped;

	if (kv_engine_use(engine, "close", NULL))
		return; /* a forked child shares descriptors with its parent: it touches none */
	kv_metrics_stop(engine);
	engine->magic = KV_MAGIC_DEAD;
	stopped = kv_service_stop(engine);
	if (stopped && engine->listener)
		tr_listener_close(engine->listener);
	if (!stopped || shut_peers(engine)) {
		/*
		 * The thread still uses this memory and this code: neither can be freed or
		 * unloaded.
		 */
		kv_stay_loaded();
		kv_log_error(engine->log, "the engine is not freed: a thread is in a call that "
					  "does not return");
		return;
	}
	kv_watch_stop(engine);
	for (unsigned int i = 0; i < KV_CACHES_MAX; i++)
		if (engine->cache[i])
			kv_cache_free(engine->cache[i]);
	kv_ranges_free(engine);
	pthread_mutex_unlock(&engine->turn); /* kv_service_stop has taken it */
	free_engine(engine);
}
