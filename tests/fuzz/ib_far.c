/* SPDX-License-Identifier: Apache-2.0 */
/* ib_far.c -- the peer of ib_fuzz: its offer and setup, its messages, notify records, bytes */
#include <string.h>

#include "fake_world.h"
#include "ib_world.h"

enum { ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ };

static const struct ib_verbs *const v = &fake_table;

/* ---------------------------------------------------------------- its devices */

void far_open_devices(void)
{
	struct ibv_device **list;
	int n;

	fake_host(1);
	list = v->get_device_list(&n);
	for (int d = 0; d < w.devices; d++) {
		w.context[d] = v->open_device(list[d]);
		w.pd[d] = v->alloc_pd(w.context[d]);
		w.cq[d] = v->create_cq(w.context[d], 4096, NULL, NULL, 0);
		w.mr[d] = v->reg_mr(w.pd[d], hall, sizeof(hall), ALL);
	}
	v->free_device_list(list);
	fake_host(0);
}

void far_close_devices(void)
{
	for (int i = 0; i < LANES; i++)
		if (w.lane[i].qp)
			v->destroy_qp(w.lane[i].qp);
	for (int d = 0; d < w.devices; d++) {
		v->dereg_mr(w.mr[d]);
		v->destroy_cq(w.cq[d]);
		v->dealloc_pd(w.pd[d]);
		v->close_device(w.context[d]);
	}
}

static int device_of(int lane)
{
	return lane / w.per_path % w.devices;
}

static void post_recv(int lane, uint32_t number)
{
	struct ibv_sge sge = { (uint64_t)(uintptr_t)(hall + HALL_RECVS + number % 16 * 512), 512,
			       w.mr[device_of(lane)]->lkey };
	struct ibv_recv_wr wr = { .wr_id = (uint64_t)lane << 32 | number,
				  .sg_list = &sge,
				  .num_sge = 1 },
			   *bad;

	v->post_recv(w.lane[lane].qp, &wr, &bad);
}

static void make_lanes(void)
{
	w.lanes = w.paths * w.per_path;
	for (int i = 0; i < w.lanes; i++) {
		int d = device_of(i);
		struct ibv_qp_init_attr init = {
			.send_cq = w.cq[d],
			.recv_cq = w.cq[d],
			.cap = { .max_send_wr = 128,
				 .max_recv_wr = IB_RECVS,
				 .max_send_sge = 1,
				 .max_recv_sge = 1 },
			.qp_type = IBV_QPT_RC,
		};
		struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT,
					    .port_num = 1,
					    .qp_access_flags = ALL };

		w.lane[i].qp = v->create_qp(w.pd[d], &init);
		FUZZ_CHECK(w.lane[i].qp);
		v->modify_qp(w.lane[i].qp, &attr,
			     IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
		for (uint32_t k = 0; k < IB_RECVS; k++)
			post_recv(i, k);
	}
}

static struct ibv_port_attr port_of(int d)
{
	struct ibv_port_attr port;

	v->query_port(w.context[d], 1, &port);
	return port;
}

