/* SPDX-License-Identifier: Apache-2.0 */
/* np_wire.c -- the bytes of np_wire.h; pure */
#include "np_wire.h"

#include <string.h>

enum {
	HANDLE_MAGIC = 0x6e72766b,		    /* "kvrn" */
	HANDLE_CHECKED = 4 + 2 + 2 + NP_NONCE + 56, /* bytes that the checksum covers */
	HANDLE_COOKIE_AT = NCCL_HANDLE_MAX - 8,
};

_Static_assert(HANDLE_CHECKED + 4 <= HANDLE_COOKIE_AT, "the handle is full");

/* CRC-32 (IEEE 802.3), bit by bit: a handle is read a few times in a communicator's life. */
static uint32_t checksum(const uint8_t *p, size_t n)
{
	uint32_t crc = ~0u;

	for (size_t i = 0; i < n; i++) {
		crc ^= p[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
	}
	return ~crc;
}

void np_handle_put(void *buf, const struct np_handle *handle)
{
	struct wire_writer w = wire_writer_of(buf, NCCL_HANDLE_MAX);
	char host[sizeof(handle->host)] = "";

	memset(buf, 0, NCCL_HANDLE_MAX);
	memcpy(host, handle->host, strnlen(handle->host, sizeof(host) - 1));
	wire_put_u32(&w, HANDLE_MAGIC);
	wire_put_u16(&w, NP_WIRE_VERSION);
	wire_put_u16(&w, handle->port);
	wire_put_bytes(&w, handle->nonce, NP_NONCE);
	wire_put_bytes(&w, host, sizeof(host));
	wire_put_u32(&w, checksum(buf, HANDLE_CHECKED));
}

bool np_handle_get(const void *buf, struct np_handle *handle)
{
	struct wire_reader r = wire_reader_of(buf, NCCL_HANDLE_MAX);

	if (wire_get_u32(&r) != HANDLE_MAGIC || wire_get_u16(&r) != NP_WIRE_VERSION)
		return false;
	handle->port = wire_get_u16(&r);
	wire_get_bytes(&r, handle->nonce, NP_NONCE);
	wire_get_bytes(&r, handle->host, sizeof(handle->host));
	return wire_get_u32(&r) == checksum(buf, HANDLE_CHECKED) && handle->port &&
	       !handle->host[sizeof(handle->host) - 1];
}

uint64_t np_handle_cookie(const void *buf)
{
	struct wire_reader r = wire_reader_of((const uint8_t *)buf + HANDLE_COOKIE_AT, 8);

	return wire_get_u64(&r);
}

void np_handle_set_cookie(void *buf, uint64_t cookie)
{
	struct wire_writer w = wire_writer_of((uint8_t *)buf + HANDLE_COOKIE_AT, 8);

	wire_put_u64(&w, cookie);
}

size_t np_cts_put(void *buf, size_t cap, const struct np_cts *cts)
{
	struct wire_writer w = wire_writer_of(buf, cap);

	wire_put_u8(&w, NP_MSG_CTS);
	wire_put_u8(&w, cts->slot);
	wire_put_u8(&w, cts->n);
	wire_put_u8(&w, cts->any_order);
	wire_put_u16(&w, cts->seq);
	for (unsigned int i = 0; i < cts->n; i++) {
		wire_put_u64(&w, cts->row[i].offset);
		wire_put_u64(&w, cts->row[i].size);
		wire_put_u32(&w, (uint32_t)cts->row[i].tag);
		wire_put_u16(&w, cts->row[i].mem);
	}
	return w.bad ? 0 : w.len;
}

bool np_cts_get(struct wire_reader *r, struct np_cts *cts)
{
	cts->slot = wire_get_u8(r);
	cts->n = wire_get_u8(r);
	cts->any_order = wire_get_u8(r) == 1;
	cts->seq = wire_get_u16(r);
	if (r->bad || cts->slot >= NCCL_REQUESTS_MAX || !cts->n || cts->n > NP_GROUP ||
	    cts->seq > NP_SEQ_MASK)
		return false;
	for (unsigned int i = 0; i < cts->n; i++) {
		cts->row[i].offset = wire_get_u64(r);
		cts->row[i].size = wire_get_u64(r);
		cts->row[i].tag = (int32_t)wire_get_u32(r);
		cts->row[i].mem = wire_get_u16(r);
	}
	return wire_done(r);
}

size_t np_mem_piece_put(void *buf, size_t cap, const struct np_mem_piece *piece)
{
	struct wire_writer w = wire_writer_of(buf, cap);

	wire_put_u8(&w, NP_MSG_MEM);
	wire_put_u8(&w, 0);
	wire_put_u16(&w, piece->slot);
	wire_put_u16(&w, piece->total);
	wire_put_u16(&w, piece->at);
	wire_put_bytes(&w, piece->bytes, piece->len);
	return w.bad ? 0 : w.len;
}

bool np_mem_piece_get(struct wire_reader *r, struct np_mem_piece *piece)
{
	wire_get_u8(r);
	piece->slot = wire_get_u16(r);
	piece->total = wire_get_u16(r);
	piece->at = wire_get_u16(r);
	piece->len = wire_left(r);
	piece->bytes = wire_get(r, piece->len);
	return !r->bad && piece->len && piece->slot < NP_MEM_SLOTS &&
	       piece->at + piece->len <= piece->total;
}

size_t np_ahead_put(void *buf, size_t cap, const struct np_ahead *ahead)
{
	struct wire_writer w = wire_writer_of(buf, cap);

	wire_put_u8(&w, NP_MSG_AHEAD);
	wire_put_u8(&w, 0);
	wire_put_u16(&w, ahead->seq);
	wire_put_u32(&w, (uint32_t)ahead->tag);
	wire_put_bytes(&w, ahead->bytes, ahead->len);
	return w.bad ? 0 : w.len;
}

bool np_ahead_get(struct wire_reader *r, struct np_ahead *ahead)
{
	wire_get_u8(r);
	ahead->seq = wire_get_u16(r);
	ahead->tag = (int32_t)wire_get_u32(r);
	ahead->len = wire_left(r);
	ahead->bytes = wire_get(r, ahead->len);
	return !r->bad && ahead->len <= NP_AHEAD_BYTES && ahead->seq <= NP_SEQ_MASK;
}
