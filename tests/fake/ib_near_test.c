/* SPDX-License-Identifier: Apache-2.0 */
/* ib_near_test.c -- the devices near the GPU of KVCACHE_GPU are used, in a made-up /sys */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kvrail/kv.h>

#include "base/log.h"
#include "base/option.h"
#include "ib/ib.h"
#include "lib/test.h"
#include "setting.h"

static char root[] = "/tmp/kvrail-near-XXXXXX";

/*
 * Two GPUs; fake0 is below another NUMA node, fake1 and fake2 beside GPU 0, fake3 at GPU 1's host
 * bridge.
 */
static const char tree[] =
	"set -e; cd %s; mkdir -p sys/bus/pci/devices sys/class/infiniband proc/driver/nvidia/gpus\n"
	"place() { mkdir -p sys/devices/$1; echo $2 >sys/devices/$1/numa_node;\n"
	"  ln -s ../../../devices/$1 sys/bus/pci/devices/${1##*/}; }\n"
	"nic() { place $2 $3; mkdir sys/class/infiniband/$1;\n"
	"  ln -s ../../../devices/$2 sys/class/infiniband/$1/device; }\n"
	"gpu() { place $1 $2; mkdir proc/driver/nvidia/gpus/${1##*/}; }\n"
	"a=pci0000:15/0000:15:01.0/0000:16:00.0 b=pci0000:2a c=pci0000:9a\n"
	"gpu $a/0000:17:00.0/0000:18:00.0 0; gpu $b/0000:2a:01.0/0000:2b:00.0 0\n"
	"nic fake0 $c/0000:9a:01.0/0000:9b:00.0 1\n"
	"nic fake1 $a/0000:17:01.0/0000:19:00.0 0; nic fake2 $a/0000:17:02.0/0000:1a:00.0 0\n"
	"nic fake3 $b/0000:2a:02.0/0000:2c:00.0 0\n";

static int setup(void **state)
{
	char command[2048];

	if (!mkdtemp(root))
		return -1;
	snprintf(command, sizeof(command), tree, root);
	return system(command);
}

static int teardown(void **state)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -r %s", root);
	return system(command);
}

struct host {
	struct kv_option_set *options;
	struct tr *tr;
	struct kv_log *logger;
	char rails[160]; /* "fake1:1 PIX, fake2:1 PIX" */
	char log[4096];
};

static void keep_log(void *arg, int level, const char *line)
{
	struct host *host = arg;
	size_t used = strlen(host->log);

	snprintf(host->log + used, sizeof(host->log) - used, "%s\n", line);
}

static int open_host(struct host *host, const char *gpu, const char *nics, struct kv_error *err)
{
	char gpu_option[64], nics_option[64];
	const char *const list[] = { "KVCACHE_TRANSPORT=ib", gpu_option, nics_option, NULL };
	struct tr_config config = { 0 };
	struct kv_device_info info;
	size_t used = 0;
	int ret;

	memset(host, 0, sizeof(*host));
	ib_test_hook.sysroot = root;
	snprintf(gpu_option, sizeof(gpu_option), "KVCACHE_GPU=%s", gpu);
	snprintf(nics_option, sizeof(nics_option), "KVCACHE_RDMA_NICS=%s", nics);
	assert_int_equal(kv_option_read(list, &host->options, err), 0);
	config.options = host->options;
	config.log = host->logger = kv_log_open(host->options, keep_log, host);
	ret = tr_open(&config, &host->tr, err);
	for (size_t i = 0; !ret && !tr_device_get(host->tr, i, &info); i++)
		if (!strcmp(info.transport, "ib"))
			used += (size_t)snprintf(host->rails + used, sizeof(host->rails) - used,
						 "%s%s %s", used ? ", " : "", info.name,
						 *info.distance ? info.distance : "-");
	return ret;
}

static void close_host(struct host *host)
{
	tr_close(host->tr);
	kv_log_close(host->logger);
	kv_option_free(host->options);
}

