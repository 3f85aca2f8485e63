/* SPDX-License-Identifier: Apache-2.0 */
/*
 * conn.h -- a connection as the core sees it (handshake.c, control.c, op.c, event.c);
 * providers see provider.h only
 */
#ifndef TR_CONN_H
#define TR_CONN_H

#include "auth.h"
#include "frame.h"
#include "provider.h"

enum conn_stage {
	CONN_CONNECTING = 0, /* TCP connect under way */
	CONN_WAIT_CHALLENGE, /* connecting side, with a key */
	CONN_WAIT_HELLO,
	CONN_STARTING,       /* connecting side: trying the offers */
	CONN_WAIT_SETUP,
	CONN_WAIT_READY,     /* accepting side */
	CONN_READY,
	CONN_FAILED,         /* handshake failed: only close */
	/* was ready; the provider is being fenced, operations have not ended */
	CONN_BREAKING,
	CONN_LOST,           /* was ready; every operation has ended */
};

enum {
	CONN_EVENTS = 64, /* events from the peer that wait for tr_poll */
	CONN_CHUNK = 8,	  /* slots of operations that are made at a time, and then stay */
};

/* What is needed only between the first byte and READY. */
struct conn_handshake {
	struct dial *dial;        /* connecting side, until the TCP connection stands */
	uint8_t header[FRAME_HEADER];
	size_t got;               /* bytes of header + payload received */
	struct frame_header in;   /* without the MAC, once that is found right */
	uint8_t *frame;           /* header and in.len bytes once the header is complete */
	uint8_t *payload;         /* in it */
	uint8_t *out;             /* frame being sent, NULL if none */
	size_t out_len, out_pos;
	void *offer_priv[TR_PROVIDERS]; /* what each offer (connecting side: start) made */
	bool offered[TR_PROVIDERS];     /* it is to be stopped if it is not chosen */
	/* connecting side: the peer's hello frame while its offers are tried */
	uint8_t *hello;
	struct psk psk; /* connecting side, until it is challenged */
	uint8_t knock[FRAME_HEADER + AUTH_KNOCK];
	struct frame_hello peer;  /* points into hello */
	unsigned int next_offer;
	char why[TR_PROVIDERS][TR_WHY]; /* by index in tr->provider: why its start failed */
};

struct conn_event {
	int32_t kind; /* TR_NOTIFIED or TR_MSG */
	uint32_t len;
	uint64_t value;
	uint8_t msg[TR_MSG_MAX];
};

/* What exists from READY on. */
struct conn_data {
	struct tr_op *chunk[TR_OPS_MAX / CONN_CHUNK];
	unsigned int ops;	/* slots that there are, */
	unsigned int used;	/* and those in use */
	struct tr_op *free_first; /* the one that was in use last comes first */
	struct tr_op *ended_first, **ended_last; /* ended, not yet reported */
	struct tr_op_wide *wide;      /* for operations with many regions, not in use */
	/* lent: given out by the last tr_poll, still readable */
	unsigned int event_head, event_tail, event_lent;
	struct conn_event event[CONN_EVENTS]; /* last: of an idle connection few are touched */
};

static inline struct tr_op *conn_op(const struct conn_data *data, unsigned int index)
{
	return &data->chunk[index / CONN_CHUNK][index % CONN_CHUNK];
}

/* Signs of life of the peer, and when they came: silence.c. */
struct silence {
	int64_t heard_ns;     /* over TCP or over the provider's path */
	int64_t look_ns;      /* when to look again */
	int64_t asked_ns;     /* on the provider's path, unanswered; 0: not */
	uint64_t completions; /* when that was looked at last */
	bool deaf;	      /* the kernel has given the TCP connection up */
};

/* A descriptor that is waited for, and the events of epoll; fd -1: the slot is free. */
struct conn_watch {
	int fd;
	uint32_t events;
};

