/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gate.c -- events of CUDA that an operation waits for before it moves bytes
 *
 * They are asked for, never waited for by a stream of ours: so a cancel and a deadline need no GPU,
 * and what reads the bytes may be a kernel, a NIC or a CPU.
 */
#include "base/error.h"
#include "gpu/gpu.h"
#include "tr.h"

static int gate_failed(const char *what, int rc, struct kv_error *err)
{
	kv_fail(err, KV_ERR_DEVICE, "start", "%s: %s", what, cuda_error(rc));
	kv_error_hint(err, "an event is of the process that uses it, and may not be destroyed or "
			   "captured by a graph");
	return KV_ERR_DEVICE;
}

/* Where its context is asked for: an event has none that it tells. */
static int find_context(const struct cuda_driver *cuda, void *stream, struct gpu_device *gpu,
			struct kv_error *err)
{
	int rc =
		stream ? cuda->stream_context(stream, &gpu->context) : cuda->current(&gpu->context);

	if (rc)
		return gate_failed("the stream is of no use", rc, err);
	if (!gpu->context)
		return kv_fail(err, KV_ERR_ARG, "start",
			       "the calling thread has no current CUDA context");
	gpu->cuda = cuda;
	return 0;
}

int tr_gate_open(struct tr_gate *gate, void *stream, struct kv_error *err)
{
	const struct cuda_driver *cuda = cuda_driver("start", err);
	struct gpu_device gpu = { 0 };
	int mode, rc, ret = cuda ? find_context(cuda, stream, &gpu, err) : KV_ERR_UNSUPPORTED;

	*gate = (struct tr_gate){ 0 };
	if (ret)
		return ret;
	gate->context = gpu.context;
	if (!stream)
		return 0;
	rc = gpu_enter(&gpu, &mode);
	if (!rc) {
		rc = cuda->event_create(&gate->event, EVENT_DISABLE_TIMING);
		if (!rc)
			rc = cuda->event_record(gate->event, stream);
		gpu_leave(&gpu, &mode);
	}
	if (!rc)
		return 0;
	tr_gate_close(gate);
	return gate_failed("an event cannot be recorded on the stream", rc, err);
}

int tr_gate_ask(const struct tr_gate *gate, void *event, struct kv_error *err)
{
	struct gpu_device gpu = { .cuda = cuda_driver("start", err), .context = gate->context };
	int mode, rc = gpu_enter(&gpu, &mode);

	if (!rc) {
		rc = gpu.cuda->event_query(gate->event ? gate->event : event);
		gpu_leave(&gpu, &mode);
	}
	if (rc == CUDA_NOT_READY)
		return TR_AGAIN;
	return rc ? gate_failed("the event that the bytes wait for failed", rc, err) : 0;
}

void tr_gate_close(struct tr_gate *gate)
{
	struct gpu_device gpu = { .context = gate->context };
	struct kv_error none;
	int mode;

	if (gate->event) {
		gpu.cuda = cuda_driver("start", &none);
		if (!gpu_enter(&gpu, &mode)) {
			gpu.cuda->event_destroy(gate->event);
			gpu_leave(&gpu, &mode);
		}
	}
	*gate = (struct tr_gate){ 0 };
}
