/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_metrics_test.c -- the metrics say what kv_stats says, in the file and at the port; both end
 * with the last engine, and nothing that goes wrong with them touches an engine
 */
#include "kv_rig.h"

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "lib/port.h"
#include "lib/scrape.h"

enum { N = 3, WRITES = 20, TEXT_MAX = 1 << 20 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[N] = { 5, 6, 9 }, to[N] = { 10, 12, 3 };

static char folder[] = "/tmp/kv_metrics_test.XXXXXX", port_text[8];
static uint32_t port;
static char text[TEXT_MAX];
static struct pair p;

/* ---------------------------------------------------------------- the folder, the port */

static void path_of(char *path, size_t cap, pid_t pid)
{
	char host[64] = "";

	gethostname(host, sizeof(host) - 1);
	snprintf(path, cap, "%s/kvrail.%s.%d.prom", folder, host, (int)pid);
}

static unsigned int files(void)
{
	DIR *dir = opendir(folder);
	struct dirent *e;
	unsigned int n = 0;

	assert_non_null(dir);
	while ((e = readdir(dir)))
		n += e->d_name[0] != '.';
	closedir(dir);
	return n;
}

static void read_file(pid_t pid)
{
	char path[256];
	FILE *file;

	path_of(path, sizeof(path), pid);
	for (int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS); access(path, R_OK);) {
		assert_true(kv_now_ns() < end);
		usleep(1000);
	}
	file = fopen(path, "r");
	assert_non_null(file);
	text[fread(text, 1, TEXT_MAX - 1, file)] = 0;
	fclose(file);
}

static int dial(void)
{
	return scrape_dial(port);
}

static void ask(const char *question)
{
	scrape_ask(port, question, text, TEXT_MAX);
}

static void ask_metrics(void)
{
	scrape_metrics(port, text, TEXT_MAX);
}

static double sum_of(const char *name, const char *word, const char *other)
{
	return scrape_sum(text, name, word, other);
}

static unsigned int times(const char *word)
{
	unsigned int n = 0;

	for (const char *at = text; (at = strstr(at, word)); at++)
		n++;
	return n;
}

static int with_metrics(void **state)
{
	setenv("KVCACHE_METRICS_DIR", folder, 1);
	setenv("KVCACHE_METRICS_PORT", port_text, 1);
	return 0;
}

static int without(void **state)
{
	unsetenv("KVCACHE_METRICS_DIR");
	unsetenv("KVCACHE_METRICS_PORT");
	return 0;
}

static void write_blocks(void)
{
	struct kv_error err;

	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &err), &err);
}

/* ---------------------------------------------------------------- the tests */

CASE_WITH(the_metrics_say_what_kv_stats_says, with_metrics, without)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_stats a = KV_INIT(kv_stats), b = KV_INIT(kv_stats);
	struct kv_error err;

	pair_open(&p, NULL, NULL);
	for (int i = 0; i < WRITES; i++)
		write_blocks();
	opts.timeout_ms = 1;
	assert_int_equal(kv_send_blocks(p.a.peer, p.a.cache, all_layers, from, N, 7, &opts, &err),
			 KV_ERR_TIMEOUT); /* nobody opens blocks under this tag */
	await_stat(&p.a, in_flight, 0);
	ok(kv_stats(p.a.engine, &a, &err), &err);
	ok(kv_stats(p.b.engine, &b, &err), &err);
	ask_metrics();
	assert_int_equal(sum_of("kvrail_operations_total", "kind=\"write\"", "result=\"OK\""),
			 a.ok);
	assert_int_equal(sum_of("kvrail_operations_total", "kind=\"send\"", "result=\"TIMEOUT\""),
			 a.failed);
	assert_int_equal(sum_of("kvrail_bytes_total", "direction=\"out\"", "transport=\"shm\""),
			 a.bytes_out);
	assert_int_equal(sum_of("kvrail_bytes_total", "direction=\"in\"", "transport=\"shm\""),
			 b.bytes_in);
	assert_int_equal(sum_of("kvrail_blocks_total", "direction=\"in\"", ""), b.blocks_in);
	assert_int_equal(sum_of("kvrail_blocks_total", "transport=\"tcp\"", ""), 0);
	assert_int_equal(sum_of("kvrail_arrivals_waiting", "", ""), b.arrivals_waiting);
	assert_int_equal(sum_of("kvrail_peers", "", ""), 2);
	assert_int_equal(sum_of("kvrail_pool_bytes", "", ""), p.a.len + p.b.len);
	/* One operation, one sample; what lasted takes time. */
	assert_int_equal(sum_of("kvrail_operation_seconds_count", "kind=\"write\"", ""), a.ok);
	assert_int_equal(sum_of("kvrail_operation_ack_seconds_count", "kind=\"write\"", ""), a.ok);
	assert_int_equal(sum_of("kvrail_operation_seconds_bucket", "kind=\"write\"", "+Inf"), a.ok);
	assert_true(sum_of("kvrail_operation_seconds_sum", "kind=\"write\"", "") >=
		    sum_of("kvrail_operation_first_byte_seconds_sum", "kind=\"write\"", ""));
	/* Two engines, one set of families. */
	assert_int_equal(times("# TYPE kvrail_bytes_total counter\n"), 1);
	assert_int_equal(times("kvrail_build_info{"), 2);
	pair_close(&p);
}

