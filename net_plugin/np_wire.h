/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_wire.h -- every byte that two plugins exchange, and the listen handle that NCCL carries
 * between them
 *
 * All little-endian through base/wire.h. The receiver writes MEM and CTS messages and the sender
 * reads them; the sender writes notifies and AHEAD messages and the receiver reads them.
 *
 *   handle  listen -> connect, by NCCL: where the listener is, and 128 random bits that prove it is
 *           that listener. The last 8 bytes belong to the connecting side: its cookie between two
 *           calls of connect.
 *   MEM     before the first CTS that names a memory slot: a piece of tr_mem_pack's bytes. A slot
 *           that is described again is another region from then on; that is how a deregistered one
 *           is forgotten.
 *   AHEAD   for a small isend whose CTS has not come: tag and bytes; `seq` is the first CTS that it
 *           may belong to
 *   CTS     one for each irecv, in order: where up to 8 messages may be written, and their tags
 *   notify  one for each isend, after its bytes: which row of which CTS is full, and with how many
 *           bytes
 */
#ifndef NP_WIRE_H
#define NP_WIRE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/wire.h"
#include "nccl_abi.h"

enum np_wire_limits {
	NP_GROUP = 8, /* messages of one receive: maxRecvs */
	NP_NONCE = 16,
	NP_MEM_SLOTS = 65535,
	NP_MEM_NONE = 65535, /* a row of no bytes */
	NP_MEM_PIECE = 240,  /* description bytes in one MEM message */
	NP_MEM_HEADER = 8,
	NP_SEQ_MASK = 0x7fff,
	NP_SIZE_BITS = 41,
	NP_AHEAD_BYTES = 240, /* in one AHEAD message */
};

enum np_message { NP_MSG_MEM = 1, NP_MSG_CTS = 2, NP_MSG_AHEAD = 3 };

/* Of the handle, of the messages, and of what the providers below say in a handshake. */
enum { NP_WIRE_VERSION = 4 };

struct np_handle {
	uint8_t nonce[NP_NONCE];
	uint16_t port;
	char host[56]; /* numeric */
};

/* False: not a handle of this plugin and version, or damaged. */
bool np_handle_get(const void *buf, struct np_handle *handle);
void np_handle_put(void *buf, const struct np_handle *handle);
uint64_t np_handle_cookie(const void *buf);
void np_handle_set_cookie(void *buf, uint64_t cookie);

struct np_row {
	uint64_t offset; /* in the region of `mem` */
	uint64_t size;
	int32_t tag;
	uint16_t mem;
};

struct np_cts {
	uint8_t slot;
	uint8_t n;
	bool any_order; /* no line is read before the notify */
	uint16_t seq;
	struct np_row row[NP_GROUP];
};

size_t np_cts_put(void *buf, size_t cap, const struct np_cts *cts);
bool np_cts_get(struct wire_reader *r, struct np_cts *cts); /* after the type byte */

struct np_ahead {
	uint16_t seq;
	int32_t tag;
	const uint8_t *bytes;
	size_t len;
};

size_t np_ahead_put(void *buf, size_t cap, const struct np_ahead *ahead);
bool np_ahead_get(struct wire_reader *r, struct np_ahead *ahead);

struct np_mem_piece {
	uint16_t slot;
	uint16_t total;
	uint16_t at;
	const uint8_t *bytes;
	size_t len;
};

size_t np_mem_piece_put(void *buf, size_t cap, const struct np_mem_piece *piece);
bool np_mem_piece_get(struct wire_reader *r, struct np_mem_piece *piece);

/* size: NP_SIZE_BITS, sequence: 15, slot: 5, row: 3 */
static inline uint64_t np_notify_put(unsigned int slot, unsigned int row, unsigned int seq,
				     uint64_t size)
{
	return size << 23 | (uint64_t)(seq & NP_SEQ_MASK) << 8 | slot << 3 | row;
}

static inline void np_notify_get(uint64_t v, unsigned int *slot, unsigned int *row,
				 unsigned int *seq, uint64_t *size)
{
	*size = v >> 23;
	*seq = (unsigned int)(v >> 8) & NP_SEQ_MASK;
	*slot = (unsigned int)(v >> 3) & 31;
	*row = (unsigned int)v & 7;
}

_Static_assert((int)NCCL_REQUESTS_MAX <= 32 && (int)NP_GROUP <= 8,
	       "slot and row have 5 and 3 bits");

#endif
