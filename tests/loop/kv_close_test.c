/* SPDX-License-Identifier: Apache-2.0 */
/* kv_close_test.c -- what ends in this process: forks, peers with work in flight, memory in use */
#include "kv_rig.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N = 6 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[N] = { 5, 6, 7, 0, 95, 40 }, to[N] = { 10, 11, 12, 95, 0, 3 };

CASE(a_forked_child_is_refused_and_its_close_harms_nobody)
{
	struct kv_error err;
	struct pair p;
	int status;
	pid_t pid;

	pair_open(&p, NULL, NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		int bad = 0;

		bad |= kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &err) !=
		       KV_ERR_FORKED;
		bad |= kv_listen(p.a.engine, NULL, 0, NULL, &err) != KV_ERR_FORKED;
		bad |= kv_progress(p.b.engine, 0, &err) != KV_ERR_FORKED;
		kv_engine_close(p.a.engine);
		kv_engine_close(p.b.engine);
		_exit(bad);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &err), &err);
	assert_true(memory_is(&p.b, all_layers, 1, from, to, N, 0));
	pair_close(&p);
}

CASE(closing_ends_what_is_in_flight)
{
	struct kv_op *op[4], *recv;
	struct kv_error err;
	struct kv_lease *lease;
	struct pair p;

	pair_open(&p, NULL, NULL);
	for (int i = 0; i < 4; i++)
		ok(kv_send_blocks_async(p.a.peer, p.a.cache, all_layers, from, N, 99, NULL, &op[i],
					&err),
		   &err);
	ok(kv_recv_blocks_async(p.a.peer, p.a.cache, all_layers, from, N, 98, NULL, &recv, &err),
	   &err);
	ok(kv_blocks_open(p.a.peer, p.a.cache, (int64_t[]){ 80 }, 1, 97, 10000, &lease, &err),
	   &err);
	ok(kv_peer_close(p.a.peer, RIG_TIMEOUT_MS, &err), &err);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(kv_test(op[i], &err), KV_ERR_CLOSED);
		ok(kv_op_free(op[i], &err), &err);
	}
	assert_int_equal(kv_test(recv, &err), KV_ERR_CLOSED);
	ok(kv_op_free(recv, &err), &err);
	ok(kv_cache_unregister(p.a.cache, &err), &err); /* nothing uses it any more */
	pair_close(&p);
}

CASE(a_cache_in_use_cannot_go_and_memory_under_it_neither)
{
	struct kv_error err;
	struct pair p;

	pair_open(&p, NULL, NULL);
	assert_int_equal(kv_cache_unregister(p.a.cache, &err), KV_ERR_BUSY);
	assert_int_equal(kv_free(p.a.engine, p.a.mem, &err), KV_ERR_BUSY);
	ok(kv_peer_close(p.a.peer, RIG_TIMEOUT_MS, &err), &err);
	ok(kv_cache_unregister(p.a.cache, &err), &err);
	ok(kv_free(p.a.engine, p.a.mem, &err), &err);
	assert_int_equal(kv_free(p.a.engine, &p, &err), KV_ERR_ARG);
	pair_close(&p);
}

CASE(one_peer_more_than_the_limit_is_refused_with_the_limit_and_its_option)
{
	static const char *const options[] = { "KVCACHE_MAX_PEERS=1", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_peer *more;
	struct kv_error err;
	struct pair p;

	config.options = options;
	pair_open(&p, NULL, &config);
	assert_int_equal(kv_connect(p.a.engine, NULL, p.b.port, RIG_TIMEOUT_MS, &more, &err),
			 KV_ERR_BUSY);
	assert_non_null(strstr(err.message, "its limit of 1 peers"));
	assert_non_null(strstr(err.hint, "KVCACHE_MAX_PEERS"));
	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &err), &err);
	assert_true(memory_is(&p.b, all_layers, 1, from, to, N, 0));
	pair_close(&p);
}

/* ::1 is another address than 127.0.0.1; what this engine connects to itself is not counted. */
CASE(one_address_does_not_take_all_places)
{
	static const char *const options[] = { "KVCACHE_MAX_PER_ADDRESS=1", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_peer *peer[2];
	struct node a, b;
	uint32_t port;

	config.options = options;
	node_open(&a, 1, &rig_shape, &config);
	node_open(&b, 2, &rig_shape, &config);
	node_listen(&a);
	if (kv_listen(b.engine, "::", 0, &port, &b.err)) {
		print_message("skipped: no IPv6 here: %s\n", b.err.message);
		skip();
	}
	ok(kv_connect(b.engine, NULL, a.port, RIG_TIMEOUT_MS, &peer[0], &b.err), &b.err);
	node_connect(&a, port);
	assert_int_equal(kv_connect(a.engine, "127.0.0.1", port, RIG_TIMEOUT_MS, &peer[1], &a.err),
			 KV_ERR_BUSY);
	assert_non_null(strstr(a.err.message, "its limit of peers from one address is reached"));
	assert_non_null(strstr(a.err.hint, "KVCACHE_MAX_PER_ADDRESS"));
	ok(kv_connect(a.engine, "::1", port, RIG_TIMEOUT_MS, &peer[1], &a.err), &a.err);
	await_stat(&b, peers_now, 3); /* who connects knows it before who accepts */
	ok(kv_peer_close(a.peer, RIG_TIMEOUT_MS, &a.err), &a.err);
	await_stat(&b, peers_now, 2);
	node_connect(&a, port);
	node_close(&a);
	node_close(&b);
}

CASE(a_device_row_fills_what_its_caller_knows_and_no_more)
{
	const size_t old = offsetof(struct kv_device_info, link);
	struct kv_device_info info = KV_INIT(kv_device_info);
	struct kv_engine *engine;
	struct kv_error err;

	ok(kv_engine_open(NULL, &engine, &err), &err);
	ok(kv_device_get(engine, 0, &info, &err), &err);
	assert_int_equal(info.size, sizeof(info));
	assert_int_equal(info.gid_index, -1);
	memset(&info, 0x55, sizeof(info));
	info.size = old;
	ok(kv_device_get(engine, 0, &info, &err), &err);
	assert_int_equal(info.size, old);
	assert_string_equal(info.transport, "shm");
	for (size_t i = old; i < sizeof(info); i++)
		assert_int_equal(((unsigned char *)&info)[i], 0x55);
	info.size = old - 1;
	assert_int_equal(kv_device_get(engine, 0, &info, &err), KV_ERR_ARG);
	info.size = sizeof(info) + 8;
	assert_int_equal(kv_device_get(engine, 0, &info, &err), KV_ERR_ARG);
	kv_engine_close(engine);
}
