/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sweep.h -- "fail each point once" for the ib provider, over the fake device or over real verbs
 *
 * One scene uses everything of the provider. It is played with the first, second, ... pass of each
 * of its fault points, of each verb and of its work requests failing. Each play must end (within a
 * deadline), with success or with an error that has a cause; change no byte but those of its
 * blocks, and those only to what was sent; leave nothing behind; and the scene must work right
 * after it. Every point must have been hit.
 */
#ifndef SWEEP_H
#define SWEEP_H

#include "base/fault.h"
#include "rig.h"

/* The verbs' table that is in place; the same options for both ends. Returns the first error. */
int sweep_scene(const char *const *options, struct kv_error *err);

struct sweep {
	/* The scene in a world of its own, in which nothing may be left behind. */
	int (*play)(struct kv_error *err);
	/* The failing pass to try after the nth. */
	uint32_t (*next)(uint32_t nth);
	/* In the next play the nth call fails, or the nth work request is refused with ENOMEM. */
	void (*fail_verb)(enum fake_verb verb, int nth, int error);
	bool (*verb_fired)(enum fake_verb verb);
	void (*fail_wr)(int nth);
	bool roce_only; /* P_Keys are never looked up */
	bool spare;	/* there are two devices: where one fails the other carries on */
};

/* fail_verb over the fake; the link layer that its next world has: there a P_Key is looked up. */
void sweep_fail_verb(enum fake_verb verb, int nth, int error);
extern bool sweep_infiniband;

void sweep_fault_points(const struct sweep *s);
void sweep_point(const struct sweep *s, enum kv_fault_point point);
void sweep_verbs(const struct sweep *s);
void sweep_work_requests(const struct sweep *s);
#endif
