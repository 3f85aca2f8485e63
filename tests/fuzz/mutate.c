/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mutate.c -- libFuzzer's mutations for inputs in steps (rig.h): whole steps are put in, taken out,
 * doubled and moved, and a field is changed where it stands
 */
#include <string.h>

#include "rig.h"

enum { STEP = sizeof(struct step) };

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);

static uint64_t sequence;

static size_t below(size_t n)
{
	sequence ^= sequence << 13;
	sequence ^= sequence >> 7;
	sequence ^= sequence << 17;
	return n ? sequence % n : 0;
}

/* Mostly small numbers: they select. */
static void fill_step(uint8_t *step)
{
	for (int i = 0; i < STEP; i++)
		step[i] = (uint8_t)(below(3) && i > 1 ? below(8) : below(256));
	memset(step + 8, 0, below(2) ? STEP - 8 : 0);
}

static void change_field(uint8_t *step, const uint8_t *other)
{
	static const uint8_t width[] = { 1, 1, 1, 1, 2, 2, 4, 4 };
	size_t field = below(sizeof(width)), at = 0;

	for (size_t i = 0; i < field; i++)
		at += width[i];
	switch (below(4)) {
	case 0:
		memcpy(step + at, other + at, width[field]);
		break;
	case 1:
		step[at] = (uint8_t)(step[at] + (below(2) ? 1 : -1));
		break;
	case 2:
		step[at] ^= (uint8_t)(1u << below(8));
		break;
	default:
		for (size_t i = 0; i < width[field]; i++)
			step[at + i] = (uint8_t)below(256);
	}
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
	size_t n = (size + STEP - 1) / STEP, most = max_size / STEP, i, k;
	uint8_t step[STEP];

	sequence = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
	if (!most)
		return LLVMFuzzerMutate(data, size, max_size);
	n = n < most ? n : most;
	if (size < n * STEP)
		memset(data + size, 0, n * STEP - size);
	for (size_t times = 1 + below(3); times; times--) {
		i = below(n);
		k = below(n);
		switch (below(8)) {
		case 0:
		case 1: /* a new one, or one of the others once more, before another */
			if (n == most)
				break;
			if (n && below(2))
				memcpy(step, data + k * STEP, STEP);
			else
				fill_step(step);
			memmove(data + (i + 1) * STEP, data + i * STEP, (n - i) * STEP);
			memcpy(data + i * STEP, step, STEP);
			n++;
			break;
		case 2: /* a row of them taken out */
			k = n - i < 1 + k % 4 ? n - i : 1 + k % 4;
			memmove(data + i * STEP, data + (i + k) * STEP, (n - i - k) * STEP);
			n -= k;
			break;
		case 3: /* two change places */
			if (!n)
				break;
			memcpy(step, data + i * STEP, STEP);
			memcpy(data + i * STEP, data + k * STEP, STEP);
			memcpy(data + k * STEP, step, STEP);
			break;
		case 4: /* what libFuzzer makes of one: it knows what was compared */
			if (n)
				LLVMFuzzerMutate(data + i * STEP, STEP, STEP);
			break;
		case 5: /* the same of all, bytes included */
			return LLVMFuzzerMutate(data, n * STEP, max_size);
		default:
			if (n)
				change_field(data + i * STEP, data + k * STEP);
		}
	}
	return n * STEP;
}
