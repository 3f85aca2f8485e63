/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ag.h -- the records of the agent layer, which locks there are, and what the files give each other
 *
 * Locks, in the order in which they are taken:
 *   ag_peer.drive  the connection and what stands under it in struct ag_peer. The service thread
 *                  waits for it; a caller only tries, and leaves the rest to the service thread:
 *                  what is large, strangers, and what is lost.
 *   ag_agent.lock  the tables of peers and regions; short
 *   ag_peer.inbox  what callers leave for the thread that drives; short
 *   ag_agent.notes_lock  notifications that have come; short
 *
 * A connection has one side that asks (the peer was loaded here) and one that serves (it came by
 * the listener). Two agents that loaded each other have two connections: neither waits for the
 * other's handshake, and a region that is withdrawn is taken back from the asking side alone.
 *
 * Files call downwards: info, plan, address, metrics < record, note < peer < mem, rmem < move
 * < talk < dial < drive < service < xfer; dump < agent.
 */
#ifndef AG_H
#define AG_H

#include <pthread.h>
#include <stdatomic.h>

#include "agent.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/option.h"
#include "tr.h"

enum {
	AG_SECRET = 16,
	AG_INCARNATION = 16,
	AG_ADDRESSES = 8,
	AG_HOST_TEXT = 64,
	AG_TICK_MS = 100,
	AG_WITHDRAW_MS = 1000,
	AG_CLOSE_MS = 2000,
	AG_LINGER_MS = 500, /* for what was said before a peer was dropped */
	AG_CALLER_BYTES = 64 << 10,
	AG_SERVICE_BYTES = 4 << 20, /* of one peer before the next is looked at */
	AG_WANTS = 256,		    /* of one peer at a time */
	AG_KINDS = 2,		    /* enum ag_kind */
	AG_CODES = 96,		    /* -KV_ERR_*; 0: success */
	AG_HEARD = 16,		    /* peers that a caller looks at in one call */
	AG_ASKED = 16,		    /* calls in a row, each soon after the one before: it polls */
	AG_ASKED_NS = 50000,
	AG_ATTENDED = 10,	    /* looks; then it is armed, which shows a peer's death, too */
};

/* ---------------------------------------------------------------- ag_info.c: bytes, pure */

struct ag_place {
	uint8_t incarnation[AG_INCARNATION], secret[AG_SECRET];
	uint16_t port;
	unsigned int hosts;
	char host[AG_ADDRESSES][AG_HOST_TEXT];
};

struct ag_region {
	uint64_t id, addr, len;
};

size_t ag_place_put(const struct ag_place *place, uint8_t buf[AG_INFO_MAX]);
int ag_place_get(struct ag_place *place, const void *buf, size_t len, struct kv_error *err);
size_t ag_region_put(const struct ag_region *region, uint8_t buf[AG_MEM_INFO_MAX]);
int ag_region_get(struct ag_region *region, const void *buf, size_t len, struct kv_error *err);

/* ag_address.c: numeric addresses of this host that others may reach, the best first */
int ag_address_list(const char *option, struct ag_place *place, struct kv_error *err);

/* ---------------------------------------------------------------- ag_record.c */

enum ag_record_kind {
	AG_NOTE = 1,	 /* a notification */
	AG_WANT = 2,	 /* u64 id: describe your region to me */
	AG_PACK = 3,	 /* u64 id, u64 address of the first byte, then tr_mem_pack; */
			 /* without a description: the region is gone, or cannot be used here */
	AG_WITHDRAW = 4, /* u64 id: the region is gone; answered by AG_LEFT */
	AG_LEFT = 5,	 /* u64 id: nothing of ours is under way there any more */
};

/* Bytes of any number, sent in messages of the transport. */
struct ag_record {
	struct ag_record *next;
	struct ag_xfer *xfer; /* which ends when it is sent, or NULL */
	uint32_t len, sent;
	bool begun;
	uint8_t kind;
	uint8_t body[];
};

struct ag_records {
	struct ag_record *first, **last;
	size_t bytes, n;
};

/* What has come of a record. */
struct ag_hearing {
	uint8_t *buf;
	size_t cap;
	uint32_t len, got;
	uint8_t kind; /* 0: none has begun */
};

