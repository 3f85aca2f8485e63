/* SPDX-License-Identifier: Apache-2.0 */
/* engine.c -- what kvrail itself can do: opens an engine, registers memory, writes to a peer */
#include "doctor.h"

#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>

#include "base/number.h"

enum { BLOCKS = 2, BLOCK_BYTES = 1 << 20, WAIT_MS = 5000 };

/* The small cache that is registered, written from and read back into. */
struct doctor_cache {
	struct kv_engine *engine;
	struct kv_cache *handle;
	unsigned char *memory;
};

static void warn(void *arg, int level, const char *line)
{
	if (level > KV_LOG_WARN)
		return;
	doctor_note(arg, CHECK_OPTIONS, DOCTOR_WARN, "", "%s", line);
	doctor_fix(arg, "kvrail info lists the options and what is in force");
}

static int open_engine(struct doctor *d, const char *const *options, struct kv_engine **engine_p,
		       struct kv_error *err)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);

	config.name = "kvrail doctor";
	config.options = options;
	config.log = d ? warn : NULL;
	config.log_arg = d;
	return kv_engine_open(&config, engine_p, err);
}

/* An engine with the cache registered; `options` as kv_engine_config has them. */
static int open_cache(const char *const *options, struct doctor_cache *c, struct kv_error *err)
{
	struct kv_tensor tensor = { .name = "doctor", .block_bytes = BLOCK_BYTES };
	struct kv_layout layout = KV_INIT(kv_layout);
	void *memory;
	int ret = open_engine(NULL, options, &c->engine, err);

	if (ret)
		return ret;
	ret = kv_alloc(c->engine, (size_t)BLOCKS * BLOCK_BYTES, &memory, err);
	if (!ret) {
		c->memory = memory;
		tensor.base = memory;
		layout.layers = layout.tensors = 1;
		layout.blocks = BLOCKS;
		layout.tensor = &tensor;
		layout.flags = KV_CACHE_OPEN | KV_CACHE_READABLE;
		ret = kv_cache_register(c->engine, &layout, &c->handle, err);
	}
	if (ret)
		kv_engine_close(c->engine);
	return ret;
}

static void note_error(struct doctor *d, enum doctor_check check, const struct kv_error *err)
{
	doctor_note(d, check, DOCTOR_FAIL, err->device, "KV_ERR_%s: %s", kv_error_name(err->code),
		    err->message);
	if (*err->hint)
		doctor_fix(d, "%s", err->hint);
	else if (err->code == KV_ERR_ARG)
		doctor_fix(d, "correct that value, or unset it; kvrail info lists what each takes");
	else
		doctor_fix(d, "docs/troubleshooting.md says what KV_ERR_%s means",
			   kv_error_name(err->code));
}

/* Opened first, as the lines about a port say what was chosen for it; reported at its place. */
void doctor_engine_open(struct doctor *d)
{
	if (open_engine(d, NULL, &d->engine, &d->engine_err))
		return;
	for (size_t i = 0; d->rails < DEVICES_MAX; i++) {
		struct kv_device_info *rail = &d->rail[d->rails];

		rail->size = sizeof(*rail);
		if (kv_device_get(d->engine, i, rail, NULL))
			break;
		d->rails += rail->usable && !strcmp(rail->transport, "ib");
	}
}

static void note_devices(struct doctor *d, struct kv_engine *engine)
{
	struct kv_device_info row = KV_INIT(kv_device_info);

	for (size_t i = 0; !kv_device_get(engine, i, &row, NULL); i++) {
		bool ib = !strcmp(row.transport, "ib");

		if (!strcmp(row.transport, "tcp")) /* kvrail info */
			continue;
		doctor_note(d, ib ? CHECK_IB : CHECK_SHM, row.usable ? DOCTOR_OK : DOCTOR_WARN,
			    row.name, "%s%s%s", row.detail, *row.distance ? "; from the GPU: " : "",
			    row.distance);
		doctor_fix(d, ib ? "the first line above that is not ok; KVCACHE_TRANSPORT and "
				   "KVCACHE_RDMA_NICS must allow it"
				 : "unset KVCACHE_TRANSPORT, or set it to auto");
	}
}

/*
 * With the devices alone where there are some: beside shared memory a device that refuses is left
 * out.
 */
static void note_register(struct doctor *d)
{
	static const char *const devices[] = { "KVCACHE_TRANSPORT=ib", NULL };
	struct doctor_cache cache;
	struct kv_error err;

	if (open_cache(d->rails ? devices : NULL, &cache, &err)) {
		note_error(d, CHECK_REGISTER, &err);
		return;
	}
	doctor_note(d, CHECK_REGISTER, DOCTOR_OK, "", "%d bytes are registered with %s",
		    BLOCKS * BLOCK_BYTES, d->rails ? "every port" : "shared memory");
	kv_engine_close(cache.engine);
}

void check_engine(struct doctor *d)
{
	if (!d->engine) {
		note_error(d, CHECK_ENGINE, &d->engine_err);
		return;
	}
	doctor_note(d, CHECK_ENGINE, DOCTOR_OK, "", "kvrail %s opens", kv_version());
	note_devices(d, d->engine);
	kv_engine_close(d->engine);
	note_register(d);
}

/* A key file that cannot be used is an engine that does not open: check_engine says why. */
void check_key(struct doctor *d)
{
	const char *path = getenv("KVCACHE_PSK_FILE");
	bool set = path && *path;

	if (set && d->engine_err.code == KV_ERR_AUTH)
		return;
	doctor_note(d, CHECK_KEY, DOCTOR_OK, "", "%s%s",
		    set ? "both ends of a connection need a key of "
			: "none: every process that reaches a listening port may connect",
		    set ? path : "");
}

