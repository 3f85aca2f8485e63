/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_back_test.c -- ports and devices that are down, fail or are taken away are left out, and used
 * again when they are back, however often that happens
 */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/option.h"
#include "ib/ib.h"
#include "lib/test.h"
#include "setting.h"

enum { SIZE = 1 << 20, BACK_MS = 20000 };

static void reconnect(struct setting *s)
{
	struct kv_error err;

	rig_disconnect(&s->rig);
	if (rig_connect(&s->rig, &err))
		fail_msg("connect: %s", err.message);
	for (int i = 0; i < 2; i++)
		s->rmem[i] = rig_see(&s->rig, i, s->mem[!i]);
}

/* The connection works, and exactly these devices of side 0 carry. */
static void expect_carriers(struct setting *s, const bool carries[2])
{
	uint64_t share[2];

	setting_carry(s, 4, SIZE, share, 2);
	for (int d = 0; d < 2; d++)
		assert_int_equal(share[d] > 0, carries[d]);
}

CASE(a_port_that_is_down_is_not_offered_on_either_side)
{
	struct fake_config config = { .devices = 2, .no_cm = true };
	struct setting s;

	for (int host = 0; host < 2; host++)
		for (int device = 0; device < 2; device++) {
			bool one[2] = { true, true };

			fake_begin(&config);
			setting_connect(&s, NULL, SIZE, 0);
			fake_link(host, device, false);
			for (int round = 0; round < 2; round++) {
				uint64_t share[2];

				reconnect(&s);
				setting_carry(&s, 2, SIZE, share, 2);
				/* The other side joins its first rail with the one that is up. */
				assert_int_equal(!!share[0] + !!share[1], 1);
			}
			fake_link(host, device, true);
			reconnect(&s);
			expect_carriers(&s, one);
			setting_end(&s);
		}
}

static char warnings[8192];

static void keep_log(void *arg, int level, const char *line)
{
	size_t used = strlen(warnings);

	snprintf(warnings + used, sizeof(warnings) - used, "%s\n", line);
}

static int count_of(const char *text)
{
	int n = 0;

	for (const char *at = warnings; (at = strstr(at, text)); at++)
		n++;
	return n;
}

CASE(one_failing_device_is_left_out_until_it_works_again)
{
	static const enum fake_sickness ways[] = { FAKE_SICK, FAKE_MAKES_NOTHING };
	static const bool second[2] = { false, true }, both[2] = { true, true };
	struct fake_config config = { .devices = 2, .no_cm = true };

	for (int host = 0; host < 2; host++)
		for (size_t w = 0; w < sizeof(ways) / sizeof(ways[0]); w++) {
			int64_t end = kv_deadline_ns(BACK_MS);
			struct kv_error err;
			struct setting s;
			struct kv_log *log;

			fake_begin(&config);
			setting_connect(&s, NULL, SIZE, 0);
			warnings[0] = 0;
			log = kv_log_open(s.rig.side[host].options, keep_log, NULL);
			s.rig.side[host].tr->log = log;
			fake_sicken(host, 0, ways[w]);
			rig_disconnect(&s.rig);
			/* The accepting side cannot go back on what the peer has chosen. */
			if (host && ways[w] == FAKE_MAKES_NOTHING) {
				assert_int_equal(rig_connect(&s.rig, &err), KV_ERR_DEVICE);
				rig_disconnect(&s.rig);
			}
			for (int round = 0; round < 3; round++) {
				reconnect(&s);
				if (!host)
					expect_carriers(&s, second);
			}
			assert_int_equal(count_of("fake0:1 fails"), 1);
			fake_sicken(host, 0, FAKE_WELL);
			for (int host_d = 0; host_d < 2; host_d++)
				atomic_store(
					&((struct ib_ctx *)s.rig.side[host].tr->provider_ctx[0])
						 ->rail[host_d]
						 .ill_until_ns,
					0); /* not to wait for it */
			reconnect(&s);
			expect_carriers(&s, both);
			assert_int_equal(count_of("works again and is used"), 1);
			assert_true(kv_now_ns() < end);
			s.rig.side[host].tr->log = NULL;
			setting_end(&s);
			kv_log_close(log);
		}
}

