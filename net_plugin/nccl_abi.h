/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nccl_abi.h -- NCCL's network plugin interface, versions 6 to 12, as declarations of our own
 *
 * Written from the layouts that a shipped libnccl carries as debug information; the test
 * nccl_abi_matches compares every struct with them. Names that NCCL's loader or its users know are
 * kept, so NCCL's spelling stands here and nowhere else.
 */
#ifndef NCCL_ABI_H
#define NCCL_ABI_H

#include <stddef.h>
#include <stdint.h>

enum nccl_limits {
	NCCL_HANDLE_MAX = 128,	/* bytes of a listen handle */
	NCCL_REQUESTS_MAX = 32, /* receives of one communicator that are under way */
	NCCL_DEVS_V9 = 4,	/* devices of one virtual NIC, v9 to v11 */
	NCCL_DEVS_V12 = 8,
};

typedef enum {
	ncclSuccess = 0,
	ncclUnhandledCudaError = 1,
	ncclSystemError = 2,
	ncclInternalError = 3,
	ncclInvalidArgument = 4,
	ncclInvalidUsage = 5,
	ncclRemoteError = 6,
} ncclResult_t;

typedef enum {
	NCCL_LOG_NONE = 0,
	NCCL_LOG_VERSION = 1,
	NCCL_LOG_WARN = 2,
	NCCL_LOG_INFO = 3,
	NCCL_LOG_ABORT = 4,
	NCCL_LOG_TRACE = 5,
} ncclDebugLogLevel;

enum nccl_subsystem { NCCL_INIT = 0x1, NCCL_NET = 0x10, NCCL_ENV = 0x80 };
enum nccl_pointer { NCCL_PTR_HOST = 1, NCCL_PTR_CUDA = 2, NCCL_PTR_DMABUF = 4 };

/* *request on entry to irecv: nobody waits for this receive, so it may complete at once. */
#define NCCL_NET_OPTIONAL_RECV_COMPLETION ((void *)1)

typedef void (*ncclDebugLogger_t)(ncclDebugLogLevel level, unsigned long flags, const char *file,
				  int line, const char *fmt, ...);
typedef ncclResult_t (*ncclProfilerCallback_t)(void **event, int type, void *phandle,
					       int64_t plugin_id, void *ext_data);

typedef enum { NCCL_NET_DEVICE_HOST = 0, NCCL_NET_DEVICE_UNPACK = 1 } ncclNetDeviceType;

typedef struct {
	ncclNetDeviceType netDeviceType;
	int netDeviceVersion;
	void *handle;
	size_t size;
	int needsProxyProgress;
} ncclNetDeviceHandle_v7_t;

typedef struct {
	int trafficClass; /* -1: not given */
} ncclNetCommConfig_v10_t;

typedef struct {
	int32_t maxConcurrentPeers, minConcurrentPeers, maxFlowsPerPeer, minFlowsPerPeer;
} ncclNetCommAttr_v11_t;

typedef struct {
	ncclNetCommAttr_v11_t sendCommAttr;
	ncclNetCommAttr_v11_t recvCommAttr;
	uint32_t op;
	uint32_t algo;
	uint32_t proto;
} ncclNetAttr_v11_t;

typedef struct {
	int ndevs;
	int devs[NCCL_DEVS_V9];
} ncclNetVDeviceProps_v9_t;

typedef struct {
	int ndevs;
	int devs[NCCL_DEVS_V12];
} ncclNetVDeviceProps_v12_t;

/* ---------------------------------------------------------------- properties */

#define NCCL_PROPS_NAME \
	char *name;     \
	char *pciPath;  \
	uint64_t guid;  \
	int ptrSupport;
/* In Mbit/s and microseconds. */
#define NCCL_PROPS_SPEED \
	int speed;       \
	int port;        \
	float latency;   \
	int maxComms;    \
	int maxRecvs;
#define NCCL_PROPS_DEVICE                \
	ncclNetDeviceType netDeviceType; \
	int netDeviceVersion;
