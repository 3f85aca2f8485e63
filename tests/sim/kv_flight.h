/* SPDX-License-Identifier: Apache-2.0 */
/* kv_flight.h -- a step of an application, and the operations that it has under way */
#ifndef SIM_KV_FLIGHT_H
#define SIM_KV_FLIGHT_H

#include "kv_world.h"

enum {
	ACTORS_EACH = 2, /* of an engine */
	FLIGHTS = 160,	 /* operations of one step */
	SOURCES = (TARGET_FIRST - SOURCE_FIRST) / ACTORS_EACH,
	PATIENCE = 200, /* ms, for what another actor does */
	GROUP_MS = 5000,
	DRAIN_MS = 2550, /* an operation's end after its deadline: docs/deadlines.md, and 50 */
};

/* One operation of a step. */
struct flight {
	struct model_op *op;
	struct kv_op *kv; /* NULL: it was refused, or it was a blocking call */
	struct link *link;
	int64_t deadline_ns; /* with the slack */
	bool left; /* its device still has it, as the call has said */
	int64_t src[OP_BLOCKS], dst[OP_BLOCKS];
	size_t n;
	struct kv_layers layers;
	struct kv_options options;
	int cache, ret;
	bool reads;
};
struct step {
	struct sim_actor *actor;
	struct engine *engine;
	int taken; /* sources */
	int flights;
	struct flight flight[FLIGHTS];
};

uint32_t step_draw(struct step *s, uint32_t n);
void step_pause(struct step *s);
int64_t step_timeout_ms(struct step *s);
bool step_begin(struct step *s, struct sim_actor *actor);
void step_end(struct step *s);
struct link *step_link(struct step *s);
struct kv_layers step_layers(struct step *s);
bool step_sources(struct step *s, int cache, size_t n, int64_t *src);
size_t step_blocks(struct step *s, int engine, int cache, int first, int end, size_t n,
		   int64_t *blocks);
struct flight *flight_new(struct step *s, struct link *link, int cache);
void flight_drop(struct step *s);
void flight_begin(struct step *s, struct flight *f);
struct flight *flight_write(struct step *s, struct link *link, size_t n);
struct flight *flight_read(struct step *s, struct link *link, size_t n);
void flight_issue(struct step *s, struct flight *f);
void flight_free(struct step *s, struct flight *f);
void flight_await(struct step *s, struct flight *f);

#endif
