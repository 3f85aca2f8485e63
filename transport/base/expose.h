/* SPDX-License-Identifier: Apache-2.0 */
/*
 * expose.h -- what others see of this process: metrics in Prometheus' text format, in a file for
 * node_exporter's textfile collector (KVCACHE_METRICS_DIR) and at a port of loopback
 * (KVCACHE_METRICS_PORT); a local socket for `kvrail dump` and `kvrail top` (KVCACHE_VIEW); the
 * same in the log at a signal (KVCACHE_DUMP_SIGNAL)
 *
 * One thread of the process does it for all of its engines; without any of the options there is
 * none. The first engine that has an option decides the folder, and the first with the other one
 * the port: the engines of a process share the file, the port and the socket.
 */
#ifndef BASE_EXPOSE_H
#define BASE_EXPOSE_H

#include <stddef.h>

#include "log.h"
#include "option.h"
#include "report.h"
#include "sample.h"

struct kv_family {
	const char *name, *type, *help; /* type: "counter", "gauge", "histogram" */
};

struct kv_source {
	/* Sources with the same pointer: their samples of a family stand together, as they must. */
	const struct kv_family *families;
	size_t n;
	/*
	 * What the file's name begins with: each library that has a copy of this one (the engine,
	 * a plugin of NCCL, of NIXL) writes a file of its own.
	 */
	const char *file;
	/*
	 * In the thread of this file. `look` may wait for some ms, `sample` says what it saw. NULL:
	 * there is nothing to wait for.
	 */
	void (*look)(void *arg);
	void (*sample)(void *arg, size_t family, struct kv_text *text);
	/* An item; waits for no lock that a thread in trouble may keep. NULL: none */
	void (*report)(void *arg, struct kv_report *report);
	void *arg;
	struct kv_log *log;
	struct kv_source *next;
	bool measured, shown, logged; /* at the port, at the socket, at the signal */
};

/*
 * HOST.PID, as it stands in the file's name: a label of every sample. node_exporter drops what two
 * files say alike, those of the ranks of a host, or of a process that was killed and its successor.
 */
enum { KV_PROCESS_MAX = 80 };
const char *kv_expose_process(char buf[static KV_PROCESS_MAX]);
/* The options ask for metrics; for anything of this file. */
bool kv_expose_measures(const struct kv_option_set *options);
bool kv_expose_is_wanted(const struct kv_option_set *options);
/* What fails is a warning in the log. The source is the caller's, and stays until it is removed. */
void kv_expose_add(const struct kv_option_set *options, struct kv_source *source);
/* After it nothing of the source is called; the last one takes the file and the thread with it. */
void kv_expose_remove(struct kv_source *source);

#endif
