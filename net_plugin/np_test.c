/* SPDX-License-Identifier: Apache-2.0 */
/* np_test.c -- is a request done? The call that moves everything else of its communicator, too */
#include <limits.h>

#include "base/clock.h"
#include "np.h"

static void report(struct np_request *request, int *sizes)
{
	for (unsigned int i = 0; sizes && i < request->n; i++)
		sizes[i] = request->size[i] > INT_MAX ? INT_MAX : (int)request->size[i];
	np_metrics_done(request->comm->metrics, request);
	if (request->kind == NP_SEND)
		np_send_release(request);
	else
		np_recv_release(request);
}

ncclResult_t np_test(void *r, int *done, int *sizes)
{
	struct np_request *request = r;
	ncclResult_t result = ncclSuccess;

	if (!request || !done || request->kind == NP_FREE)
		return np_misuse("test: no such request");
	*done = 0;
	if (request->left)
		result = np_progress(request->comm);
	/* What was complete before a failure is complete. */
	if (request->left) {
		if (!request->waits_ns)
			request->waits_ns = kv_now_ns();
		return result;
	}
	*done = 1;
	report(request, sizes);
	return ncclSuccess;
}
