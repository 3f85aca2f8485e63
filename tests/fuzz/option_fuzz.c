/* SPDX-License-Identifier: Apache-2.0 */
/*
 * option_fuzz.c -- one "NAME=value" text: it is taken and shown as it was given, or refused by name
 */
#include <stdio.h>
#include <string.h>

#include "base/option.h"
#include "fuzz.h"

size_t fuzz_seed(unsigned int which, uint8_t *buf, size_t cap)
{
	static const char *const texts[] = {
		"KVCACHE_SPIN_US=50",	    "KVCACHE_SHM_PATH=ring",
		"KVCACHE_SHM_RING=1M",	    "KVCACHE_DEBUG=1",
		"KVCACHE_OP_TIMEOUT_MS=",   "KVCACHE_SHM_PATHS=ring",
		"KVCACHE_SOCKET_IFNAME=lo", "KVCACHE_SPIN_US=18446744073709551616",
	};
	const char *text = texts[which % (sizeof(texts) / sizeof(texts[0]))];

	/* Every now and then with a value about as long as the longest that is taken. */
	return (size_t)snprintf((char *)buf, cap, "%s%0*d", text, which % 3 ? 0 : 250 + (int)which,
				0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);
	const char *list[] = { text, NULL };
	struct kv_option_set *set;
	struct kv_option_row row;
	struct kv_error err;
	size_t name;

	FUZZ_CHECK(text);
	memcpy(text, data, size);
	text[size] = 0;
	name = strcspn(text, "=");
	if (kv_option_read(list, &set, &err)) {
		FUZZ_CHECK(err.code == KV_ERR_ARG && err.message[0]);
	} else {
		unsigned int known = 0;

		for (int i = 0; i < KV_OPTIONS; i++) {
			kv_option_row(set, (enum kv_option_id)i, &row);
			if (strlen(row.name) != name || strncmp(row.name, text, name))
				continue;
			known++;
			FUZZ_CHECK(!strcmp(row.value, text + name + 1) &&
				   !strcmp(row.source, "config"));
		}
		FUZZ_CHECK(known == 1);
		kv_option_free(set);
	}
	free(text);
	return 0;
}
