/* SPDX-License-Identifier: Apache-2.0 */
/* kv_log_test.c -- a log callback that calls the library, files and pipes that take no line */
#include "kv_rig.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct node nodes[2];
static atomic_int lines, refused;
static atomic_bool armed;

static void count(int ret)
{
	if (ret == KV_ERR_BUSY)
		atomic_fetch_add(&refused, 1);
}

/* Everything that a curious callback might want to know or do. */
static void calls_back(void *arg, int level, const char *line)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_stats stats = KV_INIT(kv_stats);
	struct kv_engine *engine;
	struct kv_peer *peer;
	struct node *node = arg;
	struct kv_error err;
	char text[64];

	if (!atomic_load(&armed))
		return;
	atomic_fetch_add(&lines, 1);
	count(kv_connect(node->engine, NULL, nodes[1].port, 1000, &peer, &err));
	assert_non_null(strstr(err.message, "log callback"));
	count(kv_stats(node->engine, &stats, &err));
	count(kv_engine_open(NULL, &engine, &err));
	if (node->peer) {
		count(kv_peer_info(node->peer, &info, &err));
		count(kv_peer_close(node->peer, 1000, &err));
	} else {
		atomic_fetch_add(&refused, 2);
	}
	kv_dump(node->engine, text, sizeof(text));
	kv_engine_close(node->engine);
}

CASE(calls_inside_the_log_callback_are_refused)
{
	static const int64_t ids[] = { 1, 2 };
	static const struct kv_layers all_layers = { 0, 0 };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_error err;
	struct kv_peer *more;

	config.log = calls_back;
	config.log_arg = &nodes[0];
	node_open(&nodes[0], 1, NULL, &config);
	config.log_arg = &nodes[1];
	node_open(&nodes[1], 2, NULL, &config);
	node_listen(&nodes[1]);
	atomic_store(&armed, true);
	node_connect(&nodes[0], nodes[1].port);
	ok(kv_write_blocks(nodes[0].peer, nodes[0].cache, all_layers, ids, ids, 2, NULL, &err),
	   &err);
	ok(kv_connect(nodes[0].engine, NULL, nodes[1].port, RIG_TIMEOUT_MS, &more, &err), &err);
	ok(kv_peer_close(more, RIG_TIMEOUT_MS, &err), &err);
	node_await_peer(&nodes[1]);
	atomic_store(&armed, false);
	assert_true(atomic_load(&lines) > 2); /* in the caller's thread and in the service's */
	assert_int_equal(atomic_load(&refused), 5 * atomic_load(&lines));
	node_close(&nodes[0]);
	node_close(&nodes[1]);
}

/* A file that cannot be opened is named with its own cause, not with that of the other. */
CASE(each_log_file_has_its_own_cause)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	char path[] = "/tmp/kvrail-log-XXXXXX", option[128], said[2048] = "";
	int fd = mkstemp(path);
	const char *options[] = { option, "KVCACHE_DEBUG_FILE=/nowhere/at/all", NULL };
	struct kv_engine *engine;
	struct kv_error err;

	assert_true(fd >= 0);
	snprintf(option, sizeof(option), "KVCACHE_ERROR_FILE=%s", path);
	config.options = options;
	ok(kv_engine_open(&config, &engine, &err), &err);
	kv_engine_close(engine);
	assert_true(read(fd, said, sizeof(said) - 1) > 0);
	assert_non_null(
		strstr(said, "/nowhere/at/all cannot be opened: No such file or directory"));
	close(fd);
	unlink(path);
}

/* ---------------------------------------------------------------- logs that take nothing */

static int write_end(bool reader)
{
	int fd[2], flags;
	char byte = 0;

	assert_int_equal(pipe2(fd, O_CLOEXEC), 0);
	if (!reader) {
		close(fd[0]);
		return fd[1];
	}
	flags = fcntl(fd[1], F_GETFL);
	assert_int_equal(fcntl(fd[1], F_SETFL, flags | O_NONBLOCK), 0);
	while (write(fd[1], &byte, 1) == 1)
		;
	assert_int_equal(fcntl(fd[1], F_SETFL, flags), 0); /* the reader's end stays open */
	return fd[1];
}

static void all_goes_on(const struct kv_engine_config *config)
{
	static const int64_t ids[] = { 1, 2 };
	static const struct kv_layers all_layers = { 0, 0 };
	struct kv_error err;
	struct pair p;

	pair_open(&p, NULL, config);
	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, ids, ids, 2, NULL, &err), &err);
	assert_true(memory_is(&p.b, all_layers, 1, ids, ids, 2, 0));
	pair_close(&p);
}

/* A full disk, a pipe that nobody reads any more or whose reader is gone, and no stderr at all. */
CASE(a_log_that_takes_nothing_stops_nobody)
{
	static const char *const full[] = { "KVCACHE_DEBUG=1", "KVCACHE_DEBUG_FILE=/dev/full",
					    NULL };
	static const char *const to_stderr[] = { "KVCACHE_DEBUG=1", "KVCACHE_DEBUG_OUTPUT=1",
						 NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	int kept = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 10);

	config.options = full;
	all_goes_on(&config);
	config.options = to_stderr;
	for (int i = 0; i < 3; i++) {
		int fd = i < 2 ? write_end(!i) : -1;

		if (i < 2)
			assert_int_equal(dup2(fd, STDERR_FILENO), STDERR_FILENO);
		else
			close(STDERR_FILENO); /* the next descriptor gets its number */
		all_goes_on(&config);
		assert_int_equal(dup2(kept, STDERR_FILENO), STDERR_FILENO);
		if (i < 2)
			close(fd);
	}
	close(kept);
}
