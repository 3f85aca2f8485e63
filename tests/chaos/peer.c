/* SPDX-License-Identifier: Apache-2.0 */
/* peer.c -- the engine of a process under chaos: options, connections, the end */
#include "peer.h"

#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../lib/process.h"

struct status *status;
struct options options = {
	.host = "127.0.0.1",
	.shape = { 2, 48, { 16384, 6000 }, { 16384, 8192 } },
	.in_flight = 4,
	.patience = 1,
};
struct kv_engine *engine;
struct cache cache;
struct kv_cache *mail;
uint8_t (*mail_mem)[MAIL_BYTES];
const struct kv_layers all_layers;
struct link links[LINKS];

static const struct role *role;
static volatile sig_atomic_t stopped;
static atomic_bool dialled[IDS]; /* by number of the dial: connected, or on its way to be */
static pthread_mutex_t new_lock = PTHREAD_MUTEX_INITIALIZER;
static struct kv_peer *new_peer[IDS]; /* by number of the dial: for the main thread */

static void on_sigterm(int number)
{
	stopped = 1;
}

static void nap(int ms)
{
	poll(NULL, 0, ms);
}

uint64_t order_check(const struct order *o)
{
	const uint64_t *word = (const uint64_t *)o;
	uint64_t sum = 1;

	for (size_t i = 1; i < sizeof(*o) / 8; i++)
		sum = mix(sum + word[i]);
	return sum;
}

/* ---------------------------------------------------------------- connections */

static void link_add(struct kv_peer *peer, unsigned int dial)
{
	static uint64_t number;
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct link *link = links;

	CALL(may_never, 0, kv_peer_info(peer, &info, &error));
	while (link->peer)
		if (++link == links + LINKS)
			abort();
	*link = (struct link){ peer, strtoull(info.name, NULL, 10) % IDS, !info.connected,
			       ++number };
	kv_peer_set_user(peer, dial);
	/* A process that comes back may be here before this end has noticed that it was gone. */
	for (struct link *old = links; old < links + LINKS; old++)
		if (old->peer && old != link && old->id == link->id)
			link_drop(old);
	tell("connected to %s over %s: %s", info.name, info.transport, info.path);
}

void link_drop(struct link *link)
{
	link->lost = true;
}

static void close_lost(int64_t wait_ms)
{
	uint64_t connected = 0, busy = 0;

	for (struct link *l = links; l < links + LINKS; l++) {
		struct kv_peer_info info = KV_INIT(kv_peer_info);

		if (!l->peer)
			continue;
		connected += !l->lost;
		if (!l->lost)
			continue;
		CALL(may_never, 0, kv_peer_info(l->peer, &info, &error));
		if (CALL(may_close, wait_ms, kv_peer_close(l->peer, wait_ms, &error))) {
			busy++;
			continue;
		}
		role->closed(l);
		cache_check(&cache);
		if (info.user)
			atomic_store(&dialled[info.user - 1], false);
		l->peer = NULL;
	}
	status->connected = connected;
	status->quarantined = busy;
}

static void *dial(void *arg)
{
	unsigned int i = (unsigned int)(uintptr_t)arg;

	while (!stopped) {
		struct kv_peer *peer;

		if (!atomic_load(&dialled[i]) &&
		    !CALL(may_connect, CONNECT_MS,
			  kv_connect(engine, options.host, options.dial[i], CONNECT_MS, &peer,
				     &error))) {
			atomic_store(&dialled[i], true);
			pthread_mutex_lock(&new_lock);
			new_peer[i] = peer;
			pthread_mutex_unlock(&new_lock);
		}
		nap(20);
	}
	return NULL;
}

static void take_new(void)
{
	pthread_mutex_lock(&new_lock);
	for (unsigned int i = 0; i < options.dials; i++)
		if (new_peer[i]) {
			link_add(new_peer[i], i + 1);
			new_peer[i] = NULL;
		}
	pthread_mutex_unlock(&new_lock);
}

static struct link *link_of(const struct kv_peer *peer)
{
	for (struct link *link = links; link < links + LINKS; link++)
		if (link->peer == peer)
			return link;
	return NULL;
}

static void peer_lost(struct link *link, int status_code)
{
	tell("peer %d lost: %s", (int)link->id, kv_error_name(status_code));
	link_drop(link);
}

