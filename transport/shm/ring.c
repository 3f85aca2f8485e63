/* SPDX-License-Identifier: Apache-2.0 */
/* ring.c -- records in and out of a shared ring whose other user is not trusted */
#include "ring.h"

#include <string.h>

bool ring_refresh(struct ring_out *out)
{
	/*
	 * acquire: pairs with the release in ring_publish_head. The consumer's reads of the bytes
	 * that we are about to overwrite came before the position that frees them.
	 */
	uint64_t head = atomic_load_explicit(&out->shared->head, memory_order_acquire);

	if (head < out->head || head > out->published || head % RING_ALIGN)
		return false;
	out->head = head;
	return true;
}

bool ring_pad(struct ring_out *out, uint64_t need, uint64_t to_end, uint64_t *room_p)
{
	struct ring_record pad = { .type = RING_PAD, .len = (uint32_t)to_end - RING_ALIGN };

	if (*room_p < to_end + need)
		return false;
	memcpy(out->data + (out->tail & (out->size - 1)), &pad, sizeof(pad));
	out->tail += to_end;
	*room_p -= to_end;
	return true;
}

void ring_put(struct ring_out *out, const struct ring_record *record, const void *payload)
{
	uint8_t *at = out->data + (out->tail & (out->size - 1));

	memcpy(at, record, sizeof(*record));
	if (payload)
		memcpy(at + RING_ALIGN, payload, record->len);
	out->tail += ring_record_bytes(record->len);
}

bool ring_publish(struct ring_out *out)
{
	if (out->published == out->tail)
		return false;
	out->published = out->tail;
	/*
	 * release: the records, and every byte stored to the peer's memory before, are visible to a
	 * consumer that sees this tail.
	 */
	atomic_store_explicit(&out->shared->tail, out->tail, memory_order_release);
	return true;
}

int ring_next(struct ring_in *in, struct ring_record *record, const uint8_t **payload_p)
{
	const uint64_t *words;
	uint64_t copy[RING_ALIGN / 8];
	uint64_t at = in->head & (in->size - 1);
	uint64_t used;

	if (in->tail == in->head) {
		/* acquire: pairs with the release in ring_publish. */
		in->tail = atomic_load_explicit(&in->shared->tail, memory_order_acquire);
		used = in->tail - in->head;
		if (used > in->size || used % RING_ALIGN)
			return -1;
		if (!used)
			return 0;
	}
	/* Each word is read exactly once: what is checked below is what is used later. */
	words = (const uint64_t *)(const void *)(in->data + at);
#pragma GCC unroll 4
	for (unsigned int i = 0; i < RING_ALIGN / 8; i++)
		copy[i] = __atomic_load_n(&words[i], __ATOMIC_RELAXED);
	memcpy(record, copy, sizeof(*record));
	used = ring_record_bytes(record->len);
	if (used > in->tail - in->head || used > in->size - at)
		return -1;
	*payload_p = in->data + at + RING_ALIGN;
	return 1;
}

void ring_consume(struct ring_in *in, const struct ring_record *record)
{
	in->head += ring_record_bytes(record->len);
}

bool ring_publish_head(struct ring_in *in)
{
	if (in->published == in->head)
		return false;
	in->published = in->head;
	/*
	 * release: our reads of the payloads, and the stores that copied them to their place, come
	 * before the position. The producer that sees it may overwrite the ring and may call those
	 * bytes visible (TR_PROVEN).
	 */
	atomic_store_explicit(&in->shared->head, in->head, memory_order_release);
	return true;
}
