/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verbs_load.h -- every verb that the provider calls, as a table filled by dlopen of
 * libibverbs.so.1
 *
 * verbs_load.c is the only file that names the library's symbols. The types come from the header at
 * build time; nothing links the library, so one binary runs where it is not installed and says so.
 * The members have the meaning and the error convention of the verbs of the same name (NULL with
 * errno, or an errno value).
 */
#ifndef IB_VERBS_LOAD_H
#define IB_VERBS_LOAD_H

#include <infiniband/verbs.h>

#include <kvrail/kv_error.h>

struct ib_verbs {
	struct ibv_device **(*get_device_list)(int *n);
	void (*free_device_list)(struct ibv_device **list);
	const char *(*get_device_name)(struct ibv_device *device);
	struct ibv_context *(*open_device)(struct ibv_device *device);
	int (*close_device)(struct ibv_context *context);
	int (*query_device)(struct ibv_context *context, struct ibv_device_attr *attr);
	int (*query_port)(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr);
	ssize_t (*query_gid_table)(struct ibv_context *context, struct ibv_gid_entry *entries,
				   size_t max);
	struct ibv_pd *(*alloc_pd)(struct ibv_context *context);
	int (*dealloc_pd)(struct ibv_pd *pd);
	/* With IBV_ACCESS_RELAXED_ORDERING: as without it where the kernel does not know it. */
	struct ibv_mr *(*reg_mr)(struct ibv_pd *pd, void *addr, size_t len, unsigned int access);
	int (*dereg_mr)(struct ibv_mr *mr);
	struct ibv_comp_channel *(*create_comp_channel)(struct ibv_context *context);
	int (*destroy_comp_channel)(struct ibv_comp_channel *channel);
	struct ibv_cq *(*create_cq)(struct ibv_context *context, int cqe, void *cq_context,
				    struct ibv_comp_channel *channel, int comp_vector);
	int (*destroy_cq)(struct ibv_cq *cq);
	int (*poll_cq)(struct ibv_cq *cq, int n, struct ibv_wc *wc);
	int (*req_notify_cq)(struct ibv_cq *cq, int solicited_only);
	int (*get_cq_event)(struct ibv_comp_channel *channel, struct ibv_cq **cq,
			    void **cq_context);
	void (*ack_cq_events)(struct ibv_cq *cq, unsigned int n);
	struct ibv_qp *(*create_qp)(struct ibv_pd *pd, struct ibv_qp_init_attr *attr);
	int (*modify_qp)(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask);
	int (*destroy_qp)(struct ibv_qp *qp);
	int (*post_send)(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
	int (*post_recv)(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
	int (*get_async_event)(struct ibv_context *context, struct ibv_async_event *event);
	void (*ack_async_event)(struct ibv_async_event *event);
	const char *(*wc_status_str)(enum ibv_wc_status status);
	const char *(*event_type_str)(enum ibv_event_type type);
};

/*
 * The table, or NULL and KV_ERR_UNSUPPORTED: the library is not there or too old. Loaded once,
 * never unloaded.
 */
const struct ib_verbs *ib_verbs_load(struct kv_error *err);

#ifdef KVRAIL_FAULTS
/*
 * Test builds only: another table, and smaller limits so that a test reaches them. Zero = the real
 * ones.
 */
struct ib_test_hook {
	const struct ib_verbs *verbs;
	uint64_t slice_bytes; /* a multiple of the page size */
	uint32_t sq_depth;    /* a power of two >= 16 */
	const char *sysroot;  /* where /sys and /proc are looked for */
};
extern struct ib_test_hook ib_test_hook;
#endif

#endif
