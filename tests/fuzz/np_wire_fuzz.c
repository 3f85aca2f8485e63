/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_wire_fuzz.c -- the NCCL plugin's handle, messages and lists of names: whatever another plugin,
 * or the environment, puts there
 */
#include <string.h>

#include "fuzz.h"
#include "np.h"

enum { HANDLE = 0, CTS, MEM, NAMES, KINDS };

size_t fuzz_seed(unsigned int which, uint8_t *buf, size_t cap)
{
	struct np_cts cts = { .slot = 5, .n = (uint8_t)(1 + which % NP_GROUP), .seq = 9 };
	struct np_handle handle = { .nonce = { 1, 2, 3 }, .port = 4711, .host = "fe80::1%eth0" };
	static const uint8_t description[200] = { 7, 8, 9 };
	static const char names[] = "mlx5_1\0^=mlx5_0:1,mlx5_1:2:3";

	buf[0] = (uint8_t)(which % KINDS);
	switch (buf[0]) {
	case HANDLE:
		memset(buf + 1, 0, NCCL_HANDLE_MAX);
		np_handle_put(buf + 1, &handle);
		return 1 + NCCL_HANDLE_MAX;
	case CTS:
		for (unsigned int i = 0; i < cts.n; i++)
			cts.row[i] = (struct np_row){ i * 4096, 100, (int32_t)i, (uint16_t)i };
		return 1 + np_cts_put(buf + 1, cap - 1, &cts);
	case MEM:
		return 1 + np_mem_piece_put(buf + 1, cap - 1,
					    &(struct np_mem_piece){ 3, 300, 0, description, 200 });
	default:
		memcpy(buf + 1, names, sizeof(names));
		return 1 + sizeof(names);
	}
}

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
