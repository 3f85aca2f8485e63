/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_side.h -- one process of a conformance case: the plugin, the way to the other process, and
 * what both need
 *
 * A case runs in processes of its own, made by fork, so that one that crashes or hangs costs only
 * its line. Every wait has a deadline.
 */
#ifndef NET_SIDE_H
#define NET_SIDE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/slow.h"
#include "net_load.h"

enum { PASS = 0, FAIL = 1, SKIP = 77 };
/* For what surely comes, on whatever machine, and for what a close may wait on a peer. */
enum { SIDE_GUARD = 128, SIDE_POISON = 0xa5 };
#define SIDE_WAIT_MS ((int)slow_ms(60000))
#define SIDE_CLOSE_MS ((int)slow_ms(5000))

/* A registered buffer with guards on both sides. */
struct buffer {
	uint8_t *bytes;
	size_t size;
	void *mhandle;
	uint8_t *base;
};

/* Both directions' ends in one process. */
struct loop {
	void *listen, *send, *recv;
};

struct side {
	struct net_source source;
	const ncclNet_v12_t *net;
	int version;
	void *ctx;
	int dev;
	void *comm;		/* of a LINKED case, and its buffer */
	struct buffer b;
	struct loop loop;	/* of a LOOPED case, and a buffer of each end */
	struct buffer from, to;
	bool sender;	     /* of a pair: sends; a loopback case is both */
	int sock;	     /* to the other process */
	const char *without; /* NAME=value that takes every device away, or NULL */
	bool quick;
	int gpu; /* current in this thread; -1: none */
	ncclResult_t error; /* what the last OK() that failed was given */
	char reason[240];
};

