/* SPDX-License-Identifier: Apache-2.0 */
/* kv_scene.h -- one of everything that the block API does, for tests that let a part of it fail */
#ifndef KV_SCENE_H
#define KV_SCENE_H

#include "kv_rig.h"

/*
 * Long where nothing fails; short while something is to fail, which may keep what is waited for
 * from coming.
 */
extern int64_t scene_patience_ms;

/* Two engines, all that they do with each other, their end. Returns the first failure. */
int scene_play(struct kv_error *err);
/* Opens an engine with a cache; the caller closes it, also when a later step has failed. */
int scene_open_side(struct node *node, unsigned int side, struct kv_error *err);

#endif