static struct kv_peer *connect_to(struct node *node)
{
	struct kv_peer *before = p.a.peer, *peer;

	node_connect(&p.a, node->port);
	peer = p.a.peer;
	p.a.peer = before;
	return peer;
}

static void write_to(struct kv_peer *peer, int n)
{
	struct kv_error err;

	for (int i = 0; i < n; i++)
		ok(kv_write_blocks(peer, p.a.cache, all_layers, from, to, N, NULL, &err), &err);
}

CASE_WITH(a_peer_has_histograms_of_its_own_and_leaves_them_to_the_sum, with_metrics, without)
{
	struct kv_error err;
	struct kv_peer *second;
	struct node c;

	pair_open(&p, NULL, NULL);
	node_open(&c, 3, NULL, NULL);
	node_listen(&c);
	second = connect_to(&c);
	write_to(p.a.peer, WRITES);
	write_to(second, 5);
	ask_metrics();
	assert_int_equal(sum_of("kvrail_operation_seconds_count", "kind=\"write\"", ""),
			 WRITES + 5);
	/* All have the process's name; what has not been has no line. */
	assert_int_equal(sum_of("kvrail_peer_operation_seconds_count", "index=\"0\"", "write"),
			 WRITES);
	assert_int_equal(sum_of("kvrail_peer_operation_ack_seconds_count", "index=\"1\"", ""), 5);
	assert_int_equal(
		sum_of("kvrail_peer_operation_first_byte_seconds_bucket", "index=\"1\"", "+Inf"),
		5);
	assert_int_equal(times("kvrail_peer_operation_seconds_count{"), 2);
	ok(kv_peer_close(second, RIG_TIMEOUT_MS, &err), &err);
	ask_metrics();
	assert_int_equal(sum_of("kvrail_operation_seconds_count", "kind=\"write\"", ""),
			 WRITES + 5);
	assert_int_equal(sum_of("kvrail_peer_operation_seconds_count", "", ""), WRITES);
	/* The next one at its place begins anew. */
	second = connect_to(&c);
	write_to(second, 1);
	ask_metrics();
	assert_int_equal(sum_of("kvrail_peer_operation_seconds_count", "index=\"1\"", ""), 1);
	assert_int_equal(sum_of("kvrail_operation_seconds_count", "kind=\"write\"", ""),
			 WRITES + 6);
	node_close(&c);
	pair_close(&p);
}

CASE_WITH(so_many_peers_as_the_option_says_have_lines_of_their_own, with_metrics, without)
{
	struct node c;

	for (int n = 0; n <= 2; n++) {
		char of[8];

		snprintf(of, sizeof(of), "%d", n);
		setenv("KVCACHE_METRICS_PEERS", of, 1);
		pair_open(&p, NULL, NULL);
		node_open(&c, 3, NULL, NULL);
		node_listen(&c);
		write_to(connect_to(&c), 1);
		write_to(p.a.peer, 1);
		ask_metrics();
		assert_int_equal(times("kvrail_peer_operation_seconds_count{"), n);
		assert_int_equal(sum_of("kvrail_operation_seconds_count", "kind=\"write\"", ""), 2);
		node_close(&c);
		pair_close(&p);
	}
	unsetenv("KVCACHE_METRICS_PEERS");
}

struct scraper {
	pthread_t thread;
	atomic_bool stops;
	char *text;
	double seen;
	bool fell;
};

static void *scrape_on(void *arg)
{
	struct scraper *s = arg;

	while (!atomic_load(&s->stops)) {
		double n;

		scrape_metrics(port, s->text, TEXT_MAX);
		n = scrape_sum(s->text, "kvrail_operation_seconds_count", "kind=\"write\"", "");
		s->fell |= n < s->seen;
		s->seen = n;
	}
	return NULL;
}

CASE_WITH(no_sum_falls_while_peers_come_and_go, with_metrics, without)
{
	struct scraper s = { .text = malloc(TEXT_MAX) };
	enum { PEERS = 50 };
	struct kv_error err;

	assert_non_null(s.text);
	pair_open(&p, NULL, NULL);
	assert_int_equal(pthread_create(&s.thread, NULL, scrape_on, &s), 0);
	for (int i = 0; i < PEERS; i++) {
		struct kv_peer *peer = connect_to(&p.b);

		write_to(peer, 2);
		ok(kv_peer_close(peer, RIG_TIMEOUT_MS, &err), &err);
	}
	atomic_store(&s.stops, true);
	pthread_join(s.thread, NULL);
	assert_false(s.fell);
	ask_metrics();
	assert_int_equal(sum_of("kvrail_operation_seconds_count", "kind=\"write\"", ""), 2 * PEERS);
	pair_close(&p);
	free(s.text);
}

