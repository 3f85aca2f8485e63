/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dcb_test.c -- answers of DCB netlink: the priorities, an error, and every cut of a good
 * answer
 */
#include <errno.h>
#include <linux/dcbnl.h>
#include <linux/rtnetlink.h>

#include "doctor.h"
#include "lib/test.h"

enum { CAP = 256 };

static size_t put(uint8_t *buf, size_t at, const void *what, size_t len)
{
	memcpy(buf + at, what, len);
	return (at + len + 3) & ~(size_t)3;
}

static size_t put_head(uint8_t *buf, size_t at, uint16_t type, size_t payload)
{
	struct nlattr attr = { .nla_len = (uint16_t)(sizeof(attr) + payload), .nla_type = type };

	return put(buf, at, &attr, sizeof(attr));
}

/* An answer for eth0 with ETS before PFC, as the kernel nests them. */
static size_t answer(uint8_t buf[CAP], uint8_t mask)
{
	struct nlmsghdr head = { .nlmsg_type = RTM_GETDCB };
	struct dcbmsg dcb = { .cmd = DCB_CMD_IEEE_GET };
	struct ieee_pfc pfc = { .pfc_cap = 8, .pfc_en = mask };
	uint8_t ets[10] = { 0xff };
	size_t at = sizeof(head);

	memset(buf, 0, CAP);
	at = put(buf, at, &dcb, sizeof(dcb));
	at = put_head(buf, at, DCB_ATTR_IFNAME, 5);
	at = put(buf, at, "eth0", 5);
	at = put_head(buf, at, DCB_ATTR_IEEE | NLA_F_NESTED, 4 + 12 + 4 + sizeof(pfc));
	at = put_head(buf, at, DCB_ATTR_IEEE_ETS, sizeof(ets));
	at = put(buf, at, ets, sizeof(ets));
	at = put_head(buf, at, DCB_ATTR_IEEE_PFC, sizeof(pfc));
	at = put(buf, at, &pfc, sizeof(pfc));
	head.nlmsg_len = (uint32_t)at;
	put(buf, 0, &head, sizeof(head));
	return at;
}

CASE(the_priorities_are_found_behind_other_attributes)
{
	uint8_t buf[CAP], mask = 0;
	size_t len = answer(buf, 0x28);

	assert_int_equal(doctor_dcb_parse(buf, len, &mask), 0);
	assert_int_equal(mask, 0x28);
}

CASE(an_error_is_the_kernels)
{
	struct nlmsghdr head = { .nlmsg_type = NLMSG_ERROR,
				 .nlmsg_len = sizeof(head) + sizeof(struct nlmsgerr) };
	struct nlmsgerr error = { .error = -EOPNOTSUPP };
	uint8_t buf[CAP] = { 0 }, mask;

	put(buf, put(buf, 0, &head, sizeof(head)), &error, sizeof(error));
	assert_int_equal(doctor_dcb_parse(buf, head.nlmsg_len, &mask), EOPNOTSUPP);
}

CASE(a_device_that_tells_nothing_is_no_device_without_flow_control)
{
	uint8_t buf[CAP], mask = 7;
	struct nlmsghdr head;
	size_t len = answer(buf, 0);

	memcpy(&head, buf, sizeof(head));
	head.nlmsg_len = NLMSG_LENGTH(sizeof(struct dcbmsg));
	memcpy(buf, &head, sizeof(head));
	assert_int_equal(doctor_dcb_parse(buf, len, &mask), ENODATA);
	assert_int_equal(mask, 7);
}

/*
 * From memory of exactly that size, so that a sanitizer sees a step too far; with and without the
 * length corrected.
 */
CASE(a_cut_answer_is_refused)
{
	uint8_t buf[CAP], mask = 7;
	size_t len = answer(buf, 0x08);

	for (size_t cut = 0; cut < len; cut++) {
		uint8_t *exact = malloc(cut ? cut : 1);
		uint32_t told = (uint32_t)cut;

		memcpy(exact, buf, cut);
		assert_int_equal(doctor_dcb_parse(exact, cut, &mask), EBADMSG);
		if (cut >= sizeof(told))
			memcpy(exact, &told, sizeof(told));
		assert_int_not_equal(doctor_dcb_parse(exact, cut, &mask), 0);
		free(exact);
	}
	assert_int_equal(mask, 7);
}

CASE(the_kernel_understands_the_question)
{
	uint8_t mask = 7;

	assert_int_equal(doctor_dcb_ask("lo", &mask), EOPNOTSUPP);
	if (doctor_dcb_ask("no-such-if", &mask) != EOPNOTSUPP) /* a kernel without DCB */
		assert_int_equal(doctor_dcb_ask("no-such-if", &mask), ENODEV);
	assert_int_equal(mask, 7);
}
