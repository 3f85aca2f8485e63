/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_look_test.c -- kvrail dump and kvrail top look into a process that NCCL has opened the plugin
 * in: what each request waits for, whether NCCL asks for it at all, which handshake stands still
 *
 *     np_look_test KVRAIL       the program
 */
#include "ask.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "lib/check.h"
#include "lib/process.h"
#include "net_side.h"

extern const ncclNet_v12_t ncclNetPlugin_v12;

enum { LEN = 4096, TAG = 7, OTHER_TAG = 9 };

static struct side open_side(int sock, bool sender)
{
	struct side s = { .net = &ncclNetPlugin_v12, .sock = sock, .sender = sender };

	CHECK(!s.net->init(&s.ctx, 1, &(ncclNetCommConfig_v10_t){ -1 }, side_logger, NULL));
	return s;
}

static struct side open_loop(void)
{
	struct side s = open_side(-1, false);

	PASSES(&s, side_loop(&s, &s.loop));
	PASSES(&s, side_buffer(&s, s.loop.send, LEN, &s.from));
	PASSES(&s, side_buffer(&s, s.loop.recv, LEN, &s.to));
	return s;
}

static void close_loop(struct side *s)
{
	PASSES(s, side_buffer_free(s, s->loop.send, &s->from));
	PASSES(s, side_buffer_free(s, s->loop.recv, &s->to));
	PASSES(s, side_loop_close(s, &s->loop));
	PASSES(s, side_stop(s));
}

static void *send_one(struct side *s, int tag)
{
	void *request;

	PASSES(s, side_isend(s, s->loop.send, s->from.bytes, LEN, tag, s->from.mhandle, &request));
	return request;
}

static void *receive_one(struct side *s, int tag)
{
	void *request;

	PASSES(s, side_irecv1(s, s->loop.recv, &s->to, LEN, tag, &request));
	return request;
}

/* NCCL's progress thread: it asks again and again. */
struct poller {
	struct side *s;
	void *request;
	atomic_bool stops;
	pthread_t thread;
};

static void *poll_on(void *arg)
{
	struct poller *p = arg;
	int done = 0, size;

	while (!atomic_load(&p->stops))
		if (p->s->net->test(p->request, &done, &size) || done)
			abort();
	return NULL;
}

static void poller_start(struct poller *p, struct side *s, void *request)
{
	*p = (struct poller){ .s = s, .request = request };
	assert_int_equal(pthread_create(&p->thread, NULL, poll_on, p), 0);
}

static void poller_stop(struct poller *p)
{
	atomic_store(&p->stops, true);
	pthread_join(p->thread, NULL);
}

/* ---------------------------------------------------------------- the tests */

CASE(a_send_without_a_receive_waits_for_one)
{
	struct side s = open_loop();
	void *send = send_one(&s, TAG), *receive;
	struct poller p;
	char words[64];

	dump("");
	says("nccl device shm, peers_up 2, bytes_out 0, ");
	says("operations_in_flight 1, oldest_ms 0"); /* NCCL has not asked for it yet */
	says("communicator sends, peer 127.0.0.1:");
	says("requests 1, receives_of_the_peer 0, polled no: NCCL's thread has not called");
	says("operation send, waits_for a receive of the peer, tag 7, ");
	says("communicator receives, peer 127.0.0.1:");
	poller_start(&p, &s, send);
	dump_until("operation send, age_ms ");
	dump_until("connection 127.0.0.1:"); /* said by the thread that polls */
	says("transport shm, path ");
	says("operation send, age_ms ");
	snprintf(words, sizeof(words), "top %d --once --json", (int)getpid());
	assert_int_equal(kvrail(words), 0);
	says("\"engine\": \"shm\", \"peers\": 2, ");
	says("\"in_flight\": 1, ");
	poller_stop(&p);
	receive = receive_one(&s, TAG);
	PASSES(&s, side_wait(&s, send, NULL));
	PASSES(&s, side_wait(&s, receive, NULL));
	dump("--json");
	says("\"operations_in_flight\": 0");
	close_loop(&s);
}

