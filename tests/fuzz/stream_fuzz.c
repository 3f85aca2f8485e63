/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream_fuzz.c -- frames on the data socket of a tcp connection: whatever a peer sends, cut
 * anywhere; what is taken is written again as the same bytes
 */
#include <string.h>

#include "fuzz.h"
#include "tcp/stream.h"

static uint64_t sum_of(const struct stream_frame *frame, const struct stream_span *spans)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < frame->spans; i++) {
		FUZZ_CHECK(spans[i].len && spans[i].len <= STREAM_PAYLOAD_MAX);
		sum += spans[i].len;
	}
	return sum;
}

/* The header at data: its length, or what stream_get says. */
static int check_frame(const uint8_t *data, size_t size)
{
	static struct stream_span spans[STREAM_SPANS_MAX], part[STREAM_SPANS_MAX];
	static uint8_t again[STREAM_HEADER_MAX];
	struct wire_writer w = wire_writer_of(again, sizeof(again));
	struct stream_frame frame, less;
	int len = stream_get(data, size, &frame, spans);

	if (len <= 0)
		return len;
	FUZZ_CHECK((size_t)len <= size && len <= STREAM_HEADER_MAX);
	FUZZ_CHECK(frame.spans <= STREAM_SPANS_MAX && frame.payload <= STREAM_PAYLOAD_MAX);
	FUZZ_CHECK(frame.type != STREAM_MSG || frame.payload <= TR_MSG_MAX);
	FUZZ_CHECK(frame.type != STREAM_DATA || sum_of(&frame, spans) == frame.payload);
	sum_of(&frame, spans);
	stream_put(&w, &frame, spans);
	FUZZ_CHECK(!w.bad && w.len == (size_t)len && !memcmp(again, data, w.len));
	for (size_t cut = 0; cut < (size_t)len; cut++)
		FUZZ_CHECK(stream_get(data, cut, &less, part) == 0);
	return len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t at = 0;
	int len;

	if (size && stream_is_greeting(data, size) && size >= STREAM_GREETING) {
		uint8_t greeting[STREAM_GREETING];

		stream_put_greeting(greeting, stream_of_greeting(data),
				    stream_proof_of_greeting(data));
		FUZZ_CHECK(!memcmp(greeting, data, sizeof(greeting)));
		at = STREAM_GREETING;
	}
	while ((len = check_frame(data + at, size - at)) > 0)
		at += (size_t)len;
	return 0;
}