struct ag_record *ag_record_new(int kind, const void *body, size_t len, struct kv_error *err);
void ag_records_init(struct ag_records *records);
void ag_records_add(struct ag_records *records, struct ag_record *record);
void ag_records_move(struct ag_records *to, struct ag_records *from);
bool ag_records_remove(struct ag_records *records, struct ag_record *record);
void ag_records_free(struct ag_records *records);
/* One message of the first record: its length, at most cap; ag_records_said after it was sent. */
size_t ag_records_say(const struct ag_records *records, uint8_t *buf, size_t cap);
/* Takes the first record out when all of it was sent: the caller frees it. NULL: there is more. */
struct ag_record *ag_records_said(struct ag_records *records, size_t message_len);
/* A message: 1 and the record if it is whole (valid until the next call), 0 if more has to come. */
int ag_hear(struct ag_hearing *hearing, const uint8_t *msg, size_t len, const uint8_t **body_p,
	    struct kv_error *err);

/* ---------------------------------------------------------------- an agent */

struct ag_kept_note;

struct ag_agent {
	char *name;
	pid_t pid; /* of the process that opened it */
	struct kv_option_set *options;
	struct kv_log *log;
	struct tr *tr;
	struct tr_listener *listener;
	struct ag_place place;
	uint8_t info[AG_INFO_MAX];
	size_t info_len;
	int64_t op_ms, handshake_ms;

	int epoll_fd, wake_fd;
	pthread_t thread;
	bool thread_on;
	atomic_bool stopping, stopped;

	pthread_mutex_t lock;
	pthread_cond_t changed; /* a peer left a region, or is gone; the thread has ended */
	struct ag_peer **peer;
	uint32_t peers_max, peers_end, peers, next_generation;
	struct ag_mem *mems; /* also those that are withdrawn */
	uint64_t next_region, retire_round;
	size_t retiring; /* of these */

	pthread_mutex_t notes_lock;
	struct ag_kept_note *notes, **notes_last;
	atomic_size_t notes_bytes;
	/* Of calls that found no notification: when, how many in a row, the next peer. */
	_Atomic int64_t asked_ns;
	atomic_uint asked, next_heard;
	struct ag_metrics *metrics; /* NULL: not asked for */
};

/* ag_note.c */
void ag_note_init(struct ag_agent *agent);
int ag_note_add(struct ag_agent *agent, const char *name, const void *note, size_t len,
		struct kv_error *err);
bool ag_note_full(const struct ag_agent *agent);
size_t ag_note_give(struct ag_agent *agent, ag_take_note take, void *arg); /* how many */
void ag_note_free(struct ag_agent *agent);

/* ---------------------------------------------------------------- regions */

struct ag_mem {
	struct ag_agent *agent;
	struct ag_mem *next;
	struct ag_region region;
	struct tr_mem *mem; /* NULL: given back */
	uintptr_t base; /* where that begins: lower than the region's address if it is shared */
	atomic_uint refs; /* the agent's list, connections that have its description, transfers */
	atomic_uint uses; /* operations of this agent that were begun and have not ended */
	atomic_bool withdrawn; /* set under the agent's lock; looked at after uses was raised */
	atomic_bool overdue;   /* who has not left it is cut */
	/* under the agent's lock */
	bool giving;	   /* a thread is about to give it back */
	unsigned int told; /* connections that have its description */
	uint64_t tried;	   /* in which round */
};

/* A region that the other side of a connection has asked for. */
struct ag_told {
	struct ag_told *next;
	struct ag_mem *mem;
	bool said; /* that it is withdrawn */
};

enum ag_rmem_state { AG_RMEM_NEW, AG_RMEM_WANTED, AG_RMEM_KNOWN, AG_RMEM_GONE };

struct ag_rmem {
	struct ag_peer *peer;
	struct ag_rmem *next; /* of the peer, or of its inbox */
	struct ag_region region;
	atomic_uint refs;
	atomic_bool unloaded;
	/* under the peer's drive */
	int state;
	struct tr_rmem *rmem;
	uint64_t base; /* address of its first byte */
	unsigned int uses;   /* operations that were begun and have not ended */
	bool leaving;	     /* AG_LEFT is due */
};

/* ---------------------------------------------------------------- peers */

enum ag_peer_state { AG_CONNECTING, AG_UP, AG_LOST };

struct ag_xfers {
	struct ag_xfer *first, **last;
};

