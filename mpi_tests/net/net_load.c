/* SPDX-License-Identifier: Apache-2.0 */
/* net_load.c -- finds the table of a plugin and adapts older ones to v12 */
#include "net_load.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "net_elf.h"

enum { OLDEST = 6, NEWEST = 12, GROUP_MAX = 64 };

static void *library;
static const void *table[NEWEST + 1];
static ncclNet_v12_t adapted;

#define V(n) ((const ncclNet_v##n##_t *)table[n])

/* ---------------------------------------------------------------- properties */

#define PROPS(v, table, type, ...)                                              \
	static ncclResult_t props_v##v(int dev, ncclNetProperties_v12_t *props) \
	{                                                                       \
		type p;                                                         \
		ncclResult_t ret = (table)->getProperties(dev, &p);             \
                                                                                \
		if (!ret)                                                       \
			*props = (ncclNetProperties_v12_t){ .railId = -1,       \
							    .planeId = -1,      \
							    __VA_ARGS__ };      \
		return ret;                                                     \
	}
#define BEFORE_V9 .vProps.ndevs = 1, .maxP2pBytes = 1 << 30

PROPS(6, V(6), ncclNetProperties_v6_t, BEFORE_V9, NCCL_PROPS_OF_V6(p))
PROPS(7, V(7), ncclNetProperties_v7_t, BEFORE_V9, NCCL_PROPS_OF_V7(p))
PROPS(8, V(8), ncclNetProperties_v8_t, BEFORE_V9, NCCL_PROPS_OF_V8(p))
PROPS(9, V(9), ncclNetProperties_v9_t, NCCL_PROPS_OF_V9(p))
PROPS(10, V(10), ncclNetProperties_v9_t, NCCL_PROPS_OF_V9(p))
PROPS(11, V(11), ncclNetProperties_v11_t, NCCL_PROPS_OF_V9(p),
      .maxMultiRequestSize = p.maxMultiRequestSize)

static ncclResult_t vdevice_v9(int *dev, ncclNetVDeviceProps_v12_t *props)
{
	ncclNetVDeviceProps_v9_t p = { .ndevs = props->ndevs };

	if (props->ndevs > NCCL_DEVS_V9)
		return ncclInvalidUsage;
	memcpy(p.devs, props->devs, sizeof(p.devs));
	return (table[9]    ? V(9)->makeVDevice
		: table[10] ? V(10)->makeVDevice
			    : V(11)->makeVDevice)(dev, &p);
}

/* ---------------------------------------------------------------- init to accept */

static int one_context;

static ncclResult_t init_old(void **ctx, uint64_t id, ncclNetCommConfig_v10_t *config,
			     ncclDebugLogger_t logger, ncclProfilerCallback_t profiler)
{
	*ctx = &one_context;
	if (table[10])
		return V(10)->init(logger, profiler);
	return (table[6]   ? V(6)->init
		: table[7] ? V(7)->init
		: table[8] ? V(8)->init
			   : V(9)->init)(logger);
}

static ncclResult_t finalize_old(void *ctx)
{
	return ncclSuccess;
}

static ncclResult_t listen_old(void *ctx, int dev, void *handle, void **comm)
{
	return (table[6]   ? V(6)->listen
		: table[7] ? V(7)->listen
		: table[8] ? V(8)->listen
		: table[9] ? V(9)->listen
			   : V(10)->listen)(dev, handle, comm);
}

static ncclResult_t connect_old(void *ctx, int dev, void *handle, void **comm,
				ncclNetDeviceHandle_v7_t **device)
{
	ncclNetCommConfig_v10_t config = { -1 };

	if (table[6])
		return V(6)->connect(dev, handle, comm);
	if (table[10])
		return V(10)->connect(dev, &config, handle, comm, device);
	return (table[7]   ? V(7)->connect
		: table[8] ? V(8)->connect
			   : V(9)->connect)(dev, handle, comm, device);
}

