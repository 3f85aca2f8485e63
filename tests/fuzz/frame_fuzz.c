/* SPDX-License-Identifier: Apache-2.0 */
/*
 * frame_fuzz.c -- the handshake's parsers: whatever comes, ranges lie inside the input, and a hello
 * that was taken is the same bytes when it is written again, but for the u64 that is not read
 */
#include <string.h>

#include "frame.h"
#include "fuzz.h"

size_t fuzz_seed(unsigned int which, uint8_t *buf, size_t cap)
{
	static const uint8_t bytes[200] = { 1, 2, 3 };
	struct wire_writer w = wire_writer_of(buf, cap);
	struct frame_hello hello = { .upper_id = 1,
				     .upper = { bytes, which * 10 },
				     .offers = which % 5 };

	wire_put_u8(&w, (uint8_t)(which % 3));
	if (which % 3 == 0) {
		for (unsigned int i = 0; i < hello.offers; i++) {
			hello.offer[i].provider = (uint16_t)i;
			hello.offer[i].bytes = (struct frame_bytes){ bytes, i * 30 };
		}
		frame_put_hello(&w, &hello);
	} else if (which % 3 == 1) {
		frame_put_setup(&w,
				&(struct frame_setup){ 1, { bytes, which }, { bytes, which * 2 } });
	} else {
		frame_put_reject(&w, KV_ERR_GEOMETRY, "layers: 32 here, 80 there",
				 "use the same model");
	}
	return w.len;
}

static void inside(struct frame_bytes b, const uint8_t *data, size_t size)
{
	FUZZ_CHECK(!b.len || (b.p >= data && b.len <= size && b.p + b.len <= data + size));
}

static void check_hello(const uint8_t *data, size_t size)
{
	struct frame_hello hello;
	struct wire_writer w;
	uint8_t *again;

	if (frame_get_hello(data, size, &hello))
		return;
	inside(hello.upper, data, size);
	FUZZ_CHECK(hello.offers <= FRAME_OFFERS_MAX);
	for (unsigned int i = 0; i < hello.offers; i++)
		inside(hello.offer[i].bytes, data, size);
	again = malloc(size);
	FUZZ_CHECK(again);
	w = wire_writer_of(again, size);
	frame_put_hello(&w, &hello);
	FUZZ_CHECK(!w.bad && w.len == size && !memcmp(again + 8, data + 8, size - 8));
	free(again);
}

static void check_setup(const uint8_t *data, size_t size)
{
	struct frame_setup setup;

	if (frame_get_setup(data, size, &setup))
		return;
	inside(setup.provider_bytes, data, size);
	inside(setup.upper, data, size);
}

static void check_reject(const uint8_t *data, size_t size)
{
	struct frame_reject reject;

	if (!frame_get_reject(data, size, &reject))
		FUZZ_CHECK(reject.code < 0 && strlen(reject.message) < sizeof(reject.message));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const checks[])(const uint8_t *, size_t) = { check_hello, check_setup,
								   check_reject };
	struct frame_header header;

	if (size >= FRAME_HEADER && !frame_get_header(data, &header))
		FUZZ_CHECK(header.len <= FRAME_SETUP_MAX);
	if (size)
		checks[data[0] % 3](data + 1, size - 1);
	return 0;
}
