/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_world.c -- the world's beginning and end, its chance, its clock, and the faults that are
 * asked for
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_world.h"

struct fake_world world = { .lock = PTHREAD_MUTEX_INITIALIZER };
static struct fake_ahead ahead;
static _Thread_local int current_host;

static int fake_fork_init(void)
{
	int ret;

	pthread_mutex_lock(&world.lock);
	ret = world.counts.mrs ? EINVAL : 0;
	world.fork_inits += !ret;
	pthread_mutex_unlock(&world.lock);
	return ret;
}

int fake_fork_inits(void)
{
	return world.fork_inits;
}

const struct ib_verbs fake_table = {
	.fork_init = fake_fork_init,
	.get_device_list = fake_get_device_list,
	.free_device_list = fake_free_device_list,
	.get_device_name = fake_get_device_name,
	.open_device = fake_open_device,
	.close_device = fake_close_device,
	.query_device = fake_query_device,
	.query_port = fake_query_port,
	.query_gid_table = fake_query_gid_table,
	.query_pkey = fake_query_pkey,
	.alloc_pd = fake_alloc_pd,
	.dealloc_pd = fake_dealloc_pd,
	.reg_mr = fake_reg_mr,
	.reg_dmabuf_mr = fake_reg_dmabuf_mr,
	.dereg_mr = fake_dereg_mr,
	.create_comp_channel = fake_create_comp_channel,
	.destroy_comp_channel = fake_destroy_comp_channel,
	.create_cq = fake_create_cq,
	.destroy_cq = fake_destroy_cq,
	.poll_cq = fake_poll_cq,
	.req_notify_cq = fake_req_notify_cq,
	.get_cq_event = fake_get_cq_event,
	.ack_cq_events = fake_ack_cq_events,
	.create_qp = fake_create_qp,
	.modify_qp = fake_modify_qp,
	.destroy_qp = fake_destroy_qp,
	.post_send = fake_post_send,
	.post_recv = fake_post_recv,
	.get_async_event = fake_get_async_event,
	.ack_async_event = fake_ack_async_event,
	.wc_status_str = model_wc_status_str,
	.event_type_str = model_event_type_str,
};

uint32_t fake_random(uint32_t below)
{
	world.rng ^= world.rng << 13;
	world.rng ^= world.rng >> 7;
	world.rng ^= world.rng << 17;
	return below ? (uint32_t)((world.rng >> 16) % below) : 0;
}

void fake_begin(const struct fake_config *config)
{
	memset(&world, 0, sizeof(world));
	pthread_mutex_init(&world.lock, NULL);
	memcpy(&world.fault, &ahead.fault, sizeof(world.fault));
	world.fail_wr = ahead.fail_wr;
	memset(&ahead, 0, sizeof(ahead));
	if (config)
		world.config = *config;
	world.config.hosts = world.config.hosts ? world.config.hosts : 2;
	world.config.devices = world.config.devices ? world.config.devices : 1;
	world.config.steps_per_poll = world.config.steps_per_poll ? world.config.steps_per_poll : 3;
	world.rng = (world.config.seed ? world.config.seed : 1) * UINT64_C(0x9e3779b97f4a7c15);
	for (int i = 0; i < 8; i++)
		fake_random(0);
	world.next_qp = fake_random(1 << 20);
	for (int h = 0; h < world.config.hosts; h++)
		for (int d = 0; d < world.config.devices; d++)
			fake_device_init(&world.device[h][d], h, d);
	current_host = 0;
	ib_test_hook.verbs = &fake_table;
	ib_test_hook.inline_jobs = !world.config.threads;
	ib_test_hook.cm = world.config.no_cm ? NULL : &fake_cm_table;
}

bool fake_end(void)
{
	const struct fake_counts *c = &world.counts;
	bool clean = !world.misuses && !c->contexts && !c->pds && !c->mrs && !c->channels &&
		     !c->cqs && !c->qps && !c->cms;

	if (!clean)
		fprintf(stderr,
			"fake: seed %llu, %d misuses; left: %d contexts, %d domains, %d regions, "
			"%d channels, %d completion queues, %d queue pairs, %d of librdmacm\n",
			(unsigned long long)world.config.seed, world.misuses, c->contexts, c->pds,
			c->mrs, c->channels, c->cqs, c->qps, c->cms);
	while (world.ghosts) {
		struct fake_ghost *ghost = world.ghosts;

		world.ghosts = ghost->next;
		free(ghost);
	}
	fake_gpu_late(false);
	memset(&ib_test_hook, 0, sizeof(ib_test_hook));
	return clean;
}

void fake_host(int host)
{
	current_host = host;
}

