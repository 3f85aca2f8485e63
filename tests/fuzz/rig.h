/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rig.h -- one end of a connection that is the product's, and a peer that is the input
 *
 * The control socket is a socket pair; the transport below is this program's, in this process: it
 * takes and gives messages, commits and bytes as the input says. Time stands still but where the
 * product waits for it, or the input lets it pass, so a run of one input is always the same run and
 * costs no waiting.
 */
#ifndef RIG_H
#define RIG_H

#include "conn.h"
#include "fuzz.h"

/* ---------------------------------------------------------------- inputs in steps */

/* An input is a row of them; mutate.c knows the layout. Missing bytes at its end are 0. */
struct step {
	uint8_t what, how, a, b;
	uint16_t c, d;
	uint32_t e, f;
};
enum { STEPS_MAX = 64 };
_Static_assert(sizeof(struct step) == 16, "a step is 16 bytes");

/* How many there are, STEPS_MAX at most. */
size_t steps_of(const uint8_t *data, size_t size, struct step steps[STEPS_MAX]);

/* ---------------------------------------------------------------- time, and what is left behind */

void time_passes(int64_t ms);
extern int64_t rig_tick_ns; /* that looking at the clock takes */

/* Descriptors and heap before; the same after: checked at the end of each input. */
void rig_begin(void);
void rig_end(void);
/* A call of the product has failed, and says why as it should; false: it has not. */
bool rig_failed(int ret, const struct kv_error *err);
size_t rig_heap(void); /* bytes that are allocated since then; 0 where that is not known */
void rig_heap_from_here(void);
/* One of the fault points (base/fault.def) fails once in this input; 0: none. */
void rig_fault(uint32_t which);

/* ---------------------------------------------------------------- the transport */

enum { RIG_QUEUE = 64 };

struct rig_event {
	bool commit;
	uint64_t value;
	size_t len;
	uint8_t bytes[TR_MSG_MAX];
};

struct rig {
	bool refuses;			   /* has no credit for messages and commits */
	bool holds;			   /* operations do not end */
	bool busy;			   /* a fence is not done */
	bool places;			   /* tr_conn_places */
	unsigned int said;		   /* messages of the product's end */
	struct rig_event event[RIG_QUEUE]; /* for the product's end, when it polls */
	unsigned int events;
	/* What the peer does while the product's end waits; false: nothing. */
	bool (*idle)(void);
	/* What the product's end does; any may be NULL. */
	void (*message)(const void *buf, size_t len);
	void (*commit)(const struct tr_op *op, unsigned int flags, uint64_t value);
	void (*span)(const struct tr_op *op, const struct tr_mem *lmem, const struct tr_rmem *rmem,
		     const struct tr_span *span);
};
extern struct rig rig;
extern const struct tr_provider rig_provider;

/* Takes the place of the context's transports until it is closed. */
void rig_take(struct tr *tr);
/* Give the product's end a message, or the commit of an operation; at its next poll. */
void rig_say(const void *buf, size_t len);
void rig_commit(uint64_t value);
void rig_lose(struct tr_conn *conn); /* the transport breaks */

/* ---------------------------------------------------------------- the peer's control socket */

struct far {
	int fd;
	bool connecting; /* the peer is the connecting end */
	uint64_t features; /* of its upper layer, in its hello */
	struct auth auth;
	uint8_t knock[FRAME_HEADER + AUTH_KNOCK];
	uint8_t last[FRAME_HEADER + FRAME_HELLO_MAX]; /* the frame that came last */
	size_t last_len;			      /* without its MAC; 0: none */
};
extern struct far far;

/*
 * The peer connects: the product's listener (tr_listen is the rig's) has a connection from it. How
 * the product connects to the peer is the rig's, too (dial.h).
 */
void far_connect(void);
int far_open(bool connecting); /* the product's end of the socket pair */
void far_close(void);
/* A frame as the protocol has it: with its MAC, if the peer has proven the key. */
void far_send(enum frame_type type, const void *payload, size_t len);
/* The next frame of the product's end, in far.last; false: there is none. */
bool far_hear(void);
/* What a peer says in the handshake with these words of its upper layer. */
void far_hello(uint16_t upper_id, uint16_t version, const void *upper, size_t len);
void far_setup(const void *upper, size_t len);
/* The description of a region: what tr_mem_pack makes of one here. */
size_t far_region(void *buf, uint32_t id, unsigned int access, uint64_t len);

/* The product's end, accepting, of a connection: what tr_accept makes of the descriptor. */
int rig_accepted(struct tr *tr, const struct tr_conn_config *config, int fd,
		 struct tr_conn **conn_p, struct kv_error *err);

#endif