static bool take_arrivals(void)
{
	struct kv_arrival arrival[32];
	int n;

	take_new();
	n = CALL(may_never, 0, kv_poll_arrivals(engine, arrival, 32, &error));
	for (int i = 0; i < n; i++) {
		struct link *link = link_of(arrival[i].peer);

		if (arrival[i].kind == KV_ARRIVAL_PEER_UP)
			link_add(arrival[i].peer, 0);
		else if (!link)
			continue; /* of a kv_connect that is about to return; it is ordered again */
		else if (arrival[i].kind == KV_ARRIVAL_PEER_LOST)
			peer_lost(link, arrival[i].status);
		else if (arrival[i].kind == KV_ARRIVAL_BLOCKS && !link->lost)
			role->arrival(link, &arrival[i]);
	}
	return n > 0;
}

/* ---------------------------------------------------------------- the engine */

static void log_line(void *arg, int level, const char *line)
{
	if (level <= KV_LOG_WARN)
		tell("log: %s", line);
}

static int register_caches(void)
{
	struct kv_tensor tensor[TENSORS] = { { .name = "k" }, { .name = "v" } };
	struct kv_layout layout = KV_INIT(kv_layout);
	const struct shape *s = &cache.shape;
	uint8_t *base = cache.mem + 4096;
	static const int may[] = { KV_ERR_NOMEM, KV_ERR_SYSTEM, KV_ERR_MEMLOCK, 0 };
	int ret;

	for (int t = 0; t < TENSORS; t++) {
		tensor[t].block_bytes = s->bytes[t];
		tensor[t].stride = s->stride[t];
		tensor[t].base = base + (t ? s->blocks * s->stride[0] : 0);
		tensor[t].layer_stride = s->blocks * (s->stride[0] + s->stride[1]);
	}
	layout.layers = s->layers;
	layout.tensors = TENSORS;
	layout.tensor = tensor;
	layout.blocks = s->blocks;
	ret = CALL(may, 0, kv_cache_register(engine, &layout, &cache.handle, &error));
	if (ret)
		return ret;
	tensor[0] = (struct kv_tensor){ .name = "mail", .block_bytes = MAIL_BYTES };
	tensor[0].base = mail_mem;
	layout.cache_id = layout.layers = layout.tensors = 1;
	layout.blocks = MAIL_SLOTS;
	layout.flags = KV_CACHE_OPEN;
	return CALL(may, 0, kv_cache_register(engine, &layout, &mail, &error));
}

/* All of it, or nothing. */
static int open_engine(void)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	static const int may[] = { KV_ERR_NOMEM, KV_ERR_NOFD,	KV_ERR_SYSTEM,
				   KV_ERR_BUSY,	 KV_ERR_DEVICE, 0 };
	char name[32];
	void *mem, *letters = NULL;
	int ret;

	snprintf(name, sizeof(name), "%d %s", (int)options.id,
		 options.sends ? "sends" : "receives");
	config.name = name;
	config.log = log_line;
	ret = CALL(may, 0, kv_engine_open(&config, &engine, &error));
	if (ret) {
		engine = NULL;
		return ret;
	}
	cache.shape = options.shape;
	ret = CALL(may, 0, kv_alloc(engine, cache_len(&cache.shape), &mem, &error));
	if (!ret)
		ret = CALL(may, 0, kv_alloc(engine, MAIL_SLOTS * MAIL_BYTES, &letters, &error));
	if (!ret) {
		mail_mem = letters;
		cache.mem = mem;
		cache_begin(&cache, &options.random);
		ret = register_caches();
	}
	if (!ret && options.listen)
		ret = CALL(may, 3000,
			   kv_listen(engine, options.host, options.listen, NULL, &error));
	if (!ret)
		return 0;
	call_begin("kv_engine_close", 0);
	kv_engine_close(engine);
	call_end(0, &error, may_never);
	engine = NULL;
	if (cache.stamp)
		cache_end(&cache);
	cache = (struct cache){ 0 };
	return ret;
}

