/* SPDX-License-Identifier: Apache-2.0 */
/* np_stripe_test.c -- how the NCCL plugin deals a message over the devices of a virtual NIC */
#include <stdio.h>
#include <string.h>

#include "lib/test.h"
#include "np_rig.h"

static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

enum {
	DEVICES = NP_RIG_DEVICES,
	LARGE = 8 << 20,
	MAX = LARGE + 300,
	LINE = 128,
	WRITES = 4096,
	ENOUGH = 64 << 10,
	STEP = 512 << 10 /* of NCCL */
};

/*
 * The message's bytes, and nothing else of the buffer, once each; in whole lines, over all devices
 * if there is enough.
 */
static void check_writes(const uint8_t *to, size_t size, int ndevs)
{
	static struct fake_write write[WRITES];
	static uint8_t seen[MAX / LINE + 1];
	size_t n = fake_writes(write, WRITES), bytes = 0;
	unsigned int devices = 0, all = (1u << ndevs) - 1;

	memset(seen, 0, sizeof(seen));
	for (size_t i = 0; i < n; i++) {
		uint64_t at = write[i].addr - (uintptr_t)to;

		if (write[i].addr < (uintptr_t)to || at >= MAX)
			continue; /* a notify's record */
		CHECK(at % LINE == 0);
		CHECK(write[i].len % LINE == 0 || at + write[i].len == size);
		for (uint64_t line = at / LINE; line * LINE < at + write[i].len; line++)
			CHECK(!seen[line]++);
		bytes += write[i].len;
		devices |= 1u << write[i].device;
	}
	if (!bytes && size <= NP_AHEAD_BYTES)
		return; /* it went ahead, in a message */
	CHECK(bytes == size);
	CHECK(!(devices & ~all));
	if (size >= ENOUGH * (size_t)ndevs)
		CHECK(devices == all);
}

static void deal(void)
{
	static const size_t sizes[] = { 0,     1,      127,  128,     129,   1000,	4096,
					70001, 300000, STEP, 1 << 20, LARGE, LARGE + 77 };
	int ndev, dev;
	void *ctx;

	CHECK(!net->init(&ctx, 1, NULL, side_logger, NULL));
	CHECK(!net->devices(&ndev) && ndev == DEVICES);
	for (int ndevs = 1; ndevs <= DEVICES; ndevs++) {
		ncclNetVDeviceProps_v12_t parts = { .ndevs = ndevs };
		ncclNetProperties_v12_t p;
		struct side s;

		for (int i = 0; i < ndevs; i++)
			parts.devs[i] = i;
		CHECK(!net->makeVDevice(&dev, &parts) && dev == DEVICES - 1 + ndevs);
		CHECK(!net->getProperties(dev, &p) && p.vProps.ndevs == ndevs);
		CHECK(!memcmp(p.vProps.devs, parts.devs, sizeof(int) * (size_t)ndevs));
		s = np_rig_join(-1, dev, MAX);
		for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
			fake_writes(NULL, 0);
			PASSES(&s, side_exchange(&s, &s.loop, &s.from, &s.to, sizes[i], i));
			check_writes(s.to.bytes, sizes[i], ndevs);
		}
		np_rig_part(&s);
	}
	CHECK(!net->finalize(ctx));
}

CASE(a_message_is_dealt_over_up_to_eight_devices_in_whole_lines)
{
	np_rig_process(NULL, deal);
}

static void refuse(void)
{
	ncclNetVDeviceProps_v12_t nine = { .ndevs = 9 }, none = { .ndevs = 0 };
	ncclNetVDeviceProps_v12_t twice = { 2, { 3, 3 } }, unknown = { 2, { 0, DEVICES } };
	ncclNetVDeviceProps_v12_t negative = { 1, { -1 } }, mixed = { 2, { 0, 1 } };
	ncclNetVDeviceProps_v9_t five = { .ndevs = 5 };
	int ndev, dev = -7;
	void *ctx;

	CHECK(!net->init(&ctx, 1, NULL, side_logger, NULL));
	CHECK(net->makeVDevice(&dev, &nine) && net->makeVDevice(&dev, &none));
	CHECK(net->makeVDevice(&dev, &twice) && net->makeVDevice(&dev, &unknown));
	CHECK(net->makeVDevice(&dev, &negative) && net->makeVDevice(&dev, NULL));
	CHECK(ncclNetPlugin_v11.makeVDevice(&dev, &five));
	snprintf(((struct np_device *)np_device_get(1))->link, 16, "InfiniBand");
	CHECK(net->makeVDevice(&dev, &mixed));
	CHECK(dev == -7);
	CHECK(!net->devices(&ndev) && ndev == DEVICES);
	CHECK(!net->finalize(ctx));
}

CASE(a_virtual_device_of_none_nine_equal_or_mixed_ones_is_refused)
{
	np_rig_process(NULL, refuse);
}
