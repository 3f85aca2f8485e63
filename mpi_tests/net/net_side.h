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

#include "net_load.h"

enum { PASS = 0, FAIL = 1, SKIP = 77 };
/* For what surely comes, and for what a close may wait on a peer. */
enum { SIDE_WAIT_MS = 20000, SIDE_CLOSE_MS = 5000, SIDE_GUARD = 64, SIDE_POISON = 0xa5 };

struct side {
	struct net_source source;
	const ncclNet_v12_t *net;
	int version;
	void *ctx;
	int dev;
	bool sender;	     /* of a pair: sends; a loopback case is both */
	int sock;	     /* to the other process */
	const char *without; /* NAME=value that takes every device away, or NULL */
	bool quick;
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
/* Tells the plugin of the traffic to come, as NCCL does from v11 on. */
int side_tell(struct side *s);
void side_log_reset(void);
unsigned int side_log_count(void);
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

/* Both directions' ends in one process. */
struct loop {
	void *listen, *send, *recv;
};
int side_loop(struct side *s, struct loop *loop);
int side_loop_close(struct side *s, struct loop *loop);

/* A registered buffer with guards on both sides. */
struct buffer {
	uint8_t *bytes;
	size_t size;
	void *mhandle;
	uint8_t *base;
};
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
int side_irecv1(struct side *s, void *comm, struct buffer *b, size_t size, int tag, void **request);
int side_wait(struct side *s, void *request, int *sizes);

/* 100 bytes between two ends in one process. */
int side_exchange(struct side *s, void *send, void *recv, int tag);

struct net_case {
	const char *id; /* number of the conformance list, and a letter where it has parts */
	const char *what;
	int processes; /* 1: loopback */
	int version;   /* of the interface, 0 = as asked */
	int (*run)(struct side *s);
};

extern const struct net_case load_cases[], connect_cases[], memory_cases[], data_cases[],
	group_cases[], failure_cases[], killed_cases[], usage_cases[]; /* each ends with id NULL */

#endif
