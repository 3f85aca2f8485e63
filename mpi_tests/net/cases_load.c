/* SPDX-License-Identifier: Apache-2.0 */
/* cases_load.c -- cases 1 to 9: loading, life, devices */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "net_side.h"

static void foreign_name(void *arg, const char *name)
{
	struct side *s = arg;

	if (strncmp(name, "ncclNetPlugin_v", 15) && strncmp(name, "ncclCollNetPlugin_v", 19) &&
	    strncmp(name, "ncclGinPlugin_v", 15) && strncmp(name, "ncclRmaPlugin_v", 15))
		side_fail(s, "the library also exports %s", name);
}

static bool may_be_null(int version, size_t i)
{
	/* getDeviceMr, irecvConsumed, makeVDevice; v11 on: finalize may not, setNetAttr may */
	return i == 17 || i == 18 || i == 19 || (version >= 11 && i == 21);
}

static int exports_and_slots(struct side *s)
{
	const char *why;
	int found = 0;

	s->net = net_load(&s->source, &s->version, &why);
	REQUIRE(s, s->net, "%s", why);
	for (int version = 6; version <= 12; version++) {
		size_t pointers;
		void *const *table = net_raw_table(version, &pointers);

		for (size_t i = 0; table && i < pointers; i++)
			REQUIRE(s, table[i] || may_be_null(version, i), "v%d: slot %zu is NULL",
				version, i);
		found += table != NULL;
	}
	net_exports(s->source.path, foreign_name, s);
	snprintf(s->reason + strlen(s->reason), sizeof(s->reason) - strlen(s->reason),
		 "%s%d versions", s->reason[0] ? "; " : "", found);
	return strstr(s->reason, "also exports") ? FAIL : PASS;
}

static int init_and_finalize(struct side *s)
{
	ncclNetCommConfig_v10_t config = { -1 };
	void *a, *b;
	int threads = side_count_threads(), ndev;

	TRY(side_start(s));
	TRY(side_stop(s));
	for (uint64_t i = 0; i < 10; i++) {
		OK(s, s->net->init(&a, i, &config, side_logger, NULL));
		OK(s, s->net->init(&b, i + 100, &config, side_logger, NULL));
		OK(s, s->net->devices(&ndev));
		REQUIRE(s, ndev > 0, "no device at init %d", (int)i);
		OK(s, s->net->finalize(i & 1 ? a : b));
		OK(s, s->net->finalize(i & 1 ? b : a));
	}
	net_unload();
	for (int i = 0; i < 3; i++) {
		struct loop loop;

		TRY(side_start(s));
		TRY(side_loop(s, &loop));
		TRY(side_loop_close(s, &loop));
		TRY(side_stop(s));
		REQUIRE(s, side_count_threads() == threads, "%d threads after finalize",
			side_count_threads());
		net_unload();
		if (!s->source.symbol)
			REQUIRE(s, !dlopen(s->source.path, RTLD_NOW | RTLD_NOLOAD),
				"the library stays loaded after dlclose");
	}
	return PASS;
}

