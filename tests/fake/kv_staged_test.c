/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_staged_test.c -- caches of a GPU that no NIC reaches, over the fake device: what is sent into
 * leases, what a revoke ends, and what is said of the way
 */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "fake.h"
#include "gpu_blocks.h"

static uint8_t *on_gpu(size_t len, uint8_t **addr_p)
{
	return fake_cuda_alloc(len, addr_p);
}

static uint8_t *on_two_gpus(size_t len, uint8_t **addr_p)
{
	uint8_t *first = NULL, *addr, *seen;

	/* Each tensor of a layer is an allocation of its own (rig_shape). */
	for (size_t done = 0, i = 0; done < len; i++) {
		size_t n = (i % 2 ? 384 : 512) * RIG_BLOCKS;

		fake_cuda.alloc_on = i % 2 ? 2 : 0;
		seen = fake_cuda_alloc(n, &addr);
		if (!first) {
			first = seen;
			*addr_p = addr;
		}
		done += n;
	}
	fake_cuda.alloc_on = 0;
	return first;
}

/* A bit of `gpus` for each end. */
static void open_ends(struct pair *p, unsigned int gpus, uint32_t flags,
		      const struct kv_engine_config *config)
{
	fake_cuda.export_says = 801; /* no DMA-BUF */
	for (unsigned int i = 0; i < 2; i++) {
		struct shape shape = rig_shape;

		shape.cuda = gpus >> i & 1 ? on_gpu : NULL;
		shape.flags = flags;
		node_open(i ? &p->b : &p->a, i + 1, &shape, config);
	}
	node_listen(&p->b);
	node_connect(&p->a, p->b.port);
	node_await_peer(&p->b);
}

static void close_ends(struct pair *p)
{
	pair_close(p);
	assert_int_equal(fake_cuda.open, 0);
	assert_int_equal(fake_cuda.contexts, 0);
	fake_cuda_reset();
}

CASE(what_is_sent_fills_what_was_opened_for_it)
{
	for (unsigned int gpus = 1; gpus < 4; gpus++)
		for (int from_b = 0; from_b < 2; from_b++) {
			struct pair p = { 0 };
			struct node *a, *b;
			struct kv_error err;
			struct kv_op *recv;

			fake_cuda.slow = from_b * 3;
			open_ends(&p, gpus, 0, NULL);
			a = from_b ? &p.b : &p.a;
			b = from_b ? &p.a : &p.b;
			for (uint64_t tag = 1; tag < 4; tag++) {
				fill_side(a, from_b ? 2 : 1, (unsigned int)tag);
				fill_side(b, from_b ? 1 : 2, 0);
				ok(kv_recv_blocks_async(b->peer, b->cache, all_layers, to, N, tag,
							NULL, &recv, &err),
				   &err);
				ok(kv_send_blocks(a->peer, a->cache, all_layers, from, N, tag, NULL,
						  &err),
				   &err);
				ok(kv_wait(recv, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
				ok(kv_op_free(recv, &err), &err);
				assert_true(memory_is(b, all_layers, from_b ? 2 : 1, from, to, N,
						      (unsigned int)tag));
			}
			close_ends(&p);
		}
}

/* One operation's layers lie on two GPUs, which take turns. */
CASE(a_cache_may_lie_on_two_gpus)
{
	struct shape shape = rig_shape;
	struct pair p = { 0 };

	fake_cuda.export_says = 801;
	fake_cuda.slow = 2;
	shape.cuda = on_two_gpus;
	pair_open(&p, &shape, NULL);
	blocks_go_and_come(&p);
	close_ends(&p);
}

/* ---------------------------------------------------------------- revokes */

struct storm {
	struct pair *p;
	uint64_t lease;
	int ended; /* with which code */
	unsigned int written;
};

static void *write_until_refused(void *arg)
{
	struct storm *storm = arg;
	struct kv_options options = KV_INIT(kv_options);
	struct kv_error err;

	options.lease = storm->lease;
	options.timeout_ms = (int32_t)RIG_TIMEOUT_MS;
	while (!(storm->ended = kv_write_blocks(storm->p->a.peer, storm->p->a.cache, all_layers,
						from, to, N, &options, &err)))
		storm->written++;
	return NULL;
}

/* Bytes arrive late, and kernels of both ends take a while. */
CASE(no_byte_lands_after_a_revoke)
{
	for (unsigned int gpus = 1; gpus < 4; gpus++)
		for (int round = 0; round < 6; round++) {
			struct storm storm = { 0 };
			struct kv_arrival arrival;
			struct pair p = { 0 };
			struct kv_lease *lease;
			struct kv_error err;
			pthread_t thread;

			open_ends(&p, gpus, 0, NULL);
			fake_cuda.slow = round;
			ok(kv_blocks_open(p.b.peer, p.b.cache, to, N, 1, RIG_TIMEOUT_MS, &lease,
					  &err),
			   &err);
			storm.p = &p;
			storm.lease = kv_lease_id(lease);
			assert_int_equal(pthread_create(&thread, NULL, write_until_refused, &storm),
					 0);
			for (int i = 0; i < 1 + round % 2; i++)
				assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
			ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
			fill_side(&p.b, 2, 0); /* the blocks are the receiver's again */
			pthread_join(thread, NULL);
			assert_true(storm.ended == KV_ERR_REVOKED || storm.ended == KV_ERR_LEASE);
			assert_true(memory_is(&p.b, all_layers, 1, NULL, NULL, 0, 0));
			close_ends(&p);
		}
}

/* ---------------------------------------------------------------- what is said */

static void note_line(void *arg, int level, const char *line)
{
	if (strstr(line, "memory of GPU 3 goes through pinned memory: fake0:1 does not reach a "
			 "GPU's memory: CUDA exports no DMA-BUF of"))
		++((atomic_int *)arg)[0];
	if (strstr(line, "memory of GPU 3 goes to "))
		++((atomic_int *)arg)[1];
	if (strstr(line, "memory of GPU 3 comes from "))
		++((atomic_int *)arg)[2];
}

CASE(the_way_is_said_with_its_reason)
{
	static const char *const loud[] = { "KVCACHE_DEBUG=1", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	atomic_int told[3] = { 0, 0, 0 };
	struct pair p = { 0 };
	struct kv_error err;

	config.options = loud;
	config.log = note_line;
	config.log_arg = told;
	open_ends(&p, 1, rig_shape.flags, &config);
	ok(kv_peer_info(p.a.peer, &info, &err), &err);
	assert_null(strstr(info.path, "pinned"));
	blocks_go_and_come(&p);
	ok(kv_peer_info(p.a.peer, &info, &err), &err);
	assert_non_null(strstr(info.path, "GPU through pinned memory; "));
	assert_int_equal(told[0], 1);
	assert_int_equal(told[1], 1);
	assert_int_equal(told[2], 1);
	close_ends(&p);
}

int main(void)
{
	ib_test_hook.sysroot = "/nowhere"; /* a machine without nvidia_peermem */
	return run_cases(NULL, NULL);
}
