/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verbs_floor.c -- what the barest user of libibverbs pays for a block: lists of work requests that
 * were built before, posted as they are
 *
 *   verbs_floor [-b BYTES] [-e BYTES] [-f F] [-n BLOCKS] [-c CHAIN] [-q QPS] [-p PEERS] [-x GID]
 *               [-J FILE]
 *
 * One process, one thread, the first device, QPS queue pairs that are connected to others of this
 * process. A batch is BLOCKS writes of one size between shuffled places, CHAIN of them a post to
 * each queue pair in turn, the last of each post signalled; the next batch begins when all
 * completions of this one were taken. 64 iterations after 64; a queue holds 512 requests, as
 * kvrail's do. Of PEERS each has QPS queue pairs; batches go to one of them after the other.
 * bench/verbs.py runs it over tests/softnic: no figure of that is the speed of a network.
 */
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include <infiniband/verbs.h>

#include "hist.h"
#include "results.h"
#include "util.h"

enum { DEPTH = 512, ITERATIONS = 64, QPS_MAX = 64 };

struct floor {
	uint64_t first, last, factor, blocks, chain, gid, qps, peers;
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_qp *qp[2 * QPS_MAX]; /* the first half posts to the second */
	uint64_t posted[QPS_MAX];	/* and not known to be finished */
	struct ibv_mr *mr[2];		/* source, destination */
	struct ibv_send_wr *wr;
	struct ibv_sge *sge;
};

static const struct results_column columns[] = {
	{ "block", "(B)", "block_bytes", 10, 0 }, { "p1", "(ns/blk)", "p1_ns", 9, 2 },
	{ "p50", "(ns/blk)", "p50_ns", 9, 2 },	  { "p99", "(ns/blk)", "p99_ns", 9, 2 },
	{ "p50", "(GB/s)", "gb_per_s", 9, 3 },
};

static void die(const char *what)
{
	perror(what);
	exit(3);
}

#define NEED(made, what)           \
	do {                       \
		if (!(made))       \
			die(what); \
	} while (0)

static void open_device(struct floor *f)
{
	struct ibv_device **list = ibv_get_device_list(NULL);

	NEED(list && list[0], "verbs_floor: no RDMA device");
	f->context = ibv_open_device(list[0]);
	NEED(f->context, "verbs_floor: ibv_open_device");
	ibv_free_device_list(list);
	f->pd = ibv_alloc_pd(f->context);
	f->cq = f->pd ? ibv_create_cq(f->context, QPS_MAX * DEPTH, NULL, NULL, 0) : NULL;
	NEED(f->cq, "verbs_floor: ibv_create_cq");
	for (uint64_t i = 0; i < 2 * f->qps * f->peers; i++) {
		struct ibv_qp_init_attr init = {
			.send_cq = f->cq,
			.recv_cq = f->cq,
			.cap = { .max_send_wr = DEPTH,
				 .max_recv_wr = 1,
				 .max_send_sge = 2,
				 .max_recv_sge = 1 },
			.qp_type = IBV_QPT_RC,
		};

		f->qp[i] = ibv_create_qp(f->pd, &init);
		NEED(f->qp[i], "verbs_floor: ibv_create_qp");
	}
}

static void connect_to(const struct floor *f, struct ibv_qp *qp, uint32_t peer)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT,
				    .port_num = 1,
				    .qp_access_flags = IBV_ACCESS_REMOTE_WRITE };
	struct ibv_port_attr port;
	int failed =
		ibv_query_port(f->context, 1, &port) ||
		ibv_modify_qp(qp, &attr,
			      IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);

	attr = (struct ibv_qp_attr){ .qp_state = IBV_QPS_RTR,
				     .path_mtu = port.active_mtu,
				     .dest_qp_num = peer,
				     .max_dest_rd_atomic = 1,
				     .min_rnr_timer = 12,
				     .ah_attr = { .port_num = 1, .dlid = port.lid } };
	if (port.link_layer == IBV_LINK_LAYER_ETHERNET) {
		attr.ah_attr.is_global = 1;
		attr.ah_attr.grh.sgid_index = (uint8_t)f->gid;
		attr.ah_attr.grh.hop_limit = 64;
		failed |= ibv_query_gid(f->context, 1, (int)f->gid, &attr.ah_attr.grh.dgid);
	}
	failed |= ibv_modify_qp(qp, &attr,
				IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
					IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
					IBV_QP_MIN_RNR_TIMER);
	attr = (struct ibv_qp_attr){ .qp_state = IBV_QPS_RTS,
				     .timeout = 14,
				     .retry_cnt = 7,
				     .rnr_retry = 7,
				     .max_rd_atomic = 1 };
	failed |= ibv_modify_qp(qp, &attr,
				IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
					IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
	NEED(!failed, "verbs_floor: connecting the queue pair");
}

