/* SPDX-License-Identifier: Apache-2.0 */
/* setting.c -- a world, a connection, and a registered buffer with guards on each side */
#include "setting.h"
#include "lib/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kvrail/kv.h>

enum { BLANK = 0xee };

void setting_connect(struct setting *s, const char *const *options, size_t size, unsigned int flags)
{
	struct kv_error err;

	memset(s, 0, sizeof(*s));
	s->size = size;
	if (rig_open(&s->rig, "ib", options, &err))
		fail_msg("open: %s", err.message);
	s->rig.flags = flags;
	if (rig_connect(&s->rig, &err))
		fail_msg("connect: %s", err.message);
	for (int i = 0; i < 2; i++) {
		s->buf[i] = aligned_alloc(4096, (size + 2 * GUARD + 4095) & ~(size_t)4095);
		memset(s->buf[i], BLANK, size + 2 * GUARD);
		s->mem[i] = rig_reg(&s->rig, i, s->buf[i] + GUARD, size,
				    TR_REMOTE_WRITE | TR_REMOTE_READ);
	}
	for (int i = 0; i < 2; i++)
		s->rmem[i] = rig_see(&s->rig, i, s->mem[!i]);
}

void setting_make(struct setting *s, const struct fake_config *config, const char *const *options,
		  size_t size)
{
	fake_begin(config);
	setting_connect(s, options, size, 0);
}

void setting_end(struct setting *s)
{
	struct fake_stats stats;

	fake_stats(&stats);
	assert_int_equal(stats.refused, 0);
	assert_int_equal(stats.overruns, s->overruns);
	assert_int_equal(stats.rnr, 0);
	rig_disconnect(&s->rig);
	fake_settle();
	for (int i = 0; i < 2; i++) {
		for (size_t g = 0; g < GUARD; g++) {
			assert_int_equal(s->buf[i][g], BLANK);
			assert_int_equal(s->buf[i][GUARD + s->size + g], BLANK);
		}
		assert_int_equal(tr_mem_dereg(s->mem[i], NULL), 0);
		free(s->buf[i]);
	}
	rig_close(&s->rig);
	assert_true(fake_end());
}

uint8_t *setting_at(struct setting *s, int side, size_t offset)
{
	return s->buf[side] + GUARD + offset;
}

void setting_fill(struct setting *s, int side, uint64_t epoch)
{
	for (size_t i = 0; i < s->size; i++)
		*setting_at(s, side, i) = rig_byte(epoch, i);
}

void setting_expect_written(struct setting *s, int side, uint64_t user)
{
	struct rig_event *event = rig_wait(&s->rig, side, TR_WRITTEN, BUDGET);

	assert_non_null(event);
	assert_int_equal(event->user, user);
}

void setting_expect_notify(struct setting *s, int side, uint64_t value)
{
	struct rig_event *event = rig_wait(&s->rig, side, TR_NOTIFIED, BUDGET);

	assert_non_null(event);
	assert_int_equal(event->value, value);
}

void setting_move(struct setting *s)
{
	struct tr_span span = { 0, 0, s->size };

	for (int side = 0; side < 2; side++) {
		setting_fill(s, side, (uint64_t)side + 1);
		rig_op(&s->rig, side, TR_WRITE, 5, s->mem[side], s->rmem[side], &span, 1, TR_NOTIFY,
		       5);
		setting_expect_notify(s, !side, 5);
		setting_expect_written(s, side, 5);
		assert_memory_equal(setting_at(s, !side, 0), setting_at(s, side, 0), s->size);
	}
}

const char *setting_rails(struct rig *rig, int side)
{
	static char text[256];
	struct kv_device_info info;
	size_t used = 0;

	text[0] = 0;
	for (size_t i = 0; !tr_device_get(rig->side[side].tr, i, &info); i++)
		if (!strcmp(info.transport, "ib"))
			used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%.*s",
						 used ? " " : "", (int)strcspn(info.name, ":"),
						 info.name);
	return text;
}

void setting_carry(struct setting *s, int calls, size_t len, uint64_t share[], int devices)
{
	for (int d = 0; d < devices; d++)
		share[d] = fake_carried(0, d);
	for (int i = 0; i < calls; i++) {
		struct tr_span span = { 0, 0, len };

		setting_fill(s, 0, (uint64_t)i);
		rig_op(&s->rig, 0, TR_WRITE, 1, s->mem[0], s->rmem[0], &span, 1, TR_NOTIFY, 2);
		setting_expect_notify(s, 1, 2);
		setting_expect_written(s, 0, 1);
		assert_memory_equal(setting_at(s, 1, 0), setting_at(s, 0, 0), len);
	}
	for (int d = 0; d < devices; d++)
		share[d] = fake_carried(0, d) - share[d];
}
