/* SPDX-License-Identifier: Apache-2.0 */
/* doctor_engine.c -- what kvrail itself can do here, and with a peer: the last word, by doing it */
#include "doctor.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum { BLOCKS = 2, BLOCK_BYTES = 1 << 20, WAIT_MS = 5000 };

struct test_cache {
	struct kv_engine *engine;
	struct kv_cache *handle;
	unsigned char *memory;
};

static void warn(void *arg, int level, const char *line)
{
	if (arg && level <= KV_LOG_WARN)
		doctor_note(arg, DOCTOR_WARN, "options", "", "see kvrail info", "%s", line);
}

/* An engine with 2 MiB registered: one block to write from or into, one to read back into. */
static int open_cache(struct doctor *d, struct test_cache *t, struct kv_error *err)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_tensor tensor = { .name = "doctor", .block_bytes = BLOCK_BYTES };
	struct kv_layout layout = KV_INIT(kv_layout);
	void *memory;
	int ret;

	config.name = "kvrail doctor";
	config.log = warn;
	config.log_arg = d;
	ret = kv_engine_open(&config, &t->engine, err);
	if (ret)
		return ret;
	ret = kv_alloc(t->engine, (size_t)BLOCKS * BLOCK_BYTES, &memory, err);
	if (!ret) {
		t->memory = memory;
		tensor.base = memory;
		layout.layers = layout.tensors = 1;
		layout.blocks = BLOCKS;
		layout.tensor = &tensor;
		layout.flags = KV_CACHE_OPEN | KV_CACHE_READABLE;
		ret = kv_cache_register(t->engine, &layout, &t->handle, err);
	}
	if (ret)
		kv_engine_close(t->engine);
	return ret;
}

static void note_error(struct doctor *d, const char *what, const struct kv_error *err)
{
	doctor_note(d, DOCTOR_FAIL, what, err->device,
		    *err->hint ? err->hint : kv_error_text(err->code), "KV_ERR_%s: %s",
		    kv_error_name(err->code), err->message);
}

static void keep_rail(struct doctor *d, const struct kv_device_info *device)
{
	struct doctor_rail *rail = &d->rail[d->rails];

	if (d->rails == RAILS_MAX || strcmp(device->transport, "ib") || !device->usable)
		return;
	d->rails++;
	snprintf(rail->name, sizeof(rail->name), "%s", device->name);
	rail->gid_index = device->gid_index;
}

static void note_devices(struct doctor *d, struct kv_engine *engine)
{
	struct kv_device_info device = KV_INIT(kv_device_info);

	for (size_t i = 0; !kv_device_get(engine, i, &device, NULL); i++) {
		keep_rail(d, &device);
		doctor_note(d, device.usable ? DOCTOR_OK : DOCTOR_WARN, device.transport,
			    device.name, "without it only the other transports are used", "%s",
			    device.detail);
	}
}

void doctor_engine(struct doctor *d)
{
	struct test_cache t = { 0 };
	struct kv_error err;

	if (open_cache(d, &t, &err)) {
		note_error(d, "engine", &err);
		return;
	}
	note_devices(d, t.engine);
	doctor_note(d, DOCTOR_OK, "register", "", "",
		    "%d bytes are registered with every transport", BLOCKS * BLOCK_BYTES);
	kv_engine_close(t.engine);
}

/* ---------------------------------------------------------------- with a peer */

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int write_and_read(const struct test_cache *t, struct kv_peer *peer, double *write_s,
			  struct kv_error *err)
{
	static const int64_t first = 0, second = 1;
	const struct kv_layers all = { 0 };
	double began = seconds();
	int ret;

	ret = kv_write_blocks(peer, t->handle, all, &first, &first, 1, NULL, err);
	*write_s = seconds() - began;
	if (!ret)
		ret = kv_read_blocks(peer, t->handle, all, &second, &first, 1, NULL, err);
	return ret;
}

void doctor_peer(struct doctor *d, const char *host, uint32_t port)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct test_cache t = { 0 };
	struct kv_peer *peer;
	struct kv_error err;
	double took;

	if (open_cache(NULL, &t, &err)) {
		note_error(d, "peer", &err);
		return;
	}
	for (size_t done = 0; done < BLOCK_BYTES; done += 256)
		if (getrandom(t.memory + done, 256, 0) != 256)
			memset(t.memory + done, (int)(done >> 8), 256);
	if (kv_connect(t.engine, host, port, WAIT_MS, &peer, &err)) {
		note_error(d, "peer", &err);
	} else {
		kv_peer_info(peer, &info, NULL);
		if (write_and_read(&t, peer, &took, &err))
			note_error(d, "peer", &err);
		else if (memcmp(t.memory, t.memory + BLOCK_BYTES, BLOCK_BYTES))
			doctor_note(
				d, DOCTOR_FAIL, "peer", info.transport,
				"report this with the output of kvrail doctor --json of both hosts",
				"%s: the bytes read back are not those written", info.address);
		else
			doctor_note(d, DOCTOR_OK, "peer", info.transport, "",
				    "%s: %d bytes written in %.2f ms and read back alike, over %s",
				    info.address, BLOCK_BYTES, 1e3 * took, info.path);
		kv_peer_close(peer, WAIT_MS, NULL);
	}
	kv_engine_close(t.engine);
}

int doctor_listen(const char *host, uint32_t port, int limit)
{
	double until = seconds() + limit;
	struct test_cache t = { 0 };
	struct kv_arrival arrival;
	struct kv_error err;
	char line[1024];
	int ret;

	ret = open_cache(NULL, &t, &err);
	if (!ret) {
		ret = kv_listen(t.engine, host, port, &port, &err);
		if (ret)
			kv_engine_close(t.engine);
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
		struct pollfd fd = { .fd = kv_arrivals_fd(t.engine), .events = POLLIN };

		poll(&fd, 1, 200);
		while (kv_poll_arrivals(t.engine, &arrival, 1, NULL) > 0)
			if (arrival.kind == KV_ARRIVAL_PEER_LOST)
				kv_peer_close(arrival.peer, WAIT_MS, NULL);
	}
	kv_engine_close(t.engine);
	return 0;
}