/* Two memories for the largest blocks. */
static void make_memory(struct floor *f)
{
	for (int i = 0; i < 2; i++) {
		uint64_t bytes = f->last * f->blocks;

		f->mr[i] = ibv_reg_mr(f->pd, need_calloc(1, bytes), bytes,
				      IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
		NEED(f->mr[i], "verbs_floor: ibv_reg_mr");
	}
	f->wr = need_calloc(f->blocks, sizeof(*f->wr));
	f->sge = need_calloc(f->blocks, sizeof(*f->sge));
}

static void shuffle(uint64_t *ids, uint64_t n, uint64_t seed)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t other = random_below(&seed, i + 1);

		ids[i] = ids[other];
		ids[other] = i;
	}
}

static void build_lists(struct floor *f, uint64_t bytes)
{
	uint64_t *from = need_calloc(f->blocks, sizeof(*from)),
		 *to = need_calloc(f->blocks, sizeof(*to));

	shuffle(from, f->blocks, 1);
	shuffle(to, f->blocks, 2);
	for (uint64_t i = 0; i < f->blocks; i++) {
		bool last = (i + 1) % f->chain == 0 || i + 1 == f->blocks;

		f->sge[i] = (struct ibv_sge){ (uintptr_t)f->mr[0]->addr + from[i] * bytes,
					      (uint32_t)bytes, f->mr[0]->lkey };
		/* Of the last of a post: whose it is, and how many it ends. */
		f->wr[i] = (struct ibv_send_wr){
			.wr_id = i / f->chain % f->qps << 32 | (i % f->chain + 1),
			.next = last ? NULL : &f->wr[i + 1],
			.sg_list = &f->sge[i],
			.num_sge = 1,
			.opcode = IBV_WR_RDMA_WRITE,
			.send_flags = last ? IBV_SEND_SIGNALED : 0,
			.wr.rdma = { (uintptr_t)f->mr[1]->addr + to[i] * bytes, f->mr[1]->rkey }
		};
	}
	free(from);
	free(to);
}

/* Takes completions until the queue pair has at most `most` requests under way. */
static void drain(struct floor *f, uint64_t qp, uint64_t most)
{
	struct ibv_wc wc[32];

	while (f->posted[qp] > most) {
		int n = ibv_poll_cq(f->cq, 32, wc);

		for (int i = 0; i < n; i++) {
			NEED(wc[i].status == IBV_WC_SUCCESS, "verbs_floor: completion");
			f->posted[wc[i].wr_id >> 32] -= (uint32_t)wc[i].wr_id;
		}
	}
}

static void post_batch(struct floor *f, uint64_t peer)
{
	struct ibv_send_wr *bad;
	uint64_t qp = 0;

	for (uint64_t i = 0; i < f->blocks; i += f->chain) {
		uint64_t n = f->blocks - i < f->chain ? f->blocks - i : f->chain;

		drain(f, qp, DEPTH - n);
		NEED(!ibv_post_send(f->qp[peer * f->qps + qp], &f->wr[i], &bad),
		     "verbs_floor: ibv_post_send");
		f->posted[qp] += n;
		qp = (qp + 1) % f->qps;
	}
	for (qp = 0; qp < f->qps; qp++)
		drain(f, qp, 0);
}

