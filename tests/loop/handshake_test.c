/* SPDX-License-Identifier: Apache-2.0 */
/*
 * handshake_test.c -- the connection state machine: both ends stepped in one thread over loopback
 * TCP, and strangers
 *
 * Loopback: the handshake has no state outside its two connections, so one process shows all of it.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <dlfcn.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/option.h"
#include "lib/key.h"
#include "lib/process.h"
#include "frame.h"
#include "lib/reject.h"
#include "lib/slow.h"
#include "lib/test.h"
#include "tr.h"

#define WAIT_MS slow_ms(20000) /* for what surely comes, on whatever machine */

struct side {
	const char *hello, *setup; /* sent */
	char got_hello[64], got_setup[64];
	int refuse; /* code given to hello_get's caller */
};

static int hello_put(void *arg, struct tr_conn *conn, void *buf, size_t cap)
{
	struct side *s = arg;

	assert_true(cap == TR_HELLO_MAX);
	memcpy(buf, s->hello, strlen(s->hello));
	return (int)strlen(s->hello);
}

static int hello_get(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	struct side *s = arg;

	assert_true(len < sizeof(s->got_hello));
	memcpy(s->got_hello, buf, len);
	s->got_hello[len] = 0;
	if (!s->refuse)
		return 0;
	kv_fail(err, s->refuse, "handshake", "this end does not like \"%s\"", s->got_hello);
	kv_error_hint(err, "be nicer");
	return s->refuse;
}

static int setup_put(void *arg, struct tr_conn *conn, void *buf, size_t cap, struct kv_error *err)
{
	struct side *s = arg;

	assert_true(cap == TR_SETUP_MAX);
	memcpy(buf, s->setup, strlen(s->setup));
	return (int)strlen(s->setup);
}

static int setup_get(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	struct side *s = arg;

	assert_true(len < sizeof(s->got_setup));
	memcpy(s->got_setup, buf, len);
	s->got_setup[len] = 0;
	return 0;
}

static struct tr_upper_ops upper = { TR_UPPER_TEST, 1,	       hello_put, hello_get,
				     setup_put,	    setup_get, NULL };
static struct tr_upper_ops upper_v2 = { TR_UPPER_TEST, 2,	  hello_put, hello_get,
					setup_put,     setup_get, NULL };
static struct tr_upper_ops upper_other = { TR_UPPER_NCCL, 1,	     hello_put, hello_get,
					   setup_put,	  setup_get, NULL };

static struct tr_upper_ops upper_bare = {
	TR_UPPER_TEST, 1, hello_put, hello_get, NULL, NULL, NULL
};

static struct kv_option_set *options;
static struct tr *tr;
static struct tr_listener *listener;
static struct tr_conn *calling; /* is to send its hello, or accept waits in vain */

static void open_with(const char *const *settings)
{
	struct kv_error err;

	assert_int_equal(kv_option_read(settings, &options, NULL), 0);
	assert_int_equal(tr_open(&(struct tr_config){ .options = options }, &tr, &err), 0);
	assert_int_equal(tr_listen(tr, NULL, 0, &listener, &err), 0);
}

static int open_all(void **state)
{
	open_with(NULL);
	return 0;
}

static int close_all(void **state)
{
	tr_listener_close(listener);
	tr_close(tr);
	kv_option_free(options);
	return 0;
}

static void open_again(const char *setting)
{
	const char *const settings[] = { setting, NULL };

	close_all(NULL);
	open_with(settings);
}

static struct tr_conn *accept_within(struct side *side, int64_t handshake_ms,
				     const struct tr_upper_ops *ops)
{
	struct tr_conn_config config = { .ops = ops, .arg = side, .handshake_ms = handshake_ms };
	int64_t deadline = kv_deadline_ns(WAIT_MS);
	struct tr_conn *conn = NULL;
	struct kv_error err;

	while (tr_accept(listener, &config, &conn, &err) == TR_AGAIN) {
		if (calling)
			assert_int_equal(tr_conn_step(calling, &err), TR_AGAIN);
		assert_true(kv_now_ns() < deadline);
	}
	calling = NULL;
	return conn;
}