#define NCCL_PROPS_V9(vprops_t) \
	NCCL_PROPS_NAME         \
	int regIsGlobal;        \
	int forceFlush;         \
	NCCL_PROPS_SPEED        \
	NCCL_PROPS_DEVICE       \
	vprops_t vProps;        \
	size_t maxP2pBytes;     \
	size_t maxCollBytes;

/* Initializers: what properties have had since that version, out of those of another version. */
#define NCCL_PROPS_OF_V6(p)                                                                       \
	.name = (p).name, .pciPath = (p).pciPath, .guid = (p).guid, .ptrSupport = (p).ptrSupport, \
	.speed = (p).speed, .port = (p).port, .latency = (p).latency, .maxComms = (p).maxComms,   \
	.maxRecvs = (p).maxRecvs
#define NCCL_PROPS_OF_V7(p)                                      \
	NCCL_PROPS_OF_V6(p), .netDeviceType = (p).netDeviceType, \
			     .netDeviceVersion = (p).netDeviceVersion
#define NCCL_PROPS_OF_V8(p) NCCL_PROPS_OF_V7(p), .regIsGlobal = (p).regIsGlobal
#define NCCL_PROPS_OF_V9(p)                                                                      \
	NCCL_PROPS_OF_V8(p), .forceFlush = (p).forceFlush, .maxP2pBytes = (p).maxP2pBytes,       \
			     .maxCollBytes = (p).maxCollBytes, .vProps.ndevs = (p).vProps.ndevs, \
			     .vProps.devs = { (p).vProps.devs[0], (p).vProps.devs[1],            \
					      (p).vProps.devs[2], (p).vProps.devs[3] }

typedef struct {
	NCCL_PROPS_NAME
	NCCL_PROPS_SPEED
} ncclNetProperties_v6_t;

typedef struct {
	NCCL_PROPS_NAME
	NCCL_PROPS_SPEED
	NCCL_PROPS_DEVICE
} ncclNetProperties_v7_t;

typedef struct {
	NCCL_PROPS_NAME
	int regIsGlobal;
	NCCL_PROPS_SPEED
	NCCL_PROPS_DEVICE
} ncclNetProperties_v8_t;

typedef struct {
	NCCL_PROPS_V9(ncclNetVDeviceProps_v9_t)
} ncclNetProperties_v9_t;

typedef struct {
	NCCL_PROPS_V9(ncclNetVDeviceProps_v9_t)
	int maxMultiRequestSize;
} ncclNetProperties_v11_t;

typedef struct {
	NCCL_PROPS_V9(ncclNetVDeviceProps_v12_t)
	int maxMultiRequestSize;
	int16_t railId;
	int16_t planeId;
} ncclNetProperties_v12_t;

/* ---------------------------------------------------------------- the tables */

/* Slots whose types have not changed since the version named. Later tables are made of them. */
#define NCCL_SLOTS_BEGIN_V6(props_t)                    \
	const char *name;                               \
	ncclResult_t (*init)(ncclDebugLogger_t logger); \
	ncclResult_t (*devices)(int *ndev);             \
	ncclResult_t (*getProperties)(int dev, props_t *props);
#define NCCL_SLOTS_REG(size_type)                                                                \
	ncclResult_t (*regMr)(void *comm, void *data, size_type size, int type, void **mhandle); \
	ncclResult_t (*regMrDmaBuf)(void *comm, void *data, size_t size, int type,               \
				    uint64_t offset, int fd, void **mhandle);                    \
	ncclResult_t (*deregMr)(void *comm, void *mhandle);
#define NCCL_SLOTS_REG_V8 NCCL_SLOTS_REG(size_t)
#define NCCL_SLOTS_REG_V6 NCCL_SLOTS_REG(int)
#define NCCL_SLOTS_MOVE_V10                                                                \
	ncclResult_t (*isend)(void *comm, void *data, size_t size, int tag, void *mhandle, \
			      void *phandle, void **request);                              \
	ncclResult_t (*irecv)(void *comm, int n, void **data, size_t *sizes, int *tags,    \
			      void **mhandles, void **phandles, void **request);
