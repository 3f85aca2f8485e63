/* SPDX-License-Identifier: Apache-2.0 */
/* verbs_load.c -- dlopen of libibverbs.so.1; the only file that names its symbols */
#include "verbs_load.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "base/error.h"
#include "base/fault.h"

#ifdef KVRAIL_FAULTS
struct ib_test_hook ib_test_hook;
#endif

/* Verbs whose symbol does not have the table's signature. */
static struct ibv_mr *(*sym_reg_mr)(struct ibv_pd *pd, void *addr, size_t len, int access);
static struct ibv_mr *(*sym_reg_mr_iova2)(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova,
					  unsigned int access);
static int (*sym_query_port)(struct ibv_context *context, uint8_t port,
			     struct _compat_ibv_port_attr *attr);
static ssize_t (*sym_query_gid_table)(struct ibv_context *context, struct ibv_gid_entry *entries,
				      size_t max, uint32_t flags, size_t entry_size);

static struct ibv_mr *reg_mr(struct ibv_pd *pd, void *addr, size_t len, unsigned int access)
{
	if (access & IBV_ACCESS_OPTIONAL_RANGE)
		return sym_reg_mr_iova2(pd, addr, len, (uintptr_t)addr, access);
	return sym_reg_mr(pd, addr, len, (int)access);
}

/*
 * The exported symbol fills the fields that the first version of the structure had; the later ones
 * stay 0.
 */
static int query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr)
{
	memset(attr, 0, sizeof(*attr));
	return sym_query_port(context, port, (struct _compat_ibv_port_attr *)attr);
}

static ssize_t query_gid_table(struct ibv_context *context, struct ibv_gid_entry *entries,
			       size_t max)
{
	return sym_query_gid_table(context, entries, max, 0, sizeof(*entries));
}

/*
 * The data path verbs are inline functions of the header: they call the driver through the context.
 */
static int poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
	return ibv_poll_cq(cq, n, wc);
}

static int req_notify_cq(struct ibv_cq *cq, int solicited_only)
{
	return ibv_req_notify_cq(cq, solicited_only);
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	return ibv_post_send(qp, wr, bad);
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	return ibv_post_recv(qp, wr, bad);
}

static struct ib_verbs table = {
	.query_port = query_port,
	.query_gid_table = query_gid_table,
	.reg_mr = reg_mr,
	.poll_cq = poll_cq,
	.req_notify_cq = req_notify_cq,
	.post_send = post_send,
	.post_recv = post_recv,
};

static const struct {
	const char *name;
	void **to;
} symbols[] = {
#define SYMBOL(member)                                 \
	{                                              \
		"ibv_" #member, (void **)&table.member \
	}
	SYMBOL(get_device_list),
	SYMBOL(free_device_list),
	SYMBOL(get_device_name),
	SYMBOL(open_device),
	SYMBOL(close_device),
	SYMBOL(query_device),
	SYMBOL(alloc_pd),
	SYMBOL(dealloc_pd),
	SYMBOL(dereg_mr),
	SYMBOL(create_comp_channel),
	SYMBOL(destroy_comp_channel),
	SYMBOL(create_cq),
	SYMBOL(destroy_cq),
	SYMBOL(get_cq_event),
	SYMBOL(ack_cq_events),
	SYMBOL(create_qp),
	SYMBOL(modify_qp),
	SYMBOL(destroy_qp),
	SYMBOL(get_async_event),
	SYMBOL(ack_async_event),
	SYMBOL(wc_status_str),
	SYMBOL(event_type_str),
#undef SYMBOL
	{ "ibv_reg_mr", (void **)&sym_reg_mr },
	{ "ibv_reg_mr_iova2", (void **)&sym_reg_mr_iova2 },
	{ "ibv_query_port", (void **)&sym_query_port },
	{ "_ibv_query_gid_table", (void **)&sym_query_gid_table },
};

static int load(struct kv_error *err)
{
	void *library = kv_fault(IB_DLOPEN) ? NULL : dlopen("libibverbs.so.1", RTLD_NOW);
	const char *why;

	if (!library) {
		why = dlerror();
		kv_fail(err, KV_ERR_UNSUPPORTED, "open", "no libibverbs on this machine (%s)",
			why ? why : "libibverbs.so.1 cannot be opened");
		kv_error_hint(err, "install the package libibverbs1 (rdma-core) to use RDMA");
		return KV_ERR_UNSUPPORTED;
	}
	for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
		*symbols[i].to = dlsym(library, symbols[i].name);
		if (*symbols[i].to)
			continue;
		kv_fail(err, KV_ERR_UNSUPPORTED, "open", "libibverbs.so.1 has no %s",
			symbols[i].name);
		kv_error_hint(err, "rdma-core 32 or newer is needed");
		dlclose(library);
		return KV_ERR_UNSUPPORTED;
	}
	return 0;
}

const struct ib_verbs *ib_verbs_load(struct kv_error *err)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static bool loaded;
	int ret = 0;

#ifdef KVRAIL_FAULTS
	if (ib_test_hook.verbs)
		return ib_test_hook.verbs;
#endif
	pthread_mutex_lock(&lock);
	if (!loaded)
		ret = load(err);
	if (!ret)
		loaded = true;
	pthread_mutex_unlock(&lock);
	return ret ? NULL : &table;
}