static struct tr_conn *connect_to_listener(struct side *side, const struct tr_upper_ops *ops)
{
	struct tr_conn_config config = { .ops = ops, .arg = side };
	struct tr_conn *conn;

	assert_int_equal(tr_connect(tr, NULL, tr_listener_port(listener), &config, &conn, NULL), 0);
	calling = conn;
	return conn;
}

/* Steps both ends until neither wants to go on; the results are TR_AGAIN only if WAIT_MS passed. */
static void step_both(struct tr_conn *a, struct tr_conn *b, int *a_ret, int *b_ret,
		      struct kv_error *a_err, struct kv_error *b_err)
{
	int64_t deadline = kv_deadline_ns(WAIT_MS);

	*a_ret = *b_ret = TR_AGAIN;
	while ((*a_ret == TR_AGAIN || *b_ret == TR_AGAIN) && kv_now_ns() < deadline) {
		if (a && *a_ret == TR_AGAIN)
			*a_ret = tr_conn_step(a, a_err);
		if (b && *b_ret == TR_AGAIN)
			*b_ret = tr_conn_step(b, b_err);
		if (!a || !b)
			break;
	}
}

static int step_until(struct tr_conn *conn, int64_t ms, struct kv_error *err)
{
	int64_t deadline = kv_deadline_ns(ms);
	int ret;

	while ((ret = tr_conn_step(conn, err)) == TR_AGAIN && kv_now_ns() < deadline)
		tr_conn_wait(conn, 5);
	return ret;
}

static int raw_socket(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)tr_listener_port(listener)),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	return fd;
}

/* ---------------------------------------------------------------- two honest ends */

CASE(both_ends_learn_hello_and_setup)
{
	struct side c = { .hello = "from c", .setup = "setup c" },
		    s = { .hello = "from s", .setup = "setup s" };
	struct kv_error c_err, s_err;
	struct tr_conn *a = connect_to_listener(&c, &upper), *b = accept_within(&s, 0, &upper);
	int a_ret, b_ret;

	step_both(a, b, &a_ret, &b_ret, &c_err, &s_err);
	assert_int_equal(a_ret, 0);
	assert_int_equal(b_ret, 0);
	assert_string_equal(s.got_hello, "from c");
	assert_string_equal(c.got_hello, "from s");
	assert_string_equal(s.got_setup, "setup c");
	assert_string_equal(c.got_setup, "setup s");
	assert_memory_equal(tr_conn_incarnation(a), tr_incarnation(tr), 16);
	assert_string_equal(tr_conn_transport(a), tr_conn_transport(b));
	tr_conn_close(a);
	tr_conn_close(b);
}

CASE(a_setup_where_none_belongs_is_refused)
{
	struct side c = { .hello = "x", .setup = "setup c" }, s = { .hello = "y" };
	const struct tr_upper_ops *ops[] = { &upper_bare, &upper };
	struct kv_error c_err, s_err;
	int a_ret, b_ret;

	for (int i = 0; i < 2; i++) {
		struct tr_conn *a = connect_to_listener(&c, ops[i]);
		struct tr_conn *b = accept_within(&s, 0, &upper_bare);

		step_both(a, b, &a_ret, &b_ret, &c_err, &s_err);
		assert_int_equal(a_ret, i ? KV_ERR_PROTOCOL : 0);
		assert_int_equal(b_ret, i ? KV_ERR_PROTOCOL : 0);
		tr_conn_close(a);
		tr_conn_close(b);
	}
}

