/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verbs_load.c -- dlopen of libibverbs.so.1 and librdmacm.so.1; the only file that names their
 * symbols
 */
#include "verbs_load.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/library.h"

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
 * As the header's inline function: the context's own operation fills all fields. The exported
 * symbol fills those that the first version of the structure had; the later ones (flags) stay 0.
 */
static int query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr)
{
	struct verbs_context *full = verbs_get_ctx_op(context, query_port);

	if (full)
		return full->query_port(context, port, attr, sizeof(*attr));
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

static struct ib_cm cm_table;

static const struct kv_symbol verbs_symbols[] = {
#define SYMBOL(member)                                        \
	{                                                     \
		"ibv_" #member, (void **)&table.member, false \
	}
	SYMBOL(get_device_list),
	SYMBOL(free_device_list),
	SYMBOL(get_device_name),
	SYMBOL(open_device),
	SYMBOL(close_device),
	SYMBOL(query_device),
	SYMBOL(query_pkey),
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
	{ "ibv_fork_init", (void **)&table.fork_init, true },
	{ "ibv_reg_mr", (void **)&sym_reg_mr, false },
	{ "ibv_reg_mr_iova2", (void **)&sym_reg_mr_iova2, false },
	{ "ibv_reg_dmabuf_mr", (void **)&table.reg_dmabuf_mr, true },
	{ "ibv_query_port", (void **)&sym_query_port, false },
	{ "_ibv_query_gid_table", (void **)&sym_query_gid_table, false },
	{ NULL, NULL, false },
};

static const struct kv_symbol cm_symbols[] = {
#define SYMBOL(member)                                            \
	{                                                         \
		"rdma_" #member, (void **)&cm_table.member, false \
	}
	SYMBOL(create_event_channel), SYMBOL(destroy_event_channel), SYMBOL(create_id),
	SYMBOL(destroy_id),	      SYMBOL(resolve_addr),	     SYMBOL(resolve_route),
	SYMBOL(get_cm_event),	      SYMBOL(ack_cm_event),
#undef SYMBOL
	{ NULL, NULL, false },
};

static struct kv_library verbs_library = { "libibverbs.so.1", RTLD_NOW, verbs_symbols, false };
static struct kv_library cm_library = { "librdmacm.so.1", RTLD_NOW, cm_symbols, false };

static bool load_verbs(struct kv_library *library, bool fault, struct kv_error *err)
{
	int name = (int)strcspn(library->file, ".");
	const char *lacks, *why;

	if (kv_library_load(library, fault, &lacks))
		return true;
	if (lacks) {
		kv_fail(err, KV_ERR_UNSUPPORTED, "open", "%s has no %s", library->file, lacks);
		kv_error_hint(err, "rdma-core 32 or newer is needed");
		return false;
	}
	why = dlerror();
	kv_fail(err, KV_ERR_UNSUPPORTED, "open", "no %.*s on this machine (%s)", name,
		library->file, why ? why : "it cannot be opened");
	kv_error_hint(err, "install the package %.*s1 (rdma-core) to use RDMA", name,
		      library->file);
	return false;
}

const struct ib_verbs *ib_verbs_load(struct kv_error *err)
{
#ifdef KVRAIL_FAULTS
	if (ib_test_hook.verbs)
		return ib_test_hook.verbs;
#endif
	return load_verbs(&verbs_library, kv_fault(IB_DLOPEN), err) ? &table : NULL;
}

/*
 * librdmacm keeps the devices open from its first use on. A child of fork would go on with its
 * parent's descriptors, and what it makes there stays when it dies.
 */
static bool is_of_parent(void)
{
	static atomic_int owner;
	int self = getpid(), first = 0;

	return !atomic_compare_exchange_strong(&owner, &first, self) && first != self;
}

const struct ib_cm *ib_cm_load(struct kv_error *err)
{
	bool fault = kv_fault(IB_CM_DLOPEN);

	if (is_of_parent()) {
		kv_fail(err, KV_ERR_UNSUPPORTED, "open",
			"librdmacm was used by the process that this one was forked from");
		return NULL;
	}
#ifdef KVRAIL_FAULTS
	if (ib_test_hook.cm && !fault)
		return ib_test_hook.cm;
	fault |= ib_test_hook.verbs != NULL;
#endif
	return load_verbs(&cm_library, fault, err) ? &cm_table : NULL;
}