CASE(where_every_device_fails_the_peer_learns_the_cause)
{
	struct kv_error err;
	struct setting s;

	setting_make(&s, NULL, NULL, SIZE);
	rig_disconnect(&s.rig);
	fake_sicken(1, 0, FAKE_SICK);
	assert_int_equal(rig_connect(&s.rig, &err), KV_ERR_UNREACHABLE);
	assert_non_null(strstr(err.message, "cannot query the port fake0:1"));
	fake_sicken(1, 0, FAKE_WELL);
	rig_disconnect(&s.rig);
	reconnect(&s);
	setting_end(&s);
}

CASE(a_failing_device_does_not_keep_shared_memory_away)
{
	struct kv_error err;
	struct rig rig;

	fake_begin(NULL);
	assert_int_equal(rig_open(&rig, "auto", NULL, &err), 0);
	fake_sicken(1, 0, FAKE_SICK);
	assert_int_equal(rig_connect(&rig, &err), 0);
	assert_string_equal(tr_conn_transport(rig.side[0].conn), "shm");
	rig_close(&rig);
	assert_true(fake_end());
}

/* Down, or without a working device, when the contexts were opened. */
CASE(a_port_is_used_once_it_works_although_it_did_not_at_open)
{
	static const bool second[2] = { false, true }, both[2] = { true, true };

	for (int threads = 0; threads < 2; threads++)
		for (int down = 0; down < 2; down++) {
			struct fake_config config = { .devices = 2,
						      .no_cm = true,
						      .threads = threads };
			int64_t end = kv_deadline_ns(BACK_MS);
			struct tr_mem *later;
			struct setting s;

			fake_begin(&config);
			assert_int_equal(fake_fork_inits(), 0);
			for (int h = 0; h < 2; h++) {
				if (down)
					fake_link(h, 0, false);
				else
					fake_sicken(h, 0, FAKE_SICK);
			}
			setting_connect(&s, NULL, SIZE, 0);
			assert_true(fake_fork_inits() > 0);
			assert_string_equal(setting_rails(&s.rig, 0), "fake1");
			expect_carriers(&s, second);
			for (int h = 0; h < 2; h++) {
				fake_sicken(h, 0, FAKE_WELL);
				fake_link(h, 0, true);
			}
			later = rig_reg(&s.rig, 0, warnings, sizeof(warnings), 0);
			/* Opened beside the first connections, so that none waits for it. */
			while (strcmp(setting_rails(&s.rig, 0), "fake1 fake0") ||
			       strcmp(setting_rails(&s.rig, 1), "fake1 fake0")) {
				assert_true(kv_now_ns() < end);
				reconnect(&s);
				poll(NULL, 0, 20);
			}
			reconnect(&s);
			expect_carriers(&s, both);
			assert_int_equal(tr_mem_dereg(later, NULL), 0);
			for (int i = 0; i < 2; i++)
				while (tr_fence(s.rig.side[i].conn, 0, NULL) == TR_AGAIN)
					assert_true(kv_now_ns() < end);
			setting_end(&s);
		}
}

/* Its device opens, and is not well yet when the memory is registered with it. */
CASE(a_port_that_does_not_take_the_memory_is_tried_again)
{
	struct fake_config config = { .devices = 2, .no_cm = true };
	int64_t end = kv_deadline_ns(BACK_MS);
	struct ib_ctx *ctx;
	struct setting s;
	struct kv_log *log;

	fake_begin(&config);
	fake_sicken(0, 0, FAKE_SICK);
	setting_connect(&s, NULL, SIZE, 0);
	ctx = s.rig.side[0].tr->provider_ctx[0];
	warnings[0] = 0;
	log = kv_log_open(s.rig.side[0].options, keep_log, NULL);
	s.rig.side[0].tr->log = log;
	fake_sicken(0, 0, FAKE_MAKES_NOTHING);
	for (int i = 0; i < 3; i++) {
		ctx->late_next_ns = 0; /* not to wait for it */
		reconnect(&s);
		assert_string_equal(setting_rails(&s.rig, 0), "fake1");
	}
	assert_int_equal(count_of("fake0:1 works now, but not for all registered memory"), 1);
	fake_sicken(0, 0, FAKE_WELL);
	ctx->late_next_ns = 0;
	reconnect(&s);
	assert_string_equal(setting_rails(&s.rig, 0), "fake1 fake0");
	assert_true(kv_now_ns() < end);
	s.rig.side[0].tr->log = NULL;
	setting_end(&s);
	kv_log_close(log);
}

/* ---------------------------------------------------------------- taken away, and back */

enum { TIMES = 20 };

static const struct fake_config two_devices = { .devices = 2, .no_cm = true };

