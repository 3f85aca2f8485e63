/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp.h -- what the files of the tcp provider know of each other
 *
 *   setup.c    the handshake: the connecting side opens data sockets to the accepting side's door
 *   door.c     the door: a connection there has to prove that it is the peer's
 *   stream.c   frames on a data socket (pure)
 *   calls.c    system calls of several streams, made at the same time
 *   queue.c    frames going out: headers and small frames in a buffer, block data from where it is
 *   send.c     op_begin .. op_cancel, messages, when an operation is done
 *   answer.c   the peer's reads
 *   receive.c  progress: frames of the peer; going to sleep
 *   place.c    where the bytes of a frame go
 *   stage.c    pinned memory between a socket and the memory of a GPU
 *   stop.c     the end: loss, fence
 *   device.c   the interfaces, for `kvrail info`
 *
 * A stream is one data socket with what goes out and comes in by it. All of them carry blocks,
 * dealt in turns, and reads with their answers; notifies and messages go by the first. Before a
 * notify stands an AFTER for each other stream that has carried blocks since the last one: the
 * receiver takes nothing behind it before those have come.
 */
#ifndef TCP_H
#define TCP_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "provider.h"
#include "stage.h"
#include "stream.h"

enum tcp_limits {
	TCP_STREAMS_MAX = 8,
	/* Connections at a door that have not proven themselves: the peer's, a few of others. */
	TCP_STRANGERS = TCP_STREAMS_MAX + 4,
	TCP_ACCEPTS = 16,      /* that one look at a door takes */
	TCP_STRIPE = 64 << 10, /* bytes that are dealt to a stream before the next one's turn */
	TCP_QUEUE_BYTES = 64 << 10, /* headers and small frames that wait to be sent */
	TCP_QUEUE_PIECES = 1024,    /* of the queue: what one sendmsg takes */
	TCP_BATCH_LEAST = 64,	    /* free pieces for which a batch is worth its header */
	/* Of the queue, kept for notifies and messages, and of that for TELL and REPORT. */
	TCP_KEEP_BYTES = 16 << 10,
	TCP_KEEP_PIECES = 64,
	TCP_KEEP_LAST = 2 * STREAM_FIXED,
	TCP_PENDING = 2 << 20,	  /* bytes in the queue, for which no more are accepted */
	TCP_FLUSH = 512 << 10,	  /* that are sent without waiting for the commit */
	TCP_ADD_BYTES = 4 << 20,  /* that one call sends: how long it may keep its caller */
	TCP_SMALL_MAX = 256,	  /* notifies and messages that the peer has not taken */
	TCP_SMALL_TOLD = 64,	  /* of them, for which it says so unasked */
	TCP_READS_MAX = 1024,	  /* spans that were asked for and have not come, per side */
	TCP_IN_BYTES = 8 << 10,	  /* a header with its spans, or what comes in one small piece */
	TCP_TAKE_BYTES = 1 << 20, /* that one progress takes at most */
	TCP_SHARE = 64 << 10,	  /* for which a call is worth another thread */
	/*
	 * Looks in a row, some 10 to 40 us, after which a thread that waits sleeps at the socket.
	 * Whether it looks at all, or sleeps at once, is what took less time so far; one wait of so
	 * many tries the other way.
	 */
	TCP_LOOKS = 32,
	TCP_TRY_EVERY = 16,
	TCP_WAIT_NS = 100000, /* what a wait counts for at most */
	TCP_COPY_NS = 50000,  /* that it sleeps while a GPU copies, which wakes nobody */
	TCP_FENCE_MS = 1000,  /* that a fence waits until the last words have left */
};

/* One system call of a stream. */
struct tcp_call {
	int sock;
	bool sends;
	int flags; /* MSG_DONTWAIT among them */
	struct msghdr msg;
	ssize_t bytes; /* that it returned, */
	int error;     /* and errno */
};

/* Threads that make them: calls.c. */
struct tcp_calls {
	pthread_mutex_t lock;
	pthread_cond_t more, done;
	struct calls_job *first;
	_Atomic bool work; /* there is a job */
	bool stopping;
	unsigned int started, most, sleeping;
	pthread_t thread[TCP_STREAMS_MAX - 1];
};

