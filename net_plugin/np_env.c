/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_env.c -- NCCL's own variables, as far as they mean something here; the only file of the plugin
 * that reads the environment
 *
 * A row translates one NCCL_IB_* number to the kvrail option of the same meaning. A KVCACHE_*
 * variable of the environment beats it. As NCCL does, a bad value is warned about and the default
 * stays: NCCL's own where a job lives by it. A wire that is out for some seconds must not end a
 * training job, while the block API would rather choose another peer.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"
#include "np.h"

/* NCCL takes NOT_SET for "not set" everywhere. */
enum { NOT_SET = -1 };

static const struct row {
	const char *name, *option;
	long min, max;
	const char *unless; /* an option that says the same in another way, and comes first */
	const char *nccls;  /* default, where it is not that of the option */
} rows[] = {
	{ "NCCL_IB_GID_INDEX", "KVCACHE_RDMA_GID_INDEX", 0, 65535, NULL, NULL },
	{ "NCCL_IB_TIMEOUT", "KVCACHE_IB_TIMEOUT", 14, 31, NULL, "20" },
	{ "NCCL_IB_RETRY_CNT", "KVCACHE_IB_RETRY", 0, 7, NULL, "7" },
	{ "NCCL_IB_PKEY_VALUE", "KVCACHE_IB_PKEY", 1, 65535, NULL, NULL },
	{ "NCCL_IB_PKEY", "KVCACHE_IB_PKEY_INDEX", 0, 65535, "KVCACHE_IB_PKEY", NULL },
	{ "NCCL_IB_SL", "KVCACHE_IB_SERVICE_LEVEL", 0, 15, NULL, NULL },
	{ "NCCL_IB_TC", "KVCACHE_IB_TRAFFIC_CLASS", 0, 255, NULL, NULL },
	{ "NCCL_IB_QPS_PER_CONNECTION", "KVCACHE_IB_LANES", 1, 16, NULL, NULL },
};

#define GID_WHY "a routable RoCE v2 address is preferred; NCCL_IB_GID_INDEX chooses another"
#define PROTOCOL_WHY "it belongs to a protocol that this plugin does not speak"
#define NOTIFY_WHY "a notify never overtakes its bytes here"
#define FAIL_WHY "a failed device fails its communicators"
#define ROUTE_WHY "the kernel's routes and the subnet manager's path records decide"
#define DEVICES_WHY "devices are shown as they are, in PCI order"
#define MERGE_WHY "merging is asked for by NCCL, never by the plugin"

/* What NCCL's own plugin follows and this one has no use for. */
static const struct {
	const char *name, *why;
} without[] = {
	{ "NCCL_IB_ADDR_FAMILY", GID_WHY },
	{ "NCCL_IB_ADDR_RANGE", GID_WHY },
	{ "NCCL_IB_ROCE_VERSION_NUM", GID_WHY },
	{ "NCCL_IB_SPLIT_DATA_ON_QPS", "large messages are always split" },
	{ "NCCL_IB_PCI_RELAXED_ORDERING", "it is off, because LL and LL128 need the order" },
	{ "NCCL_IB_ADAPTIVE_ROUTING", NOTIFY_WHY },
	{ "NCCL_IB_AR_THRESHOLD", NOTIFY_WHY },
	{ "NCCL_IB_OOO_RQ", NOTIFY_WHY },
	{ "NCCL_IB_FIFO_TC", "everything has the traffic class of NCCL_IB_TC" },
	{ "NCCL_IB_USE_INLINE", PROTOCOL_WHY },
	{ "NCCL_IB_RECEIVER_SIDE_MATCHING_SCHEME", PROTOCOL_WHY },
	{ "NCCL_IB_PREPOST_RECEIVE_WORK_REQUESTS", PROTOCOL_WHY },
	{ "NCCL_IB_RESILIENCY_PORT_FAILOVER", FAIL_WHY },
	{ "NCCL_IB_RESILIENCY_PORT_RECOVERY", FAIL_WHY },
	{ "NCCL_IB_RETURN_ASYNC_EVENTS", "a failed device always fails its communicators" },
	{ "NCCL_IB_MERGE_NICS", MERGE_WHY },
	{ "NCCL_IB_MERGE_VFS", MERGE_WHY },
	{ "NCCL_IB_SORT_MERGE_NICS", MERGE_WHY },
	{ "NCCL_IB_DATA_DIRECT", "a GPU's memory is reached by the device's own port only" },
	{ "NCCL_IB_DEVICE_PCI_ORDER", DEVICES_WHY },
	{ "NCCL_IB_RAIL_POLICY", DEVICES_WHY },
	{ "NCCL_IB_VR_RAILS_PER_SOCKET", DEVICES_WHY },
	{ "NCCL_IB_VR_SOCKET_COUNT", DEVICES_WHY },
	{ "NCCL_IB_QUERY_PORT_SPEED", "the port is always asked" },
	{ "NCCL_IB_SUBNET_AWARE_ROUTING", ROUTE_WHY },
	{ "NCCL_IB_SUBNET_PREFIX_LEN", ROUTE_WHY },
	{ "NCCL_IB_ROUTABLE_FLID_GID_INDEX", ROUTE_WHY },
	{ "NCCL_IB_WARN_RAIL_LOCAL", ROUTE_WHY },
	{ "NCCL_IB_ECE_ENABLE", "queue pairs are made without extensions of the device's vendor" },
	{ "NCCL_IB_EVENT_BASED_LB", PROTOCOL_WHY },
	{ "NCCL_IB_EVENT_BASED_LB_REMOTE", PROTOCOL_WHY },
	{ "NCCL_IB_MQP_RETRY_ALL", "a queue pair that cannot be connected fails its communicator" },
	{ "NCCL_IB_MQP_RETRY_CNT", "a queue pair that cannot be connected fails its communicator" },
	{ "NCCL_IB_WQE_LATENCY_REPORT", "it is not measured" },
};

