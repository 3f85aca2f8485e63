/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream.h -- what travels on a data socket of a connection: layout, limits, codec (pure: no I/O,
 * no allocation)
 *
 *   greeting  magic "KVRD" | version u8 | stream u8 | zero u8[2] | proof 16 B   once, from each end
 *   frame     type u8 | zero u8 | spans u16 | payload u32 | number u32 | value u64 |
 *             spans x { offset u64 | length u32 } | payload
 *
 *   DATA      number = region, value = grant: the payload goes to the spans, in their order
 *   NOTIFY    value
 *   MSG       the payload is the message
 *   READ      number = region: the sender wants the bytes of the spans
 *   ANSWER    the payload is the next bytes of the oldest spans that the receiver asked for
 *   TELL      a REPORT is wanted once everything before this was taken
 *   REPORT    value = bytes of the stream that its sender has taken, number = NOTIFYs and MSGs
 *   AFTER     what follows waits until the receiver has taken `value` bytes of stream `number`
 *
 * Integers are little endian. A header names every byte that follows it, so a frame that was begun
 * is finished or the connection ends. Positions count bytes behind the greeting, headers included.
 */
#ifndef TCP_STREAM_H
#define TCP_STREAM_H

#include "base/wire.h"
#include "tr.h"

enum {
	STREAM_VERSION = 2,
	STREAM_PROOF = 16,
	STREAM_GREETING = 8 + STREAM_PROOF,
	STREAM_FIXED = 20, /* a header without spans */
	STREAM_SPAN = 12,
	STREAM_SPANS_MAX = 256,
	STREAM_HEADER_MAX = STREAM_FIXED + STREAM_SPANS_MAX * STREAM_SPAN,
	/* of a frame, and of one span: how long a message waits for the frame before it */
	STREAM_PAYLOAD_MAX = 1 << 20,
};

enum stream_type {
	STREAM_DATA = 1,
	STREAM_NOTIFY,
	STREAM_MSG,
	STREAM_READ,
	STREAM_ANSWER,
	STREAM_TELL,
	STREAM_REPORT,
	STREAM_AFTER,
};

struct stream_frame {
	uint8_t type; /* enum stream_type */
	uint16_t spans;
	uint32_t payload;
	uint32_t number;
	uint64_t value;
};

struct stream_span {
	uint64_t offset;
	uint32_t len;
};

void stream_put_greeting(uint8_t buf[STREAM_GREETING], uint8_t stream,
			 const uint8_t proof[STREAM_PROOF]);
/*
 * The first `len` bytes that came: false if they are not, and cannot become, a greeting. Of a whole
 * one: the number of its stream, and its proof.
 */
bool stream_is_greeting(const uint8_t *buf, size_t len);
static inline uint8_t stream_of_greeting(const uint8_t *buf)
{
	return buf[5];
}
static inline const uint8_t *stream_proof_of_greeting(const uint8_t *buf)
{
	return buf + STREAM_GREETING - STREAM_PROOF;
}

void stream_put(struct wire_writer *w, const struct stream_frame *frame,
		const struct stream_span *spans);
/*
 * The header at buf, of which `len` bytes are there: its length with the spans, 0 if more bytes are
 * needed, PROTOCOL if it is none. After a positive result the frame is one that its type allows,
 * and its payload is the sum of its spans where it has both; `spans` is filled.
 */
int stream_get(const uint8_t *buf, size_t len, struct stream_frame *frame,
	       struct stream_span spans[STREAM_SPANS_MAX]);

#endif
