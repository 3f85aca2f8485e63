/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verbs_load.h -- every verb and every call of librdmacm that the provider makes, as tables filled
 * by dlopen of libibverbs.so.1 and librdmacm.so.1
 *
 * verbs_load.c is the only file that names the libraries' symbols. The types come from the headers
 * at build time; nothing links the libraries, so one binary runs where they are not installed and
 * says so. The members have the meaning and the error convention of the functions of the same name
 * (NULL with errno, or an errno value; of librdmacm -1 with errno).
 */
#ifndef IB_VERBS_LOAD_H
#define IB_VERBS_LOAD_H

#include <stdbool.h>

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <kvrail/kv_error.h>

struct ib_verbs {
	int (*fork_init)(void); /* may be NULL */
	struct ibv_device **(*get_device_list)(int *n);
	void (*free_device_list)(struct ibv_device **list);
	const char *(*get_device_name)(struct ibv_device *device);
	struct ibv_context *(*open_device)(struct ibv_device *device);
	int (*close_device)(struct ibv_context *context);
	int (*query_device)(struct ibv_context *context, struct ibv_device_attr *attr);
	int (*query_port)(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr);
	ssize_t (*query_gid_table)(struct ibv_context *context, struct ibv_gid_entry *entries,
				   size_t max);
	int (*query_pkey)(struct ibv_context *context, uint8_t port, int index, __be16 *pkey);
	struct ibv_pd *(*alloc_pd)(struct ibv_context *context);
	int (*dealloc_pd)(struct ibv_pd *pd);
	/* With IBV_ACCESS_RELAXED_ORDERING: as without it where the kernel does not know it. */
	struct ibv_mr *(*reg_mr)(struct ibv_pd *pd, void *addr, size_t len, unsigned int access);
	/* NULL before rdma-core 34. */
	struct ibv_mr *(*reg_dmabuf_mr)(struct ibv_pd *pd, uint64_t offset, size_t len,
					uint64_t iova, int fd, int access);
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

/*
 * The part of librdmacm that says where the route to an address goes; no connection is made with
 * it.
 */
struct ib_cm {
	struct rdma_event_channel *(*create_event_channel)(void);
	void (*destroy_event_channel)(struct rdma_event_channel *channel);
	int (*create_id)(struct rdma_event_channel *channel, struct rdma_cm_id **id, void *context,
			 enum rdma_port_space ps);
	int (*destroy_id)(struct rdma_cm_id *id);
	int (*resolve_addr)(struct rdma_cm_id *id, struct sockaddr *src, struct sockaddr *dst,
			    int timeout_ms);
	int (*resolve_route)(struct rdma_cm_id *id, int timeout_ms);
	int (*get_cm_event)(struct rdma_event_channel *channel, struct rdma_cm_event **event);
	int (*ack_cm_event)(struct rdma_cm_event *event);
};

/* As ib_verbs_load. */
const struct ib_cm *ib_cm_load(struct kv_error *err);

#ifdef KVRAIL_FAULTS
/*
 * Test builds only: another table, and smaller limits so that a test reaches them. Zero = the real
 * ones.
 */
struct ib_test_hook {
	const struct ib_verbs *verbs;
	const struct ib_cm *cm; /* with `verbs` set: NULL = a machine without librdmacm */
	uint64_t slice_bytes; /* a multiple of the page size */
	uint32_t sq_depth;    /* a power of two >= 16 */
	bool inline_jobs;     /* see slow_verbs.c: in the call, so that a run can be repeated */
	const char *sysroot;  /* where /sys and /proc are looked for */
};
extern struct ib_test_hook ib_test_hook;
#endif

#endif
