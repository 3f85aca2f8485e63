/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_look_test.c -- kvrail dump and kvrail top look into this process: while its threads hang, and
 * while others knock at its socket
 *
 *     kv_look_test KVRAIL [show]       the program; show: prints an example
 */
#include "loop/kv_rig.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ask.h"
#include "base/clock.h"
#include "kv_engine.h"
#include "lib/bar.h"
#include "lib/process.h"
#include "look.h"

enum { N = 3, OP_MS = 600000, STRANGER = 12345 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[N] = { 5, 6, 9 }, to[N] = { 10, 12, 3 };

static bool shows;

static int sockets_of(pid_t pid, struct look_socket *found)
{
	return look_find(pid, found, 8);
}

/* ---------------------------------------------------------------- processes */

static int receiver(int fd, const void *arg)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct node b;

	config.name = "decode-3";
	node_open(&b, 2, NULL, &config);
	child_listens(fd, &b);
	return child_ends(fd, &b);
}

static int caller(int fd, const void *arg)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct node c;

	config.name = "decode-4";
	node_open(&c, 3, NULL, &config);
	child_connects(fd, &c);
	return child_ends(fd, &c);
}

/* The application's log callback waits for a lock of its own, which nobody gives back. */
static struct {
	pthread_mutex_t lock;
	atomic_bool inside;
} callback = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void hanging_callback(void *arg, int level, const char *line)
{
	if (!strstr(line, "decode-4"))
		return;
	atomic_store(&callback.inside, true);
	pthread_mutex_lock(&callback.lock);
	pthread_mutex_unlock(&callback.lock);
}

static void *write_and_hang(void *arg)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct node *a = arg;
	struct kv_error err;

	opts.timeout_ms = OP_MS;
	ok(kv_write_blocks(a->peer, a->cache, all_layers, from, to, N, &opts, &err), &err);
	return NULL;
}

/* ---------------------------------------------------------------- the tests */

CASE(a_hang_is_explained_while_every_thread_hangs)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct child stopped, late;
	char address[64];
	pthread_t thread;
	uint32_t port;
	struct node a;

	child_start(&stopped, receiver, NULL);
	child_receive(stopped.fd, &port, sizeof(port));
	child_start(&late, caller, NULL);
	config.name = "prefill-0";
	config.log = hanging_callback;
	node_open(&a, 1, NULL, &config);
	node_listen(&a);
	node_connect(&a, port);
	snprintf(address, sizeof(address), "address 127.0.0.1:%u, waits_for the peer's ack", port);
	child_kill(&stopped, SIGSTOP);
	/* One thread waits for the peer that was stopped, the engine's own in the callback. */
	assert_int_equal(pthread_create(&thread, NULL, write_and_hang, &a), 0);
	await_stat(&a, in_flight, 1);
	pthread_mutex_lock(&callback.lock);
	child_send(late.fd, &a.port, sizeof(a.port));
	for (int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS); !atomic_load(&callback.inside);) {
		assert_true(kv_now_ns() < end);
		usleep(1000);
	}
	dump_until("operation write_blocks, stage in flight, ");
	if (shows)
		fputs(text, stdout);
	says("engine prefill-0, ");
	says("name decode-3");
	says(address);
	says("threads_in_log_callback 1");
	says("name decode-4, state up, ");
	says("busy another thread is in a call on it");
	snprintf(address, sizeof(address), "peer process %d, which is stopped, ", stopped.pid);
	says(address);
	assert_int_equal(kvrail("top --once"), 0);
	says("it is stopped: kill -CONT lets it go on");
	dump("--json");
	says("\"waits_for\": \"the peer's acknowledgement\"");
	/* Nothing of the application runs under the engine's lock; a fault of ours might. */
	pthread_mutex_lock(&a.engine->lock);
	dump("");
	says("lock a thread has kept it for ");
	says("operation write_blocks, stage in flight, ");
	says("name decode-3");
	pthread_mutex_unlock(&a.engine->lock);
	pthread_mutex_unlock(&callback.lock);
	child_kill(&stopped, SIGCONT);
	pthread_join(thread, NULL);
	close(late.fd);
	assert_int_equal(child_join(&late), 0);
	close(stopped.fd);
	assert_int_equal(child_join(&stopped), 0);
	node_close(&a);
}

CASE(the_last_error_stays_with_its_cause)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_error err;
	struct pair p;

	pair_open(&p, NULL, NULL);
	opts.timeout_ms = 1;
	assert_int_equal(kv_send_blocks(p.a.peer, p.a.cache, all_layers, from, N, 7, &opts, &err),
			 KV_ERR_TIMEOUT); /* nobody opens blocks under this tag */
	dump("");
	says("last_error KV_ERR_TIMEOUT, ");
	says("last_error_of send_blocks 127.0.0.1:");
	says(err.message);
	says("engine "); /* two of them, in one answer */
	assert_non_null(strstr(strstr(text, "engine ") + 1, "engine "));
	pair_close(&p);
}

