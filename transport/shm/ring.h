/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring.h -- one direction of a connection: records in shared memory, one producer, one consumer
 *
 * Positions count bytes from the beginning of the connection and never wrap; position p lies at
 * data[p & (size - 1)]. Records begin at multiples of 32 and never cross the end of the ring (a PAD
 * fills it up).
 *
 * ASSUMPTIONS The other process can write every byte of the ring and of its positions at any time.
 * Each side therefore works on private copies: a position or a header is read once, checked, and
 * only then used. A payload may still change while it is copied; that only harms bytes that its
 * writer was free to choose anyway.
 */
#ifndef SHM_RING_H
#define SHM_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { RING_ALIGN = 32, RING_BYTES_MIN = 1 << 16, RING_BYTES_MAX = 1 << 26 };

/*
 * In shared memory. Each position has its own pair of cache lines: adjacent lines are prefetched
 * together.
 */
struct ring_shared {
	_Alignas(128) _Atomic uint64_t
		tail; /* written by the producer: everything before it is a record */
	_Alignas(128) _Atomic uint64_t
		head; /* written by the consumer: everything before it may be overwritten */
};

enum ring_type {
	RING_PAD = 1,
	RING_DATA,	/* mem, a = offset, b = grant: copy the payload there if it may be */
	RING_NOTIFY,	/* a = value */
	RING_MSG,	/* the payload is the message */
	RING_READ,	/* mem, a = offset, b = length: answer with these bytes */
	RING_READ_DATA, /* the next bytes of the oldest READ that is not answered yet */
	RING_PIECES,	/* mem, a = offset: pass those from there on (cuda_range.c) */
};

struct ring_record {
	uint32_t type;
	uint32_t len; /* of the payload; the next record begins at the next multiple of 32 */
	uint64_t a, b;
	uint32_t mem;
	uint32_t line; /* READ: the place of its first byte in a 128-byte line of the reader */
};
_Static_assert(sizeof(struct ring_record) == RING_ALIGN, "a record header is one unit of the ring");

struct ring_out {
	uint8_t *data;
	struct ring_shared *shared;
	uint64_t size;
	uint64_t tail;	    /* next record goes here */
	uint64_t published; /* the tail that the consumer can see */
	uint64_t head;	    /* the consumer's head, as of the last ring_refresh */
};

struct ring_in {
	const uint8_t *data;
	struct ring_shared *shared;
	uint64_t size;
	uint64_t head;
	uint64_t published;
	uint64_t tail; /* as of the last look */
};

static inline uint64_t ring_record_bytes(uint64_t payload_len)
{
	return RING_ALIGN + ((payload_len + RING_ALIGN - 1) & ~(uint64_t)(RING_ALIGN - 1));
}

/* Reads what the consumer has freed: false if its position is impossible. */
bool ring_refresh(struct ring_out *out);
/* Seldom: up to its end, to_end bytes, the ring gets no record of `need` bytes. false: no room. */
bool ring_pad(struct ring_out *out, uint64_t need, uint64_t to_end, uint64_t *room_p);
/*
 * The payload bytes (at most want, at least `least`) of one record that fit now while `keep` bytes
 * of the ring stay free; -1 if none. May write a PAD. A ring_put of at most so many bytes may
 * follow.
 */
static inline int64_t ring_fit(struct ring_out *out, uint64_t want, uint64_t least, uint64_t keep)
{
	uint64_t used = out->tail - out->head, need = ring_record_bytes(least);
	uint64_t room = out->size > used + keep ? out->size - used - keep : 0;
	uint64_t to_end = out->size - (out->tail & (out->size - 1)); /* at least RING_ALIGN */
	uint64_t fit;

	if (to_end < need) {
		if (!ring_pad(out, need, to_end, &room))
			return -1;
		to_end = out->size;
	}
	fit = (room < to_end ? room : to_end) & ~(uint64_t)(RING_ALIGN - 1);
	if (fit < need)
		return -1;
	fit -= RING_ALIGN;
	return (int64_t)(fit < want ? fit : want);
}
/* payload NULL: there is none, or it is there. */
void ring_put(struct ring_out *out, const struct ring_record *record, const void *payload);
/* True if there was something to publish. */
bool ring_publish(struct ring_out *out);

/* 1: a copy of the next header, and its payload in place. 0: empty. -1: the ring is corrupt. */
int ring_next(struct ring_in *in, struct ring_record *record, const uint8_t **payload_p);
void ring_consume(struct ring_in *in, const struct ring_record *record);
bool ring_publish_head(struct ring_in *in);

#endif
