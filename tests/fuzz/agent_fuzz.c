/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent_fuzz.c -- bytes of an agent: where it is, what a region is, and messages that make records.
 * What is taken is written again as the same bytes. The first byte says which.
 */
#include <stdlib.h>
#include <string.h>

#include "ag.h"
#include "fuzz.h"

static void check_place(const uint8_t *data, size_t size)
{
	uint8_t again[AG_INFO_MAX];
	struct ag_place place;
	struct kv_error err;

	if (ag_place_get(&place, data, size, &err)) {
		FUZZ_CHECK(err.code == KV_ERR_ARG && err.message[0]);
		return;
	}
	FUZZ_CHECK(place.port && place.hosts && place.hosts <= AG_ADDRESSES);
	FUZZ_CHECK(ag_place_put(&place, again) == size && !memcmp(again, data, size));
}

static void check_region(const uint8_t *data, size_t size)
{
	uint8_t again[AG_MEM_INFO_MAX];
	struct ag_region region;
	struct kv_error err;

	if (ag_region_get(&region, data, size, &err)) {
		FUZZ_CHECK(err.code == KV_ERR_ARG && err.message[0]);
		return;
	}
	FUZZ_CHECK(region.len && region.addr + region.len > region.addr);
	FUZZ_CHECK(ag_region_put(&region, again) == size && !memcmp(again, data, size));
}

/* Messages, each behind its length: a record that is whole is said again, and heard as the same. */
static void check_messages(const uint8_t *data, size_t size)
{
	struct ag_hearing hearing = { 0 }, second = { 0 };
	const uint8_t *body, *same;
	struct kv_error err;
	int ret = 0;

	while (size && ret >= 0) {
		size_t len = data[0] < size - 1 ? data[0] : size - 1;
		struct ag_records records;
		uint8_t msg[TR_MSG_MAX];

		ret = ag_hear(&hearing, data + 1, len, &body, &err);
		data += 1 + len;
		size -= 1 + len;
		FUZZ_CHECK(ret >= 0 || (err.code == KV_ERR_PROTOCOL && err.message[0]));
		if (ret <= 0)
			continue;
		FUZZ_CHECK(hearing.len <= AG_NOTIFY_MAX && hearing.got == hearing.len);
		ag_records_init(&records);
		ag_records_add(&records, ag_record_new(hearing.kind, body, hearing.len, NULL));
		while (records.first) {
			len = ag_records_say(&records, msg, sizeof(msg));
			FUZZ_CHECK(len && len <= sizeof(msg));
			FUZZ_CHECK(ag_hear(&second, msg, len, &same, &err) ==
				   (records.first->len - records.first->sent + 5 <= len ||
				    (records.first->begun &&
				     records.first->len - records.first->sent + 1 <= len)));
			free(ag_records_said(&records, len));
		}
		FUZZ_CHECK(second.kind == hearing.kind && second.len == hearing.len &&
			   !memcmp(same, body, hearing.len));
	}
	free(hearing.buf);
	free(second.buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	if (data[0] == 'p')
		check_place(data + 1, size - 1);
	else if (data[0] == 'r')
		check_region(data + 1, size - 1);
	else
		check_messages(data + 1, size - 1);
	return 0;
}