struct tcp_ctx {
	struct tr *tr;
	struct tcp_calls calls;
	uint16_t first_port, last_port; /* of doors: KVCACHE_TCP_PORTS; 0: any */
};

/* A connection at a door, ours or the peer's, until the other end's greeting has come. */
struct tcp_knock {
	int fd;	      /* -1: none */
	bool greeted; /* connecting side: its own is sent */
	uint8_t got;
	uint8_t greeting[STREAM_GREETING];
};

/* Frames that wait to be sent. Emptied before its room is used again. */
struct tcp_queue {
	uint8_t bytes[TCP_QUEUE_BYTES];
	size_t used;
	/* In `bytes`, or local memory of an operation; NULL: what the peer reads (answer.c). */
	struct iovec piece[TCP_QUEUE_PIECES];
	struct tr_mem *of[TCP_QUEUE_PIECES]; /* the region if it is a GPU's; else NULL */
	unsigned int head, tail;
	uint64_t queued, sent; /* positions in the stream */
	bool answering;	       /* one of the pieces is NULL */
	bool full;   /* the socket took no more when it was tried last; progress tries again */
	bool closed; /* a frame was cut short: nothing may follow it */
};

/* State of an operation's slot. */
struct tcp_op {
	uint64_t at[TCP_STREAMS_MAX]; /* once it is committed: the streams' positions behind it */
	uint64_t part;	/* bytes of the span that comes next which are queued already */
	uint32_t reads; /* spans that were asked for and have not come */
	bool wrote;	/* some of its bytes are queued */
	bool committed;
	bool waiting; /* it stands in one of the two lines */
	int32_t end_kind;
	int64_t deadline_ns; /* of a cancelled one; INT64_MAX */
};

/* Operations that end when their positions are passed, in the order of those. */
struct tcp_line {
	uint16_t op[TR_OPS_MAX];
	unsigned int head, tail;
};

/* A span that we read, or a piece of it. Answers come in the order of the requests. */
struct tcp_read {
	uint8_t *dst;	   /* NULL: cancelled, the bytes are thrown away */
	struct tr_mem *of; /* as in tcp_queue */
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
	bool stalled;			  /* a frame waits for room for its event, */
	bool behind;			  /* or for another stream (AFTER) */
	bool looked;			  /* in this turn: the peer has not broken the connection */
	bool drained; /* the last look took all that there was: the next one asks for no more, */
	bool unasked; /* as this one has: more may have come since */
};

/* What a GPU's memory goes through, one way. */
struct tcp_stage {
	struct stage *stage; /* NULL: nothing has */
	uint8_t *bytes;
	size_t filled, sent; /* bytes; of those that were gathered, what has left */
};

/* The next places of a payload, alike: all are memory, all are a GPU's, or all are nowhere. */
struct tcp_places {
	struct iovec iov[STREAM_SPANS_MAX + 1];	 /* and what follows the payload */
	struct tr_mem *of[STREAM_SPANS_MAX + 1]; /* the region if it is a GPU's; else NULL */
	unsigned int n;
	size_t bytes;
	bool nowhere;
	struct tr_mem *mem; /* held */
	size_t payload;	    /* of these bytes */
	bool more;	    /* the socket may have more */
	struct tcp_call call;
};

struct tcp_stream {
	struct tcp_conn *tc;
	unsigned int index; /* 0: the first, which carries notifies and messages */
	int sock;
	unsigned int watched; /* enum tr_watch: what wakes the owner */
	bool hung_up;	      /* the peer's end of it was seen */
	struct tcp_queue queue;
	struct tcp_in in;
	struct tcp_places places; /* of the call that receives */
	struct tcp_stage out_stage, in_stage;
	uint64_t landed; /* the peer has taken it up to here */
	uint32_t small, small_landed;
	bool tell;	/* ask how far it is */
	uint64_t after; /* position that the last AFTER about it named */
	struct tcp_read read[TCP_READS_MAX];
	unsigned int read_head, read_tail;
	uint64_t read_left; /* bytes of them */
	struct tcp_answer answer[TCP_READS_MAX];
	unsigned int answer_head, answer_tail;
};