/* In a case: say why and end. */
int side_fail(struct side *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int side_skip(struct side *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define REQUIRE(s, condition, ...)                          \
	do {                                                \
		if (!(condition))                           \
			return side_fail((s), __VA_ARGS__); \
	} while (0)
#define OK(s, call)                                                                     \
	do {                                                                            \
		ncclResult_t ok_result = (call);                                        \
		(s)->error = ok_result;                                                 \
		if (ok_result)                                                          \
			return side_fail((s), "%s returned %d", #call, (int)ok_result); \
	} while (0)
#define TRY(call)                       \
	do {                            \
		int try_ret = (call);   \
		if (try_ret)            \
			return try_ret; \
	} while (0)

int64_t side_ms(void);
/*
 * A clock that stands still while this thread runs or could run: what passes on it during a call
 * has been waited for, on however busy a machine.
 */
int64_t side_slept_ms(void);
int side_count_fds(void);
int side_count_threads(void);

/* Loads the plugin, init, picks device 0. */
int side_start(struct side *s);
int side_stop(struct side *s);
/* Describes the traffic to come to the plugin, as NCCL does from v11 on. */
int side_attributes(struct side *s);

/* What plugins have logged in this process; text that is past the room for it is lost. */
unsigned int side_log_lines(void);
unsigned int side_log_has(const char *text); /* how often */
void side_logger(ncclDebugLogLevel level, unsigned long flags, const char *file, int line,
		 const char *fmt, ...);

/* Blocking, with a deadline. */
int side_put(struct side *s, const void *buf, size_t len);
int side_get(struct side *s, void *buf, size_t len);
int side_barrier(struct side *s);

/* A handle between two canaries. */
struct handle {
	uint8_t before[SIDE_GUARD];
	_Alignas(16) uint8_t bytes[NCCL_HANDLE_MAX];
	uint8_t after[SIDE_GUARD];
};
void side_handle_init(struct handle *handle);
bool side_handle_intact(const struct handle *handle);

/* One direction between the two processes: *comm is the sender's or the receiver's. */
int side_link(struct side *s, void **comm);
int side_unlink(struct side *s, void *comm);
int side_wait_connect(struct side *s, struct handle *handle, void **comm);
int side_wait_accept(struct side *s, void *listen, void **comm);

/* Connects and accepts in turn, whichever end is missing. */
int side_join(struct side *s, struct loop *loop, struct handle *handle);
int side_loop(struct side *s, struct loop *loop);
int side_loop_close(struct side *s, struct loop *loop);

int side_buffer(struct side *s, void *comm, size_t size, struct buffer *buffer);
int side_buffer_free(struct side *s, void *comm, struct buffer *buffer);
void side_poison(struct buffer *buffer);
void side_fill(uint8_t *bytes, size_t size, uint64_t seed);
/* The first `size` bytes are the pattern, everything else is still poison. */
int side_check(struct side *s, const struct buffer *buffer, size_t size, uint64_t seed);
int side_check_at(struct side *s, const uint8_t *bytes, size_t size, uint64_t seed);

/* Posts until there is a request. */
int side_isend(struct side *s, void *comm, void *data, size_t size, int tag, void *mhandle,
	       void **request);
int side_irecv(struct side *s, void *comm, int n, void **data, size_t *sizes, int *tags,
	       void **mhandles, void **request);
/* A receive of n rows, each of `room` bytes of the buffer, one behind the other from `at` on. */
int side_irecv_rows(struct side *s, void *comm, const struct buffer *b, size_t at, size_t room,
		    int n, const int *tags, void **request);
int side_irecv1(struct side *s, void *comm, struct buffer *b, size_t size, int tag, void **request);
int side_wait(struct side *s, void *request, int *sizes);

/*
 * This side's part of a message at `at` of a buffer, tag 0: the sender fills it and sends `size`
 * bytes, the receiver asks for as many.
 */
int side_post(struct side *s, void *comm, struct buffer *b, size_t at, size_t size, uint64_t seed,
	      void **request);
/* The same with waiting for its end; the receiver checks the bytes. */
int side_message(struct side *s, void *comm, struct buffer *b, size_t size, uint64_t seed);

/* A message between two ends in one process, to the end of both requests. */
struct message {
	void *from, *from_mhandle, *to, *to_mhandle;
	size_t size, room; /* room 0: as much as the size */
	int tag;
};
int side_move(struct side *s, const struct loop *loop, const struct message *m);
/* The same into the whole of a buffer, with a pattern that is checked. */
int side_exchange(struct side *s, const struct loop *loop, struct buffer *from, struct buffer *to,
		  size_t size, uint64_t seed);
/* 100 bytes, with buffers of its own. */
int side_try(struct side *s, const struct loop *loop, uint64_t seed);

/* What a case finds made, and what is ended after it. */
enum net_rig {
	BARE,	 /* nothing */
	STARTED, /* side_start */
	LOOPED,	 /* a connection with itself: s->loop */
	LINKED,	 /* a connection between the two processes: s->comm */
};

struct net_case {
	const char *id; /* number of the conformance list, and a letter where it has parts */
	const char *what;
	int processes; /* 1: loopback */
	int version;   /* of the interface, 0 = as asked */
	int (*run)(struct side *s);
	enum net_rig rig;
	size_t bytes;		/* of s->b, or of s->from and of s->to; 0: none is made */
	bool attributes;	/* side_attributes before the connection */
	bool dies;		/* one process ends in the middle, the other ends the rig itself */
	int rows;		/* maxRecvs that it needs */
	const char *not_hidden; /* why a table that is not exported, NCCL's own, does not run it */
};

/* The end of a row of a table. */
#define ALONE	     .rig = BARE
#define WITH_INIT    .rig = STARTED
#define WITH_LOOP(n) .rig = LOOPED, .bytes = (n)
#define WITH_LINK(n) .rig = LINKED, .bytes = (n)

/* The case from its rig to its end. */
int side_case(struct side *s, const struct net_case *c);

extern const struct net_case load_cases[], connect_cases[], memory_cases[], gpu_cases[],
	data_cases[], group_cases[], failure_cases[], killed_cases[], usage_cases[];
/* each ends with id NULL */

#endif
