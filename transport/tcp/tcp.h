/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp.h -- what the files of the tcp provider know of each other
 *
 *   setup.c    the handshake: the connecting side opens a data socket to the accepting side's door
 *   door.c     the door: a connection there has to prove that it is the peer's
 *   stream.c   frames on the data socket (pure)
 *   queue.c    frames going out: headers and small frames in a buffer, block data from where it is
 *   send.c     op_begin .. op_cancel, messages, when an operation is done
 *   answer.c   the peer's reads
 *   receive.c  progress: frames of the peer; going to sleep
 *   place.c    where the bytes of a frame go
 *   stop.c     the end: loss, fence
 */
#ifndef TCP_H
#define TCP_H

#include <sys/uio.h>

#include "provider.h"
#include "stream.h"

enum tcp_limits {
	TCP_STRANGERS = 4, /* connections at a door that have not proven themselves */
	TCP_ACCEPTS = 16,  /* that one look at a door takes */
	TCP_QUEUE_BYTES = 64 << 10, /* headers and small frames that wait to be sent */
	TCP_QUEUE_PIECES = 1024,    /* of the queue: what one sendmsg takes */
	TCP_BATCH_LEAST = 64, /* free pieces for which a batch is worth its header */
	/* Of the queue, kept for notifies and messages, and of that for TELL and REPORT. */
	TCP_KEEP_BYTES = 16 << 10,
	TCP_KEEP_PIECES = 64,
	TCP_KEEP_LAST = 2 * STREAM_FIXED,
	TCP_PENDING = 2 << 20,	/* bytes in the queue, for which no more are accepted */
	TCP_FLUSH = 512 << 10,	/* that are sent without waiting for the commit */
	TCP_ADD_BYTES = 4 << 20, /* that one call sends: how long it may keep its caller */
	TCP_SMALL_MAX = 256,	/* notifies and messages that the peer has not taken */
	TCP_SMALL_TOLD = 64,	/* of them, for which it says so unasked */
	TCP_READS_MAX = 1024,	/* spans that were asked for and have not come, per side */
	TCP_IN_BYTES = 8 << 10, /* a header with its spans, or what comes in one small piece */
	TCP_TAKE_BYTES = 1 << 20, /* that one progress takes at most */
	/* Looks in a row after which what comes need not wake another thread. */
	TCP_BUSY_POLLS = 3,
	TCP_FENCE_MS = 1000,	  /* that a fence waits until the last words have left */
};

struct tcp_ctx {
	struct tr *tr;
	uint16_t first_port, last_port; /* of doors: KVCACHE_TCP_PORTS; 0: any */
};

/* A connection at the door, until it has sent its greeting. */
struct tcp_stranger {
	int fd; /* -1: no one */
	uint8_t got;
	uint8_t greeting[STREAM_GREETING];
};

/* Frames that wait to be sent. Emptied before its room is used again. */
struct tcp_queue {
	uint8_t bytes[TCP_QUEUE_BYTES];
	size_t used;
	/* In `bytes`, or local memory of an operation; NULL: what the peer reads (answer.c). */
	struct iovec piece[TCP_QUEUE_PIECES];
	unsigned int head, tail;
	uint64_t queued, sent; /* positions in the stream */
	bool answering;	       /* one of the pieces is NULL */
	bool full;   /* the socket took no more when it was tried last; progress tries again */
	bool closed; /* a frame was cut short: nothing may follow it */
};

/* State of an operation's slot. */
struct tcp_op {
	uint64_t at;	/* position behind its last byte; 0: none was queued */
	uint64_t part;	/* bytes of the span that comes next which are queued already */
	uint32_t reads; /* spans that were asked for and have not come */
	bool committed;
	bool waiting; /* it stands in one of the two lines */
	int32_t end_kind;
	int64_t deadline_ns; /* of a cancelled one; INT64_MAX */
};

/* Operations that end when a position is passed, in the order of those. */
struct tcp_line {
	uint16_t op[TR_OPS_MAX];
	unsigned int head, tail;
};

/* A span that we read, or a piece of it. Answers come in the order of the requests. */
struct tcp_read {
	uint8_t *dst; /* NULL: cancelled, the bytes are thrown away */
	uint32_t left;
	uint16_t op;
};

/* A span that the peer reads. */
struct tcp_answer {
	uint32_t mem, left;
	uint64_t offset;
};

struct tcp_in {
	uint8_t bytes[TCP_IN_BYTES];
	size_t from, to;
	/* The frame whose payload is coming, */
	struct stream_frame frame;
	uint32_t left; /* bytes of it; 0: none is */
	struct stream_span span[STREAM_SPANS_MAX];
	int8_t verdict[STREAM_SPANS_MAX]; /* TR_PLACE or TR_DROP, */
	unsigned int asked;		  /* of the spans before this one, in this turn */
	unsigned int next;		  /* the span that the next byte belongs to, */
	uint32_t done;			  /* and how many it has */
	uint64_t taken;			  /* position in the stream */
	uint32_t small, small_told;	  /* notifies and messages */
	bool told;			  /* the peer wants to know */
	bool stalled;			  /* a frame waits for room for its event */
	bool looked;			  /* in this turn: the peer has not broken the connection */
};