struct tcp_data {
	struct kv_error failure; /* code 0: none; reported once what had come before was taken */
	struct tcp_op op[TR_OPS_MAX];
	struct tcp_line to_send, to_land;
	unsigned int stopping; /* operations with a deadline */
	bool blocked;	       /* a call found no room in a queue; room was not reported since */
	bool short_of_reads;   /* the same: too many spans are asked for */
	bool cut;	       /* a call stopped at TCP_ADD_BYTES; that was not reported yet */
	unsigned int turn;     /* the stream that gets the next batch, */
	uint64_t dealt;	       /* and the bytes that it had in this turn */
	struct tcp_stream stream[]; /* tcp_conn.streams */
};

struct tcp_conn {
	struct tcp_ctx *ctx;
	struct tr_conn *conn;
	unsigned int streams; /* that are offered; then, that there are */
	int64_t fence_ns;     /* 0: not begun */
	/* The wait for something to come: */
	unsigned int looks; /* that found nothing; 0: none waits */
	bool at_once;	    /* it sleeps at once */
	int64_t wait_ns;    /* when it began */
	unsigned int waits; /* so far, */
	int64_t took_ns[2]; /* and how long they took, with looks and at once, on average */

	/* Handshake: */
	uint8_t token[16];
	int proven[TCP_STREAMS_MAX]; /* sockets, by the number of their stream; -1: not yet */
	/* the accepting side's door, */
	int door;
	struct tcp_knock stranger[TCP_STRANGERS];
	unsigned int next_stranger;
	/* the connecting side's knocks. */
	struct tcp_knock knock[TCP_STREAMS_MAX];
	char address[64];

	struct tcp_data *data; /* from the setup on */
};

/* Each stream of a connection that is set up. */
#define tcp_for_each(st, tc)                                                                      \
	for (struct tcp_stream *st = (tc)->data->stream; st < (tc)->data->stream + (tc)->streams; \
	     st++)

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
/* Whose greeting on a data socket: the first word of what it proves. */
#define TCP_KNOCKS "tcp in " /* the connecting side's, */
#define TCP_OPENS "tcp out"  /* and the answer to it */
/* 16 bytes that only the two ends of this handshake can make of its token, for that stream. */
void door_prove(const struct tcp_conn *tc, const char whose[7], unsigned int index,
		uint8_t proof[STREAM_PROOF]);
bool door_is_proof(const struct tcp_conn *tc, const char whose[7], unsigned int index,
		   const uint8_t proof[STREAM_PROOF]);
int door_open(struct tcp_conn *tc, uint16_t *port_p, struct kv_error *err);
/* Takes what waits there: tc->proven has the peer's sockets that have proven themselves. */
void door_look(struct tcp_conn *tc);
void door_close(struct tcp_conn *tc);

/* calls.c */
/* threads: at most so many; -1: as many as suit this machine. */
void calls_open(struct tcp_calls *calls, long long threads);
/* Makes them all, several with the help of threads. */
void calls_make(struct tcp_conn *tc, struct tcp_call *call, unsigned int n);
void calls_close(struct tcp_calls *calls);

/* queue.c */
/* Room for a batch: how many spans of at most `want`; 0: none. */
unsigned int queue_batch_room(const struct tcp_stream *st, unsigned int want);
void queue_batch(struct tcp_stream *st, const struct stream_frame *frame,
		 const struct stream_span *spans, const struct iovec *payload, struct tr_mem *mem);
/* A frame without block data: may use what is kept for it. */
bool queue_small(struct tcp_stream *st, const struct stream_frame *frame, const void *payload);
/*
 * Sends what the socket takes. A failure is kept in data->failure: progress reports it when what
 * the peer had sent before is taken.
 */
void queue_flush(struct tcp_stream *st);
void queue_flush_all(struct tcp_conn *tc);
void queue_push_all(struct tcp_conn *tc);	 /* the same, without a REPORT that is due */
void queue_due(struct tcp_stream *st);		 /* it is sent with what is sent next */
bool queue_reports(const struct tcp_stream *st); /* a REPORT is due */
/* Sends up to 1024 pieces: bytes, or -1 and errno. */
ssize_t queue_send(struct tcp_stream *st, const struct iovec *piece, unsigned int n, bool more);
/*
 * The same of pieces in a GPU's memory (stage_gather), of which it sends the first ones;
 * QUEUE_AGAIN: they are being copied; -2: data->failure is set.
 */
