/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_versions.c -- the tables that NCCL looks for: v12 as it is, the older ones by thin adapters
 *
 * Before v11 NCCL had neither a context nor a finalize: the communicators of a process share
 * theirs, made by the first init and ended when the library is unloaded. A forked child has copies
 * of them and ends nothing: what they stand for on a device is its parent's.
 */
#include <string.h>
#include <unistd.h>

#include "np.h"

#define EXPORT __attribute__((visibility("default")))

#define SAME_IN_ALL                                                                            \
	.name = "kvrail", .devices = np_devices, .regMrDmaBuf = np_reg_dmabuf,                 \
	.deregMr = np_dereg, .iflush = np_iflush, .test = np_test, .closeSend = np_close_send, \
	.closeRecv = np_close_recv, .closeListen = np_close_listen
#define SAME_SINCE_V11                                                                    \
	.listen = np_listen, .connect = np_connect, .accept = np_accept, .regMr = np_reg, \
	.isend = np_isend, .irecv = np_irecv, .finalize = np_finalize, .setNetAttr = np_set_attr

#define SAME_V6_TO_V8 SAME_IN_ALL, .listen = listen_shared, .isend = isend_v6, .irecv = irecv_v6
#define SAME_V9_V10                                                                                \
	SAME_IN_ALL, .getProperties = properties_v9, .listen = listen_shared, .accept = np_accept, \
		     .regMr = np_reg, .makeVDevice = make_vdevice_v9

/* v10 names a traffic class with each connect; each has its context, made at its first use. */
enum { TRAFFIC_CLASSES = 1 + 256 }; /* the first is that of none */

static struct {
	pthread_mutex_t lock;
	int version;
	pid_t owner;
	ncclDebugLogger_t logger;
	void *ctx[TRAFFIC_CLASSES];
} shared = { .lock = PTHREAD_MUTEX_INITIALIZER };

static ncclResult_t shared_context(int traffic_class, void **ctx_p)
{
	bool given = traffic_class >= 0 && traffic_class < TRAFFIC_CLASSES - 1;
	void **ctx = &shared.ctx[given ? traffic_class + 1 : 0];
	ncclResult_t result = ncclSuccess;

	pthread_mutex_lock(&shared.lock);
	if (!*ctx && shared.version)
		result = np_init(shared.version, ctx,
				 &(ncclNetCommConfig_v10_t){ given ? traffic_class : -1 },
				 shared.logger);
	/* What is connected with a class is accepted where everything listens. */
	if (*ctx && given)
		((struct np_context *)*ctx)->listens = shared.ctx[0];
	*ctx_p = *ctx;
	pthread_mutex_unlock(&shared.lock);
	return result;
}

static ncclResult_t init_shared(int version, ncclDebugLogger_t logger)
{
	void *ctx;

	pthread_mutex_lock(&shared.lock);
	if (shared.owner && shared.owner != getpid())
		memset(shared.ctx, 0, sizeof(shared.ctx)); /* a child makes its own */
	shared.owner = getpid();
	shared.version = version;
	shared.logger = logger;
	pthread_mutex_unlock(&shared.lock);
	return shared_context(-1, &ctx);
}

__attribute__((destructor)) static void end_shared(void)
{
	if (shared.owner != getpid())
		return;
	np_log_set(NULL); /* NCCL's logger may be gone before us */
	for (int i = 0; i < TRAFFIC_CLASSES; i++) {
		struct np_context *ctx = shared.ctx[i];

		for (int dev = 0; ctx && dev < NP_DEVICES_MAX; dev++)
			np_metrics_hide(&ctx->rail[dev]); /* a communicator may keep the context */
		if (ctx)
			np_finalize(ctx);
	}
}

/* ---------------------------------------------------------------- v12, v11 */

#define INIT_V11(v)                                                                              \
	static ncclResult_t init_v##v(void **ctx, uint64_t comm_id,                              \
				      ncclNetCommConfig_v10_t *config, ncclDebugLogger_t logger, \
				      ncclProfilerCallback_t profiler)                           \
	{                                                                                        \
		return ctx ? np_init(v, ctx, config, logger) : ncclInternalError;                \
	}
INIT_V11(12)
INIT_V11(11)