static void measure(struct floor *f, struct results *r, uint64_t bytes)
{
	static const uint32_t percentiles[] = { 100, 5000, 9900 };
	struct hist *times = need_calloc(1, sizeof(*times));
	double blocks = (double)f->blocks;

	build_lists(f, bytes);
	for (int i = 0; i < 2 * ITERATIONS; i++) {
		uint64_t from = now_ns();

		post_batch(f, (uint64_t)i % f->peers);
		if (i >= ITERATIONS)
			hist_add(times, now_ns() - from);
	}
	results_cell(r, (double)bytes);
	for (int i = 0; i < 3; i++)
		results_cell(r, (double)hist_percentile(times, percentiles[i]) / blocks);
	results_cell(r, blocks * (double)bytes / (double)hist_percentile(times, 5000));
	free(times);
}

static const char *parse(struct floor *f, int argc, char **argv)
{
	const char *json = NULL;
	int c;

	while ((c = getopt(argc, argv, "b:e:f:n:c:q:p:x:J:")) >= 0) {
		uint64_t *to = c == 'b'	  ? &f->first
			       : c == 'e' ? &f->last
			       : c == 'f' ? &f->factor
			       : c == 'n' ? &f->blocks
			       : c == 'c' ? &f->chain
			       : c == 'q' ? &f->qps
			       : c == 'p' ? &f->peers
			       : c == 'x' ? &f->gid
					  : NULL;

		if (c == 'J') {
			json = optarg;
		} else if (!to || size_parse(optarg, to)) {
			fprintf(stderr,
				"usage: verbs_floor [-b BYTES] [-e BYTES] [-f F] [-n BLOCKS] "
				"[-c CHAIN] [-q QPS] [-p PEERS] [-x GID] [-J FILE]\n");
			exit(2);
		}
	}
	if (!f->blocks || !f->chain || !f->qps || !f->peers || f->qps > QPS_MAX ||
	    f->peers > QPS_MAX / f->qps || f->chain > DEPTH || f->factor < 2 || !f->first ||
	    f->last < f->first) {
		fprintf(stderr, "verbs_floor: CHAIN is 1 to %d, QPS x PEERS to %d, F at least 2\n",
			DEPTH, QPS_MAX);
		exit(2);
	}
	return json;
}

int main(int argc, char **argv)
{
	static struct floor f = { .first = 1 << 10,
				  .last = 256 << 10,
				  .factor = 2,
				  .blocks = 1538,
				  .chain = 64,
				  .gid = 3,
				  .qps = 1,
				  .peers = 1 };
	char *command = results_command(argc, argv);
	const char *json = parse(&f, argc, argv);
	struct results *r;

	if (results_can_write("verbs_floor", json))
		return 3;
	open_device(&f);
	for (uint64_t i = 0; i < 2 * f.qps * f.peers; i++)
		connect_to(&f, f.qp[i],
			   f.qp[(i + f.qps * f.peers) % (2 * f.qps * f.peers)]->qp_num);
	make_memory(&f);
	printf("# verbs_floor: %s, %llu blocks, %llu a post, %llu peers, %llu queue pairs each, "
	       "%d iterations after %d\n",
	       ibv_get_device_name(f.context->device), (unsigned long long)f.blocks,
	       (unsigned long long)f.chain, (unsigned long long)f.peers, (unsigned long long)f.qps,
	       ITERATIONS, ITERATIONS);
	r = results_new("verbs_floor", command, "verbs", ibv_get_device_name(f.context->device),
			"poll");
	results_open(r, "settings", '{');
	results_integer(r, "blocks", f.blocks);
	results_integer(r, "chain", f.chain);
	results_integer(r, "queue_pairs", f.qps);
	results_integer(r, "peers", f.peers);
	results_close(r);
	results_table(r, columns, sizeof(columns) / sizeof(*columns));
	for (uint64_t bytes = f.first; bytes <= f.last; bytes *= f.factor)
		measure(&f, r, bytes);
	free(command);
	return results_end(r, json) ? 3 : 0;
}
