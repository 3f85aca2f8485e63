/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_pair.h -- two processes with a connection between them, for the loop tests of the transport
 *
 * pair_run forks before anything is opened. The child listens, the parent connects. Each side has
 * one region, described to the other in the setup. PAIR_CHECK ends the process with a message: in
 * the child that is the test's failure, seen by the parent.
 */
#ifndef TR_PAIR_H
#define TR_PAIR_H

#include <stdio.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/option.h"
#include "../lib/slow.h"
#include "tr.h"

#define PAIR_CHECK(cond)                                                                   \
	do {                                                                               \
		if (!(cond)) {                                                             \
			fprintf(stderr, "%s:%d: process %d: %s does not hold\n", __FILE__, \
				__LINE__, (int)getpid(), #cond);                           \
			_exit(1);                                                          \
		}                                                                          \
	} while (0)

enum { PAIR_EVENTS_MAX = 4096, PAIR_SKIP = 77 };
#define PAIR_WAIT_MS slow_ms(20000) /* for what surely comes, on whatever machine */
/* for what must not wait for TCP to find out that a host is gone */
#define PAIR_SOON_MS slow_ms(4000)

struct pair_side;

struct pair_config {
	const char *parent_path, *child_path; /* KVCACHE_SHM_PATH, NULL = auto; "ib", "tcp" */
	bool parent_pool, child_pool;	      /* the region comes from tr_alloc */
	size_t region;			      /* bytes; 0: none */
	size_t ring;			      /* 0: default */
	bool relayed; /* the control connection goes through a process in between */
	unsigned int flags;		      /* enum tr_conn_flags */
	unsigned int child_flags;	      /* the child's, besides */
	unsigned int access;		      /* 0: remote read and write */
	const char *option;		      /* one more, of both sides */
	/* The connecting side has sent its hello, and has not looked for the answer. */
	void (*greeted)(struct pair_side *s);
	void *arg;
};

struct pair_side {
	const struct pair_config *config;
	bool child;
	pid_t other;
	int to, from; /* pipes to the other process, for the test's own words */
	struct kv_option_set *options;
	struct tr *tr;
	struct tr_listener *listener;
	struct tr_conn *conn;
	uint8_t *base;
	bool is_pool;
	struct tr_mem *mem;
	struct tr_rmem *rmem;
	/* What tr_poll has given. */
	uint64_t notified[PAIR_EVENTS_MAX];
	unsigned int notifies, msgs;
	uint8_t msg[PAIR_EVENTS_MAX][16]; /* the first bytes */
	size_t msg_len[PAIR_EVENTS_MAX];
	unsigned int ended; /* operations, in any way */
	int32_t last_end;   /* kind of the last */
	uint64_t last_user;
	bool lost;
	struct kv_error cause;
	/* Called with each notify, before the next event is taken. */
	void (*on_notify)(struct pair_side *s, uint64_t value);
};

typedef void pair_fn(struct pair_side *s);

/* Runs both; returns the child's exit status (-signal if it was killed). */
int pair_run(const struct pair_config *config, pair_fn *parent, pair_fn *child);
/* In a process of its own, with which users, namespaces and the environment go. 0: all is well. */
int pair_run_apart(const struct pair_config *config, pair_fn *parent, pair_fn *child);

void pair_open(struct pair_side *s); /* context and region */
int pair_connect(struct pair_side *s,
		 struct kv_error *err); /* both sides call it; the handshake's result */
/* A relay to this port in a process of its own, which ends with its connection: its port. */
uint32_t pair_relay(uint32_t port);
void pair_up(struct pair_side *s);	/* pair_open and pair_connect, which must succeed */
void pair_down(struct pair_side *s);	/* closes everything that is open */

void pair_say(struct pair_side *s, uint64_t word);
uint64_t pair_hear(struct pair_side *s);
/* Both sides: returns when the other has come here too; polls meanwhile. */
void pair_meet(struct pair_side *s);

/* Returns when the connection has no descriptor that was the handshake's: over shm it loses one. */
void pair_settle(struct pair_side *s);
/* Polls, and sleeps if there is nothing. Returns the number of events. */
int pair_poll(struct pair_side *s, int sleep_ms);
void pair_wait_notifies(struct pair_side *s, unsigned int n);
void pair_wait_msgs(struct pair_side *s, unsigned int n);
void pair_wait_lost(struct pair_side *s, int64_t within_ms);
/*
 * Fills the region, meets the other side, and sleeps until its lie has ended the connection: with
 * PROTOCOL, this text in the message, no event, and no byte of the region changed.
 */
void pair_suffer(struct pair_side *s, uint64_t seed, const char *text);

/* One operation from begin to commit, with all the waiting; not to its end. */
struct tr_op *pair_begin(struct pair_side *s, int kind, uint64_t user);
void pair_add(struct pair_side *s, struct tr_op *op, const struct tr_span *spans, size_t n);
void pair_commit(struct pair_side *s, struct tr_op *op, unsigned int flags, uint64_t value);
void pair_wait_ended(struct pair_side *s, unsigned int n);
void pair_send(struct pair_side *s, const void *buf, size_t len);

/*
 * Both sides: from their start (pair_up) to their end each writes nearly half of its region into
 * the other's second half, by a path of this text, and looks at every byte.
 */
void pair_swap(struct pair_side *s, const char *path);

/* The byte that `seed` gives to an offset. */
static inline uint8_t pair_byte(uint64_t seed, uint64_t offset)
{
	uint64_t x = (offset / 8 + 1) * UINT64_C(0x9e3779b97f4a7c15) +
		     seed * UINT64_C(0xd1b54a32d192ed03);

	x ^= x >> 29;
	x *= UINT64_C(0xbf58476d1ce4e5b9);
	x ^= x >> 32;
	return (uint8_t)(x >> (8 * (offset & 7)));
}
void pair_fill(uint8_t *p, uint64_t seed, uint64_t offset, size_t len);
/* Index of the first byte that differs, or -1. */
int64_t pair_differs(const uint8_t *p, uint64_t seed, uint64_t offset, size_t len);
/* xorshift */
static inline uint64_t pair_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

#endif
