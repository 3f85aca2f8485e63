/* SPDX-License-Identifier: Apache-2.0 */
/* np_metrics.c -- a device for base/expose.c: its counters as metrics, its state for kvrail dump */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/expose.h"
#include "base/unload.h"
#include "np.h"

enum { REQUESTS, BYTES, SECONDS, COMMUNICATORS, FAILED, FAMILIES };
enum {
	CODES = 96,    /* -KV_ERR_* */
	TIMED_OF = 16, /* looking at the clock costs more than all that is counted */
};

#define COUNTER(id, name, help) [id] = { "kvrail_nccl_" name "_total", "counter", help }
#define GAUGE(id, name, help) [id] = { "kvrail_nccl_" name, "gauge", help }
static const struct kv_family families[FAMILIES] = {
	COUNTER(REQUESTS, "requests", "Sends and receives that NCCL knows to be done."),
	COUNTER(BYTES, "bytes", "Their bytes."),
	[SECONDS] = { "kvrail_nccl_request_seconds", "histogram",
		      "How long NCCL asked for a request in vain, of one of 16; 0: it never did." },
	GAUGE(COMMUNICATORS, "communicators",
	      "Communicators that are open, each of one direction."),
	COUNTER(FAILED, "failed", "Communicators that failed, by cause."),
};

struct np_metrics {
	struct kv_source source;
	_Atomic uint64_t requests[2], bytes[2]; /* out, in */
	_Atomic uint64_t communicators, failed[CODES];
	atomic_bool timed; /* requests are: from the first who asks on */
	struct kv_times times[2];
	struct np_context *ctx;
	void *held;
	struct np_view view;
	pthread_mutex_t lock; /* of the last error; short */
	struct kv_error last;
	int64_t last_ns;
	char name[128];
	/* of every sample: the device, the context's number and the process */
	char labels[160 + KV_PROCESS_MAX];
};

static __attribute__((noinline)) void count_wait(struct np_metrics *m,
						 const struct np_request *request)
{
	if (atomic_load_explicit(&m->timed, memory_order_relaxed))
		kv_times_count(&m->times[request->kind == NP_RECV],
			       request->waits_ns ? kv_now_ns() - request->waits_ns : 0);
}

void np_metrics_done(struct np_metrics *m, const struct np_request *request)
{
	bool in = request->kind == NP_RECV;

	if (!m)
		return;
	for (unsigned int i = 0; i < request->n; i++)
		kv_counter_add(&m->bytes[in], request->size[i]);
	if (!(kv_counter_add(&m->requests[in], 1) % TIMED_OF))
		count_wait(m, request);
}

void np_metrics_open(struct np_metrics *m, int more)
{
	if (m)
		kv_counter_add(&m->communicators, (uint64_t)more);
}

void np_metrics_failed(struct np_metrics *m, const struct np_comm *comm,
		       const struct kv_error *cause)
{
	if (!m)
		return;
	kv_counter_add(&m->failed[-cause->code], 1);
	pthread_mutex_lock(&m->lock);
	m->last = *cause;
	m->last_ns = kv_now_ns();
	if (comm->conn)
		snprintf(m->last.peer, sizeof(m->last.peer), "%s", tr_conn_address(comm->conn));
	pthread_mutex_unlock(&m->lock);
}

struct np_view *np_metrics_view(struct np_metrics *m)
{
	return m ? &m->view : NULL;
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
	for (int i = 0; i < 2 && family == SECONDS; i++)
		kv_sample_times(t, name, m->labels, "direction", directions[i], &m->times[i]);
	if (family == FAILED)
		kv_sample_codes(t, name, m->labels, NULL, "cause", m->failed, CODES,
				KV_ERR_PEER_LOST);
}

static void report_device(void *arg, struct kv_report *r)
{
	struct np_metrics *m = arg;
	struct kv_times times = { .sum_ns = 0 };
	struct kv_error last;
	int64_t last_ns;

	pthread_mutex_lock(&m->lock);
	last = m->last;
	last_ns = m->last_ns;
	pthread_mutex_unlock(&m->lock);
	kv_report_item(r, "nccl device");
	kv_report_text(r, "name", "%s", m->name);
	kv_report_int(r, "peers_up", (int64_t)kv_counter_get(&m->communicators));
	kv_report_int(r, "bytes_out", (int64_t)kv_counter_get(&m->bytes[0]));
	kv_report_int(r, "bytes_in", (int64_t)kv_counter_get(&m->bytes[1]));
	kv_report_last_error(r, &last, last_ns);
	kv_times_add(&times, &m->times[0]);
	kv_times_add(&times, &m->times[1]);
	if (r->brief) {
		atomic_store(&m->timed, true);
		kv_times_report(r, &times);
	} else {
		kv_times_report_p99(r, &times);
	}
	np_view_report(&m->view, r);
	if (!r->brief)
		m->ctx->connecting_report(m->ctx, m, r);
	kv_report_end_item(r);
}

/* ---------------------------------------------------------------- with the device of a context */

void np_metrics_start(struct np_context *ctx, struct np_rail *rail, const struct np_device *device)
{
	static atomic_uint rails;
	struct np_metrics *m;
	char name[128], process[KV_PROCESS_MAX];

	if (!kv_expose_is_wanted(rail->options))
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
					.report = report_device,
					.arg = m,
					.log = rail->log };
	m->ctx = ctx;
	m->timed = kv_expose_measures(rail->options);
	np_view_init(&m->view);
	pthread_mutex_init(&m->lock, NULL);
	snprintf(m->name, sizeof(m->name), "%s", device->name);
	snprintf(m->labels, sizeof(m->labels), "device=\"%.100s\",id=\"%u\",process=\"%s\"",
		 kv_label(name, sizeof(name), device->name), atomic_fetch_add(&rails, 1),
		 kv_expose_process(process));
	if (!ctx->shared) /* NCCL may close it with contexts, and so a thread, in it */
		m->held = kv_library_hold();
	rail->metrics = m;
	kv_expose_add(rail->options, &m->source);
}

void np_metrics_hide(struct np_rail *rail)
{
	if (rail->metrics)
		kv_expose_remove(&rail->metrics->source);
}

void np_metrics_stop(struct np_rail *rail)
{
	if (!rail->metrics)
		return;
	np_metrics_hide(rail);
	np_view_free(&rail->metrics->view);
	pthread_mutex_destroy(&rail->metrics->lock);
	kv_library_drop(rail->metrics->held);
	free(rail->metrics);
	rail->metrics = NULL;
}