int fake_current_host(void)
{
	return current_host;
}

int fake_misuse(const char *what)
{
	fprintf(stderr, "fake: misuse: %s\n", what);
	world.misuses++;
	return EBUSY;
}

int fake_step(int n)
{
	int did = 0;

	fake_lock();
	for (int i = 0; i < n; i++)
		did += fake_wire_step();
	fake_unlock();
	return did;
}

/* What is on its way into GPUs is there. */
static void land_late(void)
{
	for (int h = 0; h < world.config.hosts; h++)
		for (int d = 0; d < world.config.devices; d++) {
			struct fake_qp **late = &world.device[h][d].late;

			if (*late)
				fake_place_all(*late);
			free(*late);
			*late = NULL;
		}
}

void fake_settle(void)
{
	int budget = 1 << 20;

	fake_lock();
	while (budget-- && fake_wire_step())
		;
	if (budget < 0)
		fake_misuse("the world does not come to rest");
	fake_unlock();
}

void fake_land(void)
{
	fake_lock();
	for (struct fake_qp *qp = world.qps; qp; qp = qp->next)
		fake_place_all(qp);
	land_late();
	fake_unlock();
}

void fake_gpu_late(bool late)
{
	fake_lock();
	world.gpu_late = late;
	land_late();
	fake_unlock();
}

/* ---------------------------------------------------------------- faults */

const char *fake_verb_name(enum fake_verb verb)
{
	static const char *const names[] = {
#define X(name) "ibv_" #name,
		FAKE_VERBS(X)
#undef X
	};

	return names[verb];
}

bool fake_fault(enum fake_verb verb)
{
	world.fault[verb].calls++;
	if (!world.fault[verb].left || --world.fault[verb].left)
		return false;
	world.fault[verb].fired = true;
	errno = world.fault[verb].error;
	return true;
}

void fake_hold_answers(bool hold)
{
	fake_lock();
	world.hold_answers = hold;
	fake_unlock();
}

void fake_fail_verb(enum fake_verb verb, int nth, int error)
{
	fake_lock();
	world.fault[verb].left = nth;
	world.fault[verb].error = error;
	world.fault[verb].fired = false;
	fake_unlock();
}

void fake_fail_verb_ahead(enum fake_verb verb, int nth, int error)
{
	ahead.fault[verb].left = nth;
	ahead.fault[verb].error = error;
}

void fake_fail_wr_ahead(int nth)
{
	ahead.fail_wr = nth;
}

bool fake_verb_fired(enum fake_verb verb)
{
	return world.fault[verb].fired;
}

uint64_t fake_verb_calls(enum fake_verb verb)
{
	return world.fault[verb].calls;
}

void fake_slow_teardown(int host, int ms)
{
	atomic_store(&world.slow_teardown_ms[host], ms);
}

bool fake_fails(const struct fake_device *device, enum fake_verb verb)
{
	bool query = verb == FAKE_open_device || verb == FAKE_query_device ||
		     verb == FAKE_query_port || verb == FAKE_query_gid_table ||
		     verb == FAKE_alloc_pd;
	bool fails = fake_fault(verb);

	if (fails || !device->sick || (query && device->sick == FAKE_MAKES_NOTHING))
		return fails;
	errno = EIO;
	return true;
}

void fake_sicken(int host, int device, enum fake_sickness sickness)
{
	fake_lock();
	world.device[host][device].sick = sickness;
	fake_unlock();
}

void fake_refuse_destroy(int host, int n)
{
	atomic_store(&world.refuse_destroy[host], n);
}

void fake_hold_reg(bool on)
{
	atomic_store(&world.hold_reg, on);
}

int fake_reg_waits(void)
{
	return atomic_load(&world.reg_waits);
}

void fake_mute(int host, bool on)
{
	atomic_store(&world.mute[host], on);
}

void fake_stick(int host, bool on)
{
	atomic_store(&world.stuck[host], on);
}

int fake_sticking(void)
{
	return atomic_load(&world.sticking);
}

void fake_fail_wr(int nth)
{
	world.fail_wr = nth;
}

void fake_fail_completion(int nth, enum ibv_wc_status status, uint32_t vendor_err)
{
	world.fail_completion = nth;
	world.fail_status = status;
	world.fail_vendor = vendor_err;
}

bool fake_spurious(int host, bool recv, const struct ibv_wc *wc)
{
	struct fake_wc entry = { .wc = *wc, .recv = recv, .spurious = true };
	struct fake_qp *qp;

	fake_lock();
	for (qp = world.qps; qp && qp->device->host != host; qp = qp->next)
		;
	if (qp) {
		if (!entry.wc.qp_num)
			entry.wc.qp_num = qp->qp.qp_num;
		fake_push_wc(fake_cq_of(recv ? qp->qp.recv_cq : qp->qp.send_cq), &entry);
	}
	fake_unlock();
	return qp;
}

