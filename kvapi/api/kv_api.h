/* SPDX-License-Identifier: Apache-2.0 */
/* kv_api.h -- what the files of the public calls offer each other */
#ifndef KV_API_H
#define KV_API_H

#include "kv_loop.h"

int kv_peer_connect(struct kv_engine *engine, const char *host, uint32_t port, int64_t deadline_ns,
		    uint64_t comm, uint32_t comm_rank, struct kv_peer **peer_p,
		    struct kv_error *err);
/* GEOMETRY unless both have the cache and the ranks share a part of its blocks. */
int kv_request_map(const struct kv_peer *peer, const struct kv_cache *cache, const char *name,
		   struct kv_error *err);
int kv_op_result(const struct kv_op *op, struct kv_error *err);
/*
 * With the claim, after kv_op_progress: goes on polling and posting for a while, at least once, or
 * until another thread wants the peer; sleeps at its socket until the deadline at most.
 */
void kv_op_spin(struct kv_op *op, int grade, int64_t deadline_ns);
/* Waits for a grade or the end. Takes and releases the claim. false: the deadline passed before. */
bool kv_op_wait_for(struct kv_op *op, int grade, int64_t deadline_ns);
/*
 * With the claim: rounds of its peer, each with a piece of it, until all is posted or another
 * thread wants the peer: then op->passed is set, and the caller releases the claim and calls again.
 * false: nothing moved.
 */
bool kv_op_progress(struct kv_op *op);
int kv_recv_start(struct kv_op *op, struct kv_error *err);
/* kv_group.c: a group takes it instead of beginning it */
int kv_group_add(struct kv_group *group, struct kv_op *op, struct kv_error *err);
void kv_group_free_left(struct kv_engine *engine);
struct kv_report;
void kv_report_engine(struct kv_engine *engine, struct kv_report *r); /* kv_dump.c: an item */
/* kv_metrics.c. Where it cannot, the log says so, and the engine goes without. */
void kv_metrics_start(struct kv_engine *engine);
void kv_metrics_stop(struct kv_engine *engine);

#endif
