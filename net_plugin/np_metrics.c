/* SPDX-License-Identifier: Apache-2.0 */
/* np_metrics.c -- counters of a device for Prometheus, which base/expose.c gives out */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/expose.h"
#include "base/unload.h"
#include "np.h"

enum { REQUESTS, BYTES, COMMUNICATORS, FAILED, FAMILIES };
enum { CODES = 96 }; /* -KV_ERR_* */

#define COUNTER(id, name, help) [id] = { "kvrail_nccl_" name "_total", "counter", help }
#define GAUGE(id, name, help) [id] = { "kvrail_nccl_" name, "gauge", help }
static const struct kv_family families[FAMILIES] = {
	COUNTER(REQUESTS, "requests", "Sends and receives that NCCL knows to be done."),
	COUNTER(BYTES, "bytes", "Their bytes."),
	GAUGE(COMMUNICATORS, "communicators",
	      "Communicators that are open, each of one direction."),
	COUNTER(FAILED, "failed", "Communicators that failed, by cause."),
};

struct np_metrics {
	struct kv_source source;
	_Atomic uint64_t requests[2], bytes[2]; /* out, in */
	_Atomic uint64_t communicators, failed[CODES];
	char labels[160]; /* of every sample: the device and the context's number */
};

void np_metrics_done(struct np_metrics *m, const struct np_request *request)
{
	bool in = request->kind == NP_RECV;

	if (!m)
		return;
	kv_counter_add(&m->requests[in], 1);
	for (unsigned int i = 0; i < request->n; i++)
		kv_counter_add(&m->bytes[in], request->size[i]);
}

void np_metrics_open(struct np_metrics *m, int more)
{
	if (m)
		kv_counter_add(&m->communicators, (uint64_t)more);
}

void np_metrics_failed(struct np_metrics *m, int code)
{
	if (m)
		kv_counter_add(&m->failed[-code], 1);
}

/* ---------------------------------------------------------------- samples */

static void say_family(void *arg, size_t family, struct kv_text *t)
{
	static const char *const directions[] = { "out", "in" };
	const char *name = families[family].name;
	struct np_metrics *m = arg;

	if (family == COMMUNICATORS)
		kv_text_add(t, "%s{%s} %" PRIu64 "\n", name, m->labels,
			    kv_counter_get(&m->communicators));
	for (int i = 0; i < 2 && (family == REQUESTS || family == BYTES); i++)
		kv_text_add(t, "%s{%s,direction=\"%s\"} %" PRIu64 "\n", name, m->labels,
			    directions[i],
			    kv_counter_get(family == BYTES ? &m->bytes[i] : &m->requests[i]));
	if (family == FAILED)
		kv_sample_codes(t, name, m->labels, NULL, "cause", m->failed, CODES,
				KV_ERR_PEER_LOST);
}

/* ---------------------------------------------------------------- with the device of a context */

void np_metrics_start(struct np_rail *rail, const struct np_device *device)
{
	static atomic_uint rails;
	struct np_metrics *m;
	char name[128];

	if (!kv_expose_measures(rail->options))
		return;
	m = calloc(1, sizeof(*m));
	if (!m) {
		kv_log_warn(rail->log, "metrics: there is no memory for them");
		return;
	}
	m->source = (struct kv_source){ .file = "kvrail-nccl",
					.families = families,
					.n = FAMILIES,
					.sample = say_family,
					.arg = m,
					.log = rail->log };
	snprintf(m->labels, sizeof(m->labels), "device=\"%.100s\",id=\"%u\"",
		 kv_label(name, sizeof(name), device->name), atomic_fetch_add(&rails, 1));
	kv_stay_loaded(); /* NCCL may close the library with contexts, and so a thread, in it */
	rail->metrics = m;
	kv_expose_add(rail->options, &m->source);
}

void np_metrics_stop(struct np_rail *rail)
{
	if (!rail->metrics)
		return;
	kv_expose_remove(&rail->metrics->source);
	free(rail->metrics);
	rail->metrics = NULL;
}