CASE(a_refusal_reaches_the_other_end_with_its_cause)
{
	struct side c = { .hello = "x" }, s = { .hello = "y", .refuse = KV_ERR_GEOMETRY };
	struct kv_error c_err, s_err;
	struct tr_conn *a = connect_to_listener(&c, &upper), *b = accept_within(&s, 0, &upper);
	int a_ret, b_ret;

	step_both(a, b, &a_ret, &b_ret, &c_err, &s_err);
	assert_int_equal(b_ret, KV_ERR_GEOMETRY);
	assert_int_equal(a_ret, KV_ERR_GEOMETRY);
	assert_non_null(strstr(c_err.message, "does not like \"x\""));
	assert_string_equal(c_err.hint, "be nicer");
	assert_int_equal(tr_conn_step(a, &c_err),
			 KV_ERR_GEOMETRY); /* it stays failed, with its cause */
	tr_conn_close(a);
	tr_conn_close(b);

	s.refuse = 0;
	c.refuse = KV_ERR_GEOMETRY; /* the connecting end refuses */
	a = connect_to_listener(&c, &upper);
	b = accept_within(&s, 0, &upper);
	step_both(a, b, &a_ret, &b_ret, &c_err, &s_err);
	assert_int_equal(a_ret, KV_ERR_GEOMETRY);
	assert_int_equal(b_ret, KV_ERR_GEOMETRY);
	tr_conn_close(a);
	tr_conn_close(b);
}

static const struct kv_error give_up = {
	.code = KV_ERR_TIMEOUT,
	.message = "it took longer than ever",
	.hint = "be quicker",
};

/* Polls until the connection is lost; its cause. */
static struct kv_error await_loss(struct tr_conn *conn)
{
	int64_t deadline = kv_deadline_ns(WAIT_MS);
	struct tr_event event;

	while (tr_poll(conn, &event, 1) != 1)
		assert_true(kv_now_ns() < deadline);
	assert_int_equal(event.kind, TR_PEER_LOST);
	assert_int_equal(event.status, event.cause->code);
	return *event.cause;
}

/* The connecting end is through, and its last frame is not read any more. */
static void refuse_after_the_last_frame(bool gone)
{
	struct side c = { .hello = "x", .setup = "" }, s = { .hello = "y", .setup = "" };
	struct tr_conn *a = connect_to_listener(&c, &upper), *b = accept_within(&s, 0, &upper);
	int64_t deadline = kv_deadline_ns(WAIT_MS);
	struct kv_error err;
	int ret = TR_AGAIN;

	while (ret == TR_AGAIN) {
		if (strcmp(tr_conn_stage(b), "waiting for ready"))
			assert_int_equal(tr_conn_step(b, &err), TR_AGAIN);
		ret = tr_conn_step(a, &err);
		assert_true(kv_now_ns() < deadline);
	}
	assert_int_equal(ret, 0);
	tr_conn_refuse(b, &give_up);
	if (gone) /* what moves the bytes may show it first */
		tr_conn_close(b);
	err = await_loss(a);
	assert_int_equal(err.code, KV_ERR_PEER_LOST);
	assert_non_null(strstr(err.message, "refused: KV_ERR_TIMEOUT: it took longer than ever"));
	assert_string_equal(err.hint, give_up.hint);
	tr_conn_close(a);
	if (!gone)
		tr_conn_close(b);
}

CASE(a_refusal_that_crosses_the_last_frame_is_the_cause_of_the_loss)
{
	char path[] = "/tmp/kvrail-key-XXXXXX", file[64];
	const char *const settings[] = { "KVCACHE_TRANSPORT=shm", "KVCACHE_TRANSPORT=tcp", file };

	close(mkstemp(path));
	write_key(path, KEY_A, 0600);
	snprintf(file, sizeof(file), "KVCACHE_PSK_FILE=%s", path);
	for (int i = 0; i < 3; i++) {
		open_again(settings[i]);
		refuse_after_the_last_frame(false);
		refuse_after_the_last_frame(true);
	}
	open_again(NULL);
	unlink(path);
}