CASE(the_socket_goes_with_the_last_engine)
{
	struct look_socket found[8];
	struct node a, b;

	assert_int_equal(sockets_of(getpid(), found), 0);
	node_open(&a, 1, NULL, NULL);
	node_open(&b, 2, NULL, NULL);
	assert_int_equal(sockets_of(getpid(), found), 1);
	node_close(&a);
	dump("");
	node_close(&b);
	assert_int_equal(sockets_of(getpid(), found), 0);
	assert_int_equal(kvrail("dump 1"), 1);
	setenv("KVCACHE_VIEW", "0", 1);
	node_open(&a, 1, NULL, NULL);
	assert_int_equal(sockets_of(getpid(), found), 0);
	node_close(&a);
	setenv("KVCACHE_VIEW", "1", 1);
}

static int dial(void)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	struct look_socket found[8];
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	size_t len;

	assert_int_equal(sockets_of(getpid(), found), 1);
	len = strlen(found[0].name);
	memcpy(at.sun_path + 1, found[0].name, len);
	assert_int_equal(connect(fd, (struct sockaddr *)&at,
				 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len)),
			 0);
	return fd;
}

/* Each costs the thread a second at most, and no descriptor or memory afterwards. */
CASE(a_client_that_is_silent_or_does_not_read_holds_nobody_up)
{
	int silent, deaf, gone, before;
	char nonsense[4096];
	struct bar begun;
	struct pair p;

	memset(nonsense, 'x', sizeof(nonsense));
	pair_open(&p, NULL, NULL);
	dump("");
	before = count_descriptors();
	silent = dial();
	deaf = dial();
	assert_int_equal(send(deaf, "dump\n", 5, MSG_NOSIGNAL), 5);
	gone = dial();
	assert_true(send(gone, nonsense, sizeof(nonsense), MSG_NOSIGNAL) > 0);
	close(gone);
	begun = bar_begin();
	write_and_hang(&p.a); /* the engines notice nothing */
	assert_int_equal(kvrail("top --once --json"), 0);
	assert_true(bar_holds(begun, 5000, "an answer beside those that do not listen"));
	dump("");
	close(silent);
	close(deaf);
	assert_int_equal(count_descriptors(), before);
	pair_close(&p);
}

