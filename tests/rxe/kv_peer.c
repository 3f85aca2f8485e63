/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_peer.c -- a prefill or a decode process that lives through faults, for two guests on one wire
 *
 *   kv_peer decode HOST PORT         listens; ends when a prefill has said END, or at SIGTERM
 *   kv_peer prefill HOST PORT TAG    writes requests TAG, TAG + 1, ... until SIGTERM
 *   kv_peer end HOST PORT            says END
 *
 * A request is some blocks whose ids and bytes follow from its tag; the answer names request and
 * attempt, as an attempt that was not acknowledged in time may still arrive. At each arrival the
 * decode side checks every block of its cache: those of the request, and that all others are as
 * they were; then it writes an answer back, and only then the prefill side goes on. A prefill that
 * loses its peer connects again and writes the same request once more. Once a peer is closed here
 * no byte of it may land any more: the blocks that its next request would have used are stamped
 * anew and must stay so.
 */
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <kvrail/kv.h>

enum {
	LAYERS = 2,
	TENSORS = 2,
	BLOCKS = 64,
	WORDS = 2048,
	N = 16,
	WAIT_MS = 30000,
	ANSWER_MS = 6500,
	IDLE_S = 90,
	TELLS = 5,
	ATTEMPTS = 16
};
#define END UINT64_MAX
#define HELLO (UINT64_MAX - 1)

struct caches {
	struct kv_cache *blocks;
	struct kv_cache *answer; /* one small block */
};

static const struct kv_layers all_layers;
static uint64_t *memory;
static uint64_t epoch[BLOCKS]; /* the tag whose bytes a block holds, 0 = the stamp */
static volatile sig_atomic_t stopped;

static void on_sigterm(int number)
{
	stopped = 1;
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void say(const char *who, const char *what, const struct kv_error *err)
{
	char line[1024] = "";

	if (err)
		kv_error_format(err, line, sizeof(line));
	printf("%s: %s%s%s\n", who, what, err ? ": " : "", line);
	fflush(stdout);
}

static void check(int code, const struct kv_error *err, const char *what)
{
	if (code >= 0)
		return;
	say("kv_peer", what, err);
	exit(1);
}

static uint64_t *block_at(int layer, int tensor, int64_t id)
{
	return memory + ((size_t)(layer * TENSORS + tensor) * BLOCKS + (size_t)id) * WORDS;
}

static uint64_t word(uint64_t tag, int layer, int tensor, int64_t id, int i)
{
	uint64_t key = (uint64_t)((layer * TENSORS + tensor) * BLOCKS) + (uint64_t)id;

	return (tag * BLOCKS * LAYERS * TENSORS + key + 1) * UINT64_C(0x9e3779b97f4a7c15) +
	       (uint64_t)i;
}

/*
 * Block i of request `tag`: its id on the decode side. The prefill side has it under the same id.
 */
static int64_t id_of(uint64_t tag, int i)
{
	return (int64_t)((tag * 5 + (uint64_t)i * 11) % BLOCKS);
}

static void fill(uint64_t tag, int64_t id)
{
	for (int l = 0; l < LAYERS; l++)
		for (int t = 0; t < TENSORS; t++)
			for (int i = 0; i < WORDS; i++)
				block_at(l, t, id)[i] = word(tag, l, t, id, i);
}

static uint64_t wrong_words(void)
{
	uint64_t wrong = 0;

	for (int64_t id = 0; id < BLOCKS; id++)
		for (int l = 0; l < LAYERS; l++)
			for (int t = 0; t < TENSORS; t++)
				for (int i = 0; i < WORDS; i++)
					wrong += block_at(l, t, id)[i] !=
						 word(epoch[id], l, t, id, i);
	return wrong;
}

static void tell(void *arg, int level, const char *line)
{
	if (level <= KV_LOG_WARN) {
		printf("%s: log: %s\n", (const char *)arg, line);
		fflush(stdout);
	}
}

static struct kv_engine *open_engine(const char *name, struct caches *caches)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_tensor tensor[TENSORS] = { { .name = "k" }, { .name = "v" } };
	struct kv_layout layout = KV_INIT(kv_layout);
	size_t tensor_bytes = (size_t)BLOCKS * WORDS * 8;
	static uint64_t answer[8];
	struct kv_engine *engine;
	struct kv_error err;
	void *ptr;

	config.name = name;
	config.log = tell;
	config.log_arg = (void *)(uintptr_t)name;
	check(kv_engine_open(&config, &engine, &err), &err, "open");
	check(kv_alloc(engine, LAYERS * TENSORS * tensor_bytes, &ptr, &err), &err, "alloc");
	memory = ptr;
	for (int t = 0; t < TENSORS; t++) {
		tensor[t].block_bytes = WORDS * 8;
		tensor[t].base = (char *)ptr + (size_t)t * tensor_bytes;
		tensor[t].layer_stride = TENSORS * tensor_bytes;
	}
	layout.layers = LAYERS;
	layout.tensors = TENSORS;
	layout.tensor = tensor;
	layout.blocks = BLOCKS;
	layout.flags = KV_CACHE_OPEN;
	check(kv_cache_register(engine, &layout, &caches->blocks, &err), &err, "register");
	tensor[0] = (struct kv_tensor){ .name = "answer", .block_bytes = sizeof(answer) };
	tensor[0].base = answer;
	layout.cache_id = layout.layers = layout.tensors = layout.blocks = 1;
	check(kv_cache_register(engine, &layout, &caches->answer, &err), &err, "register");
	for (int64_t id = 0; id < BLOCKS; id++)
		fill(0, id);
	return engine;
}