static ncclResult_t accept_v6(void *listen, void **comm, ncclNetDeviceHandle_v7_t **device)
{
	return V(6)->accept(listen, comm);
}

/* ---------------------------------------------------------------- moving bytes */

static ncclResult_t reg_v6(void *comm, void *data, size_t size, int type, void **mhandle)
{
	if (size > INT32_MAX)
		return ncclInvalidUsage;
	return (table[6] ? V(6)->regMr : V(7)->regMr)(comm, data, (int)size, type, mhandle);
}

static ncclResult_t isend_v9(void *comm, void *data, size_t size, int tag, void *mhandle,
			     void *phandle, void **request)
{
	return V(9)->isend(comm, data, size, tag, mhandle, request);
}

static ncclResult_t irecv_v9(void *comm, int n, void **data, size_t *sizes, int *tags,
			     void **mhandles, void **phandles, void **request)
{
	return V(9)->irecv(comm, n, data, sizes, tags, mhandles, request);
}

static ncclResult_t isend_v6(void *comm, void *data, size_t size, int tag, void *mhandle,
			     void *phandle, void **request)
{
	if (size > INT32_MAX)
		return ncclInvalidUsage;
	return (table[6]   ? V(6)->isend
		: table[7] ? V(7)->isend
			   : V(8)->isend)(comm, data, (int)size, tag, mhandle, request);
}

static ncclResult_t irecv_v6(void *comm, int n, void **data, size_t *sizes, int *tags,
			     void **mhandles, void **phandles, void **request)
{
	int narrow[GROUP_MAX] = { 0 };

	for (int i = 0; i < n && i < GROUP_MAX; i++)
		narrow[i] = sizes[i] > INT32_MAX ? INT32_MAX : (int)sizes[i];
	return (table[6]   ? V(6)->irecv
		: table[7] ? V(7)->irecv
			   : V(8)->irecv)(comm, n, data, narrow, tags, mhandles, request);
}

/* ---------------------------------------------------------------- choosing */

/* What v6 to v12 have alike, and with whose properties. */
#define TAKE(n)                                  \
	adapted.name = V(n)->name;               \
	adapted.devices = V(n)->devices;         \
	adapted.regMrDmaBuf = V(n)->regMrDmaBuf; \
	adapted.deregMr = V(n)->deregMr;         \
	adapted.iflush = V(n)->iflush;           \
	adapted.test = V(n)->test;               \
	adapted.closeSend = V(n)->closeSend;     \
	adapted.closeRecv = V(n)->closeRecv;     \
	adapted.closeListen = V(n)->closeListen; \
	adapted.getProperties = props_v##n
#define TAKE_V7(n) \
	TAKE(n);   \
	adapted.accept = V(n)->accept
#define TAKE_V9(n)                   \
	TAKE_V7(n);                  \
	adapted.regMr = V(n)->regMr; \
	adapted.makeVDevice = V(n)->makeVDevice ? vdevice_v9 : NULL
#define TAKE_V10(n)                  \
	TAKE_V9(n);                  \
	adapted.isend = V(n)->isend; \
	adapted.irecv = V(n)->irecv

static void adapt(int version)
{
	adapted.init = init_old;
	adapted.finalize = finalize_old;
	adapted.listen = listen_old;
	adapted.connect = connect_old;
	adapted.regMr = reg_v6;
	adapted.isend = version < 9 ? isend_v6 : isend_v9;
	adapted.irecv = version < 9 ? irecv_v6 : irecv_v9;
	switch (version) {
	case 6:
		TAKE(6);
		adapted.accept = accept_v6;
		break;
	case 7:
		TAKE_V7(7);
		break;
	case 8:
		TAKE_V7(8);
		adapted.regMr = V(8)->regMr;
		break;
	case 9:
		TAKE_V9(9);
		break;
	case 10:
		TAKE_V10(10);
		break;
	case 11:
		TAKE_V10(11);
		adapted.init = V(11)->init;
		adapted.finalize = V(11)->finalize;
		adapted.setNetAttr = V(11)->setNetAttr;
		adapted.listen = V(11)->listen;
		adapted.connect = V(11)->connect;
		break;
	default:
		adapted = *V(12);
	}
}