static void reconnect_at(struct setting *s, int host)
{
	fake_host(host); /* whose devices are listed */
	reconnect(s);
	fake_host(0);
}

/* The first device of the host goes, and both ends connect over the other. */
static void take_away(struct setting *s, int host)
{
	uint64_t share[2];

	fake_device_fatal(host, 0);
	assert_non_null(rig_wait(&s->rig, host, TR_PEER_LOST, BUDGET));
	reconnect_at(s, host);
	setting_carry(s, 2, SIZE, share, 2);
	assert_int_equal(!!share[0] + !!share[1], 1);
}

/* And comes back, and is looked for at once. */
static void give_back(struct setting *s, int host)
{
	struct ib_ctx *ctx = s->rig.side[host].tr->provider_ctx[0];

	fake_device_back(host, 0);
	ctx->late_next_ns = 0;
	reconnect_at(s, host);
}

/* Half of a region's bytes, from it or into it. */
static void move_half(struct setting *s, int host, struct tr_mem *mem, const uint8_t *bytes)
{
	struct tr_span span = { 0, 0, SIZE / 2 };
	struct tr_rmem *rmem = host ? rig_see(&s->rig, 0, mem) : NULL;

	rig_op(&s->rig, 0, TR_WRITE, 1, host ? s->mem[0] : mem, host ? rmem : s->rmem[0], &span, 1,
	       TR_NOTIFY, 2);
	setting_expect_notify(s, 1, 2);
	setting_expect_written(s, 0, 1);
	assert_memory_equal(bytes, setting_at(s, !host, 0), SIZE / 2);
	if (host)
		tr_mem_close(rmem);
}

/* As often as it happens: more often than a context has places. */
CASE(a_device_that_comes_back_is_used_each_time)
{
	static const bool both[2] = { true, true };
	static uint8_t bytes[2][SIZE / 2];

	for (int host = 0; host < 2; host++) {
		struct fake_counts before, after;
		struct setting s;

		fake_begin(&two_devices);
		setting_connect(&s, NULL, SIZE, 0);
		fake_counts(&before);
		for (int i = 0; i < TIMES; i++) {
			struct tr_mem *mem[2];
			uint64_t first;

			mem[0] = rig_reg(&s.rig, host, bytes[0], SIZE / 2, TR_REMOTE_WRITE);
			take_away(&s, host);
			mem[1] = rig_reg(&s.rig, host, bytes[1], SIZE / 2, TR_REMOTE_WRITE);
			give_back(&s, host);
			assert_string_equal(setting_rails(&s.rig, host), "fake0 fake1");
			expect_carriers(&s, both);
			for (int k = 0; k < 2; k++) {
				memset(bytes[k], i + k, SIZE / 2);
				setting_fill(&s, 0, (uint64_t)i);
				first = fake_carried(0, 0);
				move_half(&s, host, mem[k], bytes[k]);
				assert_true(fake_carried(0, 0) > first);
				assert_int_equal(tr_mem_dereg(mem[k], NULL), 0);
			}
			fake_counts(&after);
			assert_memory_equal(&before, &after, sizeof(before));
		}
		setting_end(&s);
	}
}

/* Connections of its earlier lives keep their places, until they are closed. */
CASE(no_place_is_used_again_before_its_last_connection_is_closed)
{
	static const bool second[2] = { false, true }, both[2] = { true, true };
	struct tr_conn *kept[IB_RAILS_MAX][2];
	struct setting s;

	fake_begin(&two_devices);
	setting_connect(&s, NULL, SIZE, 0);
	for (int i = 0; i < IB_RAILS_MAX - 1; i++) {
		fake_device_fatal(0, 0);
		assert_non_null(rig_wait(&s.rig, 0, TR_PEER_LOST, BUDGET));
		for (int side = 0; side < 2; side++) {
			kept[i][side] = s.rig.side[side].conn;
			s.rig.side[side].conn = NULL;
		}
		reconnect(&s);
		expect_carriers(&s, second);
		give_back(&s, 0);
		expect_carriers(&s, i < IB_RAILS_MAX - 2 ? both : second);
	}
	assert_string_equal(setting_rails(&s.rig, 0),
			    "fake0 fake1 fake0 fake0 fake0 fake0 fake0 fake0");
	for (int i = 0; i < IB_RAILS_MAX - 1; i++) {
		for (int side = 0; side < 2; side++)
			tr_conn_close(kept[i][side]);
		if (!i)
			give_back(&s, 0);
		expect_carriers(&s, both);
	}
	take_away(&s, 0);
	give_back(&s, 0);
	expect_carriers(&s, both);
	assert_string_equal(setting_rails(&s.rig, 0), "fake0 fake1");
	setting_end(&s);
}