/* ---------------------------------------------------------------- decode */

struct decode {
	struct caches caches;
	struct kv_peer *peer;
	uint64_t requests, wrong, lost;
	uint64_t last; /* tag of the last request */
	int printed;
	bool ended;
};

/* Closes the peer; from then on nothing of it may land. */
static void drop_peer(struct decode *d)
{
	struct kv_error err;

	check(kv_peer_close(d->peer, WAIT_MS, &err), &err, "close");
	d->peer = NULL;
	for (int i = 0; i < N; i++) {
		epoch[id_of(d->last + 1, i)] = 0;
		fill(0, id_of(d->last + 1, i));
	}
}

/* A prefill that gets no answer has to connect again. */
static void answer(struct decode *d, uint64_t tag)
{
	struct kv_options options = KV_INIT(kv_options);
	struct kv_error err;
	int64_t id = 0;

	options.tag = tag;
	if (!d->peer ||
	    !kv_write_blocks(d->peer, d->caches.answer, all_layers, &id, &id, 1, &options, &err))
		return;
	say("decode", "answer failed", &err);
	drop_peer(d);
}

static void on_request(struct decode *d, const struct kv_arrival *arrival)
{
	uint64_t request = arrival->tag / ATTEMPTS, wrong;

	if (arrival->cache != d->caches.blocks)
		return;
	if (arrival->tag == END) {
		d->ended = true;
		return;
	}
	for (int i = 0; i < N; i++)
		epoch[id_of(request, i)] = request;
	wrong = wrong_words();
	if (wrong && ++d->printed <= TELLS) {
		printf("decode: request %" PRIu64 ": %" PRIu64 " wrong words\n", request, wrong);
		fflush(stdout);
	}
	d->wrong += wrong;
	d->requests++;
	d->last = request;
	answer(d, arrival->tag);
}

/*
 * A prefill that comes back may be here before this end has noticed that its old connection is
 * gone.
 */
static void on_up(struct decode *d, struct kv_peer *peer)
{
	if (d->peer)
		drop_peer(d);
	d->peer = peer;
	answer(d, HELLO);
}

static void on_lost(struct decode *d, const struct kv_arrival *arrival)
{
	printf("decode: peer lost: %s\n", kv_error_name(arrival->status));
	fflush(stdout);
	d->lost++;
	if (arrival->peer == d->peer)
		drop_peer(d);
}

static int decode(const char *host, uint32_t port)
{
	struct decode d = { 0 };
	struct kv_engine *engine = open_engine("decode", &d.caches);
	struct pollfd fd = { .fd = kv_arrivals_fd(engine), .events = POLLIN };
	struct kv_arrival arrival;
	struct kv_error err;
	double limit;
	int n;

	check(kv_listen(engine, host, port, NULL, &err), &err, "listen");
	say("decode", "listening", NULL);
	for (limit = seconds() + IDLE_S; !d.ended && !stopped && seconds() < limit;) {
		poll(&fd, 1, 100);
		n = kv_poll_arrivals(engine, &arrival, 1, &err);
		check(n, &err, "poll");
		if (n)
			limit = seconds() + IDLE_S;
		if (n && arrival.kind == KV_ARRIVAL_BLOCKS)
			on_request(&d, &arrival);
		else if (n && arrival.kind == KV_ARRIVAL_PEER_UP)
			on_up(&d, arrival.peer);
		else if (n && arrival.kind == KV_ARRIVAL_PEER_LOST)
			on_lost(&d, &arrival);
	}
	printf("decode: requests %" PRIu64 " wrong %" PRIu64 " lost %" PRIu64 " ended %d\n",
	       d.requests, d.wrong, d.lost, d.ended);
	kv_engine_close(engine);
	return d.wrong || (!d.ended && !stopped);
}

/* ---------------------------------------------------------------- prefill */

struct prefill {
	struct kv_engine *engine;
	struct caches caches;
	struct kv_peer *peer;
	const char *host;
	uint32_t port;
	int requests, failures, connects;
	double longest;
};