struct tr_conn {
	struct tr *tr;
	const struct tr_provider *provider;
	void *priv;
	int provider_index;
	int sock;
	int epoll_fd; /* of the owner, -1: not yet, or no more; and its token there */
	uint64_t token;
	struct conn_watch *watch; /* by slot: watch.c */
	unsigned int watches;
	bool accepting;
	bool lost_reported;
	bool leaving; /* fenced, and the goodbye byte is not sent yet */
	bool own_link; /* tr_conn_own_link; soon after READY there is no `sock` */
	uint8_t stage;              /* enum conn_stage */
	unsigned int flags;         /* enum tr_conn_flags */
	unsigned int idle_polls;
	const struct tr_upper_ops *upper;
	void *upper_arg;
	int64_t handshake_ms;
	int64_t deadline_ns;
	struct conn_handshake *hs;
	struct auth auth;
	struct conn_data *data;
	struct tr_rmem *rmems;
	struct tr_exposed *exposed; /* regions that were described to the peer */
	struct tr_counters count;
	struct silence silence;
	uint8_t incarnation[16];
	uint64_t features, peer_features; /* tr_conn_config.features of both ends */
	uint64_t host; /* tr_conn_host */
	char address[64];
	char path[96];
	struct kv_error error;
};

/* control.c: the TCP socket */
/* options of an established socket; watches it */
int control_prepare(struct tr_conn *conn, struct kv_error *err);
void control_set_options(const struct tr_conn *conn);
/* The address of the other end. */
void control_name(struct tr_conn *conn, const struct sockaddr_storage *sa, socklen_t len);
/* sends hs->out: 0 or TR_AGAIN */
int control_flush(struct tr_conn *conn, struct kv_error *err);
/* until hs->got == want: 0 or TR_AGAIN */
int control_fill(struct tr_conn *conn, size_t want, struct kv_error *err);
/* The REJECT frame that the other end has sent, if it is the next in the socket; it stays there. */
bool control_refusal(const struct tr_conn *conn, struct frame_reject *reject);
/* EOF, reset or bytes after READY */
bool control_is_dead(struct tr_conn *conn, struct kv_error *err);
void control_goodbye(struct tr_conn *conn);
void control_close(struct tr_conn *conn);
int control_bind_interface(struct tr *tr, int fd, struct kv_error *err);
/*
 * Puts the header before a payload that stands at buf + FRAME_HEADER and, where both ends have the
 * secrets, the MAC behind it, for which there is room. auth may be NULL. Returns the length of all.
 */
size_t control_finish_frame(uint8_t *buf, enum frame_type type, size_t len, struct auth *auth);
/*
 * Sends a REJECT frame, as far as the socket takes it at once; it is to be closed then. auth NULL:
 * without a MAC.
 */
void control_reject(int fd, struct auth *auth, int code, const char *message, const char *hint);
/* That connections are refused, and why: a line of the log in 10 s. */
void control_warn(struct tr *tr, const char *why);

/* silence.c */
void silence_prepare(const struct tr_conn *conn); /* options of a TCP socket, for the handshake */
void silence_begin(struct tr_conn *conn);	  /* it is over */
void silence_end(const struct tr_conn *conn);	  /* the connection is not watched any more */
bool silence_is_due(const struct tr_conn *conn); /* to be looked at again */
void silence_look_again(struct tr_conn *conn);	 /* own link: it was looked at now */
bool silence_is_loss(struct tr_conn *conn, struct kv_error *err);

/* connect.c */
int conn_new(struct tr *tr, const struct tr_conn_config *config, bool accepting,
	     struct tr_conn **conn_p, struct kv_error *err);

/* handshake.c */
void handshake_free(struct tr_conn *conn);

/* op.c */
int op_make_data(struct tr_conn *conn, struct kv_error *err);
void op_free_data(struct tr_conn *conn);
void op_release(struct tr_op *op); /* releases its regions and its slot */

/* hold.c */
int op_hold(struct tr_op *op, struct tr_mem *mem, struct kv_error *err); /* until op_let_go */
void op_let_go(struct tr_op *op);
void op_free_wide(struct conn_data *data);
int conn_expose(struct tr_conn *conn, const struct tr_mem *mem, struct kv_error *err);
bool conn_exposes(struct tr_conn *conn, const struct tr_mem *mem); /* to the peer */

/* mem.c */
int tr_memory_open(struct tr *tr, struct kv_error *err);
void tr_memory_close(struct tr *tr);
/* Memory of a GPU is registered that this provider does not reach. */
bool mem_misses(struct tr *tr, int provider, struct kv_error *why);

#endif