#define NCCL_SLOTS_MOVE(size_type)                                                            \
	ncclResult_t (*isend)(void *comm, void *data, size_type size, int tag, void *mhandle, \
			      void **request);                                                \
	ncclResult_t (*irecv)(void *comm, int n, void **data, size_type *sizes, int *tags,    \
			      void **mhandles, void **request);
#define NCCL_SLOTS_MOVE_V9 NCCL_SLOTS_MOVE(size_t)
#define NCCL_SLOTS_MOVE_V6 NCCL_SLOTS_MOVE(int)
#define NCCL_SLOTS_END_V6                                                                   \
	ncclResult_t (*iflush)(void *comm, int n, void **data, int *sizes, void **mhandles, \
			       void **request);                                             \
	ncclResult_t (*test)(void *request, int *done, int *sizes);                         \
	ncclResult_t (*closeSend)(void *comm);                                              \
	ncclResult_t (*closeRecv)(void *comm);                                              \
	ncclResult_t (*closeListen)(void *comm);
#define NCCL_SLOTS_DEVICE_V7                                                         \
	ncclResult_t (*getDeviceMr)(void *comm, void *mhandle, void **dptr_mhandle); \
	ncclResult_t (*irecvConsumed)(void *comm, int n, void *request);
#define NCCL_SLOTS_CONNECT_V7                                       \
	ncclResult_t (*listen)(int dev, void *handle, void **comm); \
	ncclResult_t (*connect)(int dev, void *handle, void **comm, \
				ncclNetDeviceHandle_v7_t **device); \
	ncclResult_t (*accept)(void *listen, void **comm, ncclNetDeviceHandle_v7_t **device);

typedef struct {
	NCCL_SLOTS_BEGIN_V6(ncclNetProperties_v6_t)
	ncclResult_t (*listen)(int dev, void *handle, void **comm);
	ncclResult_t (*connect)(int dev, void *handle, void **comm);
	ncclResult_t (*accept)(void *listen, void **comm);
	NCCL_SLOTS_REG_V6
	NCCL_SLOTS_MOVE_V6
	NCCL_SLOTS_END_V6
} ncclNet_v6_t;

typedef struct {
	NCCL_SLOTS_BEGIN_V6(ncclNetProperties_v7_t)
	NCCL_SLOTS_CONNECT_V7
	NCCL_SLOTS_REG_V6
	NCCL_SLOTS_MOVE_V6
	NCCL_SLOTS_END_V6
	NCCL_SLOTS_DEVICE_V7
} ncclNet_v7_t;

typedef struct {
	NCCL_SLOTS_BEGIN_V6(ncclNetProperties_v8_t)
	NCCL_SLOTS_CONNECT_V7
	NCCL_SLOTS_REG_V8
	NCCL_SLOTS_MOVE_V6
	NCCL_SLOTS_END_V6
	NCCL_SLOTS_DEVICE_V7
} ncclNet_v8_t;

typedef struct {
	NCCL_SLOTS_BEGIN_V6(ncclNetProperties_v9_t)
	NCCL_SLOTS_CONNECT_V7
	NCCL_SLOTS_REG_V8
	NCCL_SLOTS_MOVE_V9
	NCCL_SLOTS_END_V6
	NCCL_SLOTS_DEVICE_V7
	ncclResult_t (*makeVDevice)(int *dev, ncclNetVDeviceProps_v9_t *props);
} ncclNet_v9_t;

