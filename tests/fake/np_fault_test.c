/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_fault_test.c -- cases 33 and 34 of the plugin's conformance list, which need a device that can
 * be told to fail: one communicator ends with a typed error and a cause, the others go on, and what
 * is connected afterwards works
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "np_rig.h"

static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

enum { LEN = 70000 };

/* A broken communicator may still write to its own until it is closed. */
static uint8_t sources[2][LEN], targets[2][LEN + 64];

/* One message; the first error of either end. */
static ncclResult_t move_at(int place, const struct np_loop *l, uint8_t seed)
{
	uint8_t *from = sources[place], *to = targets[place];
	void *in = NULL, *out = NULL, *from_mh, *to_mh, *data = to;
	int done[2] = { 0 }, tag = 0;
	int64_t end = kv_deadline_ns(20000);
	ncclResult_t ret = ncclSuccess;
	size_t room = LEN;

	for (size_t i = 0; i < LEN; i++)
		from[i] = (uint8_t)(i * 13 + seed);
	memset(to, 0xa5, LEN + 64);
	CHECK(!net->regMr(l->send, from, LEN, NCCL_PTR_HOST, &from_mh));
	CHECK(!net->regMr(l->recv, to, LEN, NCCL_PTR_HOST, &to_mh));
	while (!ret && (!done[0] || !done[1])) {
		if (!in)
			ret = net->irecv(l->recv, 1, &data, &room, &tag, &to_mh, NULL, &in);
		else if (!done[0])
			ret = net->test(in, &done[0], NULL);
		if (!ret && !out)
			ret = net->isend(l->send, from, LEN, tag, from_mh, NULL, &out);
		else if (!ret && !done[1])
			ret = net->test(out, &done[1], NULL);
		CHECK(kv_now_ns() < end);
	}
	CHECK(!net->deregMr(l->send, from_mh));
	CHECK(!net->deregMr(l->recv, to_mh));
	if (ret)
		return ret;
	CHECK(!memcmp(from, to, LEN));
	for (size_t i = LEN; i < LEN + 64; i++)
		CHECK(to[i] == 0xa5);
	return ncclSuccess;
}

static ncclResult_t move(const struct np_loop *l, uint8_t seed)
{
	return move_at(0, l, seed);
}

static unsigned int warnings(const char *text)
{
	unsigned int n = 0;

	for (const char *at = np_rig_log; (at = strstr(at, text)); at++)
		n++;
	return n;
}

/*
 * Fails again and again, without further words; another communicator and a new one are not
 * concerned.
 */
static void aftermath(struct np_loop *broken, const struct np_loop *other, int dev)
{
	unsigned int words = warnings("send: ") + warnings("receive: ");
	struct np_loop fresh;

	CHECK(words >= 1 && words <= 2);
	for (int i = 0; i < 3; i++)
		CHECK(move(broken, 1) == ncclRemoteError || i == 0);
	CHECK(warnings("send: ") + warnings("receive: ") <= 2);
	CHECK(!move_at(1, other, 2));
	fresh = np_rig_join(-1, dev);
	CHECK(!move_at(1, &fresh, 3));
	np_rig_part(&fresh);
	np_rig_part(broken);
}

static void failing(enum ibv_wc_status status, const char *name)
{
	struct np_loop other = np_rig_join(-1, 0), l = np_rig_join(-1, 0);
	ncclResult_t ret;

	CHECK(!move(&l, 0) && !move(&other, 0));
	fake_settle(); /* or the request that fails may be the other's */
	fake_fail_completion(2, status, 0x81);
	ret = move(&l, 1);
	if (!ret) /* it was a credit of the receiver's, behind all that this transfer needs */
		ret = move(&l, 1);
	CHECK(ret == ncclRemoteError);
	CHECK(strstr(np_rig_log, name) && strstr(np_rig_log, "0x81"));
	aftermath(&l, &other, 0);
	np_rig_part(&other);
}

static void access_error(void)
{
	failing(IBV_WC_REM_ACCESS_ERR, "remote access error");
}

static void retries_exceeded(void)
{
	failing(IBV_WC_RETRY_EXC_ERR, "retry counter exceeded");
}

static void a_failed_work_request_ends_its_communicator_only(void **state)
{
	(void)state;
	np_rig_process(NULL, access_error);
	np_rig_process(NULL, retries_exceeded);
}

static void device_dies(void)
{
	struct np_loop other = np_rig_join(-1, 1), l = np_rig_join(-1, 0);
	ncclResult_t ret;

	CHECK(!move(&l, 0) && !move(&other, 0));
	fake_device_fatal(0, 0);
	ret = move(&l, 1);
	CHECK(ret == ncclSystemError || ret == ncclRemoteError);
	CHECK(strstr(np_rig_log, "fake0"));
	CHECK(!move_at(1, &other, 2)); /* on another device */
	np_rig_part(&l);
	np_rig_part(&other);
}

static void a_dead_device_ends_its_communicators_only(void **state)
{
	(void)state;
	np_rig_process(NULL, device_dies);
}

static void link_goes_and_comes(void)
{
	struct np_loop other = np_rig_join(-1, 1), l = np_rig_join(-1, 0);

	CHECK(!move(&l, 0));
	fake_link(0, 0, false);
	CHECK(move(&l, 1) == ncclRemoteError);
	CHECK(!move_at(1, &other, 2));
	fake_link(0, 0, true);
	aftermath(&l, &other, 0);
	np_rig_part(&other);
}

static void address_moves(void)
{
	struct np_loop l = np_rig_join(-1, 0), fresh;

	CHECK(!move(&l, 0));
	fake_address_moves(0, 0);
	fresh = np_rig_join(-1, 0);
	CHECK(!move(&fresh, 1));
	np_rig_part(&fresh);
	np_rig_part(&l);
}

static void after_a_link_or_an_address_has_come_back_new_connections_work(void **state)
{
	(void)state;
	np_rig_process(NULL, link_goes_and_comes);
	np_rig_process(NULL, address_moves);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_failed_work_request_ends_its_communicator_only),
		cmocka_unit_test(a_dead_device_ends_its_communicators_only),
		cmocka_unit_test(after_a_link_or_an_address_has_come_back_new_connections_work),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
