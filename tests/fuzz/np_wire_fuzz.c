/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_wire_fuzz.c -- the NCCL plugin's handle, messages and lists of names: whatever another plugin,
 * or the environment, puts there
 */
#include <string.h>

#include "fuzz.h"
#include "np.h"

enum { HANDLE = 0, CTS, MEM, NAMES, KINDS };

static void check_handle(const uint8_t *data, size_t size)
{
	uint8_t bytes[NCCL_HANDLE_MAX] = { 0 }, again[NCCL_HANDLE_MAX] = { 0 };
	struct np_handle handle;

	memcpy(bytes, data, size < sizeof(bytes) ? size : sizeof(bytes));
	if (!np_handle_get(bytes, &handle))
		return;
	FUZZ_CHECK(memchr(handle.host, 0, sizeof(handle.host)));
	np_handle_put(again, &handle);
	FUZZ_CHECK(np_handle_get(again, &handle));
}

static void check_cts(const uint8_t *data, size_t size)
{
	struct wire_reader r = wire_reader_of(data, size);
	struct np_cts cts;
	uint8_t again[TR_MSG_MAX];

	if (wire_get_u8(&r) != NP_MSG_CTS || !np_cts_get(&r, &cts))
		return;
	FUZZ_CHECK(cts.n && cts.n <= NP_GROUP && cts.slot < NCCL_REQUESTS_MAX);
	FUZZ_CHECK(np_cts_put(again, sizeof(again), &cts));
}

static void check_mem(const uint8_t *data, size_t size)
{
	struct wire_reader r = wire_reader_of(data, size);
	struct np_mem_piece piece;

	if (wire_get_u8(&r) != NP_MSG_MEM || !np_mem_piece_get(&r, &piece))
		return;
	FUZZ_CHECK(piece.slot < NP_MEM_SLOTS && piece.at + piece.len <= piece.total);
	FUZZ_CHECK(piece.bytes >= data && piece.bytes + piece.len <= data + size);
}

/* A name, a NUL, a list: excluding a list is the opposite of choosing it. */
static void check_names(const uint8_t *data, size_t size)
{
	char *text = calloc(1, size + 3), *list;
	bool chosen;

	FUZZ_CHECK(text);
	memcpy(text, data, size);
	list = text + strlen(text) + 1;
	if (list > text + size)
		list = text + size + 1;
	chosen = np_name_matches(list, text, 1);
	if (*list && *list != '^' && strcmp(list, "=")) {
		size_t len = strlen(list) + 2;
		char *inverse = malloc(len);

		FUZZ_CHECK(inverse);
		inverse[0] = '^';
		memcpy(inverse + 1, list, len - 1);
		FUZZ_CHECK(np_name_matches(inverse, text, 1) != chosen);
		free(inverse);
	}
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const checks[])(const uint8_t *, size_t) = { check_handle, check_cts,
								   check_mem, check_names };

	if (size)
		checks[data[0] % KINDS](data + 1, size - 1);
	return 0;
}