CASE(tags_that_differ_are_seen_at_both_ends)
{
	struct side s = open_loop();
	void *receive = receive_one(&s, TAG), *send = NULL;
	struct poller p;

	/* "Not now": the oldest receive of the peer is another one. */
	for (int i = 0; i < 10; i++)
		CHECK(!s.net->isend(s.loop.send, s.from.bytes, LEN, OTHER_TAG, s.from.mhandle, NULL,
				    &send) &&
		      !send);
	poller_start(&p, &s, receive);
	dump_until("operation receive, age_ms ");
	dump_until("connection 127.0.0.1:");
	says("operation receive, age_ms ");
	says("waits_for a send of the peer, tag 7, bytes 4096, parts 1, parts_missing 1");
	says("requests 0, receives_of_the_peer 1, tag_of_the_first 7");
	poller_stop(&p);
	send = send_one(&s, TAG);
	PASSES(&s, side_wait(&s, send, NULL));
	PASSES(&s, side_wait(&s, receive, NULL));
	close_loop(&s);
}

CASE(a_handshake_that_waits_says_at_which_end)
{
	struct side s = open_side(-1, false);
	struct loop l = { .listen = NULL };
	struct handle handle;

	side_handle_init(&handle);
	CHECK(!s.net->listen(s.ctx, 0, handle.bytes, &l.listen));
	CHECK(!s.net->connect(s.ctx, 0, handle.bytes, &l.send, NULL) && !l.send);
	dump("");
	says("connecting 127.0.0.1:");
	says("connect_called_ms_ago ");
	says("handshake waiting for hello");
	says("listener ");
	PASSES(&s, side_join(&s, &l, &handle));
	PASSES(&s, side_loop_close(&s, &l));
	PASSES(&s, side_stop(&s));
}

static void *move_on(void *arg)
{
	struct poller *p = arg;

	while (!atomic_load(&p->stops)) {
		void *receive = receive_one(p->s, TAG), *send = send_one(p->s, TAG);

		PASSES(p->s, side_wait(p->s, send, NULL));
		PASSES(p->s, side_wait(p->s, receive, NULL));
	}
	return NULL;
}

CASE(top_says_how_long_requests_take)
{
	struct side s = open_loop();
	struct poller p = { .s = &s };
	char words[64];

	dump("");
	assert_null(strstr(text, "p99_us")); /* nobody has asked for it */
	assert_int_equal(pthread_create(&p.thread, NULL, move_on, &p), 0);
	snprintf(words, sizeof(words), "top %d --once --json", (int)getpid());
	assert_int_equal(kvrail(words), 0);
	poller_stop(&p);
	says("\"engine\": \"shm\", ");
	assert_true(number_after("\"p99_us\": ") > 0);
	dump("");
	assert_true(number_after("operations_timed ") > 0);
	assert_true(number_after("p99_us ") > 0);
	close_loop(&s);
}

CASE(a_killed_rank_leaves_its_cause)
{
	struct side s;
	void *request;
	int sock[2], done = 0;
	pid_t pid;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		s = open_side(sock[1], false);
		PASSES(&s, side_link(&s, &s.comm));
		side_barrier(&s);
		for (;;)
			pause();
	}
	s = open_side(sock[0], true);
	PASSES(&s, side_link(&s, &s.comm));
	PASSES(&s, side_buffer(&s, s.comm, LEN, &s.b));
	PASSES(&s, side_barrier(&s));
	PASSES(&s, side_isend(&s, s.comm, s.b.bytes, LEN, TAG, s.b.mhandle, &request));
	kill(pid, SIGKILL);
	while (!s.net->test(request, &done, NULL))
		assert_false(done);
	dump("");
	says("last_error KV_ERR_PEER_LOST, ");
	says("failed see last_error");
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	PASSES(&s, side_buffer_free(&s, s.comm, &s.b));
	PASSES(&s, side_unlink(&s, s.comm));
	PASSES(&s, side_stop(&s));
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	ask_program = argv[1];
	setenv("KVCACHE_VIEW", "1", 1);
	setenv("KVCACHE_TRANSPORT", "shm", 1);
	return run_cases(NULL, NULL);
}