#define PROPERTIES(v, ...)                                                            \
	static ncclResult_t properties_##v(int dev, ncclNetProperties_##v##_t *props) \
	{                                                                             \
		ncclNetProperties_v12_t p;                                            \
		ncclResult_t result = np_properties(dev, &p);                         \
                                                                                      \
		if (!result)                                                          \
			*props = (ncclNetProperties_##v##_t){ __VA_ARGS__ };          \
		return result;                                                        \
	}

PROPERTIES(v11, NCCL_PROPS_OF_V9(p), .maxMultiRequestSize = p.maxMultiRequestSize)

static ncclResult_t make_vdevice_v9(int *dev, ncclNetVDeviceProps_v9_t *props)
{
	ncclNetVDeviceProps_v12_t p = { 0 };

	if (!props || props->ndevs > NCCL_DEVS_V9)
		return np_misuse("makeVDevice: a virtual NIC has 1 to %d devices", NCCL_DEVS_V9);
	p.ndevs = props->ndevs;
	memcpy(p.devs, props->devs, sizeof(props->devs));
	return np_make_vdevice(dev, &p);
}

EXPORT const ncclNet_v12_t ncclNetPlugin_v12 = {
	SAME_IN_ALL,
	SAME_SINCE_V11,
	.init = init_v12,
	.getProperties = np_properties,
	.makeVDevice = np_make_vdevice,
};

EXPORT const ncclNet_v11_t ncclNetPlugin_v11 = {
	SAME_IN_ALL,
	SAME_SINCE_V11,
	.init = init_v11,
	.getProperties = properties_v11,
	.makeVDevice = make_vdevice_v9,
};

/* ---------------------------------------------------------------- v10, v9 */

#define INIT_V6(v)                                              \
	static ncclResult_t init_v##v(ncclDebugLogger_t logger) \
	{                                                       \
		return init_shared(v, logger);                  \
	}

static ncclResult_t init_v10(ncclDebugLogger_t logger, ncclProfilerCallback_t profiler)
{
	return init_shared(10, logger);
}

INIT_V6(9)
PROPERTIES(v9, NCCL_PROPS_OF_V9(p))

static ncclResult_t listen_shared(int dev, void *handle, void **comm)
{
	void *ctx;
	ncclResult_t result = shared_context(-1, &ctx);

	return result ? result : np_listen(ctx, dev, handle, comm);
}

static ncclResult_t connect_v10(int dev, ncclNetCommConfig_v10_t *config, void *handle, void **comm,
				ncclNetDeviceHandle_v7_t **device)
{
	void *ctx;
	ncclResult_t result = shared_context(config ? config->trafficClass : -1, &ctx);

	return result ? result : np_connect(ctx, dev, handle, comm, device);
}

static ncclResult_t connect_v7(int dev, void *handle, void **comm,
			       ncclNetDeviceHandle_v7_t **device)
{
	return connect_v10(dev, NULL, handle, comm, device);
}

static ncclResult_t isend_v9(void *comm, void *data, size_t size, int tag, void *mhandle,
			     void **request)
{
	return np_isend(comm, data, size, tag, mhandle, NULL, request);
}

static ncclResult_t irecv_v9(void *comm, int n, void **data, size_t *sizes, int *tags,
			     void **mhandles, void **request)
{
	return np_irecv(comm, n, data, sizes, tags, mhandles, NULL, request);
}

EXPORT const ncclNet_v10_t ncclNetPlugin_v10 = {
	SAME_V9_V10, .init = init_v10, .connect = connect_v10, .isend = np_isend, .irecv = np_irecv,
};

EXPORT const ncclNet_v9_t ncclNetPlugin_v9 = {
	SAME_V9_V10, .init = init_v9, .connect = connect_v7, .isend = isend_v9, .irecv = irecv_v9,
};

/* ---------------------------------------------------------------- v8, v7, v6: sizes are int */

INIT_V6(8)
INIT_V6(7)
INIT_V6(6)
PROPERTIES(v8, NCCL_PROPS_OF_V8(p))
PROPERTIES(v7, NCCL_PROPS_OF_V7(p))
PROPERTIES(v6, NCCL_PROPS_OF_V6(p))

static ncclResult_t connect_v6(int dev, void *handle, void **comm)
{
	return connect_v10(dev, NULL, handle, comm, NULL);
}

static ncclResult_t accept_v6(void *listen, void **comm)
{
	return np_accept(listen, comm, NULL);
}

static ncclResult_t reg_v6(void *comm, void *data, int size, int type, void **mhandle)
{
	return np_reg(comm, data, size > 0 ? (size_t)size : 0, type, mhandle);
}

static ncclResult_t isend_v6(void *comm, void *data, int size, int tag, void *mhandle,
			     void **request)
{
	if (size < 0)
		return np_misuse("isend: %d bytes", size);
	return np_isend(comm, data, (size_t)size, tag, mhandle, NULL, request);
}

static ncclResult_t irecv_v6(void *comm, int n, void **data, int *sizes, int *tags, void **mhandles,
			     void **request)
{
	size_t wide[NP_GROUP];

	if (n < 1 || n > NP_GROUP || !sizes)
		return np_misuse("irecv: %d messages; a receive has 1 to %d", n, NP_GROUP);
	for (int i = 0; i < n; i++) {
		if (sizes[i] < 0)
			return np_misuse("irecv: %d bytes", sizes[i]);
		wide[i] = (size_t)sizes[i];
	}
	return np_irecv(comm, n, data, wide, tags, mhandles, NULL, request);
}

EXPORT const ncclNet_v8_t ncclNetPlugin_v8 = {
	SAME_V6_TO_V8,	       .init = init_v8,	    .getProperties = properties_v8,
	.connect = connect_v7, .accept = np_accept, .regMr = np_reg,
};

EXPORT const ncclNet_v7_t ncclNetPlugin_v7 = {
	SAME_V6_TO_V8,	       .init = init_v7,	    .getProperties = properties_v7,
	.connect = connect_v7, .accept = np_accept, .regMr = reg_v6,
};

EXPORT const ncclNet_v6_t ncclNetPlugin_v6 = {
	SAME_V6_TO_V8,	       .init = init_v6,	    .getProperties = properties_v6,
	.connect = connect_v6, .accept = accept_v6, .regMr = reg_v6,
};