/* Needs root, to be somebody else. */
CASE(another_user_gets_no_answer)
{
	struct look_socket found[8];
	struct node a;
	int status;
	pid_t pid;

	if (geteuid()) {
		printf("skipped: only root can become another user\n");
		skip();
	}
	node_open(&a, 1, NULL, NULL);
	assert_int_equal(sockets_of(getpid(), found), 1);
	pid = fork();
	if (!pid) {
		const char *why;
		int from_pid;

		if (setresgid(STRANGER, STRANGER, STRANGER) ||
		    setresuid(STRANGER, STRANGER, STRANGER))
			_exit(2);
		for (int i = 0; i < 100; i++) /* and cannot keep the thread busy either */
			if (look_ask(&found[0], "dump\n", &from_pid, &why))
				_exit(1);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	dump("");
	node_close(&a);
}

CASE(a_forked_child_has_no_socket)
{
	struct look_socket found[8];
	struct node a;
	int status;
	pid_t pid;

	node_open(&a, 1, NULL, NULL);
	pid = fork();
	if (!pid)
		_exit(sockets_of(getpid(), found) ? 1 : 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	dump("");
	node_close(&a);
}

/* ---------------------------------------------------------------- the signal */

static struct {
	pthread_mutex_t lock;
	char lines[1 << 16];
} logged = { .lock = PTHREAD_MUTEX_INITIALIZER };
static volatile sig_atomic_t application_handled;

static void keep_line(void *arg, int level, const char *line)
{
	size_t len;

	pthread_mutex_lock(&logged.lock);
	len = strlen(logged.lines);
	snprintf(logged.lines + len, sizeof(logged.lines) - len, "%s\n", line);
	pthread_mutex_unlock(&logged.lock);
}

static bool log_has(const char *word)
{
	bool has;

	pthread_mutex_lock(&logged.lock);
	has = strstr(logged.lines, word);
	pthread_mutex_unlock(&logged.lock);
	return has;
}

static void await_log(const char *word)
{
	for (int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS); !log_has(word);) {
		if (kv_now_ns() > end)
			fail_msg("the log does not say \"%s\":\n%s", word, logged.lines);
		usleep(1000);
	}
}

static void on_signal(int sig)
{
	application_handled++;
}

static void open_with_signal(struct node *a, const char *name)
{
	static const char *const options[] = { "KVCACHE_DUMP_SIGNAL=USR2", "KVCACHE_VIEW=0", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);

	logged.lines[0] = 0;
	config.options = options;
	config.log = keep_line;
	config.name = name;
	node_open(a, 1, NULL, &config);
}

CASE(a_signal_writes_the_dump_to_the_log)
{
	struct sigaction now;
	struct node a, b;

	open_with_signal(&a, "prefill-0");
	kill(getpid(), SIGUSR2);
	await_log("engine prefill-0, version ");
	await_log("operations_in_flight 0");
	open_with_signal(&b, "prefill-1");
	node_close(&a);
	kill(getpid(), SIGUSR2);
	await_log("engine prefill-1, version ");
	assert_false(log_has("engine prefill-0"));
	node_close(&b);
	assert_int_equal(sigaction(SIGUSR2, NULL, &now), 0);
	assert_true(now.sa_handler == SIG_DFL);
}

CASE(a_signal_of_the_application_is_left_to_it)
{
	struct sigaction own = { .sa_handler = on_signal }, now;
	struct node a;

	assert_int_equal(sigaction(SIGUSR2, &own, NULL), 0);
	open_with_signal(&a, "prefill-0");
	await_log("SIGUSR2 is the application's");
	kill(getpid(), SIGUSR2);
	assert_int_equal(application_handled, 1);
	node_close(&a);
	/* Nor is one that it installs later. */
	own.sa_handler = SIG_DFL;
	assert_int_equal(sigaction(SIGUSR2, &own, NULL), 0);
	open_with_signal(&a, "prefill-0");
	own.sa_handler = on_signal;
	assert_int_equal(sigaction(SIGUSR2, &own, NULL), 0);
	node_close(&a);
	assert_int_equal(sigaction(SIGUSR2, NULL, &now), 0);
	assert_true(now.sa_handler == on_signal);
	kill(getpid(), SIGUSR2);
	assert_int_equal(application_handled, 2);
	own.sa_handler = SIG_DFL;
	assert_int_equal(sigaction(SIGUSR2, &own, NULL), 0);
}

/* ---------------------------------------------------------------- top */

static atomic_bool writers_end;

static void *write_on(void *arg)
{
	struct kv_arrival arrival;
	struct pair *p = arg;
	struct kv_error err;

	while (!atomic_load(&writers_end)) {
		ok(kv_write_blocks(p->a.peer, p->a.cache, all_layers, from, to, N, NULL, &err),
		   &err);
		assert_true(next_arrival(&p->b, &arrival, RIG_TIMEOUT_MS));
	}
	return NULL;
}

CASE(top_counts_the_bytes_of_a_second_and_the_time_of_each_peer)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	char words[64];
	pthread_t thread;
	struct pair p;

	config.name = "prefill-0";
	pair_open(&p, NULL, &config);
	atomic_store(&writers_end, false);
	assert_int_equal(pthread_create(&thread, NULL, write_on, &p), 0);
	snprintf(words, sizeof(words), "top %d --once --json", (int)getpid());
	assert_int_equal(kvrail(words), 0);
	/* The first row is the engine that was opened first: the receiver. */
	assert_true(number_after("\"gbytes_in_s\": ") > 0);
	assert_true(number_after("\"peers\": ") == 1);
	assert_non_null(strchr(text, '}'));
	memmove(text, strchr(text, '}'), strlen(strchr(text, '}')) + 1);
	assert_true(number_after("\"gbytes_out_s\": ") > 0);
	assert_true(number_after("\"p99_us\": ") > 0);
	snprintf(words, sizeof(words), "top %d --once", (int)getpid());
	assert_int_equal(kvrail(words), 0);
	says("last error");
	says("prefill-0");
	snprintf(words, sizeof(words), "top %d --once --json --peers", (int)getpid());
	assert_int_equal(kvrail(words), 0);
	/* The receiver has a peer, too, and no operation. */
	says("\"engine\": \"prefill-0\", \"index\": 0, \"peer\": \"prefill-0\", \"state\": \"up\", "
	     "\"operations\": 0, \"p99_us\": 0");
	assert_non_null(strchr(text, '}'));
	memmove(text, strchr(text, '}'), strlen(strchr(text, '}')) + 1);
	assert_true(number_after("\"operations\": ") > 0);
	assert_true(number_after("\"p99_us\": ") > 0);
	snprintf(words, sizeof(words), "top %d --once --peers", (int)getpid());
	assert_int_equal(kvrail(words), 0);
	says("operations");
	dump("");
	assert_true(number_after("operations_timed ") > 0);
	assert_true(number_after("p99_us ") > 0);
	atomic_store(&writers_end, true);
	pthread_join(thread, NULL);
	pair_close(&p);
	assert_int_equal(kvrail(words), 1);
	says("no process with an engine");
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	ask_program = argv[1];
	setenv("KVCACHE_VIEW", "1", 1);
	if (argc > 2 && !strcmp(argv[2], "show")) {
		shows = true;
		cmocka_set_test_filter("a_hang*");
	} else if (argc > 2) {
		cmocka_set_test_filter(argv[2]);
	}
	return run_cases(NULL, NULL);
}
