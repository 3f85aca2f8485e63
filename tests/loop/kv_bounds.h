/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_bounds.h -- every public function, each with the bound that docs/deadlines.md gives it
 *
 * bounds_run calls them all beside whatever a scene has arranged, in one order: what the scene's
 * peer, names and registrations are needed for first, the engine's close last. A function of kv.h
 * without a row in the table, or without a call here, fails the test, and so does a row too many.
 */
#ifndef KV_BOUNDS_H
#define KV_BOUNDS_H

#include "kv_rig.h"

struct scene {
	const char *name;
	bool device; /* the table's column */
	struct node node; /* the engine under test, its cache, its peer */
	/*
	 * For the calls that fence a peer which does not answer; a scene that has `arrange` makes
	 * node.peer anew instead.
	 */
	struct kv_peer *spare[3];
	const char *host; /* for kv_listen and kv_connect */
	uint32_t port;	  /* where another kv_connect goes */
	/* Before each call that has to do with the peer: the scene as it is to be; may be NULL. */
	void (*arrange)(struct scene *scene);
	void (*relax)(struct scene *scene); /* after it */
	void (*before_close)(struct scene *scene); /* of the engine */
};

enum { BOUNDS_MS = 100, BOUNDS_OP_MS = 300, BOUNDS_HANDSHAKE_MS = 500 };

void bounds_setup(void); /* options, the table; before the first engine */
void bounds_run(struct scene *scene);

#endif
