/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz.h -- what a fuzz target is made of
 *
 * A target has LLVMFuzzerTestOneInput. With clang and KVRAIL_LIBFUZZER it is a libFuzzer program;
 * else driver.c runs it over the inputs of its corpus. A rule that is broken aborts.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_CHECK(rule)                                                                         \
	do {                                                                                     \
		if (!(rule)) {                                                                   \
			fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #rule); \
			abort();                                                                 \
		}                                                                                \
	} while (0)

#endif