static void connect_lanes(void)
{
	for (int i = 0; i < w.lanes; i++) {
		const struct far_lane *lane = &w.lane[i];
		int d = device_of(i);
		struct ibv_port_attr port = port_of(d);
		bool roce = port.link_layer == IBV_LINK_LAYER_ETHERNET;
		struct ibv_qp_attr attr = {
			.qp_state = IBV_QPS_RTR,
			.path_mtu = (enum ibv_mtu)w.mtu[i / w.per_path],
			.dest_qp_num = lane->to_qpn,
			.rq_psn = lane->to_psn,
			.sq_psn = 5,
			.max_dest_rd_atomic = 16,
			.max_rd_atomic = 16,
			.retry_cnt = 3,
			.rnr_retry = 3,
			.timeout = 14,
			.ah_attr = { .port_num = 1,
				     .dlid = w.lid[i / w.per_path],
				     .is_global = roce,
				     .grh = { .dgid = w.gid[i / w.per_path], .sgid_index = 3 } },
		};

		if (port.active_mtu < attr.path_mtu)
			attr.path_mtu = port.active_mtu;
		v->modify_qp(lane->qp, &attr,
			     IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
				     IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
				     IBV_QP_MIN_RNR_TIMER);
		attr.qp_state = IBV_QPS_RTS;
		v->modify_qp(lane->qp, &attr,
			     IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
				     IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
	}
}

/* ---------------------------------------------------------------- its handshake */

static void put_gid(struct wire_writer *o, int d)
{
	struct ibv_gid_entry entry[MODEL_GIDS];
	ssize_t n = v->query_gid_table(w.context[d], entry, MODEL_GIDS);

	FUZZ_CHECK(n > 0);
	wire_put_bytes(o, entry[n - 1].gid.raw, 16);
}

static void put_offer(void)
{
	uint8_t offer[FRAME_OFFER_MAX], buf[FRAME_HELLO_MAX];
	struct wire_writer o = wire_writer_of(offer, sizeof(offer));
	struct wire_writer out = wire_writer_of(buf, sizeof(buf));
	struct frame_hello hello = { .upper_id = TR_UPPER_TEST, .upper_version = 1 };

	if (!far.connecting) {
		wire_put_u8(&o, 3);
		wire_put_u8(&o, (uint8_t)(1 + (w.first->b & 3)));
		wire_put_u16(&o, w.first->b & 4 ? w.first->d : 0);
		wire_put_u8(&o, (uint8_t)w.devices);
		for (int d = 0; d < w.devices; d++) {
			wire_put_u8(&o, port_of(d).link_layer == IBV_LINK_LAYER_ETHERNET);
			wire_put_u16(&o, 200);
			put_gid(&o, d);
		}
		if (w.first->how & 1)
			offer[w.first->c % o.len] ^= (uint8_t)w.first->d;
		hello.offers = 1;
		hello.offer[0].provider = TR_PROVIDER_IB;
		hello.offer[0].bytes = (struct frame_bytes){ offer, o.len };
	}
	frame_put_hello(&out, &hello);
	far_send(FRAME_HELLO, buf, out.len);
}

/* What the product hears about the region; a step may lie. */
size_t far_describes(const struct step *s, uint8_t buf[TR_MEM_PACK_MAX])
{
	struct wire_writer out = wire_writer_of(buf, TR_MEM_PACK_MAX);
	uint64_t addr = (uint64_t)(uintptr_t)(hall + HALL_REGION);
	uint64_t before = s->a & 1 ? 1024 : 0;
	uint32_t slices = (uint32_t)((before + REGION - 1) / 4096) + 1;

	wire_put_u32(&out, 7);
	wire_put_u32(&out, TR_REMOTE_READ | TR_REMOTE_WRITE);
	wire_put_u64(&out, REGION);
	wire_put_u64(&out, addr);
	wire_put_u64(&out, addr - before);
	wire_put_u64(&out, 4096);
	wire_put_u32(&out, slices);
	wire_put_u8(&out, (uint8_t)w.paths);
	for (int p = 0; p < w.paths; p++)
		for (uint32_t i = 0; i < slices; i++)
			wire_put_u32(&out, w.mr[p % w.devices]->rkey);
	w.lied |= s->how & 0x18;
	if (s->how & 0x08)
		buf[s->c % out.len] ^= (uint8_t)s->d;
	return s->how & 0x10 ? s->d % (out.len + 1) : out.len;
}

static void put_path(struct wire_writer *p, int path)
{
	struct ibv_port_attr port = port_of(path);

	wire_put_u8(p, w.rail[path]);
	wire_put_u8(p, w.to_rail[path]);
	wire_put_u16(p, 200);
	wire_put_u8(p, (uint8_t)port.active_mtu);
	wire_put_u8(p, 16);
	wire_put_u16(p, port.lid);
	wire_put_u16(p, 0);
	wire_put_u16(p, 0xffff);
	wire_put_u8(p, 0);
	wire_put_u8(p, 0);
	wire_put_u8(p, 0);
	put_gid(p, path);
	wire_put_u64(p, (uint64_t)(uintptr_t)hall);
	wire_put_u32(p, w.mr[path]->rkey);
	wire_put_u64(p, (uint64_t)(uintptr_t)(hall + HALL_PROBE));
	wire_put_u32(p, w.mr[path]->rkey);
}

static void put_setup(void)
{
	uint8_t provider[512], region[TR_MEM_PACK_MAX], buf[1024 + TR_MEM_PACK_MAX];
	struct wire_writer p = wire_writer_of(provider, sizeof(provider));
	struct wire_writer out = wire_writer_of(buf, sizeof(buf));
	size_t len = far_describes(w.first, region);

	make_lanes();
	wire_put_u8(&p, 3);
	wire_put_u8(&p, (uint8_t)w.paths);
	wire_put_u8(&p, (uint8_t)w.per_path);
	for (int i = 0; i < w.paths; i++)
		put_path(&p, i);
	for (int i = 0; i < w.lanes; i++) {
		wire_put_u32(&p, w.lane[i].qp->qp_num);
		wire_put_u32(&p, 5);
	}
	FUZZ_CHECK(!p.bad);
	if (w.first->how & 2)
		provider[w.first->c % p.len] ^= (uint8_t)w.first->d;
	if (w.first->how & 4)
		p.len = w.first->d % p.len;
	frame_put_setup(&out, &(struct frame_setup){
				      TR_PROVIDER_IB, { provider, p.len }, { region, len } });
	far_send(FRAME_SETUP, buf, out.len);
}

static void hear_region(struct wire_reader *r)
{
	wire_get_u32(r);
	wire_get_u32(r);
	w.region.len = wire_get_u64(r);
	w.region.addr = wire_get_u64(r);
	wire_get_u64(r);
	wire_get_u64(r);
	wire_get_u32(r);
	wire_get_u8(r);
	w.region.rkey = wire_get_u32(r);
}

/* What the product's setup says: paths, queue pairs, its region. */
static bool hear_setup(void)
{
	struct frame_setup setup;
	struct wire_reader r;

	if (!far_hear() || far.last[6] != FRAME_SETUP ||
	    frame_get_setup(far.last + FRAME_HEADER, far.last_len - FRAME_HEADER, &setup))
		return false;
	r = wire_reader_of(setup.provider_bytes.p, setup.provider_bytes.len);
	wire_get_u8(&r);
	w.paths = wire_get_u8(&r);
	w.per_path = wire_get_u8(&r);
	FUZZ_CHECK(!r.bad && w.paths && w.paths <= w.devices && w.per_path && w.per_path <= 2);
	for (int p = 0; p < w.paths; p++) {
		w.to_rail[p] = wire_get_u8(&r);
		w.rail[p] = wire_get_u8(&r);
		wire_get_u16(&r);
		w.mtu[p] = wire_get_u8(&r);
		wire_get_u8(&r);
		w.lid[p] = wire_get_u16(&r);
		wire_get_uint(&r, 7);
		wire_get_bytes(&r, w.gid[p].raw, 16);
		w.cells = wire_get_u64(&r);
		w.cells_key[p] = wire_get_u32(&r);
		w.probe = wire_get_u64(&r);
		w.probe_key = wire_get_u32(&r);
	}
	for (int i = 0; i < w.paths * w.per_path; i++) {
		w.lane[i].to_qpn = wire_get_u32(&r);
		w.lane[i].to_psn = wire_get_u32(&r);
	}
	FUZZ_CHECK(wire_done(&r));
	r = wire_reader_of(setup.upper.p, setup.upper.len);
	hear_region(&r);
	return true;
}

static bool hear_offer(void)
{
	struct frame_hello hello;
	struct wire_reader r;

	if (!far_hear() ||
	    frame_get_hello(far.last + FRAME_HEADER, far.last_len - FRAME_HEADER, &hello))
		return false;
	if (!hello.offers)
		return !far.connecting;
	r = wire_reader_of(hello.offer[0].bytes.p, hello.offer[0].bytes.len);
	wire_get_u32(&r);
	w.paths = wire_get_u8(&r);
	w.per_path = 1 + (w.first->b & 1);
	FUZZ_CHECK(!r.bad && w.paths && w.paths <= w.devices);
	for (int p = 0; p < w.paths; p++)
		w.rail[p] = w.to_rail[p] = (uint8_t)p;
	return true;
}

void far_moves(void)
{
	switch (w.moves) {
	case 0:
		if (!far.connecting && !hear_offer())
			return;
		put_offer();
		break;
	case 1:
		if (far.connecting ? !hear_offer() : !hear_setup())
			return;
		put_setup();
		if (!far.connecting)
			connect_lanes();
		break;
	case 2:
		if (far.connecting) {
			if (!hear_setup())
				return;
			connect_lanes();
		}
		far_send(FRAME_READY, NULL, 0);
		break;
	default:
		return;
	}
	w.moves++;
}

/* ---------------------------------------------------------------- its words and bytes */

static void post(int lane, enum ibv_wr_opcode opcode, uint8_t *from, size_t len, uint64_t to,
		 uint32_t rkey, uint32_t imm)
{
	struct ibv_sge sge = { (uint64_t)(uintptr_t)from, (uint32_t)len,
			       w.mr[device_of(lane)]->lkey };
	struct ibv_send_wr wr = { .sg_list = &sge,
				  .num_sge = 1,
				  .opcode = opcode,
				  .send_flags = IBV_SEND_SIGNALED,
				  .imm_data = imm,
				  .wr.rdma = { .remote_addr = to, .rkey = rkey } },
			   *bad;

	if (w.lane[lane].qp)
		v->post_send(w.lane[lane].qp, &wr, &bad);
}

static uint8_t *next_send(void)
{
	uint8_t *at = hall + HALL_SENDS + w.sends++ % SENDS * SEND_BYTES;

	memset(at, SENT, SEND_BYTES);
	return at;
}

static uint16_t credits(int lane, bool lie, uint16_t said)
{
	uint16_t owed = w.lane[lane].owed;

	if (lie)
		return said;
	w.lane[lane].owed = 0;
	return owed;
}

void far_says(const struct step *s)
{
	int lane = s->how & 1 ? s->a % w.lanes : 0;
	uint8_t *at = next_send();
	struct wire_writer out = wire_writer_of(at, SEND_BYTES);
	uint16_t len = (uint16_t)(s->c % (TR_MSG_MAX + 1));
	uint8_t kind = s->how & 8 ? (uint8_t)s->b : (uint8_t)(1 + (s->how >> 7));
	uint32_t sequence = kind == 2 ? 0 : w.sequence;

	w.sequence += !(s->how & 2) && kind == 1;
	wire_put_u32(&out, s->how & 2 ? w.sequence + s->e : sequence);
	wire_put_u16(&out, credits(lane, s->how & 4, s->d));
	wire_put_u16(&out, s->how & 0x10 ? s->d : len);
	wire_put_u8(&out, kind);
	wire_put_uint(&out, s->how & 0x20 ? s->f : 0, 7);
	post(lane, IBV_WR_SEND, at, s->how & 0x40 ? s->f % SEND_BYTES : (size_t)IB_MSG_HEADER + len,
	     0, 0, 0);
}

/* On as many lanes as the record says; bits of `how` make one part of it a lie. */
void far_notes(const struct step *s)
{
	int lanes = 1 + s->a % w.lanes;
	uint32_t imm = s->f, sequence = w.sequence;

	if (s->how & 1)
		sequence += s->e;
	else
		w.sequence++;
	for (int i = 0; i < lanes; i++) {
		uint8_t *at = next_send();
		struct wire_writer out = wire_writer_of(at, SEND_BYTES);
		uint32_t cell = w.lane[i].cells++ + (s->how & 2 ? s->b : 0);
		bool last = i == lanes - 1;

		wire_put_u32(&out, sequence);
		wire_put_u32(&out, imm);
		wire_put_u16(&out, s->how & 4 && last ? s->d : (uint16_t)lanes);
		wire_put_u16(&out, credits(i, s->how & 8 && last, s->d));
		wire_put_u32(&out, s->how & 0x10 && last ? s->e : 0);
		wire_put_u64(&out, s->how & 0x20 && last ? s->e : s->f);
		wire_put_u64(&out, 0);
		post(i, IBV_WR_RDMA_WRITE_WITH_IMM, at,
		     s->how & 0x40 ? s->c % (IB_CELL + 1) : IB_CELL,
		     w.cells + ((uint64_t)i * IB_RECV_DATA + cell % IB_RECV_DATA) * IB_CELL,
		     w.cells_key[i / w.per_path % DEVICES],
		     htobe32(imm ^ (s->how & 0x80 && last ? s->b : 0)));
	}
}

void far_reaches(const struct step *s)
{
	bool reads = s->how & 1;
	const uint64_t to[] = { w.region.addr, w.cells, w.probe, s->e };
	const uint32_t keys[] = { w.region.rkey, w.cells_key[0], w.probe_key, s->f };
	size_t len = s->d % 512;
	int16_t by = (int16_t)s->c;

	post(s->a % w.lanes, reads ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE,
	     reads ? hall + HALL_LAND : next_send(), len,
	     to[s->how >> 1 & 3] + (uint64_t)(int64_t)by, keys[s->how >> 3 & 3], 0);
	if (!reads || (w.lied && w.reads))
		return;
	/* Nothing beside the region and the probe is the peer's to see. */
	fake_step(256);
	for (size_t i = 0; i < len; i++)
		FUZZ_CHECK(hall[HALL_LAND + i] != BESIDE);
}

void far_takes(const struct step *s)
{
	struct ibv_wc wc[16];

	for (int d = 0; d < w.devices; d++)
		for (int n = v->poll_cq(w.cq[d], 16, wc); n > 0; n--) {
			const struct ibv_wc *c = &wc[n - 1];
			int lane = (int)(c->wr_id >> 32);

			if (c->status || !(c->opcode & IBV_WC_RECV))
				continue;
			w.lane[lane].owed++;
			if (!(s->how & 1))
				post_recv(lane, (uint32_t)c->wr_id);
		}
}

void far_breaks(const struct step *s)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_ERR };
	struct far_lane *lane = &w.lane[s->a % w.lanes];

	if (!lane->qp)
		return;
	if (s->how & 0x10) {
		v->destroy_qp(lane->qp);
		lane->qp = NULL;
	} else {
		v->modify_qp(lane->qp, &attr, IBV_QP_STATE);
	}
}