typedef struct {
	const char *name;
	ncclResult_t (*init)(ncclDebugLogger_t logger, ncclProfilerCallback_t profiler);
	ncclResult_t (*devices)(int *ndev);
	ncclResult_t (*getProperties)(int dev, ncclNetProperties_v9_t *props);
	ncclResult_t (*listen)(int dev, void *handle, void **comm);
	ncclResult_t (*connect)(int dev, ncclNetCommConfig_v10_t *config, void *handle, void **comm,
				ncclNetDeviceHandle_v7_t **device);
	ncclResult_t (*accept)(void *listen, void **comm, ncclNetDeviceHandle_v7_t **device);
	NCCL_SLOTS_REG_V8
	NCCL_SLOTS_MOVE_V10
	NCCL_SLOTS_END_V6
	NCCL_SLOTS_DEVICE_V7
	ncclResult_t (*makeVDevice)(int *dev, ncclNetVDeviceProps_v9_t *props);
} ncclNet_v10_t;

/* v11 and v12 differ in the types of two slots only. */
#define NCCL_NET_V11(props_t, vprops_t)                                                       \
	const char *name;                                                                     \
	ncclResult_t (*init)(void **ctx, uint64_t comm_id, ncclNetCommConfig_v10_t *config,   \
			     ncclDebugLogger_t logger, ncclProfilerCallback_t profiler);      \
	ncclResult_t (*devices)(int *ndev);                                                   \
	ncclResult_t (*getProperties)(int dev, props_t *props);                               \
	ncclResult_t (*listen)(void *ctx, int dev, void *handle, void **comm);                \
	ncclResult_t (*connect)(void *ctx, int dev, void *handle, void **comm,                \
				ncclNetDeviceHandle_v7_t **device);                           \
	ncclResult_t (*accept)(void *listen, void **comm, ncclNetDeviceHandle_v7_t **device); \
	NCCL_SLOTS_REG_V8                                                                     \
	NCCL_SLOTS_MOVE_V10                                                                   \
	NCCL_SLOTS_END_V6                                                                     \
	NCCL_SLOTS_DEVICE_V7                                                                  \
	ncclResult_t (*makeVDevice)(int *dev, vprops_t *props);                               \
	ncclResult_t (*finalize)(void *ctx);                                                  \
	ncclResult_t (*setNetAttr)(void *ctx, ncclNetAttr_v11_t *attr);

typedef struct {
	NCCL_NET_V11(ncclNetProperties_v11_t, ncclNetVDeviceProps_v9_t)
} ncclNet_v11_t;

typedef struct {
	NCCL_NET_V11(ncclNetProperties_v12_t, ncclNetVDeviceProps_v12_t)
} ncclNet_v12_t;

_Static_assert(sizeof(ncclNetProperties_v6_t) == 48, "v6 properties");
_Static_assert(sizeof(ncclNetProperties_v7_t) == 56, "v7 properties");
_Static_assert(sizeof(ncclNetProperties_v8_t) == 64, "v8 properties");
_Static_assert(sizeof(ncclNetProperties_v9_t) == 104, "v9 and v10 properties");
_Static_assert(sizeof(ncclNetProperties_v11_t) == 112, "v11 properties");
_Static_assert(sizeof(ncclNetProperties_v12_t) == 128, "v12 properties");
_Static_assert(offsetof(ncclNetProperties_v9_t, maxP2pBytes) == 88, "v9 maxP2pBytes");
_Static_assert(offsetof(ncclNetProperties_v12_t, maxP2pBytes) == 104, "v12 maxP2pBytes");
_Static_assert(offsetof(ncclNetProperties_v12_t, railId) == 124, "v12 railId");
_Static_assert(sizeof(ncclNetDeviceHandle_v7_t) == 32, "device handle");
_Static_assert(sizeof(ncclNetAttr_v11_t) == 44, "net attributes");
_Static_assert(sizeof(ncclNet_v6_t) == 136, "v6");
_Static_assert(sizeof(ncclNet_v7_t) == 152, "v7");
_Static_assert(sizeof(ncclNet_v8_t) == 152, "v8");
_Static_assert(sizeof(ncclNet_v9_t) == 160, "v9");
_Static_assert(sizeof(ncclNet_v10_t) == 160, "v10");
_Static_assert(sizeof(ncclNet_v11_t) == 176, "v11");
_Static_assert(sizeof(ncclNet_v12_t) == 176, "v12");

#endif