static void expect(const char *gpu, const char *nics, const char *rails)
{
	struct kv_error err;
	struct host host;

	if (open_host(&host, gpu, nics, &err))
		fail_msg("KVCACHE_GPU=%s: %s", gpu, err.message);
	assert_string_equal(host.rails, rails);
	close_host(&host);
}

static void begin(void)
{
	static const struct fake_config config = { .hosts = 1, .devices = 4 };

	fake_begin(&config);
}

CASE(all_of_the_nearest_class_are_used_and_no_others)
{
	begin();
	expect("0", "", "fake1:1 PIX, fake2:1 PIX");
	expect("0000:18:00.0", "", "fake1:1 PIX, fake2:1 PIX");
	expect("1", "", "fake3:1 PHB");
	assert_true(fake_end());
}

CASE(of_equally_near_ones_the_fastest_is_the_first)
{
	begin();
	fake_port(0, 2)->speed = 128;
	expect("0", "", "fake2:1 PIX, fake1:1 PIX");
	assert_true(fake_end());
}

CASE(where_the_nearest_have_no_link_the_next_class_is_used)
{
	begin();
	fake_link(0, 1, false);
	expect("0", "", "fake2:1 PIX");
	fake_link(0, 2, false);
	expect("0", "", "fake3:1 NODE");
	fake_link(0, 3, false);
	expect("0", "", "fake0:1 SYS");
	assert_true(fake_end());
}

CASE(named_devices_are_used_wherever_they_are)
{
	begin();
	expect("0", "fake0,fake2", "fake0:1 SYS, fake2:1 PIX");
	assert_true(fake_end());
}

CASE(without_a_gpu_every_active_device_is_used)
{
	static const char all[] = "fake0:1 -, fake1:1 -, fake2:1 -, fake3:1 -";

	begin();
	expect("", "", all);
	expect("7", "", all);
	expect("GPU-unknown", "", all);
	assert_true(fake_end());
}

CASE(the_choice_and_its_reason_are_logged)
{
	struct kv_error err;
	struct host host;

	begin();
	assert_int_equal(open_host(&host, "0", "", &err), 0);
	assert_non_null(
		strstr(host.log, "rail 0 is fake1:1, PIX from GPU 0000:18:00.0: gid index 3"));
	close_host(&host);
	assert_int_equal(open_host(&host, "7", "", &err), 0);
	assert_non_null(strstr(host.log, "KVCACHE_GPU is 7, which no driver here knows"));
	close_host(&host);
	assert_true(fake_end());
}

CASE(an_address_where_nothing_is_fails)
{
	struct kv_error err;
	struct host host;

	begin();
	assert_int_equal(open_host(&host, "00000000:77:00.0", "", &err), KV_ERR_DEVICE);
	assert_non_null(strstr(err.message, "0000:77:00.0, which is not a PCI device"));
	close_host(&host);
	assert_true(fake_end());
}

CASE(a_device_row_tells_all_of_a_port)
{
	struct kv_device_info info;
	struct kv_error err;
	struct host host;

	begin();
	assert_int_equal(open_host(&host, "0", "fake2", &err), 0);
	assert_int_equal(tr_ib_provider.device_get(host.tr->provider_ctx[0], 0, &info), 0);
	assert_string_equal(info.link, "RoCE");
	assert_string_equal(info.gid, "::ffff:10.0.1.3");
	assert_int_equal(info.gid_index, 3);
	assert_int_equal(info.speed_mbps, 200000);
	assert_int_equal(info.mtu_bytes, 4096);
	assert_string_equal(info.pci, "0000:1a:00.0");
	assert_int_equal(info.numa_node, 0);
	assert_non_null(strstr(info.reason, "the first of the best kind"));
	fake_address_moves(0, 2);
	assert_int_equal(tr_device_get(host.tr, 1, &info), 0);
	assert_int_equal(info.gid_index, 2); /* as a connection made now would use it */
	close_host(&host);
	assert_true(fake_end());
}

int main(void)
{
	return run_cases(setup, teardown);
}
