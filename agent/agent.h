/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent.h -- processes by name, memory by address: what an engine's transfer library stands on
 *
 * An agent has a name, registered regions and a service thread. It gives out two kinds of bytes,
 * which the engine carries to other processes however it likes: where the agent is (ag_info), and
 * what a region is (ag_mem_info). With the first a peer is loaded by its name, with the second its
 * regions. A transfer is a list of pairs, local and remote, planned once and posted any number of
 * times. A peer that was never loaded here may connect all the same, if it was given the bytes of
 * ag_info: there is a secret in them.
 *
 * Threads  Every call may come from any thread, but those for one transfer one at a time. Nothing
 *          waits for a peer, except ag_mem_dereg and ag_close. Bytes move in the service thread,
 *          and up to 64 KiB of them in the caller of ag_xfer_post and ag_xfer_check. A peer that is
 *          loaded is connected by that thread or by these callers, which of them is there first. A
 *          caller that can only wait for a thread makes way for it (sched_yield), and returns.
 * Errors   0, AG_AGAIN where it is named, or a negative KV_ERR_* with the cause in `err` (may be
 *          NULL). A code of scope PEER (kv_error_scope) says that the peer is lost: its transfers
 *          have ended, and it has to be dropped and loaded anew.
 * Memory   Of the host. What a call is given is copied before it returns.
 */
#ifndef AGENT_H
#define AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <kvrail/kv_error.h>

struct ag_agent;
struct ag_mem;	/* a region of this agent */
struct ag_rmem; /* a region of a peer */
struct ag_xfer;

#define AG_AGAIN 1

enum ag_limits {
	AG_NAME_MAX = 1024,	      /* bytes of an agent's name */
	AG_INFO_MAX = 1024,	      /* bytes of ag_info */
	AG_MEM_INFO_MAX = 32,	      /* bytes of ag_mem_info */
	AG_NOTIFY_MAX = 16 << 20,     /* bytes of a notification */
	AG_NOTIFY_QUEUE = 64 << 20,   /* bytes of notifications that wait, of each direction */
	AG_XFER_PAIRS_MAX = 4 << 20,  /* pairs of a transfer */
};

/* ---------------------------------------------------------------- an agent */

struct ag_config {
	const char *name;
	const char *const *options; /* "KVCACHE_NAME=value", NULL at the end; may be NULL */
	void (*log)(void *arg, int level, const char *line); /* enum kv_log_level; may be NULL */
	void *log_arg;
};

/* ARG: an option, or the name is empty or too long. Listens on KVCACHE_AGENT_ADDRESS. */
int ag_open(const struct ag_config *config, struct ag_agent **agent_p, struct kv_error *err);
/*
 * Drops every peer, waits up to 2 s for what is under way. Transfers must be released before. In a
 * child that was forked it does nothing.
 */
void ag_close(struct ag_agent *agent);
/* A line of the agent's log: what failed, and why. */
void ag_report(struct ag_agent *agent, const char *what, const struct kv_error *err);
/* Where the agent is, for ag_peer_load: the same bytes for all of its life. */
const void *ag_info(const struct ag_agent *agent, size_t *len_p);

/* ---------------------------------------------------------------- regions */

enum ag_mem_kind {
	AG_HOST,
	AG_CUDA, /* a GPU's: moved by its kernels on one host, through pinned memory over TCP */
};
bool ag_has_cuda(void); /* its driver is installed */
int ag_mem_reg(struct ag_agent *agent, void *addr, size_t len, int kind, struct ag_mem **mem_p,
	       struct kv_error *err);
/*
 * The region is gone for peers: their transfers end with REVOKED, before or after; connections
 * stay. Waits until each peer has said that it has nothing under way there, up to 1 s; a connection
 * of which nothing was heard by then is ended. After 0 nothing can land in it. BUSY: a device, a
 * process of this host that is stopped, or a transfer of this agent may still use it, and the agent
 * gives it back by itself when it can. `mem` is gone in both cases.
 */
int ag_mem_dereg(struct ag_mem *mem, struct kv_error *err);
/* What the region is, for ag_rmem_load. Returns the number of bytes. */
size_t ag_mem_info(const struct ag_mem *mem, uint8_t buf[AG_MEM_INFO_MAX]);

/* ---------------------------------------------------------------- peers */

/*
 * Begins to connect, and returns. The same bytes again: nothing. BUSY: the name has other ones, and
 * the peer is not lost. ARG: they are not those of an agent. A peer that could not be reached is
 * tried again for the first transfer or notification, which fails only if that fails, too.
 */
int ag_peer_load(struct ag_agent *agent, const char *name, const void *info, size_t len,
		 struct kv_error *err);
/*
 * 0: connected. AG_AGAIN: not yet. Negative: why it is lost, or was not reached: that is said once,
 * and it is tried again. ARG: no peer of that name was loaded.
 */
int ag_peer_check(struct ag_agent *agent, const char *name, struct kv_error *err);
/* Its transfers end; the name may be loaded anew at once. Nothing, if it is not loaded. */
void ag_peer_drop(struct ag_agent *agent, const char *name);

int ag_rmem_load(struct ag_agent *agent, const char *name, const void *info, size_t len,
		 struct ag_rmem **rmem_p, struct kv_error *err);
void ag_rmem_unload(struct ag_rmem *rmem); /* transfers that were prepared with it may go on */

/* ---------------------------------------------------------------- transfers */

enum ag_kind { AG_WRITE = 0, AG_READ = 1 };

struct ag_pair {
	struct ag_mem *mem;
	struct ag_rmem *rmem;
	uintptr_t local, remote; /* addresses, each inside its region */
	size_t len;
};

/*
 * Plans a transfer: regions are grouped, neighbours merged. No order is kept among the pairs. ARG:
 * a pair leaves its region (block_index), or a region is not of this peer.
 */
int ag_xfer_prepare(struct ag_agent *agent, const char *name, int kind,
		    const struct ag_pair *pairs, size_t n, struct ag_xfer **xfer_p,
		    struct kv_error *err);
/*
 * Posts it, with a notification that the peer gets after the bytes, if `note` is not NULL (of
 * `note_len` bytes, 0 is one, too). 0: it is done; AG_AGAIN: under way. BUSY: it is under way from
 * before.
 */
int ag_xfer_post(struct ag_xfer *xfer, const void *note, size_t note_len, struct kv_error *err);
/*
 * 0: the bytes are visible (a write: at the peer) and the notification was handed to the transport.
 * Otherwise AG_AGAIN, or how it ended: REVOKED (the region was withdrawn), CANCELLED, a code of the
 * peer's loss. ARG: it was never posted.
 */
int ag_xfer_check(struct ag_xfer *xfer, struct kv_error *err);
/*
 * A fence: 0, and the transfer is freed, when nothing of it can land any more. AG_AGAIN: it is
 * being stopped; call again.
 */
int ag_xfer_release(struct ag_xfer *xfer);

/* ---------------------------------------------------------------- notifications */

/* To a loaded peer. BUSY: more than AG_NOTIFY_QUEUE waits for it. */
int ag_notify(struct ag_agent *agent, const char *name, const void *note, size_t len,
	      struct kv_error *err);
/*
 * Those that have come, each once, in the order in which they came from their peer; where none is
 * there yet it looks at the connections itself. Returns how many; `take` says false if it could not
 * keep one: it comes again with the next call, and so do the rest.
 */
typedef bool (*ag_take_note)(void *arg, const char *name, const void *note, size_t len);
size_t ag_notes(struct ag_agent *agent, ag_take_note take, void *arg);

#endif