struct registrar {
	struct tr *tr;
	uint8_t bytes[4096];
	atomic_bool stop;
	pthread_t thread;
};

static void *register_on_and_on(void *arg)
{
	struct registrar *r = arg;

	while (!atomic_load(&r->stop)) {
		struct tr_mem *mem;

		if (!tr_mem_reg(r->tr, r->bytes, sizeof(r->bytes), TR_MEM_HOST, 0, &mem, NULL))
			tr_mem_dereg(mem, NULL);
	}
	return NULL;
}

/* They neither keep the device away nor see it closed under them. */
CASE(threads_register_while_a_device_goes_and_comes_back)
{
	struct fake_config config = { .devices = 2, .no_cm = true, .threads = true };
	static struct registrar registrar[2];
	struct ib_ctx *ctx;
	struct setting s;

	fake_begin(&config);
	setting_connect(&s, NULL, SIZE, 0);
	ctx = s.rig.side[0].tr->provider_ctx[0];
	for (int t = 0; t < 2; t++) {
		registrar[t].tr = s.rig.side[0].tr;
		atomic_store(&registrar[t].stop, false);
		assert_int_equal(pthread_create(&registrar[t].thread, NULL, register_on_and_on,
						&registrar[t]),
				 0);
	}
	for (int i = 0; i < TIMES; i++) {
		int64_t end = kv_deadline_ns(BACK_MS);
		uint64_t share[2] = { 0 };

		take_away(&s, 0);
		fake_device_back(0, 0);
		while (!share[0]) {
			assert_true(kv_now_ns() < end);
			pthread_mutex_lock(&ctx->lock);
			ctx->late_next_ns = 0;
			pthread_mutex_unlock(&ctx->lock);
			reconnect(&s);
			setting_carry(&s, 1, SIZE, share, 2);
		}
		assert_true(share[1]);
	}
	for (int t = 0; t < 2; t++) {
		atomic_store(&registrar[t].stop, true);
		pthread_join(registrar[t].thread, NULL);
	}
	setting_end(&s);
}

/* It was registered while one device failed: the others carry it, that one when it is back. */
CASE(a_region_goes_without_a_failing_device)
{
	static const bool second[2] = { false, true };
	struct fake_config config = { .devices = 2, .no_cm = true };
	int64_t end = kv_deadline_ns(BACK_MS);
	uint64_t share[2] = { 0 };
	struct kv_error err;
	struct setting s;

	fake_begin(&config);
	setting_connect(&s, NULL, SIZE, 0);
	fake_sicken(0, 0, FAKE_SICK);
	assert_int_equal(tr_mem_dereg(s.mem[0], NULL), 0);
	s.mem[0] = rig_reg(&s.rig, 0, setting_at(&s, 0, 0), SIZE, TR_REMOTE_WRITE);
	/* The connection that uses it ends, with the cause; the next does without it. */
	{
		struct tr_span span = { 0, 0, SIZE };
		struct tr_op *op;

		assert_int_equal(rig_try_op(&s.rig, 0, TR_WRITE, 1, s.mem[0], s.rmem[0], &span, 1,
					    0, 0, &op, &err),
				 KV_ERR_DEVICE);
		assert_non_null(strstr(err.message, "fake0:1 could not register"));
		assert_non_null(rig_wait(&s.rig, 0, TR_PEER_LOST, BUDGET));
	}
	reconnect(&s);
	expect_carriers(&s, second);
	fake_sicken(0, 0, FAKE_WELL);
	while (!share[0]) {
		assert_true(kv_now_ns() < end);
		poll(NULL, 0, 50);
		reconnect(&s);
		setting_carry(&s, 1, SIZE, share, 2);
	}
	assert_true(share[1]);
	fake_sicken(0, 0, FAKE_SICK);
	fake_sicken(0, 1, FAKE_SICK);
	{
		struct tr_mem *mem;

		assert_int_equal(tr_mem_reg(s.rig.side[0].tr, warnings, sizeof(warnings),
					    TR_MEM_HOST, 0, &mem, &err),
				 KV_ERR_DEVICE);
		assert_non_null(strstr(err.message, "fake"));
	}
	setting_end(&s);
}
