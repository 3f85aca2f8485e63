/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stage.h -- pinned memory through which the bytes of a GPU's memory go where no NIC, and no kernel
 * of the other end, reaches it
 *
 * A provider puts pieces, each between the staging memory and a region of a GPU, and asks until the
 * kernel that copies them has ended; until then neither the staging memory nor the regions may be
 * used for anything else. The regions are held meanwhile: a kernel that never ends keeps them for
 * good. One direction of one connection has one; one thread at a time.
 */
#ifndef TR_STAGE_H
#define TR_STAGE_H

#include "provider.h"

enum {
	STAGE_GPUS = 16,      /* of one process that a stage meets */
	STAGE_REGIONS = 64,   /* that one kernel copies from, or to */
	STAGE_LATE_MS = 5000, /* that a kernel may take: a GPU may be busy with others */
	STAGE_GRACE_MS = 100, /* that a call waits for a kernel when it has to end */
};

struct stage;

/* In mem_reg: the GPU that copies the region. */
int stage_register(struct tr_mem *mem, struct kv_error *err);
/* The region as stage_put wants it: NULL if a CPU may touch it. */
static inline struct tr_mem *stage_region(struct tr_mem *mem)
{
	return mem && mem->kind != TR_MEM_HOST ? mem : NULL;
}
/*
 * Before anything of that region goes through it; made at first use. bytes: the staging memory,
 * which is mapped as long as the stage.
 */
int stage_open(struct stage **stage_p, struct tr *tr, uint8_t *bytes, size_t len,
	       const struct tr_mem *mem, struct kv_error *err);
/*
 * Copies len bytes of the region at `there` to `here` in the staging memory (out), or from it. 0;
 * TR_AGAIN: not with those that were put before, stage_end first; or DEVICE.
 */
int stage_put(struct stage *stage, struct tr_mem *mem, bool out, uint8_t *here, uint8_t *there,
	      size_t len, struct kv_error *err);
/* Starts what was put. 0: all of it is copied; TR_AGAIN; or DEVICE, TIMEOUT. */
int stage_end(struct stage *stage, const struct tr_conn *conn, struct kv_error *err);
/* The same after a wait, to the deadline or for STAGE_GRACE_MS. */
int stage_wait(struct stage *stage, const struct tr_conn *conn, int64_t deadline_ns,
	       struct kv_error *err);
bool stage_runs(const struct stage *stage); /* something that was put is not known to be copied */
/* What is not started never will be; false: a kernel runs on after STAGE_GRACE_MS. */
bool stage_quit(struct stage *stage);
/* false: it does so still, and the staging memory must stay. */
bool stage_close(struct stage *stage);

#endif