/* The other end has given up while this one was about to answer. */
static void refuse_before_an_answer(bool gone)
{
	struct side c = { .hello = "x", .setup = "" }, s = { .hello = "y", .setup = "" };
	struct tr_conn *a = connect_to_listener(&c, &upper), *b = accept_within(&s, 0, &upper);
	int64_t deadline = kv_deadline_ns(WAIT_MS);
	struct kv_error err;
	int ret;

	while (strcmp(tr_conn_stage(b), "waiting for setup")) {
		assert_int_equal(tr_conn_step(b, &err), TR_AGAIN);
		assert_true(kv_now_ns() < deadline);
	}
	tr_conn_refuse(b, &give_up);
	if (gone)
		tr_conn_close(b);
	while ((ret = tr_conn_step(a, &err)) == TR_AGAIN)
		assert_true(kv_now_ns() < deadline);
	assert_int_equal(ret, KV_ERR_TIMEOUT);
	assert_non_null(strstr(err.message, "refused: it took longer than ever"));
	assert_string_equal(err.hint, give_up.hint);
	tr_conn_close(a);
	if (!gone)
		tr_conn_close(b);
}

CASE(a_refusal_is_the_cause_where_the_other_end_is_not_reached_any_more)
{
	open_again("KVCACHE_TRANSPORT=tcp");
	refuse_before_an_answer(true); /* its data sockets are gone */
	open_again("KVCACHE_TRANSPORT=shm");
	refuse_before_an_answer(true); /* its local socket */
#ifdef KVRAIL_FAULTS
	kv_fault_arm(KV_FAULT_TR_CONN_SEND, 3); /* after the two hellos */
	refuse_before_an_answer(false);
	assert_true(kv_fault_fired(KV_FAULT_TR_CONN_SEND));
#endif
	open_again(NULL);
}

CASE(other_protocols_and_versions_are_named)
{
	struct side c = { .hello = "x" }, s = { .hello = "y" };
	struct kv_error c_err, s_err;
	int a_ret, b_ret;
	struct tr_conn *a = connect_to_listener(&c, &upper_v2), *b = accept_within(&s, 0, &upper);

	step_both(a, b, &a_ret, &b_ret, &c_err, &s_err);
	assert_int_equal(a_ret, KV_ERR_VERSION);
	assert_int_equal(b_ret, KV_ERR_VERSION);
	assert_non_null(strstr(s_err.message, "version 2"));
	assert_non_null(strstr(s_err.message, "this end 1"));
	tr_conn_close(a);
	tr_conn_close(b);
	a = connect_to_listener(&c, &upper_other);
	b = accept_within(&s, 0, &upper);
	step_both(a, b, &a_ret, &b_ret, &c_err, &s_err);
	assert_int_equal(b_ret, KV_ERR_PROTOCOL);
	tr_conn_close(a);
	tr_conn_close(b);
}

CASE(waiting_for_an_accept_has_no_deadline)
{
	struct side c = { .hello = "x", .setup = "" }, s = { .hello = "y", .setup = "" };
	struct tr_conn_config config = { .ops = &upper, .arg = &c, .handshake_ms = slow_ms(1000) };
	struct kv_error c_err, s_err;
	struct tr_conn *a, *b;
	int a_ret, b_ret;

	assert_int_equal(tr_connect(tr, NULL, tr_listener_port(listener), &config, &a, NULL), 0);
	assert_int_equal(step_until(a, slow_ms(1200), &c_err), TR_AGAIN);
	calling = a;
	assert_true(tr_conn_deadline(a) == INT64_MAX);
	b = accept_within(&s, 0, &upper);
	step_both(a, b, &a_ret, &b_ret, &c_err, &s_err);
	assert_int_equal(a_ret, 0);
	assert_int_equal(b_ret, 0);
	tr_conn_close(a);
	tr_conn_close(b);
}