struct wanted {
	const char *name;
	uint64_t value;
};

static void match_symbol(void *arg, const char *name, const Elf64_Sym *sym)
{
	struct wanted *wanted = arg;

	if (!strcmp(name, wanted->name) && sym->st_value)
		wanted->value = sym->st_value;
}

/* A table that the library does not export: its file says where it lies. */
static const void *find_hidden(const char *name)
{
	struct wanted wanted = { .name = name };
	struct link_map *map;

	if (dlinfo(library, RTLD_DI_LINKMAP, &map) ||
	    !net_elf_symbols(map->l_name, SHT_SYMTAB, match_symbol, &wanted) || !wanted.value)
		return NULL;
	return (const void *)(map->l_addr + wanted.value);
}

static const void *find_version(const struct net_source *source, int version)
{
	char name[32];

	if (source->symbol)
		return version == NEWEST ? find_hidden(source->symbol) : NULL;
	snprintf(name, sizeof(name), "ncclNetPlugin_v%d", version);
	return dlsym(library, name);
}

static const ncclNet_v12_t *load(const struct net_source *source, int *version_p,
				 const char **why_p)
{
	int version;

	memset(table, 0, sizeof(table));
	memset(&adapted, 0, sizeof(adapted));
	library = dlopen(source->path, RTLD_NOW | RTLD_LOCAL);
	if (!library) {
		*why_p = dlerror();
		return NULL;
	}
	for (version = source->version ? source->version : NEWEST; version >= OLDEST; version--) {
		table[version] = find_version(source, version);
		if (table[version] || source->version)
			break;
	}
	if (version < OLDEST || !table[version]) {
		*why_p = "the library has no such table";
		return NULL;
	}
	*version_p = version;
	adapt(version);
	return &adapted;
}

const ncclNet_v12_t *net_load(const struct net_source *source, int *version_p, const char **why_p)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static const ncclNet_v12_t *loaded;
	static int version;

	pthread_mutex_lock(&lock);
	if (!library) /* else another thread has loaded it */
		loaded = load(source, &version, why_p);
	*version_p = version;
	pthread_mutex_unlock(&lock);
	return loaded;
}

void net_unload(void)
{
	if (library)
		dlclose(library);
	library = NULL;
}

const void *net_raw_table(int version, size_t *pointers_p)
{
	static const size_t sizes[NEWEST + 1] = {
		[6] = sizeof(ncclNet_v6_t),   [7] = sizeof(ncclNet_v7_t),
		[8] = sizeof(ncclNet_v8_t),   [9] = sizeof(ncclNet_v9_t),
		[10] = sizeof(ncclNet_v10_t), [11] = sizeof(ncclNet_v11_t),
		[12] = sizeof(ncclNet_v12_t),
	};
	char name[32];

	snprintf(name, sizeof(name), "ncclNetPlugin_v%d", version);
	*pointers_p = sizes[version] / sizeof(void *);
	return dlsym(library, name);
}

struct exports {
	void (*each)(void *arg, const char *name);
	void *arg;
};

static void exported(void *arg, const char *name, const Elf64_Sym *sym)
{
	const struct exports *exports = arg;

	if (sym->st_shndx != SHN_UNDEF && *name && ELF64_ST_BIND(sym->st_info) != STB_LOCAL)
		exports->each(exports->arg, name);
}

bool net_exports(const char *path, void (*each)(void *arg, const char *name), void *arg)
{
	struct exports exports = { each, arg };

	return net_elf_symbols(path, SHT_DYNSYM, exported, &exports);
}
