/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver.c -- runs a libFuzzer target without libFuzzer: seeds and their mutations, from a fixed
 * random sequence
 *
 *     frame_fuzz [RUNS]      default 200000; KVRAIL_LONG=1 multiplies by 50
 *
 * With clang the same targets are libFuzzer programs, of a library that it can see into:
 *
 *     cmake -B build-fuzz -G Ninja -DCMAKE_C_COMPILER=clang -DKVRAIL_LIBFUZZER=ON \
 *           -DKVRAIL_SANITIZE=fuzzer-no-link,address,undefined
 */
#include "fuzz.h"

#include <stdio.h>
#include <string.h>

enum { INPUT_MAX = 4096 };

static uint64_t sequence = 88172645463325252u;

static uint64_t next(void)
{
	sequence ^= sequence << 13;
	sequence ^= sequence >> 7;
	sequence ^= sequence << 17;
	return sequence;
}

static void write_interesting(uint8_t *buf, size_t at, size_t len)
{
	static const uint64_t interesting[] = { 0,	   1,	       0x7f,	   0x80,
						0xff,	   0x100,      0x7fff,	   0xffff,
						0x10000,   0x7fffffff, UINT32_MAX, 0x100000000,
						UINT64_MAX };
	uint64_t v = interesting[next() % (sizeof(interesting) / sizeof(interesting[0]))];
	size_t width = (size_t)1 << next() % 4;

	if (at + width <= len)
		memcpy(buf + at, &v, width);
}

/* Puts a word of a text format in place of the digits at `at`, or before what stands there. */
static size_t write_word(uint8_t *buf, size_t at, size_t len)
{
	static const char *const words[] = { "0",    "-1", "4294967296", "18446744073709551616",
					     "1e9",  "\"", "[",		 "]",
					     "null", "=",  ",",		 "" };
	const char *word = words[next() % (sizeof(words) / sizeof(words[0]))];
	size_t end = at, n = strlen(word);

	while (end < len && buf[end] >= '0' && buf[end] <= '9')
		end++;
	if (len - (end - at) + n > INPUT_MAX)
		return len;
	memmove(buf + at + n, buf + end, len - end);
	memcpy(buf + at, word, n);
	return len - (end - at) + n;
}

/* A few of: flip a bit, write a number or a word, cut, lengthen, copy a stretch. */
static size_t mutate(uint8_t *buf, size_t len)
{
	for (uint64_t n = next() % 4 + 1; n; n--) {
		size_t at = len ? next() % len : 0;
		size_t from = len ? next() % len : 0;

		switch (next() % 6) {
		case 0:
			if (len)
				buf[at] ^= (uint8_t)(1u << next() % 8);
			break;
		case 1:
			write_interesting(buf, at, len);
			break;
		case 2:
			len = at;
			break;
		case 3:
			for (uint64_t more = next() % 16; more && len < INPUT_MAX; more--)
				buf[len++] = (uint8_t)next();
			break;
		case 4:
			len = write_word(buf, at, len);
			break;
		default:
			memmove(buf + at, buf + from, len - (at > from ? at : from));
		}
	}
	return len;
}

int main(int argc, char **argv)
{
	long runs = argc > 1 ? strtol(argv[1], NULL, 10) : 200000;
	const char *longer = getenv("KVRAIL_LONG");
	uint8_t input[INPUT_MAX];

	if (longer && *longer == '1')
		runs *= 50;
	for (long run = 0; run < runs; run++) {
		size_t len = fuzz_seed((unsigned int)(next() % 16), input, sizeof(input));
		uint8_t *exact;

		if (run % 8)
			len = mutate(input, len);
		/* Exactly as long as the input, so that a sanitizer sees a read past its end. */
		exact = malloc(len ? len : 1);
		FUZZ_CHECK(exact);
		memcpy(exact, input, len);
		LLVMFuzzerTestOneInput(exact, len);
		free(exact);
	}
	printf("%ld inputs\n", runs);
	return 0;
}
