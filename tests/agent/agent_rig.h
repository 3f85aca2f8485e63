/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent_rig.h -- agents with a buffer each, for the tests of agent/
 *
 * The path by which bytes move is the program's first argument: cma, ring, tcp, ib (a machine
 * with a device), or none where the fake device is linked in.
 */
#ifndef AGENT_RIG_H
#define AGENT_RIG_H

#include "../lib/test.h"

#include "../lib/slow.h"
#include "agent.h"
#include "base/clock.h"

#define RIG_WAIT_MS slow_ms(30000) /* for what surely comes, on whatever machine */

struct rig_end {
	struct ag_agent *agent;
	char name[64];
	uint8_t *buf;
	size_t len;
	struct ag_mem *mem;
};

void rig_path(const char *path); /* NULL: whatever KVCACHE_TRANSPORT says */
void rig_open(struct rig_end *end, const char *name, size_t len);
void rig_open_logging(struct rig_end *end, const char *name, size_t len,
		      void (*log)(void *arg, int level, const char *line), void *log_arg);
void rig_close(struct rig_end *end);
/* `from` loads `to`, and the region of it; without waiting. */
void rig_load(struct rig_end *from, const struct rig_end *to);
struct ag_rmem *rig_see(struct rig_end *from, const struct rig_end *to, const struct ag_mem *mem);
struct rig_two {
	struct rig_end a, b; /* a loads b; b loads nobody */
	struct ag_rmem *rmem;
};
void rig_up(struct rig_two *t, size_t len);
void rig_down(struct rig_two *t);
int rig_end_of(struct ag_xfer *xfer, struct kv_error *err); /* waits: how it ended */
void rig_release(struct ag_xfer *xfer);
/* Prepares, posts, waits for success, releases. */
void rig_move(struct rig_end *from, const char *to, int kind, const struct ag_pair *pairs, size_t n,
	      const void *note, size_t note_len);
/* Waits for the next notification: its length. buf may be NULL. */
size_t rig_note(struct rig_end *end, char *name, void *buf, size_t cap);
size_t rig_notes_now(struct rig_end *end); /* how many have come; they are dropped */
void rig_fill(void *p, unsigned int seed, size_t len);
bool rig_is(const void *p, unsigned int seed, size_t len);

#endif