struct ag_peer {
	struct ag_agent *agent;
	uint32_t index, generation;
	bool incoming;
	atomic_uint refs;
	atomic_int state;      /* enum ag_peer_state */
	atomic_bool kicked;    /* the service thread is to look at it */
	atomic_bool served;    /* and comes at once: there is much to move */
	atomic_bool dropped;   /* nobody wants it any more */
	atomic_bool fenced;    /* lost, and nothing of its connection moves any more */
	atomic_uint cancels;   /* transfers that are to be stopped */
	atomic_uint unloads;   /* regions that were unloaded */
	char *name;	       /* of one that came: NULL until its hello */
	uint8_t *info;	       /* what it was loaded with */
	size_t info_len;
	struct kv_error error; /* why it is lost; nothing changes it after state is AG_LOST */

	pthread_mutex_t inbox;
	struct ag_xfers posted;
	struct ag_records said;
	struct ag_rmem *loaded;
	bool unreached;		/* no address answered: dialled anew when something is left here */
	struct kv_error reason; /* of that */

	pthread_mutex_t drive;
	struct tr_conn *conn;
	struct ag_place place; /* of one that was loaded */
	unsigned int next_host;
	bool for_request;  /* something waited when the first of its addresses was tried */
	int64_t dial_ns;   /* the address that is tried is given up */
	int64_t linger_ns; /* one that is dropped, or was lost: what it says last has until then */
	unsigned int wanted; /* regions that were asked for and not answered */
	struct ag_xfers queue; /* the first is being posted */
	struct ag_xfers flight;
	struct ag_records out;
	struct ag_hearing hearing;
	struct ag_rmem *rmems;
	bool wanting, leaving; /* of these: one is to be asked for, to be left */
	unsigned int attended; /* not 0: the thread looks each millisecond, and nobody arms it */
	struct ag_told *told;
};

/* ag_peer.c: the table; references */
int ag_peer_new(struct ag_agent *agent, bool incoming, struct ag_peer **peer_p,
		struct kv_error *err); /* with one reference */
int ag_peer_enter(struct ag_peer *peer, struct kv_error *err); /* agent's lock; takes a reference */
void ag_peer_leave(struct ag_peer *peer);		       /* and gives it back */
struct ag_peer *ag_peer_at(struct ag_agent *agent, uint32_t index); /* with a reference, or NULL */
struct ag_peer *ag_peer_find(struct ag_agent *agent, const char *name); /* agent's lock */
struct ag_peer *ag_peer_get(struct ag_agent *agent, const char *name, const char *what,
			    struct kv_error *err); /* with a reference */
void ag_peer_put(struct ag_peer *peer);
void ag_kick(struct ag_peer *peer);
void ag_wake(struct ag_agent *agent);
void ag_kick_all(struct ag_agent *agent, bool incoming_only);
int ag_peer_gone(const struct ag_peer *peer, struct kv_error *err); /* 0, or why it is lost */

/* ---------------------------------------------------------------- transfers */

struct ag_run {
	struct ag_mem *mem;
	struct ag_rmem *rmem;
	size_t first, n; /* spans */
};

/* ag_plan.c: pure. Spans have local offsets, and remote addresses. */
struct ag_plan {
	struct ag_run *run;
	struct tr_span *span;
	size_t runs, spans;
	uint64_t bytes;
};
int ag_plan_make(struct ag_plan *plan, const struct ag_pair *pairs, size_t n,
		 struct kv_error *err);
void ag_plan_free(struct ag_plan *plan);

enum ag_stage {
	AG_IDLE,
	AG_WAITING, /* in the inbox or the queue */
	AG_POSTING, /* its operation is begun */
	AG_FLIGHT,  /* and has all of its spans, or is being stopped */
	AG_NOTING,  /* the bytes are there; its notification is being sent */
	AG_DONE,    /* the last thing that is written: its owner may free it at once */
};

struct ag_xfer {
	struct ag_peer *peer;
	int kind;
	struct ag_plan plan;
	int64_t posted_ns;
	atomic_int stage;
	atomic_bool cancel;
	struct kv_error error; /* code 0: it went well */
	struct ag_record *note;
	/* under the peer's drive, while it is under way */
	struct ag_xfer *next;
	struct tr_op *op;
	bool stopping, committed;
	bool in_doubt; /* its connection ended under it */
	size_t at_run, at_span;
	uint64_t at_byte; /* of that span */
	uint64_t again;	  /* bytes that were offered from there and not accepted whole, or 0 */
};

/*
 * ag_metrics.c: started before the service thread, stopped after it. Where it cannot, the log says
 * so, and the agent goes without.
 */
struct kv_report;
void ag_metrics_start(struct ag_agent *agent,
		      void (*report)(struct ag_agent *agent, struct kv_report *r));