/* Read as texts: the list of devices, the list of interfaces, their family; switches. */
static const char *const texts[] = { "NCCL_IB_HCA",
				     "NCCL_SOCKET_IFNAME",
				     "NCCL_SOCKET_FAMILY",
				     "NCCL_IB_DISABLE",
				     "NCCL_NET_OPTIONAL_RECV_COMPLETION",
				     "NCCL_CUMEM_ENABLE" };

const char *np_env_text(const char *name)
{
	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
		if (!strcmp(texts[i], name)) {
			const char *value = getenv(name);

			return value ? value : "";
		}
	return "";
}

/* What launchers say of the job: all of its ranks, and those of this host. */
static const struct {
	const char *all, *here;
} sizes[] = {
	{ "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE" },
	{ "WORLD_SIZE", "LOCAL_WORLD_SIZE" }, /* torchrun */
	{ "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE" },
	{ "PMI_SIZE", "MPI_LOCALNRANKS" },
};

bool np_env_is_on_several_hosts(char *why, size_t cap)
{
	const char *nodes = getenv("SLURM_STEP_NUM_NODES");

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		const char *all = getenv(sizes[i].all), *here = getenv(sizes[i].here);

		if (!all || !here)
			continue;
		snprintf(why, cap, "%s %.16s, %s %.16s", sizes[i].all, all, sizes[i].here, here);
		return strtol(all, NULL, 10) > strtol(here, NULL, 10);
	}
	snprintf(why, cap, "SLURM_STEP_NUM_NODES %.16s", nodes ? nodes : "");
	return nodes && strtol(nodes, NULL, 10) > 1;
}

bool np_env_wants_host(void)
{
	const char *transport = getenv("KVCACHE_TRANSPORT");

	return transport && !strcmp(transport, "shm");
}

static bool is_there(const struct np_options *o, const char *name)
{
	size_t len = strlen(name);

	for (int i = 0; i < o->n; i++)
		if (!strncmp(o->text[i], name, len) && o->text[i][len] == '=')
			return true;
	return getenv(name) != NULL;
}

void np_options_set(struct np_options *o, const char *name, const char *value)
{
	if (o->n == NP_OPTIONS_MAX)
		return;
	snprintf(o->text[o->n], NP_OPTION_TEXT, "%s=%s", name, value);
	o->list[o->n] = o->text[o->n];
	o->list[++o->n] = NULL;
}

void np_options_add(struct np_options *o, const char *name, const char *value)
{
	if (!is_there(o, name))
		np_options_set(o, name, value);
}

static void translate(struct np_options *o, const struct row *row)
{
	const char *text = getenv(row->name);
	const char *end;
	char value[24];
	long long v;
	bool ok;

	if (!text || !*text)
		return;
	if (row->unless && is_there(o, row->unless)) {
		np_info("%s is set, but has no effect: %s is given", row->name, row->unless);
		return;
	}
	ok = kv_number(text, &v, &end) && !*end;
	if (ok && v == NOT_SET)
		return;
	if (!ok || v < row->min || v > row->max) {
		np_warn("%s is \"%.32s\"; kvrail takes %ld..%ld; the default stays", row->name,
			text, row->min, row->max);
		return;
	}
	snprintf(value, sizeof(value), "%lld", v);
	np_options_add(o, row->option, value);
	np_log_line(NCCL_LOG_INFO, NCCL_ENV, __FILE__, __LINE__, "%s set by environment to %lld",
		    row->name, v);
}

void np_env_log_unused(void)
{
	for (size_t i = 0; i < sizeof(without) / sizeof(*without); i++)
		if (getenv(without[i].name))
			np_info("%s is set, but has no effect: %s", without[i].name,
				without[i].why);
}

void np_env_options(struct np_options *o)
{
	o->n = 0;
	o->list[0] = NULL;
	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		translate(o, &rows[i]);
		if (rows[i].nccls)
			np_options_add(o, rows[i].option, rows[i].nccls);
	}
	if (!strcmp(np_env_text("NCCL_IB_DISABLE"), "1"))
		np_options_add(o, "KVCACHE_TRANSPORT", "shm");
}
