/* SPDX-License-Identifier: Apache-2.0 */
/* setting.h -- a world, a connection, and a registered buffer with guards on each side */
#ifndef SETTING_H
#define SETTING_H

#include "rig.h"

enum { GUARD = 4096, BUDGET = 200000 };

struct setting {
	struct rig rig;
	uint8_t *buf[2]; /* GUARD bytes, the region, GUARD bytes */
	struct tr_mem *mem[2];
	struct tr_rmem *rmem[2]; /* what side i sees of the other */
	size_t size;
	uint64_t overruns; /* that setting_end expects: none */
};

void setting_make(struct setting *s, const struct fake_config *config, const char *const *options,
		  size_t size);
/* In a world that has begun, for tests that change it first. */
void setting_connect(struct setting *s, const char *const *options, size_t size,
		     unsigned int flags);
/* Checks the guards, that no credit was ever short, and that nothing is left behind. */
void setting_end(struct setting *s);

uint8_t *setting_at(struct setting *s, int side, size_t offset);
void setting_fill(struct setting *s, int side, uint64_t epoch);
void setting_expect_written(struct setting *s, int side, uint64_t user);
void setting_expect_notify(struct setting *s, int side, uint64_t value);
/* All bytes go both ways; the fake loses what is addressed wrongly. */
void setting_move(struct setting *s);
/* "fake1 fake0": the rails of a side by their devices. */
const char *setting_rails(struct rig *rig, int side);
/* Sends `calls` messages of `len` bytes each; *share: what each device of side 0 has carried. */
void setting_carry(struct setting *s, int calls, size_t len, uint64_t share[], int devices);

#endif