static void close_engine(void)
{
	int64_t end = lived_ms() + 2 * REQUEST_MS + SLACK_MS;

	role->finish();
	while (!role->idle() && lived_ms() < end) {
		take_arrivals();
		if (!role->step())
			nap(1);
		close_lost(0);
	}
	for (struct link *link = links; link < links + LINKS; link++)
		link_drop(link);
	for (end = lived_ms() + SLACK_MS; lived_ms() < end; nap(1)) {
		close_lost(STOP_MS); /* says goodbye */
		if (!status->quarantined)
			break;
	}
	cache_check(&cache);
	call_begin("kv_engine_close", 0);
	kv_engine_close(engine);
	call_end(0, &error, may_never);
	cache_end(&cache);
}

static void work(void)
{
	struct pollfd fd = { .fd = kv_arrivals_fd(engine), .events = POLLIN };

	while (!stopped) {
		bool did = take_arrivals();

		did |= role->step();
		close_lost(0);
		if (!did)
			poll(&fd, 1, 1);
	}
}

/* ---------------------------------------------------------------- options */

static void parse_shape(const char *text)
{
	unsigned int layers, blocks, bytes;

	if (sscanf(text, "%ux%ux%u", &layers, &blocks, &bytes) != 3 || !layers ||
	    layers > LAYERS_MAX || blocks < 2 * N_MAX || bytes < 4096 || bytes % 4096) {
		fprintf(stderr, "chaos_peer: a shape is LAYERSxBLOCKSxBYTES, not %s\n", text);
		exit(2);
	}
	options.shape =
		(struct shape){ layers, blocks, { bytes, bytes / 2 - 1000 }, { bytes, bytes / 2 } };
}

static void parse(int argc, char **argv)
{
	int c, fd;

	while ((c = getopt(argc, argv, "i:sr:H:l:d:g:f:qt:k:o:")) != -1) {
		switch (c) {
		case 'i':
			options.id = strtoull(optarg, NULL, 10) % IDS;
			break;
		case 's':
			options.sends = true;
			break;
		case 'r':
			options.random = strtoull(optarg, NULL, 10);
			break;
		case 'H':
			options.host = optarg;
			break;
		case 'l':
			options.listen = (uint32_t)strtoul(optarg, NULL, 10);
			break;
		case 'd':
			if (options.dials < IDS)
				options.dial[options.dials++] = (uint32_t)strtoul(optarg, NULL, 10);
			break;
		case 'g':
			parse_shape(optarg);
			break;
		case 'f':
			options.in_flight = strtoull(optarg, NULL, 10) % SLOTS_EACH;
			break;
		case 'q':
			options.soak = true;
			break;
		case 't':
			options.patience = strtoll(optarg, NULL, 10);
			break;
		case 'k':
			options.kept = (int)strtol(optarg, NULL, 10);
			break;
		case 'o':
			fd = open(optarg, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
			if (fd < 0 || ftruncate(fd, sizeof(*status)))
				abort();
			status = mmap(NULL, sizeof(*status), PROT_READ | PROT_WRITE, MAP_SHARED, fd,
				      0);
			close(fd);
			break;
		default:
			exit(2);
		}
	}
	if (!status || status == MAP_FAILED) {
		fprintf(stderr,
			"usage: chaos_peer -o STATUS [-s] -i ID [-r SEED] [-H HOST] "
			"[-l PORT] [-d PORT ...] [-g LAYERSxBLOCKSxBYTES] [-f IN_FLIGHT] [-q] [-t PATIENCE] [-k KEPT]\n");
		exit(2);
	}
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_sigterm };
	pthread_t thread[IDS];
	int before, left;

	parse(argc, argv);
	role = options.sends ? &sender : &receiver;
	sigaction(SIGTERM, &action, NULL);
	guard_begin();
	before = count_descriptors();
	while (!stopped && open_engine())
		nap(50);
	if (engine) {
		status->ready++;
		for (unsigned int i = 0; i < options.dials; i++)
			thread[i] = thread_start(dial, (void *)(uintptr_t)i);
		work();
		for (unsigned int i = 0; i < options.dials; i++)
			pthread_join(thread[i], NULL);
		close_engine();
	}
	left = count_descriptors() - before;
	if (left > options.kept || !threads_have_gone(2))
		tell("WRONG: left behind: %d descriptors, %d threads", left, count_threads() - 2);
	return status->wrong || status->late || status->untyped || status->overdue ||
	       left > options.kept || !threads_have_gone(2);
}
