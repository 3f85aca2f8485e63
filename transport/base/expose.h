/* SPDX-License-Identifier: Apache-2.0 */
/*
 * expose.h -- metrics of this process in Prometheus' text format: a file for node_exporter's
 * textfile collector (KVCACHE_METRICS_DIR), a port of loopback (KVCACHE_METRICS_PORT)
 *
 * One thread of the process does it for all of its engines; without one of the two options there is
 * none. The first engine that has an option decides the folder, and the first with the other one
 * the port: two engines of a process share the file and the port.
 */
#ifndef BASE_EXPOSE_H
#define BASE_EXPOSE_H

#include <stddef.h>

#include "log.h"
#include "option.h"
#include "text.h"

struct kv_family {
	const char *name, *type, *help; /* type: "counter", "gauge", "histogram" */
};

struct kv_source {
	/* Sources with the same pointer: their samples of a family stand together, as they must. */
	const struct kv_family *families;
	size_t n;
	/* In the thread of this file. `look` may wait for some ms, `sample` says what it saw. */
	void (*look)(void *arg);
	void (*sample)(void *arg, size_t family, struct kv_text *text);
	void *arg;
	struct kv_log *log;
	struct kv_source *next;
};

/* What fails is a warning in the log. The source is the caller's, and stays until it is removed. */
void kv_expose_add(const struct kv_option_set *options, struct kv_source *source);
/* After it nothing of the source is called; the last one takes the file and the thread with it. */
void kv_expose_remove(struct kv_source *source);

/* A label's value: quotes and backslashes escaped. */
const char *kv_label(char *buf, size_t cap, const char *value);

#endif