/* Waits for the answer to a request; PEER_LOST if the peer goes before. */
static int await_answer(struct prefill *p, uint64_t tag, struct kv_error *err)
{
	struct pollfd fd = { .fd = kv_arrivals_fd(p->engine), .events = POLLIN };
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	double limit = seconds() + ANSWER_MS / 1000.0; /* more than an operation has */
	struct kv_arrival arrival;

	do {
		poll(&fd, 1, 20);
		while (kv_poll_arrivals(p->engine, &arrival, 1, err) > 0)
			if (arrival.kind == KV_ARRIVAL_BLOCKS && arrival.tag == tag)
				return 0;
		check(kv_peer_info(p->peer, &info, err), err, "info");
	} while (info.connected && seconds() < limit);
	*err = (struct kv_error){ .size = sizeof(*err), .code = KV_ERR_PEER_LOST };
	err->scope = kv_error_scope(err->code);
	snprintf(err->message, sizeof(err->message), "no answer, connected %d", info.connected);
	return err->code;
}

/* Tries until WAIT_MS have passed: the peer may be starting again. */
static void connect_again(struct prefill *p)
{
	struct timespec pause = { .tv_nsec = 100 * 1000 * 1000 };
	double limit = seconds() + WAIT_MS / 1000.0;
	struct kv_error err;
	int ret;

	do {
		if (p->peer)
			check(kv_peer_close(p->peer, WAIT_MS, &err), &err, "close");
		p->peer = NULL;
		ret = kv_connect(p->engine, p->host, p->port, 3000, &p->peer, &err);
		if (!ret)
			ret = await_answer(p, HELLO, &err);
		if (ret)
			nanosleep(&pause, NULL);
	} while (ret && seconds() < limit);
	check(ret, &err, "connect");
	p->connects++;
}

static int write_once(struct prefill *p, uint64_t tag, unsigned int attempt)
{
	struct kv_options options = KV_INIT(kv_options);
	double began = seconds(), took;
	struct kv_error err;
	int64_t ids[N];
	char what[96];
	int ret;

	for (int i = 0; i < N; i++)
		ids[i] = id_of(tag, i);
	options.tag = tag == END ? END : tag * ATTEMPTS + attempt % ATTEMPTS;
	ret = kv_write_blocks(p->peer, p->caches.blocks, all_layers, ids, ids, N, &options, &err);
	if (!ret && tag != END)
		ret = await_answer(p, options.tag, &err);
	took = seconds() - began;
	if (took > p->longest)
		p->longest = took;
	if (!ret)
		return 0;
	snprintf(what, sizeof(what), "request %" PRIu64 " failed after %.0f ms", tag, 1e3 * took);
	say("prefill", what, &err);
	p->failures++;
	if (err.scope < KV_SCOPE_REQUEST)
		exit(1); /* nothing that a fault of the wire can cause */
	if (err.scope >= KV_SCOPE_PEER)
		connect_again(p);
	return ret;
}

static struct prefill start_prefill(const char *host, uint32_t port)
{
	struct prefill p = { .host = host, .port = port };
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_error err;

	p.engine = open_engine("prefill", &p.caches);
	connect_again(&p);
	check(kv_peer_info(p.peer, &info, &err), &err, "info");
	printf("prefill: connected to %s over %s: %s\n", info.address, info.transport, info.path);
	fflush(stdout);
	return p;
}

static int prefill(const char *host, uint32_t port, uint64_t tag)
{
	struct prefill p = start_prefill(host, port);

	for (; !stopped; tag++) {
		for (int i = 0; i < N; i++)
			fill(tag, id_of(tag, i));
		for (unsigned int attempt = 0; write_once(&p, tag, attempt); attempt++)
			;
		p.requests++;
	}
	printf("prefill: requests %d failures %d connects %d longest %.0f ms next %" PRIu64 "\n",
	       p.requests, p.failures, p.connects, 1e3 * p.longest, tag);
	kv_engine_close(p.engine);
	return 0;
}

static int end(const char *host, uint32_t port)
{
	struct prefill p = start_prefill(host, port);

	while (write_once(&p, END, 0))
		;
	kv_engine_close(p.engine);
	return 0;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_sigterm };
	uint32_t port = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 0;

	sigaction(SIGTERM, &action, NULL);
	if (argc == 4 && !strcmp(argv[1], "decode"))
		return decode(argv[2], port);
	if (argc == 5 && !strcmp(argv[1], "prefill"))
		return prefill(argv[2], port, strtoull(argv[4], NULL, 10));
	if (argc == 4 && !strcmp(argv[1], "end"))
		return end(argv[2], port);
	fprintf(stderr, "usage: kv_peer decode|end HOST PORT | kv_peer prefill HOST PORT TAG\n");
	return 2;
}
