/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_error.h -- what went wrong, what is lost, and what the caller can do about it
 *
 * Every kvrail function that can fail returns 0 or a negative KV_ERR_* code and, where the caller
 * passes a struct kv_error, the cause. The function that first decides that something failed fills
 * it in; nobody above it rewrites the cause.
 */
#ifndef KVRAIL_KV_ERROR_H
#define KVRAIL_KV_ERROR_H

#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif

/*
 * What is lost, smallest first. The scope of an error says what to do next:
 *   CALL     nothing is lost: correct the arguments and call again
 *   REQUEST  this operation is lost: it may be tried again on the same peer
 *   PEER     the connection is lost: close it, connect again, then try again
 *   DEVICE   the local device or a memory limit is at fault: fix it, then open a new engine
 */
enum kv_scope {
	KV_SCOPE_NONE = 0,
	KV_SCOPE_CALL,
	KV_SCOPE_REQUEST,
	KV_SCOPE_PEER,
	KV_SCOPE_DEVICE,
};

/* X(name, value, scope, sentence) */
#define KV_ERROR_LIST(X) \
	X(ARG, 1, CALL, "an argument is out of its range")                                                  \
	X(BLOCK_ID, 2, CALL, "a block id lies outside the cache")                                           \
	X(DUP_BLOCK, 3, CALL, "a destination block is named twice in one call")                             \
	X(LEASE, 4, CALL, "the block is not open for this writer")                                          \
	X(BUSY, 5, CALL, "the object is still in use")                                                      \
	X(CLOSED, 6, CALL, "the handle was closed")                                                         \
	X(FORKED, 7, CALL, "the engine was opened before fork and cannot be used in the child")             \
	X(UNSUPPORTED, 8, CALL, "this build or this machine cannot do that")                                \
	X(TIMEOUT, 16, REQUEST, "the deadline passed")                                                      \
	X(CANCELLED, 17, REQUEST, "the operation was cancelled")                                            \
	X(IN_DOUBT, 18, REQUEST, "the operation may or may not have arrived")                               \
	X(REVOKED, 19, REQUEST, "the receiver took the blocks back")                                        \
	X(CHECKSUM, 20, REQUEST, "the bytes that arrived are not the bytes that were sent")                 \
	X(PEER_LOST, 32, PEER, "the peer or the connection to it is gone")                                  \
	X(STALE_PEER, 33, PEER, "the peer is another process than the one that was connected")              \
	X(GEOMETRY, 34, PEER, "the two caches do not have the same shape")                                  \
	X(VERSION, 35, PEER, "the two ends speak different versions")                                       \
	X(AUTH, 36, PEER, "the handshake was not authentic")                                                \
	X(PROTOCOL, 37, PEER, "the peer sent something that this version never sends")                      \
	X(UNREACHABLE, 38, PEER, "no transport reaches the peer")                                           \
	X(LINK, 39, PEER, "the local link is down")                                                         \
	X(RNR, 40, PEER, "the receiver had no receive request posted")                                      \
	X(REMOTE_ACCESS, 41, PEER, "the receiver's device refused the address or the key")                  \
	X(LOCAL_MR, 42, PEER, "the local device refused the address or the key")                            \
	X(DEVICE, 64, DEVICE, "a device failed")                                                            \
	X(MEMLOCK, 65, DEVICE, "the limit on locked memory is too low")                                     \
	X(NOMEM, 66, DEVICE, "out of memory")                                                               \
	X(NOFD, 67, DEVICE, "out of file descriptors")                                                      \
	X(SYSTEM, 68, DEVICE, "a system call failed")                                                       \
	X(INTERNAL, 69, DEVICE, "an invariant of the library does not hold")

enum kv_error_code {
	KV_OK = 0,
#define KV_ERROR_ENUM(name, value, scope, text) KV_ERR_##name = -(value),
	KV_ERROR_LIST(KV_ERROR_ENUM)
#undef KV_ERROR_ENUM
};

/*
 * The cause of a failure. Fields that do not apply are 0, "" or, for block_id and block_index, -1.
 * `size` is set by the library; a caller passes any struct kv_error, no initialisation is needed.
 */
struct kv_error {
	size_t size;
	int32_t code;         /* KV_ERR_*, or 0 */
	int32_t scope;        /* enum kv_scope */
	int32_t sys_errno;    /* errno of the system call that failed */
	int32_t wc_status;    /* enum ibv_wc_status of the completion, 0 if none */
	uint32_t vendor_err;  /* vendor_err of the completion */
	uint32_t qp_num;      /* local queue pair */
	int32_t in_doubt;     /* 1: some or all destination bytes may have changed */
	int32_t reserved;
	int64_t block_index;  /* index into the caller's id array of the first bad block */
	int64_t block_id;     /* the id found there */
	char op[32];          /* what was being done: "write_blocks", "connect" */
	char peer[64];        /* address and name of the peer */
	char device[32];      /* "shm", "mlx5_0:1" */
	char message[256];    /* the exact cause, one sentence */
	char hint[160];       /* what to do about it, "" if nothing is known */
};

/*
 * kv_error_name -- the constant's name without its prefix
 *
 * RETURNS a text as "PEER_LOST"; "OK" for 0, "UNKNOWN" for a code that is not in the list.
 */
const char *kv_error_name(int code);

/*
 * kv_error_text -- what a code means
 *
 * RETURNS one sentence, never NULL.
 */
const char *kv_error_text(int code);

/*
 * kv_error_scope -- what is lost with an error
 *
 * RETURNS the scope of the code (enum kv_scope); KV_SCOPE_NONE for 0.
 */
int kv_error_scope(int code);

/*
 * kv_error_format -- one line with every field of an error that is set
 *
 * Writes at most `cap` bytes with the closing NUL. `err` must have been filled by a kvrail
 * function.
 *
 * RETURNS the length of the whole line, as snprintf does.
 */
int kv_error_format(const struct kv_error *err, char *buf, size_t cap);

#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop
#endif
