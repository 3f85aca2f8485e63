/* SPDX-License-Identifier: Apache-2.0 */
/*
 * segment.h -- the memory that both ends of a connection share: a header, two rings, a few words
 * per side
 */
#ifndef SHM_SEGMENT_H
#define SHM_SEGMENT_H

#include <kvrail/kv_error.h>

#include "ring.h"

enum { SEGMENT_CONNECTING = 0, SEGMENT_ACCEPTING = 1 };

enum segment_wake {
	WAKE_DATA = 1 << 0, /* sleeps until a record is published to it */
	WAKE_ROOM = 1 << 1, /* sleeps until room is made in its outgoing ring */
};

/* Words of one side: written by that side, except that a waker clears `asleep`. */
struct segment_side {
	_Alignas(128) _Atomic uint32_t asleep; /* enum segment_wake: ring the doorbell for these */
	_Alignas(128) _Atomic uint32_t stop;   /* this side wants the other to stop for good */
	_Atomic uint32_t stopped; /* this side will never again store to the other's memory */
};

struct segment_shared {
	uint64_t magic;
	uint32_t version;
	uint32_t ring_bytes;
	uint8_t nonce[16];
	struct segment_side side[2];
	struct ring_shared ring[2]; /* by the side that produces */
};

struct segment {
	struct segment_shared *shared;
	struct segment_side *mine, *theirs; /* in it */
	size_t len;
	bool kept; /* a kernel may still use it: segment_close does not unmap it */
	uint64_t ring_bytes; /* a power of two; our copy, not the shared one */
};

/*
 * Whether the peer cannot take these bytes away while they are mapped here, which would end this
 * process with SIGBUS: a memfd of tmpfs, sealed against shrinking. A hole punched into it reads as
 * zeroes; one in a memfd of huge pages is gone where no huge page is free.
 */
bool memfd_is_sound(int fd, uint64_t len);

/*
 * The connecting side makes and maps a sealed memfd; the caller passes *fd_p to the peer and closes
 * it.
 */
int segment_create(struct segment *seg, uint64_t ring_bytes, const uint8_t nonce[16], int *fd_p,
		   struct kv_error *err);
/*
 * The accepting side checks and maps what the peer passed: seals, size, header; rings of at most
 * ring_bytes. Does not close the fd.
 */
int segment_open(struct segment *seg, int fd, uint64_t ring_bytes, struct kv_error *err);
void segment_close(struct segment *seg);
/* This side will never again store to the peer's memory. */
void segment_promise(struct segment *seg);
void segment_rings(const struct segment *seg, int side, struct ring_out *out, struct ring_in *in);

#endif