void fake_kill_host(int host)
{
	fake_lock();
	for (int d = 0; d < world.config.devices; d++)
		world.device[host][d].dead = true;
	fake_unlock();
}

static void tell(const struct fake_device *device, enum ibv_event_type type)
{
	struct ibv_async_event event = { .event_type = type, .element.port_num = 1 };

	for (struct fake_context *c = world.contexts; c; c = c->next)
		if (c->device == device)
			fake_push_async(&c->context, &event);
}

void fake_link(int host, int device, bool up)
{
	fake_lock();
	world.device[host][device].up = up;
	tell(&world.device[host][device], up ? IBV_EVENT_PORT_ACTIVE : IBV_EVENT_PORT_ERR);
	fake_unlock();
}

void fake_address_moves(int host, int device)
{
	struct ibv_gid_entry *gid = world.device[host][device].gid;

	fake_lock();
	gid[2].gid = gid[3].gid;
	gid[2].gid_type = IBV_GID_TYPE_ROCE_V2;
	memset(&gid[3].gid, 0, sizeof(gid[3].gid));
	fake_unlock();
}

struct fake_port *fake_port(int host, int device)
{
	return &world.device[host][device].port;
}

uint16_t fake_lid(int host, int device)
{
	return world.device[host][device].lid;
}

void fake_lid_moves(int host, int device, uint16_t lid, uint8_t lmc)
{
	fake_lock();
	world.device[host][device].lid = lid;
	world.device[host][device].port.lmc = lmc;
	fake_unlock();
}

struct fake_sa *fake_sa(void)
{
	return &world.sa;
}

void fake_address(int host, int device, int row, const char *address)
{
	struct ibv_gid_entry *entry = &world.device[host][device].gid[row];

	memset(&entry->gid, 0, sizeof(entry->gid));
	entry->gid_type = IBV_GID_TYPE_ROCE_V2;
	if (address && inet_pton(AF_INET6, address, entry->gid.raw) != 1)
		fake_misuse("no IPv6 address");
}

void fake_subnet(int host, uint8_t number)
{
	for (int d = 0; d < world.config.devices; d++)
		world.device[host][d].gid[0].gid.raw[7] = number;
}

bool fake_host_qp(int host, struct ibv_qp_attr *attr)
{
	for (int i = 0; i < QPS_MAX; i++)
		if (world.qp[i] && world.qp[i]->device->host == host) {
			*attr = world.qp[i]->attr;
			return true;
		}
	return false;
}

int fake_regions(int host, unsigned int access)
{
	int n = 0;

	for (int i = 0; i < MRS_MAX; i++)
		n += world.mr[i] && world.mr[i]->access & access &&
		     fake_context_of(world.mr[i]->mr.context)->device->host == host;
	return n;
}

uint64_t fake_carried(int host, int device)
{
	return world.device[host][device].carried;
}

void fake_device_fatal(int host, int device)
{
	fake_lock();
	world.device[host][device].fatal = true;
	for (struct fake_context *c = world.contexts; c; c = c->next)
		c->gone |= c->device == &world.device[host][device];
	tell(&world.device[host][device], IBV_EVENT_DEVICE_FATAL);
	fake_unlock();
}

void fake_device_back(int host, int device)
{
	fake_lock();
	world.device[host][device].fatal = false;
	fake_unlock();
}

void fake_counts(struct fake_counts *counts)
{
	fake_lock();
	*counts = world.counts;
	fake_unlock();
}

void fake_stats(struct fake_stats *stats)
{
	fake_lock();
	*stats = world.stats;
	fake_unlock();
}

bool fake_qp_attr(int nth, struct ibv_qp_attr *attr)
{
	bool found = false;

	fake_lock();
	for (int i = 0; i < QPS_MAX && !found; i++) {
		found = world.qp[i] && !nth--;
		if (found)
			*attr = world.qp[i]->attr;
	}
	fake_unlock();
	return found;
}

size_t fake_writes(struct fake_write *writes, size_t max)
{
	size_t n;

	fake_lock();
	n = world.writes < max ? world.writes : max;
	n = n < WRITES_KEPT ? n : WRITES_KEPT;
	for (size_t i = 0; i < n; i++)
		writes[i] = world.write[(world.writes - n + i) % WRITES_KEPT];
	world.writes = 0;
	fake_unlock();
	return n;
}