/* Reads count where they end: this test's own table is what was asked for and came. */
CASE_WITH(reads_are_counted_where_they_were_asked_for, with_metrics, without)
{
	uint64_t per_block = 0, bytes = 0, blocks = 0;
	struct kv_error err;

	pair_open(&p, NULL, NULL);
	for (int i = 0; i < RIG_TENSORS; i++)
		per_block += rig_shape.block_bytes[i];
	write_blocks();
	for (size_t n = 1; n <= N; n++) {
		struct kv_layers layers = { .first = 1, .count = (uint32_t)n };

		ok(kv_read_blocks(p.a.peer, p.a.cache, layers, to, from, n, NULL, &err), &err);
		blocks += n;
		bytes += n * n * per_block;
	}
	assert_int_equal(kv_read_blocks(p.a.peer, p.a.cache, all_layers, to, (int64_t[]){ -1 }, 1,
					NULL, &err),
			 KV_ERR_BLOCK_ID); /* no byte of it */
	ask_metrics();
	assert_int_equal(sum_of("kvrail_bytes_total", "direction=\"read\"", "transport=\"shm\""),
			 bytes);
	assert_int_equal(sum_of("kvrail_blocks_total", "direction=\"read\"", ""), blocks);
	assert_int_equal(sum_of("kvrail_bytes_total", "direction=\"out\"", ""),
			 N * RIG_LAYERS * per_block);
	assert_int_equal(sum_of("kvrail_bytes_total", "direction=\"in\"", ""),
			 N * RIG_LAYERS * per_block);
	pair_close(&p);
}

CASE_WITH(a_lost_peer_is_counted_by_its_cause, with_metrics, without)
{
	struct kv_arrival arrival;

	pair_open(&p, NULL, NULL);
	node_close(&p.b);
	assert_true(await_kind(&p.a, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
	ask_metrics();
	assert_int_equal(sum_of("kvrail_peers_lost_total", "cause=\"CLOSED\"", ""), 1);
	assert_int_equal(sum_of("kvrail_peers_lost_total", "cause=\"PEER_LOST\"", ""), 0);
	assert_int_equal(sum_of("kvrail_peers", "", ""), 0);
	node_close(&p.a);
}

CASE_WITH(the_file_is_there_as_long_as_an_engine, with_metrics, without)
{
	pair_open(&p, NULL, NULL);
	read_file(getpid());
	assert_int_equal(times("# TYPE kvrail_operations_total counter\n"), 1);
	assert_int_equal(text[strlen(text) - 1], '\n');
	node_close(&p.b);
	read_file(getpid());
	node_close(&p.a);
	assert_int_equal(files(), 0);
}

CASE_WITH(nonsense_at_the_port_costs_nobody_anything, with_metrics, without)
{
	char question[8192];
	int slow, gone;

	pair_open(&p, NULL, NULL);
	ask("GET /secret HTTP/1.1\r\n\r\n");
	assert_int_equal(strncmp(text, "HTTP/1.0 404 ", 13), 0);
	ask("\r\n\r\n");
	assert_int_equal(strncmp(text, "HTTP/1.0 404 ", 13), 0);
	memset(question, 'x', sizeof(question));
	gone = dial();
	assert_true(send(gone, question, sizeof(question), MSG_NOSIGNAL) > 0);
	close(gone);
	slow = dial(); /* and says nothing: the next one waits for a second */
	ask_metrics();
	write_blocks();
	close(slow);
	pair_close(&p);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* no engine in a child there */
CASE_WITH(a_forked_child_has_metrics_of_its_own, with_metrics, without)
{
	struct node parent, child;
	int status;
	pid_t pid;

	node_open(&parent, 1, NULL, NULL);
	ask_metrics();
	pid = fork();
	if (!pid) {
		unsetenv("KVCACHE_METRICS_PORT"); /* it is the parent's */
		node_open(&child, 2, NULL, NULL);
		read_file(getpid());
		if (times("kvrail_build_info{") != 1)
			_exit(1);
		node_close(&child);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	ask_metrics();
	assert_int_equal(files(), 1);
	node_close(&parent);
}
#endif

CASE_WITH(what_cannot_be_had_is_a_warning, with_metrics, without)
{
	int holder;

	setenv("KVCACHE_METRICS_DIR", "/nowhere/at/all", 1);
	unsetenv("KVCACHE_METRICS_PORT");
	pair_open(&p, NULL, NULL);
	write_blocks();
	pair_close(&p);
	unsetenv("KVCACHE_METRICS_DIR");
	holder = port_hold(&port);
	assert_int_equal(listen(holder, 1), 0);
	snprintf(port_text, sizeof(port_text), "%u", port);
	setenv("KVCACHE_METRICS_PORT", port_text, 1);
	pair_open(&p, NULL, NULL);
	write_blocks();
	pair_close(&p);
	close(holder);
}

int main(void)
{
	int holder = port_hold(&port), failed;

	if (!mkdtemp(folder))
		return 1;
	snprintf(port_text, sizeof(port_text), "%u", port);
	failed = run_cases(NULL, NULL);
	close(holder);
	rmdir(folder);
	return failed;
}