static int count_lines(const char *path)
{
	FILE *f = fopen(path, "re");
	int n = 0, c;

	while (f && (c = getc(f)) != EOF)
		n += c == '\n';
	if (f)
		fclose(f);
	return n;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { COUNT_MAPS = false }; /* the sanitizer maps memory of its own for each library */
#else
enum { COUNT_MAPS = true };
#endif

/* Used, unloaded and loaded again: afterwards the process has what it had after a few rounds. */
static int unload_often(struct side *s)
{
	enum { WARM = 5, ROUNDS = 50 };
	int threads = 0, fds = 0, maps = 0;

	for (int i = 0; i < ROUNDS; i++) {
		struct loop loop;

		TRY(side_start(s));
		TRY(side_loop(s, &loop));
		TRY(side_try(s, &loop, (uint64_t)i));
		TRY(side_loop_close(s, &loop));
		TRY(side_stop(s));
		net_unload();
		REQUIRE(s, !dlopen(s->source.path, RTLD_NOW | RTLD_NOLOAD),
			"the library stays loaded after dlclose");
		if (i > WARM)
			continue;
		threads = side_count_threads();
		fds = side_count_fds();
		maps = count_lines("/proc/self/maps");
	}
	REQUIRE(s, side_count_threads() == threads, "%d threads, %d before", side_count_threads(),
		threads);
	REQUIRE(s, side_count_fds() == fds, "%d descriptors, %d before", side_count_fds(), fds);
	REQUIRE(s, !COUNT_MAPS || count_lines("/proc/self/maps") <= maps, "%d mappings, %d before",
		count_lines("/proc/self/maps"), maps);
	return PASS;
}

static int no_device(struct side *s)
{
	const char *why;
	int ndev = 0;
	ncclResult_t ret;

	if (!s->without)
		return side_skip(s, "--without NAME=value was not given");
	putenv((char *)s->without);
	s->net = net_load(&s->source, &s->version, &why);
	REQUIRE(s, s->net, "%s", why);
	ret = s->net->init(&s->ctx, 1, &(ncclNetCommConfig_v10_t){ -1 }, side_logger, NULL);
	if (!ret)
		ret = s->net->devices(&ndev);
	REQUIRE(s, ret || !ndev, "there are %d devices although %s", ndev, s->without);
	return PASS;
}

/* What a process says on its own while a little traffic runs. */
static int noise(struct side *s, int *bytes)
{
	int file = memfd_create("noise", MFD_CLOEXEC), out = dup(1), err = dup(2), ret;
	struct loop loop;

	dup2(file, 1);
	dup2(file, 2);
	ret = side_loop(s, &loop);
	if (!ret)
		ret = side_loop_close(s, &loop);
	dup2(out, 1);
	dup2(err, 2);
	*bytes = (int)lseek(file, 0, SEEK_END);
	close(file);
	return ret;
}

static int logging(struct side *s)
{
	int bytes = 0;

	if (getenv("NET_LOG"))
		return side_skip(s, "NET_LOG is set");
	TRY(side_start(s));
	TRY(noise(s, &bytes));
	REQUIRE(s, !bytes, "%d bytes on stdout and stderr", bytes);
	snprintf(s->reason, sizeof(s->reason), "%u lines through the logger", side_log_lines());
	TRY(side_stop(s));
	OK(s, s->net->init(&s->ctx, 1, &(ncclNetCommConfig_v10_t){ -1 }, NULL, NULL));
	TRY(noise(s, &bytes));
	REQUIRE(s, !bytes, "%d bytes on stdout and stderr without a logger", bytes);
	return side_stop(s);
}

static int properties(struct side *s)
{
	ncclNetProperties_v12_t p, again;
	int ndev;

	OK(s, s->net->devices(&ndev));
	for (int i = 0; i < ndev; i++) {
		OK(s, s->net->getProperties(i, &p));
		REQUIRE(s, p.name && p.name[0], "device %d has no name", i);
		REQUIRE(s, p.speed > 0, "%s: speed %d", p.name, p.speed);
		REQUIRE(s, p.ptrSupport & NCCL_PTR_HOST, "%s: ptrSupport %d", p.name, p.ptrSupport);
		REQUIRE(s, p.maxComms > 0 && p.maxRecvs >= 1, "%s: maxComms %d, maxRecvs %d",
			p.name, p.maxComms, p.maxRecvs);
		REQUIRE(s, p.maxP2pBytes > 0 && p.maxP2pBytes <= (size_t)1 << 40,
			"%s: maxP2pBytes %zu", p.name, p.maxP2pBytes);
		REQUIRE(s, p.netDeviceType == NCCL_NET_DEVICE_HOST, "%s: netDeviceType %d", p.name,
			(int)p.netDeviceType);
		REQUIRE(s, p.vProps.ndevs >= 1 && p.vProps.ndevs <= NCCL_DEVS_V12, "%s: ndevs %d",
			p.name, p.vProps.ndevs);
		REQUIRE(s, !p.pciPath || !access(p.pciPath, F_OK), "%s: pciPath %s is not there",
			p.name, p.pciPath);
		OK(s, s->net->getProperties(i, &again));
		REQUIRE(s, !strcmp(p.name, again.name), "%s changed its name", p.name);
		snprintf(s->reason, sizeof(s->reason), "%s: %d Mbit/s, maxRecvs %d", p.name,
			 p.speed, p.maxRecvs);
	}
	return PASS;
}

static int properties_out_of_range(struct side *s)
{
	ncclNetProperties_v12_t p;
	int ndev;

	OK(s, s->net->devices(&ndev));
	REQUIRE(s, s->net->getProperties(ndev, &p), "getProperties(%d) of %d succeeds", ndev, ndev);
	REQUIRE(s, s->net->getProperties(-1, &p), "getProperties(-1) succeeds");
	return PASS;
}

static int stable_order(struct side *s)
{
	char mine[1024] = "", theirs[1024];
	ncclNetProperties_v12_t p;
	int ndev;

	OK(s, s->net->devices(&ndev));
	for (int i = 0; i < ndev; i++) {
		OK(s, s->net->getProperties(i, &p));
		snprintf(mine + strlen(mine), sizeof(mine) - strlen(mine), "%s,", p.name);
	}
	TRY(side_put(s, mine, sizeof(mine)));
	TRY(side_get(s, theirs, sizeof(theirs)));
	REQUIRE(s, !strcmp(mine, theirs), "%s here, %s there", mine, theirs);
	return PASS;
}

static int virtual_devices(struct side *s)
{
	ncclNetVDeviceProps_v12_t one = { .ndevs = 1, .devs = { 0 } }, many = { .ndevs = 9 };
	ncclNetProperties_v12_t p;
	struct loop loop;
	int dev = -1;

	if (!s->net->makeVDevice)
		return side_skip(s, "no makeVDevice");
	OK(s, s->net->makeVDevice(&dev, &one));
	REQUIRE(s, dev > 0, "a virtual device got index %d", dev);
	OK(s, s->net->getProperties(dev, &p));
	REQUIRE(s, p.vProps.ndevs == 1, "it has %d devices", p.vProps.ndevs);
	s->dev = dev;
	TRY(side_loop(s, &loop));
	TRY(side_loop_close(s, &loop));
	if (!s->source.symbol)
		REQUIRE(s, s->net->makeVDevice(&dev, &many), "9 devices make a virtual device");
	return PASS;
}

const struct net_case load_cases[] = {
	{ "1", "exports only its tables, every slot filled", 1, 0, exports_and_slots, ALONE,
	  .not_hidden = "is not exported" },
	{ "3", "init and finalize, two contexts, dlclose, no thread left", 1, 0, init_and_finalize,
	  ALONE },
	{ "3b", "used and unloaded 50 times: no thread, descriptor or mapping more", 1, 0,
	  unload_often, ALONE, .not_hidden = "library is not unloaded" },
	{ "3c", "v8: the same, without a finalize", 1, 8, unload_often, ALONE,
	  .not_hidden = "library is not unloaded" },
	{ "4", "no device: init fails or there are none", 1, 0, no_device, ALONE },
	{ "6", "says everything through the logger, or nothing", 1, 0, logging, ALONE },
	{ "7", "properties are in range", 1, 0, properties, WITH_INIT },
	{ "7b", "properties of a device that is not there", 1, 0, properties_out_of_range,
	  WITH_INIT, .not_hidden = "does not check its argument" },
	{ "8", "the order of devices is the same in every process", 2, 0, stable_order, WITH_INIT },
	{ "9", "virtual devices", 1, 0, virtual_devices, WITH_INIT },
	{ 0 },
};