struct tcp_data {
	struct kv_error failure; /* code 0: none; reported once what had come before was taken */
	struct tcp_queue queue;
	struct tcp_in in;
	struct tcp_op op[TR_OPS_MAX];
	struct tcp_line to_send, to_land;
	unsigned int stopping; /* operations with a deadline */
	uint64_t landed;       /* the peer has taken our stream up to here */
	uint32_t small, small_landed;
	bool tell; /* ask how far it is */
	struct tcp_read read[TCP_READS_MAX];
	unsigned int read_head, read_tail;
	uint64_t read_left; /* bytes of them */
	struct tcp_answer answer[TCP_READS_MAX];
	unsigned int answer_head, answer_tail;
	bool blocked; /* a call found the queue full; room was not reported since */
	bool short_of_reads; /* the same: too many spans are asked for */
	bool cut;	     /* a call stopped at TCP_ADD_BYTES; that was not reported yet */
};

struct tcp_conn {
	struct tcp_ctx *ctx;
	struct tr_conn *conn;
	int sock; /* of the data; connecting side: until it is proven, the peer's door */
	uint8_t token[16];
	unsigned int watched; /* enum tr_watch: what wakes the owner */
	unsigned int polls;   /* since it was about to sleep */
	bool hung_up; /* the peer's end of the stream was seen */
	int64_t fence_ns; /* 0: not begun */

	/* Handshake: the accepting side's door, */
	int door;
	struct tcp_stranger stranger[TCP_STRANGERS];
	unsigned int next_stranger;
	/* the connecting side's knock. */
	bool greeted;
	uint8_t got;
	uint8_t greeting[STREAM_GREETING];
	char address[64];

	struct tcp_data *data; /* from the setup on */
};

/* setup.c */
int tcp_offer(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_writer *w,
	      struct kv_error *err);
void tcp_offered(struct tr_conn *conn, void *priv);
int tcp_start(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_reader *r,
	      struct kv_error *err);
int tcp_setup_put(struct tr_conn *conn, struct wire_writer *w, struct kv_error *err);
int tcp_setup_get(struct tr_conn *conn, struct wire_reader *r, struct kv_error *err);
void tcp_stop(struct tr_conn *conn, void *priv);

/* door.c */
#define TCP_KNOCKS "tcp door" /* labels of tr_conn_prove: the connecting side's greeting, */
#define TCP_OPENS "tcp open"  /* and the answer to it */
int door_open(struct tcp_conn *tc, uint16_t *port_p, struct kv_error *err);
/* Takes what waits there; tc->sock is the peer's as soon as it has proven itself. */
void door_look(struct tcp_conn *tc);
void door_close(struct tcp_conn *tc);

/* queue.c */
/* Room for a batch: how many spans of at most `want`; 0: none. */
unsigned int queue_batch_room(const struct tcp_conn *tc, unsigned int want);
void queue_batch(struct tcp_conn *tc, const struct stream_frame *frame,
		 const struct stream_span *spans, const struct iovec *payload);
/* A frame without block data: may use what is kept for it. */
bool queue_small(struct tcp_conn *tc, const struct stream_frame *frame, const void *payload);
/*
 * Sends what the socket takes. A failure is kept in data->failure: progress reports it when what
 * the peer had sent before is taken.
 */
void queue_flush(struct tcp_conn *tc);
void queue_push(struct tcp_conn *tc); /* the same, without a REPORT that is due */
bool queue_reports(const struct tcp_data *d); /* a REPORT is due */
/* Sends up to 1024 pieces: bytes, or -1 and errno. */
ssize_t queue_send(struct tcp_conn *tc, const struct iovec *piece, unsigned int n, bool more);
static inline uint64_t queue_pending(const struct tcp_queue *q)
{
	return q->queued - q->sent;
}

/* send.c */
void tcp_op_begin(struct tr_op *op);
long tcp_op_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		const struct tr_span *spans, size_t n, struct kv_error *err);
int tcp_op_commit(struct tr_op *op, unsigned int flags, uint64_t value, struct kv_error *err);
void tcp_op_cancel(struct tr_op *op, int64_t deadline_ns);
int tcp_msg(struct tr_conn *conn, const void *buf, size_t len, bool wake, struct kv_error *err);
/* Ends what can be ended: how many operations, or the connection's failure. */
int send_settle(struct tcp_conn *tc, struct kv_error *err);
/* A call that was refused may be tried again; said once. */
bool send_goes_on(struct tcp_conn *tc);

/* answer.c */
int answer_asked(struct tcp_conn *tc, struct kv_error *err); /* in.frame is a READ */
int answer_queue(struct tcp_conn *tc); /* the next frame of answers: 1 if there is one */
/* Sends the next `len` bytes: their number, -1 and errno, or -2: data->failure is set. */
ssize_t answer_send(struct tcp_conn *tc, size_t len);

/* receive.c */
int tcp_progress(struct tr_conn *conn);
int tcp_arm(struct tr_conn *conn);

/* place.c */
/* in.frame is DATA: its region, bounds and grant are right, or the peer breaks the rules. */
int place_check(struct tcp_conn *tc, struct kv_error *err);
/* in.frame is an ANSWER. */
int place_check_answer(struct tcp_conn *tc, struct kv_error *err);
/* Bytes of the payload that came with a header. 0, or the connection's failure. */
int place_buffered(struct tcp_conn *tc, struct kv_error *err);
/*
 * Receives into the places, and what follows the payload into in.bytes. Bytes, 0: the peer's end,
 * -1 and errno, or -2: the connection's failure. *more_p: the socket may have more.
 */
ssize_t place_receive(struct tcp_conn *tc, bool *more_p, struct kv_error *err);

/* stop.c */
int tcp_fence(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err);
/* The connection fails for this reason. */
void tcp_lose(struct tcp_conn *tc, const struct kv_error *cause);
void stop_close(struct tcp_conn *tc); /* the data socket, in good order */

#endif
