/* SPDX-License-Identifier: Apache-2.0 */
/* faults.c -- what goes wrong: each fault comes at some moment, and stays for a while */
#include "faults.h"

#include <errno.h>
#include <string.h>

#include "base/fault.h"
#include "fake_world.h"
#include "schedule.h"

static int hosts, devices;
static int64_t slow_until_ns[HOSTS_MAX];
static int slow_now[HOSTS_MAX]; /* actors that hold a device's teardowns up */
/* By a device that does not return from posts, and is slow to break a queue pair. */
static struct {
	int64_t ms, until_ns;
} held[HOSTS_MAX];
static bool storm;

void faults_begin(int n_hosts, int n_devices, bool in_storm)
{
	hosts = n_hosts;
	devices = n_devices;
	memset(slow_until_ns, 0, sizeof(slow_until_ns));
	memset(slow_now, 0, sizeof(slow_now));
	memset(held, 0, sizeof(held));
	storm = in_storm;
}

static uint32_t draw(struct sim_actor *actor, uint32_t n)
{
	return sim_below(&actor->random, n);
}

static int some_host(struct sim_actor *actor)
{
	return (int)draw(actor, (uint32_t)hosts);
}

static int some_device(struct sim_actor *actor)
{
	return (int)draw(actor, (uint32_t)devices);
}

static void await_moment(struct sim_actor *actor)
{
	static const uint32_t us[] = { 10, 100, 1000, 10000, 100000 };
	uint32_t most = us[draw(actor, 5)];

	sched_sleep(1 + (int64_t)draw(actor, 1000 * (storm ? most / 10 : most)));
}

static void last(struct sim_actor *actor)
{
	static const uint32_t us[] = {
		100, 100, 2000, 2000, 20000, 20000, 300000, 2500000, 7000000
	};
	uint32_t most = us[draw(actor, 9)];

	sched_sleep((int64_t)(1 + draw(actor, storm ? most / 20 : most)) * 1000);
}

static void count(bool is_one)
{
	sim_result->faults += is_one;
}

/* Of the data path, where one may fail at any time. */
static void fail_verb(struct sim_actor *actor)
{
	static const enum fake_verb verbs[] = { FAKE_poll_cq,	FAKE_req_notify_cq, FAKE_post_send,
						FAKE_post_recv, FAKE_modify_qp,	    FAKE_create_qp,
						FAKE_reg_mr,	FAKE_create_cq };
	static const int errors[] = { ENOMEM, EIO, EAGAIN };
	enum fake_verb verb = verbs[draw(actor, sizeof(verbs) / sizeof(verbs[0]))];

	await_moment(actor);
	fake_fail_verb(verb, 1 + (int)draw(actor, 12), errors[draw(actor, 3)]);
	await_moment(actor);
	count(fake_verb_fired(verb));
	fake_fail_verb(verb, 0, 0);
}

static void fail_wr(struct sim_actor *actor)
{
	await_moment(actor);
	fake_fail_wr(1 + (int)draw(actor, 40));
	await_moment(actor);
	count(!world.fail_wr);
	fake_fail_wr(0);
}

static void fail_completion(struct sim_actor *actor)
{
	static const enum ibv_wc_status statuses[] = {
		IBV_WC_RETRY_EXC_ERR, IBV_WC_RNR_RETRY_EXC_ERR, IBV_WC_REM_ACCESS_ERR,
		IBV_WC_REM_OP_ERR,    IBV_WC_LOC_PROT_ERR,	IBV_WC_GENERAL_ERR
	};

	await_moment(actor);
	fake_fail_completion(1 + (int)draw(actor, 40), statuses[draw(actor, 6)], 0x51);
	await_moment(actor);
	count(!world.fail_completion);
	fake_fail_completion(0, IBV_WC_SUCCESS, 0);
}

static void spurious(struct sim_actor *actor)
{
	struct ibv_wc wc = { .wr_id = sim_random(&actor->random), .status = IBV_WC_WR_FLUSH_ERR };

	await_moment(actor);
	count(fake_spurious(some_host(actor), draw(actor, 2), &wc));
}

static void note_held(int host)
{
	int ms = atomic_load(&world.slow_teardown_ms[host]);

	if (ms && atomic_load(&world.stuck[host])) {
		held[host].ms = ms > held[host].ms ? ms : held[host].ms;
		held[host].until_ns = SCHED_NEVER;
	} else if (held[host].until_ns == SCHED_NEVER) {
		held[host].until_ns = sched_now_ns();
	}
}

/* What begins at some moment, and is over after a while. */
#define FOR_A_WHILE(name, where, on, off)         \
	static void name(struct sim_actor *actor) \
	{                                         \
		where await_moment(actor);        \
		on;                               \
		count(true);                      \
		last(actor);                      \
		off;                              \
	}
