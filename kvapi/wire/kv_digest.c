/* SPDX-License-Identifier: Apache-2.0 */
/* kv_digest.c -- the digest of a block; on the data path where KVCACHE_CHECKSUM asks for it */
#include "kv_digest.h"

#include <string.h>
#include <sys/auxv.h>

#if defined(__x86_64__)
bool kv_digest_works(void)
{
	return __builtin_cpu_supports("sse4.2");
}

static inline uint64_t sum(uint64_t crc, uint64_t word)
{
	__asm__("crc32q %1, %0" : "+r"(crc) : "r"(word));
	return crc;
}
#elif defined(__aarch64__)
#include <asm/hwcap.h>

bool kv_digest_works(void)
{
	return getauxval(AT_HWCAP) & HWCAP_CRC32;
}

static inline uint64_t sum(uint64_t crc, uint64_t word)
{
	__asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
	return crc;
}
#else
bool kv_digest_works(void)
{
	return false;
}

static inline uint64_t sum(uint64_t crc, uint64_t word)
{
	return crc ^ word;
}
#endif

enum { STEP = 24 }; /* bytes: a word of each sum */

struct sums {
	uint64_t a, b, c;
};

static inline struct sums step(struct sums s, const uint8_t *at)
{
	uint64_t word[3];

	memcpy(word, at, STEP);
	return (struct sums){ sum(s.a, word[0]), sum(s.b, word[1]), sum(s.c, word[2]) };
}

uint32_t kv_digest(const uint8_t *at, uint64_t len, uint64_t row, uint32_t rows)
{
	struct sums s = { 1, 2, 3 };

	for (uint32_t r = 0; r < rows; r++, at += row) {
		uint8_t rest[STEP] = { 0 };
		uint64_t i = 0;

		for (; i + STEP <= len; i += STEP)
			s = step(s, at + i);
		if (i == len)
			continue;
		memcpy(rest, at + i, len - i); /* the length is agreed on: zeros hide nothing */
		s = step(s, rest);
	}
	/*
	 * The sums are linear: without the odd factors a word that changed places with its
	 * neighbour, which changes two sums alike, would not show.
	 */
	s.a = sum(s.a, (uint64_t)((uint32_t)s.b * 0x9e3779b1u) << 32);
	return (uint32_t)sum(s.a, (uint64_t)((uint32_t)s.c * 0x85ebca6bu) << 32);
}
