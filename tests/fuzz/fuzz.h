/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz.h -- what a fuzz target defines; a violated rule aborts */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* libFuzzer's entry point. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Well-formed input number `which` (any number is allowed); returns its length, at most cap. */
size_t fuzz_seed(unsigned int which, uint8_t *buf, size_t cap);

#define FUZZ_CHECK(rule)         \
	do {                     \
		if (!(rule))     \
			abort(); \
	} while (0)

#endif