/* Connects to `host`, where `l` listens, and back to the beginning. */
static void meets(struct tr_listener *l, const char *host)
{
	struct side c = { .hello = "from c", .setup = "" }, s = { .hello = "from s", .setup = "" };
	struct tr_conn_config to = { .ops = &upper, .arg = &c },
			      from = { .ops = &upper, .arg = &s };
	int64_t deadline = kv_deadline_ns(WAIT_MS);
	struct kv_error c_err, s_err;
	struct tr_conn *a, *b = NULL;
	int a_ret, b_ret;

	assert_int_equal(tr_connect(tr, host, tr_listener_port(l), &to, &a, &c_err), 0);
	while (tr_accept(l, &from, &b, &s_err) == TR_AGAIN && kv_now_ns() < deadline)
		assert_int_equal(tr_conn_step(a, &c_err), TR_AGAIN);
	assert_non_null(b);
	step_both(a, b, &a_ret, &b_ret, &c_err, &s_err);
	assert_int_equal(a_ret, 0);
	assert_int_equal(b_ret, 0);
	tr_conn_close(a);
	tr_conn_close(b);
}

static bool has_ipv6(void)
{
	struct sockaddr_in6 sa = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool has = fd >= 0 && !bind(fd, (struct sockaddr *)&sa, sizeof(sa));

	close(fd);
	return has;
}

/* The host's names, and one that is ::1 first and then 127.0.0.1, as Debian's localhost. */
int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
		struct addrinfo **list_p)
{
	static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
	struct addrinfo **end = list_p;
	int ret;

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
	if (strcmp(host, "both.test"))
		return real(host, service, hints, list_p);
	ret = real("::1", service, hints, list_p);
	while (!ret && *end)
		end = &(*end)->ai_next;
	return ret ? ret : real("127.0.0.1", service, hints, end);
}

CASE(every_address_of_a_name_is_tried_and_listened_to)
{
	struct tr_listener *name;
	struct kv_error err;

	meets(listener, "both.test"); /* nothing listens at its first address */
	assert_int_equal(tr_listen(tr, "both.test", 0, &name, &err), 0);
	meets(name, "both.test");
	meets(name, "127.0.0.1");
	if (has_ipv6())
		meets(name, "::1");
	tr_listener_close(name);
}

CASE(a_closed_port_is_reported_at_once)
{
	struct side c = { .hello = "x" };
	struct tr_conn_config config = { .ops = &upper, .arg = &c };
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);
	int ret, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct kv_error err;
	struct tr_conn *a;

	/* Bound, so that nobody else is given the port. */
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, len), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
	ret = tr_connect(tr, "127.0.0.1", ntohs(sa.sin_port), &config, &a, &err);
	if (!ret) {
		ret = step_until(a, WAIT_MS, &err);
		tr_conn_close(a);
	}
	close(fd);
	assert_int_equal(ret, KV_ERR_PEER_LOST);
	assert_int_equal(err.sys_errno, ECONNREFUSED);
	assert_true(err.hint[0] != 0);
	/* And one that the kernel refuses in the call: TCP does not go to a group. */
	assert_int_equal(tr_connect(tr, "224.0.0.1", 7, &config, &a, &err), KV_ERR_PEER_LOST);
	assert_int_equal(err.sys_errno, ENETUNREACH);
	assert_string_equal(err.peer, "224.0.0.1:7");
}

CASE(bad_addresses_are_argument_errors)
{
	struct side c = { .hello = "x" };
	struct tr_conn_config config = { .ops = &upper, .arg = &c };
	int64_t deadline = kv_deadline_ns(WAIT_MS);
	struct tr_listener *other;
	struct kv_error err;
	struct tr_conn *a;
	int ret;

	assert_int_equal(tr_connect(tr, NULL, 0, &config, &a, &err), KV_ERR_ARG);
	assert_int_equal(tr_connect(tr, NULL, 65536, &config, &a, &err), KV_ERR_ARG);
	/* A name is asked for beside the caller. */
	assert_int_equal(tr_connect(tr, "no such host!", 1, &config, &a, &err), 0);
	while ((ret = tr_conn_step(a, &err)) == TR_AGAIN && kv_now_ns() < deadline)
		poll(NULL, 0, 1);
	assert_int_equal(ret, KV_ERR_ARG);
	tr_conn_close(a);
	assert_int_equal(tr_listen(tr, "no such host!", 0, &other, &err), KV_ERR_ARG);
	assert_int_equal(tr_listen(tr, NULL, 65536, &other, &err), KV_ERR_ARG);
	assert_int_equal(tr_listen(tr, NULL, tr_listener_port(listener), &other, &err),
			 KV_ERR_BUSY);
	assert_int_equal(err.sys_errno, EADDRINUSE);
}

