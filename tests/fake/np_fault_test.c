/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_fault_test.c -- cases 33 and 34 of the plugin's conformance list, which need a device that
 * fails on request: one communicator ends with a typed error and a cause, the others go on, and
 * what is connected afterwards works
 */

#include "lib/test.h"
#include "np_rig.h"

enum { LEN = 70000 };

static struct side join(int dev)
{
	return np_rig_join(-1, dev, LEN);
}

/* One message; the first error of either end. */
static ncclResult_t move(struct side *s, uint64_t seed)
{
	int ret = side_exchange(s, &s->loop, &s->from, &s->to, LEN, seed);

	if (!s->error)
		PASSES(s, ret); /* wrong bytes, or no end */
	return s->error;
}

static unsigned int warnings(void)
{
	return side_log_has("send: ") + side_log_has("receive: ");
}

/*
 * Fails again and again, without further words; another communicator and a new one are not
 * concerned.
 */
static void aftermath(struct side *broken, struct side *other, int dev)
{
	unsigned int words = warnings();
	struct side fresh;

	CHECK(words >= 1 && words <= 2);
	for (int i = 0; i < 3; i++)
		CHECK(move(broken, 1) == ncclRemoteError || i == 0);
	CHECK(warnings() <= 2);
	CHECK(!move(other, 2));
	fresh = join(dev);
	CHECK(!move(&fresh, 3));
	np_rig_part(&fresh);
	np_rig_part(broken);
}

static void failing(enum ibv_wc_status status, const char *name)
{
	struct side other = join(0), s = join(0);
	ncclResult_t ret;

	CHECK(!move(&s, 0) && !move(&other, 0));
	fake_settle(); /* or the request that fails may be the other's */
	fake_fail_completion(2, status, 0x81);
	ret = move(&s, 1);
	if (!ret) /* it was a credit of the receiver's, behind all that this transfer needs */
		ret = move(&s, 1);
	CHECK(ret == ncclRemoteError);
	CHECK(side_log_has(name) && side_log_has("0x81"));
	aftermath(&s, &other, 0);
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

CASE(a_failed_work_request_ends_its_communicator_only)
{
	np_rig_process(NULL, access_error);
	np_rig_process(NULL, retries_exceeded);
}

static void device_dies(void)
{
	struct side other = join(1), s = join(0);
	ncclResult_t ret;

	CHECK(!move(&s, 0) && !move(&other, 0));
	fake_device_fatal(0, 0);
	ret = move(&s, 1);
	CHECK(ret == ncclSystemError || ret == ncclRemoteError);
	CHECK(side_log_has("fake0"));
	CHECK(!move(&other, 2)); /* on another device */
	np_rig_part(&s);
	np_rig_part(&other);
}

CASE(a_dead_device_ends_its_communicators_only)
{
	np_rig_process(NULL, device_dies);
}

static void link_goes_and_comes(void)
{
	struct side other = join(1), s = join(0);

	CHECK(!move(&s, 0));
	fake_link(0, 0, false);
	CHECK(move(&s, 1) == ncclRemoteError);
	CHECK(!move(&other, 2));
	fake_link(0, 0, true);
	aftermath(&s, &other, 0);
	np_rig_part(&other);
}

static void address_moves(void)
{
	struct side s = join(0), fresh;

	CHECK(!move(&s, 0));
	fake_address_moves(0, 0);
	fresh = join(0);
	CHECK(!move(&fresh, 1));
	np_rig_part(&fresh);
	np_rig_part(&s);
}

CASE(after_a_link_or_an_address_has_come_back_new_connections_work)
{
	np_rig_process(NULL, link_goes_and_comes);
	np_rig_process(NULL, address_moves);
}