/* ---------------------------------------------------------------- a peer */

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static bool resolve(struct doctor *d, const char *host)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	struct addrinfo *list;
	char text[NI_MAXHOST];
	int ret = getaddrinfo(host, NULL, &hints, &list);

	if (ret) {
		doctor_note(d, CHECK_RESOLVE, DOCTOR_FAIL, "", "%s: %s", host, gai_strerror(ret));
		doctor_fix(d,
			   "the address itself (kvrail doctor --peer 10.0.0.2), or getent hosts %s",
			   host);
		return false;
	}
	if (getnameinfo(list->ai_addr, list->ai_addrlen, text, sizeof(text), NULL, 0,
			NI_NUMERICHOST))
		snprintf(text, sizeof(text), "?");
	doctor_note(d, CHECK_RESOLVE, DOCTOR_OK, "", "%s is %s", host, text);
	freeaddrinfo(list);
	return true;
}

static int64_t handshake_ms(struct kv_engine *engine)
{
	struct kv_option_info option = KV_INIT(kv_option_info);
	long long ms = WAIT_MS;
	const char *end;

	for (size_t i = 0; !kv_option_get(engine, i, &option, NULL); i++)
		if (!strcmp(option.name, "KVCACHE_HANDSHAKE_MS"))
			kv_number(option.value, &ms, &end);
	return ms;
}

static struct kv_peer *connect_to(struct doctor *d, struct doctor_cache *c, const char *host,
				  uint32_t port)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_peer *peer;
	struct kv_error err;

	if (!kv_connect(c->engine, host, port, handshake_ms(c->engine), &peer, &err)) {
		kv_peer_info(peer, &info, NULL);
		doctor_note(d, CHECK_CONNECT, DOCTOR_OK, info.transport, "%s, %s", info.address,
			    info.path);
		return peer;
	}
	note_error(d, CHECK_CONNECT, &err);
	if (err.code == KV_ERR_PEER_LOST || err.code == KV_ERR_TIMEOUT)
		doctor_fix(d,
			   "there: kvrail doctor --listen %s --port %u; a firewall must let TCP "
			   "port %u in",
			   host, port, port);
	return NULL;
}

static int write_and_read(const struct doctor_cache *c, struct kv_peer *peer, double *write_s,
			  struct kv_error *err)
{
	static const int64_t first = 0, second = 1;
	const struct kv_layers all = { 0 };
	double began = seconds();
	int ret;

	ret = kv_write_blocks(peer, c->handle, all, &first, &first, 1, NULL, err);
	*write_s = seconds() - began;
	if (!ret)
		ret = kv_read_blocks(peer, c->handle, all, &second, &first, 1, NULL, err);
	return ret;
}

static void fill(unsigned char *block)
{
	for (size_t done = 0; done < BLOCK_BYTES; done += 256)
		if (getrandom(block + done, 256, 0) != 256)
			memset(block + done, (int)(done >> 8), 256);
}

void doctor_peer(struct doctor *d, const char *host, uint32_t port)
{
	struct doctor_cache c = { 0 };
	struct kv_peer *peer;
	struct kv_error err;
	double took;

	if (!resolve(d, host))
		return;
	if (open_cache(NULL, &c, &err)) {
		note_error(d, CHECK_CONNECT, &err);
		return;
	}
	fill(c.memory);
	peer = connect_to(d, &c, host, port);
	if (peer) {
		if (write_and_read(&c, peer, &took, &err)) {
			note_error(d, CHECK_WRITE, &err);
		} else if (memcmp(c.memory, c.memory + BLOCK_BYTES, BLOCK_BYTES)) {
			doctor_note(d, CHECK_WRITE, DOCTOR_FAIL, "",
				    "the bytes read back are not those written");
			doctor_fix(d, "report this with kvrail doctor --json of both hosts");
		} else {
			doctor_note(d, CHECK_WRITE, DOCTOR_OK, "",
				    "%d bytes written in %.2f ms and read back alike", BLOCK_BYTES,
				    1e3 * took);
		}
		kv_peer_close(peer, WAIT_MS, NULL);
	}
	kv_engine_close(c.engine);
}

int doctor_listen(const char *host, uint32_t port, int limit)
{
	double until = seconds() + limit;
	struct doctor_cache c = { 0 };
	struct kv_arrival arrival;
	struct kv_error err;
	char line[1024];
	int ret;

	ret = open_cache(NULL, &c, &err);
	if (!ret) {
		ret = kv_listen(c.engine, host, port, &port, &err);
		if (ret)
			kv_engine_close(c.engine);
	}
	if (ret) {
		kv_error_format(&err, line, sizeof(line));
		fprintf(stderr, "kvrail doctor: %s\n", line);
		return 1;
	}
	printf("listening on %s port %u; there: kvrail doctor --peer %s --port %u\n", host, port,
	       host, port);
	fflush(stdout);
	while (seconds() < until) {
		struct pollfd fd = { .fd = kv_arrivals_fd(c.engine), .events = POLLIN };

		poll(&fd, 1, 200);
		while (kv_poll_arrivals(c.engine, &arrival, 1, NULL) > 0)
			if (arrival.kind == KV_ARRIVAL_PEER_LOST)
				kv_peer_close(arrival.peer, WAIT_MS, NULL);
	}
	kv_engine_close(c.engine);
	return 0;
}