/* ---------------------------------------------------------------- strangers */

/* What the listener sends away by itself; nobody is accepted meanwhile. */
static struct tr_refused await_refusal(int64_t handshake_ms)
{
	struct tr_conn_config config = { .ops = &upper, .handshake_ms = handshake_ms };
	int64_t deadline = kv_deadline_ns(WAIT_MS);
	struct tr_refused refused;
	struct tr_conn *conn;
	struct kv_error err;

	do {
		assert_int_equal(tr_accept(listener, &config, &conn, &err), TR_AGAIN);
		tr_listener_refused(listener, &refused);
		assert_true(kv_now_ns() < deadline);
	} while (!refused.garbage && !refused.timeout && !refused.limit);
	return refused;
}

static void refuse_bytes(const void *bytes, size_t len)
{
	struct tr_refused refused;
	uint8_t back;
	int before, fd;

	before = count_descriptors();
	fd = raw_socket();
	assert_true(send(fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT) > 0);
	refused = await_refusal(0);
	assert_int_equal(refused.garbage, 1);
	assert_int_equal(refused.timeout + refused.limit, 0);
	assert_true(recv(fd, &back, 1, 0) <= 0); /* closed without an answer */
	close(fd);
	/* Fewer where a resolver's thread of the test before has closed its own meanwhile. */
	assert_true(count_descriptors() <= before);
}

CASE(garbage_costs_nothing_and_gets_no_answer)
{
	static const uint8_t tls[] = { 0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3 };
	uint8_t *noise = malloc(100 * 1024);

	for (size_t i = 0; i < 100 * 1024; i++)
		noise[i] = (uint8_t)(i * 2654435761u >> 13);
	refuse_bytes("GET / HTTP/1.1\r\nHost: kv\r\n\r\n", 28);
	refuse_bytes(tls, sizeof(tls));
	refuse_bytes(noise, 100 * 1024);
	refuse_bytes("K!", 2);
	free(noise);
}