#define HOST int host = some_host(actor);
#define DEVICE int host = some_host(actor), device = some_device(actor);
FOR_A_WHILE(mute, HOST, fake_mute(host, true), fake_mute(host, false))
FOR_A_WHILE(hold_answers, , fake_hold_answers(true), fake_hold_answers(false))
FOR_A_WHILE(stick, HOST, (fake_stick(host, true), note_held(host)),
	    (fake_stick(host, false), note_held(host)))
FOR_A_WHILE(link_down, DEVICE, fake_link(host, device, false), fake_link(host, device, true))
/* The device is taken out of its host, and comes back. */
FOR_A_WHILE(remove_device, DEVICE, fake_device_fatal(host, device), fake_device_back(host, device))
FOR_A_WHILE(sicken, DEVICE, fake_sicken(host, device, FAKE_MAKES_NOTHING),
	    fake_sicken(host, device, FAKE_WELL))

static void slow_teardown(struct sim_actor *actor)
{
	static const int some_ms[] = { 5, 300, 1500, 6000 };
	int host = some_host(actor), ms = some_ms[draw(actor, 4)];
	int64_t until_ns;

	await_moment(actor);
	slow_now[host]++;
	fake_slow_teardown(host, ms);
	note_held(host);
	count(true);
	last(actor);
	fake_slow_teardown(host, 0);
	note_held(host);
	/* The error state and the end of each queue pair, one after the other. */
	until_ns = sched_now_ns() + 20 * ms * INT64_C(1000000);
	slow_until_ns[host] = until_ns > slow_until_ns[host] ? until_ns : slow_until_ns[host];
	slow_now[host]--;
}

static void refuse_destroy(struct sim_actor *actor)
{
	await_moment(actor);
	fake_refuse_destroy(some_host(actor), 1 + (int)draw(actor, 20));
	count(true);
}

static void hold_reg(struct sim_actor *actor)
{
	await_moment(actor);
	fake_hold_reg(true);
	count(true);
	sched_sleep((int64_t)(1 + draw(actor, 300)) * 1000000);
	fake_hold_reg(false);
}

static void cut_tcp(struct sim_actor *actor)
{
	await_moment(actor);
	count(sim_cut_tcp(draw(actor, 4096)));
}

/* One call of the library that can fail does: no memory, no descriptor, no thread. */
static void fail_point(struct sim_actor *actor)
{
	enum kv_fault_point point = (enum kv_fault_point)draw(actor, KV_FAULT_POINTS);

	await_moment(actor);
	kv_fault_arm(point, 1 + draw(actor, 3));
	await_moment(actor);
	count(kv_fault_fired(point));
	kv_fault_arm(point, 0);
}

bool faults_device_is_slow(int host)
{
	return slow_now[host] || sched_now_ns() < slow_until_ns[host] ||
	       atomic_load(&world.refuse_destroy[host]) > 0;
}

bool faults_were_slow(void)
{
	for (int h = 0; h < hosts; h++)
		if (slow_until_ns[h])
			return true;
	return false;
}

int64_t faults_held_ms(int64_t since_ns)
{
	int64_t ms = 0;

	for (int h = 0; h < hosts; h++)
		if (held[h].until_ns >= since_ns && held[h].ms > ms)
			ms = held[h].ms;
	return ms;
}

void faults_heal(void)
{
	fake_hold_answers(false);
	fake_hold_reg(false);
	fake_fail_wr(0);
	fake_fail_completion(0, IBV_WC_SUCCESS, 0);
	for (int v = 0; v < FAKE_VERB_COUNT; v++)
		fake_fail_verb((enum fake_verb)v, 0, 0);
	for (int h = 0; h < hosts; h++) {
		fake_mute(h, false);
		fake_stick(h, false);
		fake_slow_teardown(h, 0);
		note_held(h);
		fake_refuse_destroy(h, 0);
	}
}

const struct sim_kind sim_faults[] = {
	{ "fail_verb", 6, fail_verb },
	{ "fail_wr", 4, fail_wr },
	{ "fail_completion", 6, fail_completion },
	{ "spurious", 2, spurious },
	{ "mute", 5, mute },
	{ "hold_answers", 5, hold_answers },
	{ "stick", 2, stick },
	{ "slow_teardown", 4, slow_teardown },
	{ "refuse_destroy", 2, refuse_destroy },
	{ "hold_reg", 1, hold_reg },
	{ "link_down", 3, link_down },
	{ "remove_device", 2, remove_device },
	{ "sicken", 2, sicken },
	{ "cut_tcp", 4, cut_tcp },
	{ "fail_point", 3, fail_point },
	{ 0 },
};

const struct sim_kind sim_host_faults[] = {
	{ "cut_tcp", 1, cut_tcp },
	{ "fail_point", 3, fail_point },
	{ 0 },
};
