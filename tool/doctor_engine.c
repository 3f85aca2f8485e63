/* SPDX-License-Identifier: Apache-2.0 */
/* doctor_engine.c -- what kvrail itself can do here: it opens an engine and registers memory */
#include "doctor_cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct doctor_engine {
	struct kv_engine *engine;
	struct kv_error err;
	int ret;
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

int doctor_cache_open(const char *const *options, struct doctor_cache *c, struct kv_error *err)
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

void doctor_note_error(struct doctor *d, enum doctor_check check, const struct kv_error *err)
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

struct doctor_engine *doctor_engine_open(struct doctor *d)
{
	struct doctor_engine *e = calloc(1, sizeof(*e));
	struct kv_device_info *rail = &d->rail[0];

	if (!e)
		return NULL;
	e->ret = open_engine(d, NULL, &e->engine, &e->err);
	for (size_t i = 0; !e->ret && d->rails < DEVICES_MAX; i++) {
		rail = &d->rail[d->rails];
		rail->size = sizeof(*rail);
		if (kv_device_get(e->engine, i, rail, NULL))
			break;
		d->rails += rail->usable && *rail->link;
	}
	return e;
}

static void note_devices(struct doctor *d, struct kv_engine *engine)
{
	struct kv_device_info row = KV_INIT(kv_device_info);

	for (size_t i = 0; !kv_device_get(engine, i, &row, NULL); i++) {
		bool ib = strcmp(row.transport, "shm");

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

	if (doctor_cache_open(d->rails ? devices : NULL, &cache, &err)) {
		doctor_note_error(d, CHECK_REGISTER, &err);
		return;
	}
	doctor_note(d, CHECK_REGISTER, DOCTOR_OK, "", "%d bytes are registered with %s",
		    BLOCKS * BLOCK_BYTES, d->rails ? "every port" : "shared memory");
	kv_engine_close(cache.engine);
}

void doctor_engine_note(struct doctor *d, struct doctor_engine *e)
{
	if (!e)
		return;
	if (e->ret) {
		doctor_note_error(d, CHECK_ENGINE, &e->err);
	} else {
		doctor_note(d, CHECK_ENGINE, DOCTOR_OK, "", "kvrail %s opens", kv_version());
		note_devices(d, e->engine);
		kv_engine_close(e->engine);
		note_register(d);
	}
	free(e);
}