void ag_metrics_stop(struct ag_agent *agent);
void ag_metrics_begun(struct ag_agent *agent);
void ag_metrics_ended(struct ag_agent *agent, const struct ag_xfer *xfer);
void ag_metrics_lost(struct ag_agent *agent, const struct ag_peer *peer);

/* ag_dump.c: its peers and their transfers, as fields of an item */
void ag_report_agent(struct ag_agent *agent, struct kv_report *r);

void ag_xfers_init(struct ag_xfers *xfers);
void ag_xfers_add(struct ag_xfers *xfers, struct ag_xfer *xfer);
bool ag_xfers_remove(struct ag_xfers *xfers, struct ag_xfer *xfer);

/* ag_move.c; drive held. Returns the number of things done; *starved_p: no budget was left. */
int ag_move(struct ag_peer *peer, uint64_t *budget, bool *starved_p);
void ag_move_event(struct ag_peer *peer, const struct tr_event *event); /* an operation's end */
void ag_move_sent(struct ag_peer *peer, struct ag_xfer *xfer); /* its notification was */
void ag_move_revoke(struct ag_peer *peer); /* stops what uses a region that is gone */
void ag_move_lost(struct ag_peer *peer); /* what has no operation ends with the peer's error */

/* ---------------------------------------------------------------- regions of both sides */

/* ag_mem.c: the side that serves; drive held */
int ag_mem_pack(struct ag_peer *peer, uint64_t id, struct ag_record **answer_p,
		struct kv_error *err);
/* Says what is to be said; returns how many, or TIMEOUT: the peer has not left in time. */
int ag_mem_withdraw(struct ag_peer *peer, struct kv_error *err);
void ag_mem_left(struct ag_peer *peer, uint64_t id); /* the other side has nothing there */
void ag_mem_left_all(struct ag_peer *peer);	      /* fenced */
bool ag_mem_retire(struct ag_agent *agent); /* gives back what it can; false: something is left */
void ag_mem_close(struct ag_agent *agent);
void ag_mem_put(struct ag_mem *mem);

/* ag_rmem.c: the side that asks; drive held */
void ag_rmem_take(struct ag_peer *peer, struct ag_rmem *loaded); /* from the inbox */
int ag_rmem_want(struct ag_peer *peer);				  /* asks; how many */
int ag_rmem_known(struct ag_peer *peer, const uint8_t *body, size_t len, struct kv_error *err);
void ag_rmem_withdrawn(struct ag_peer *peer, uint64_t id); /* then ag_move_revoke */
int ag_rmem_leave(struct ag_peer *peer); /* says AG_LEFT where nothing is under way; how many */
void ag_rmem_drop_all(struct ag_peer *peer);
void ag_rmem_put(struct ag_rmem *rmem);

/* ---------------------------------------------------------------- the loop */

/* ag_dial.c: connections begun and accepted */
int ag_dial(struct ag_peer *peer, struct kv_error *err); /* the next address; UNREACHABLE: none */
int ag_watch(struct ag_peer *peer, struct kv_error *err);
bool ag_accept(struct ag_agent *agent); /* false: not before the next tick */

/* ag_talk.c: a message of the peer */
int ag_talk(struct ag_peer *peer, const uint8_t *msg, size_t len, struct kv_error *err);

enum ag_turn {
	AG_TURN_OVER, /* an event will come */
	AG_TURN_SOON, /* look again in a millisecond */
	AG_TURN_MORE, /* go on at once */
	AG_TURN_FULL, /* not read until the engine takes notifications */
	AG_TURN_GONE, /* closed; the service thread takes it out of the table */
};
enum { AG_TOKEN_WAKE = 0, AG_TOKEN_LISTENER = 1, AG_TOKEN_PEERS = 2 };

/* ag_drive.c; drive held; by the service thread. */
enum ag_turn ag_drive(struct ag_peer *peer, uint64_t budget);
/*
 * By a caller; never waits. must: the service thread does it if this one cannot. False: another
 * thread does it, or has to go on.
 */
bool ag_try_drive(struct ag_peer *peer, uint64_t budget, bool must);
/* By a caller that asks for notifications and finds none: what has come is taken here at once. */
void ag_try_hear(struct ag_agent *agent);

int ag_service_start(struct ag_agent *agent, struct kv_error *err);
bool ag_service_stop(struct ag_agent *agent, int64_t deadline_ns); /* false: it does not return */

#endif