CASE(another_major_version_is_answered_with_ours)
{
	uint8_t bytes[FRAME_HEADER], back[FRAME_HEADER + FRAME_REJECT_MAX];
	struct side s = { .hello = "y" };
	struct frame_header h;
	struct frame_reject reject;
	struct kv_error err;
	struct tr_conn *b;
	int fd = raw_socket();
	ssize_t n;

	frame_put_header(bytes, FRAME_HELLO, 40);
	bytes[4] = 9;
	assert_int_equal(send(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
	b = accept_within(&s, 0, &upper);
	assert_int_equal(step_until(b, WAIT_MS, &err), KV_ERR_VERSION);
	assert_non_null(strstr(err.message, "version 9.0, this end 1.0"));
	tr_conn_close(b);
	n = recv(fd, back, sizeof(back), MSG_WAITALL);
	assert_true(n > FRAME_HEADER);
	assert_int_equal(frame_get_header(back, &h), 0);
	assert_int_equal(h.type, FRAME_REJECT);
	assert_int_equal(frame_get_reject(back + FRAME_HEADER, h.len, &reject), 0);
	assert_int_equal(reject.code, KV_ERR_VERSION);
	close(fd);
}

CASE(frames_out_of_order_and_oversized_are_refused)
{
	static const struct {
		enum frame_type type;
		uint32_t len;
	} bad[] = { { FRAME_SETUP, 100 },
		    { FRAME_READY, 0 },
		    { FRAME_HELLO, FRAME_HELLO_MAX },
		    { FRAME_SETUP, FRAME_SETUP_MAX } };

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct side s = { .hello = "y" };
		uint8_t bytes[FRAME_HEADER];
		struct kv_error err;
		struct tr_conn *b;
		int fd = raw_socket();

		frame_put_header(bytes, bad[i].type, bad[i].len);
		assert_int_equal(send(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
		b = accept_within(&s, 0, &upper);
		assert_int_equal(step_until(b, WAIT_MS, &err), KV_ERR_PROTOCOL);
		tr_conn_close(b);
		close(fd);
	}
}

CASE(silence_and_single_bytes_end_at_the_total_deadline)
{
	struct tr_conn_config config = { .ops = &upper, .handshake_ms = slow_ms(150) };
	uint8_t bytes[FRAME_HEADER];
	struct tr_refused refused = { 0 };
	struct kv_error err;
	struct tr_conn *b;
	int64_t start = kv_now_ns();
	int fd = raw_socket();

	assert_int_equal(await_refusal(slow_ms(150)).timeout, 1);
	assert_in_range((kv_now_ns() - start) / KV_NS_PER_MS, slow_ms(100), slow_ms(5000));
	assert_int_equal(recv(fd, bytes, 1, 0), 0); /* no answer to nothing */
	close(fd);

	fd = raw_socket();
	frame_put_header(bytes, FRAME_HELLO, 40);
	for (size_t sent = 0; sent < sizeof(bytes) && !refused.timeout; sent++) {
		send(fd, &bytes[sent], 1, MSG_NOSIGNAL);
		poll(NULL, 0, (int)slow_ms(20));
		assert_int_equal(tr_accept(listener, &config, &b, &err), TR_AGAIN);
		tr_listener_refused(listener, &refused);
	}
	assert_int_equal(refused.timeout, 1); /* each byte came in time, all of them did not */
	assert_int_equal(code_of_reject(fd), KV_ERR_TIMEOUT);
	close(fd);
}

/* After the hello, too: a peer that was accepted cannot stretch its deadline byte by byte. */
CASE(single_bytes_of_a_later_frame_end_at_the_total_deadline)
{
	enum { GAPS = 5 }; /* bytes that fit into the deadline */
	int64_t deadline_ms = slow_ms(250), end;
	uint8_t buf[FRAME_HEADER + FRAME_HELLO_MAX];
	struct wire_writer w = wire_writer_of(buf + FRAME_HEADER, FRAME_HELLO_MAX);
	struct frame_hello hello = { .upper_id = TR_UPPER_TEST, .upper_version = 1 };
	struct side s = { .hello = "y" };
	struct kv_error err;
	struct tr_conn *b;
	size_t sent = 0;
	int ret, fd = raw_socket();

	frame_put_hello(&w, &hello);
	frame_put_header(buf, FRAME_HELLO, (uint32_t)w.len);
	assert_int_equal(send(fd, buf, FRAME_HEADER + w.len, 0), FRAME_HEADER + w.len);
	b = accept_within(&s, deadline_ms, &upper);
	end = kv_deadline_ns(WAIT_MS);
	frame_put_header(buf, FRAME_SETUP, 100);
	while ((ret = tr_conn_step(b, &err)) == TR_AGAIN && sent < FRAME_HEADER - 1) {
		assert_true(kv_now_ns() < end);
		assert_int_equal(send(fd, &buf[sent++], 1, MSG_NOSIGNAL), 1);
		poll(NULL, 0, (int)(deadline_ms / GAPS));
	}
	assert_int_equal(ret, KV_ERR_TIMEOUT);
	tr_conn_close(b);
	close(fd);
}

CASE(when_descriptors_run_out_the_caller_is_refused_and_the_next_one_served)
{
	struct rlimit old, low;
	int fd = raw_socket();

	getrlimit(RLIMIT_NOFILE, &old);
	low = old;
	low.rlim_cur = (rlim_t)fd + 1;
	setrlimit(RLIMIT_NOFILE, &low);
	assert_int_equal(await_refusal(0).limit, 1);
	setrlimit(RLIMIT_NOFILE, &old);
	assert_int_equal(code_of_reject(fd), KV_ERR_BUSY); /* answered, not left to wait */
	close(fd);
	both_ends_learn_hello_and_setup(state);
}

int main(void)
{
	return run_cases(open_all, close_all);
}