enum { QUEUE_AGAIN = -3 };
ssize_t queue_send_gathered(struct tcp_stream *st, const struct iovec *piece,
			    struct tr_mem *const *mem, unsigned int n);
static inline uint64_t queue_pending(const struct tcp_queue *q)
{
	return q->queued - q->sent;
}

/* stage.c */
/* Before anything of that GPU's goes through it. */
int tcp_stage_open(struct tcp_stream *st, struct tcp_stage *ts, const struct tr_mem *mem,
		   struct kv_error *err);
/* Bytes of the first pieces which one kernel can copy. */
size_t tcp_stage_reach(const struct iovec *piece, struct tr_mem *const *mem, unsigned int n);
/*
 * Copies the first pieces, which are a GPU's and stay the next ones until all of it has left: 0,
 * and *ready is what is to be sent now; TR_AGAIN; or DEVICE, TIMEOUT.
 */
int tcp_stage_gather(struct tcp_stream *st, const struct iovec *piece, struct tr_mem *const *mem,
		     unsigned int n, struct iovec *ready, struct kv_error *err);
/* What was received to in_stage.bytes goes to these pieces: as stage_end. */
int tcp_stage_scatter(struct tcp_stream *st, const struct iovec *piece, struct tr_mem *const *mem,
		      size_t bytes, struct kv_error *err);
size_t tcp_stage_scattered(struct tcp_stage *ts); /* those bytes, once; it does not run */
void tcp_stage_close(struct tcp_stage *ts);

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
int answer_asked(struct tcp_stream *st, struct kv_error *err); /* in.frame is a READ */
int answer_queue(struct tcp_stream *st); /* the next frame of answers: 1 if there is one */
/* Sends the next `len` bytes: as queue_send_gathered. */
ssize_t answer_send(struct tcp_stream *st, size_t len);

/* receive.c */
void tcp_polled(struct tr_conn *conn);
bool tcp_await(struct tr_conn *conn, int64_t looks_ns, int64_t most_ns, int fd);
int tcp_progress(struct tr_conn *conn);
int tcp_arm(struct tr_conn *conn);

/* place.c */
/* in.frame is DATA: its region, bounds and grant are right, or the peer breaks the rules. */
int place_check(struct tcp_stream *st, struct kv_error *err);
/* in.frame is an ANSWER. */
int place_check_answer(struct tcp_stream *st, struct kv_error *err);
/* Bytes of the payload that came with a header. 0, or the connection's failure. */
int place_buffered(struct tcp_stream *st, struct kv_error *err);
/* What is on its way into a GPU's memory: 0: it is there, TR_AGAIN, or the connection's failure. */
int place_settle(struct tcp_stream *st, struct kv_error *err);
/* The same after a wait, to the deadline or for STAGE_GRACE_MS; it becomes data->failure. */
int place_wait(struct tcp_stream *st, int64_t deadline_ns);
/*
 * Receives into the places, and what follows the payload into in.bytes: true: by p->call, which is
 * to be made, and place_receive_end follows; false: that has been done.
 */
bool place_receive_begin(struct tcp_stream *st, struct tcp_places *p, struct kv_error *err);
void place_receive_end(struct tcp_stream *st, struct tcp_places *p);
/* p->call.bytes: bytes, 0: the peer's end, -1 and call.error, or -2: the connection's failure. */
/* Up to so many bytes of the socket, which are thrown away: as recv. */
ssize_t place_nowhere(const struct tcp_stream *st, size_t bytes);

/* device.c */
int tcp_device_get(void *ctx, size_t index, struct kv_device_info *info);

/* stop.c */
int tcp_fence(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err);
/* The connection fails for this reason. */
void tcp_lose(struct tcp_conn *tc, const struct kv_error *cause);
void stop_close(struct tcp_conn *tc); /* the data sockets, in good order */

#endif
