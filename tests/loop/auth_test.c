/* SPDX-License-Identifier: Apache-2.0 */
/*
 * auth_test.c -- who is let in where a key is set, and every way around it that was thought of: no
 * key, another one, an old handshake once more, a byte changed on the way, an older version, the
 * local socket without the proof, a goodbye that is none (key files and MACs: psk_test.c)
 *
 * Loopback, both ends stepped in one thread; between them may be a relay that sees every byte.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/option.h"
#include "frame.h"
#include "lib/bar.h"
#include "lib/key.h"
#include "lib/test.h"
#include "psk.h"
#include "shm/shm.h"
#include "tr.h"

#define WAIT_MS slow_ms(20000)

/* ---------------------------------------------------------------- two ends */

static struct {
	int hellos, setups; /* that reached the upper layer */
} seen[2];

static int hello_put(void *arg, struct tr_conn *conn, void *buf, size_t cap)
{
	memcpy(buf, "hello", 5);
	return 5;
}

static int hello_get(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	assert_int_equal(len, 5);
	assert_memory_equal(buf, "hello", 5);
	seen[(uintptr_t)arg].hellos++;
	return 0;
}

static int setup_put(void *arg, struct tr_conn *conn, void *buf, size_t cap, struct kv_error *err)
{
	memcpy(buf, "setup", 5);
	return 5;
}

static int setup_get(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	assert_int_equal(len, 5);
	assert_memory_equal(buf, "setup", 5);
	seen[(uintptr_t)arg].setups++;
	return 0;
}

static const struct tr_upper_ops upper = { TR_UPPER_TEST, 1,	     hello_put, hello_get,
					   setup_put,	  setup_get, NULL };

enum { CONNECTING = 0, ACCEPTING = 1 };

struct end {
	char path[64];
	struct kv_option_set *options;
	struct kv_log *log;
	struct tr *tr;
	struct tr_conn *conn;
	int ret;
	struct kv_error err;
};

static struct end end[2];
static struct tr_listener *listener;
static unsigned int flags; /* enum tr_conn_flags, of both */
static char warned[1024];  /* the last warning in a log */

static void keep_warning(void *arg, int level, const char *line)
{
	if (level <= 2)
		snprintf(warned, sizeof(warned), "%s", line);
}

/* text NULL: no key. */
static void end_open(struct end *e, const char *text)
{
	memset(e, 0, sizeof(*e));
	if (text) {
		snprintf(e->path, sizeof(e->path), "/tmp/kvrail-key-XXXXXX");
		close(mkstemp(e->path));
		write_key(e->path, text, 0600);
		setenv("KVCACHE_PSK_FILE", e->path, 1);
	}
	assert_int_equal(kv_option_read(NULL, &e->options, NULL), 0);
	unsetenv("KVCACHE_PSK_FILE");
	e->log = kv_log_open(e->options, keep_warning, NULL);
	assert_int_equal(tr_open(&(struct tr_config){ .options = e->options, .log = e->log },
				 &e->tr, &e->err),
			 0);
}

static void ends_open(const char *connecting, const char *accepting)
{
	end_open(&end[CONNECTING], connecting);
	end_open(&end[ACCEPTING], accepting);
	assert_int_equal(tr_listen(end[ACCEPTING].tr, NULL, 0, &listener, NULL), 0);
}

static void conns_close(void)
{
	for (int i = 0; i < 2; i++) {
		tr_conn_close(end[i].conn);
		end[i].conn = NULL;
	}
}

static void ends_close(void)
{
	conns_close();
	tr_listener_close(listener);
	for (int i = 0; i < 2; i++) {
		tr_close(end[i].tr);
		kv_log_close(end[i].log);
		kv_option_free(end[i].options);
		if (end[i].path[0])
			unlink(end[i].path);
	}
}

static void conns_begin(uint32_t port)
{
	struct tr_conn_config config = { .ops = &upper, .arg = (void *)CONNECTING, .flags = flags };

	memset(seen, 0, sizeof(seen));
	for (int i = 0; i < 2; i++)
		end[i].ret = TR_AGAIN;
	assert_int_equal(
		tr_connect(end[CONNECTING].tr, NULL, port, &config, &end[CONNECTING].conn, NULL),
		0);
}

/* One step of each end that is under way. */
static void conns_step(void)
{
	struct tr_conn_config config = { .ops = &upper,
					 .arg = (void *)(uintptr_t)ACCEPTING,
					 .flags = flags };
	struct kv_error err;

	if (!end[ACCEPTING].conn)
		tr_accept(listener, &config, &end[ACCEPTING].conn, &err);
	for (int i = 0; i < 2; i++)
		if (end[i].conn && end[i].ret == TR_AGAIN)
			end[i].ret = tr_conn_step(end[i].conn, &end[i].err);
}

static bool under_way(void)
{
	return end[0].ret == TR_AGAIN || end[1].ret == TR_AGAIN;
}

/* Until both have an end; `connecting` gets what its code is to be, `accepting` likewise. */
static void they_meet(int connecting, int accepting)
{
	int64_t deadline = kv_deadline_ns(WAIT_MS);

	conns_begin(tr_listener_port(listener));
	while (under_way() && kv_now_ns() < deadline)
		conns_step();
	assert_int_equal(end[CONNECTING].ret, connecting);
	assert_int_equal(end[ACCEPTING].ret, accepting);
	for (int i = 0; i < 2; i++)
		assert_int_equal(seen[i].hellos, !connecting);
	conns_close();
}

/* ---------------------------------------------------------------- keys */

CASE(both_have_the_key)
{
	ends_open(KEY_A "\n", "# of the cluster\n\n" KEY_A "\n");
	they_meet(0, 0);
	ends_close();
}

CASE(an_end_without_the_key_learns_that_it_needs_one)
{
	ends_open(NULL, KEY_A);
	they_meet(KV_ERR_AUTH, KV_ERR_AUTH);
	assert_non_null(strstr(end[CONNECTING].err.message, "has no key"));
	assert_non_null(strstr(end[CONNECTING].err.hint, "KVCACHE_PSK_FILE"));
	ends_close();
	ends_open(KEY_A, NULL);
	they_meet(KV_ERR_AUTH, KV_ERR_AUTH);
	assert_non_null(strstr(end[CONNECTING].err.message, "this end has none"));
	assert_non_null(strstr(end[CONNECTING].err.hint, "on both ends, or on neither"));
	ends_close();
}

CASE(another_key_is_not_the_key)
{
	ends_open(KEY_A, KEY_B);
	they_meet(KV_ERR_AUTH, KV_ERR_AUTH);
	assert_non_null(strstr(end[CONNECTING].err.message, "another key"));
	ends_close();
}

/* Without a restart, and without a moment in which they have no key in common. */
CASE(a_key_is_exchanged_while_both_run)
{
	ends_open(KEY_A, KEY_A);
	they_meet(0, 0);
	write_key(end[ACCEPTING].path, KEY_A "\n" KEY_B "\n", 0600); /* both know the new one, */
	they_meet(0, 0);
	write_key(end[CONNECTING].path, KEY_B "\n" KEY_A "\n", 0600); /* then it is used, */
	they_meet(0, 0);
	write_key(end[ACCEPTING].path, KEY_B "\n", 0600); /* then the old one goes */
	they_meet(0, 0);
	write_key(end[CONNECTING].path, KEY_A "\n", 0600);
	they_meet(KV_ERR_AUTH, KV_ERR_AUTH);
	/* A file that is not right any more never means "without a key". */
	write_key(end[ACCEPTING].path, "", 0600);
	they_meet(KV_ERR_AUTH, KV_ERR_AUTH);
	assert_int_equal(unlink(end[ACCEPTING].path), 0);
	they_meet(KV_ERR_AUTH, KV_ERR_AUTH);
	ends_close();
}

CASE(a_context_is_not_opened_without_the_key_that_it_was_given)
{
	struct kv_option_set *options;
	struct kv_error err;
	struct tr *tr;

	setenv("KVCACHE_PSK_FILE", "/nowhere/key", 1);
	assert_int_equal(kv_option_read(NULL, &options, NULL), 0);
	unsetenv("KVCACHE_PSK_FILE");
	assert_int_equal(tr_open(&(struct tr_config){ .options = options }, &tr, &err),
			 KV_ERR_AUTH);
	assert_non_null(strstr(err.message, "/nowhere/key"));
	kv_option_free(options);
}

/* The log has the cause, with the path; who knocks at the port may be anybody. */
CASE(what_is_wrong_here_is_not_told_to_strangers)
{
	static const struct {
		mode_t mode;
		bool fault;
		int code;
		const char *says;
	} rows[] = {
		{ 0644, false, KV_ERR_AUTH, "may be read or written by other users (mode 644)" },
#ifdef KVRAIL_FAULTS
		{ 0600, true, KV_ERR_SYSTEM, "getrandom: Input/output error" },
#endif
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		const struct kv_error *told = &end[CONNECTING].err;

		ends_open(KEY_A, KEY_A);
		write_key(end[ACCEPTING].path, KEY_A "\n", rows[i].mode);
#ifdef KVRAIL_FAULTS
		if (rows[i].fault) /* the first nonce is the connecting side's */
			kv_fault_arm(KV_FAULT_AUTH_RANDOM, 2);
#endif
		warned[0] = 0;
		they_meet(rows[i].code, rows[i].code);
		assert_non_null(strstr(told->message, "refused: for a cause that its log names"));
		assert_string_equal(told->hint, "");
		assert_non_null(strstr(warned, rows[i].says));
		if (!rows[i].fault)
			assert_non_null(strstr(warned, end[ACCEPTING].path));
		ends_close();
	}
}

/* ---------------------------------------------------------------- somebody between them */

enum { RELAY_MOST = 65536 };

struct way {
	int from, to;
	uint8_t bytes[RELAY_MOST]; /* that went this way */
	size_t len;
	size_t flip; /* which one is changed; RELAY_MOST: none */
};

static struct relay {
	int listens;
	uint32_t port;
	struct way way[2]; /* from the connecting side, to it */
} relay;

static int tcp_socket(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	return fd;
}

static int connect_to(uint32_t port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = tcp_socket();

	assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	return fd;
}

static void relay_open(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);

	memset(&relay, 0, sizeof(relay));
	relay.listens = tcp_socket();
	assert_int_equal(bind(relay.listens, (struct sockaddr *)&sa, len), 0);
	assert_int_equal(listen(relay.listens, 1), 0);
	assert_int_equal(getsockname(relay.listens, (struct sockaddr *)&sa, &len), 0);
	relay.port = ntohs(sa.sin_port);
	for (int i = 0; i < 2; i++)
		relay.way[i].flip = RELAY_MOST;
}

static void relay_join(void)
{
	int there = connect_to(tr_listener_port(listener));
	int here = accept4(relay.listens, NULL, NULL, SOCK_CLOEXEC);

	assert_true(here >= 0);
	relay.way[0].from = relay.way[1].to = here;
	relay.way[0].to = relay.way[1].from = there;
}

static void relay_close(void)
{
	close(relay.way[0].from);
	close(relay.way[0].to);
	close(relay.listens);
}

static void way_move(struct way *way)
{
	uint8_t *at = way->bytes + way->len;
	ssize_t n = recv(way->from, at, RELAY_MOST - way->len, MSG_DONTWAIT);

	if (!n)
		shutdown(way->to, SHUT_WR);
	if (n <= 0)
		return;
	if (way->flip >= way->len && way->flip < way->len + (size_t)n)
		way->bytes[way->flip] ^= 0x40;
	send(way->to, at, (size_t)n, MSG_NOSIGNAL);
	way->len += (size_t)n;
}

/* The two ends over the relay, until both have an end. */
static void they_meet_over_relay(void)
{
	int64_t deadline = kv_deadline_ns(WAIT_MS);

	conns_begin(relay.port);
	conns_step();
	relay_join();
	while (under_way() && kv_now_ns() < deadline) {
		conns_step();
		way_move(&relay.way[0]);
		way_move(&relay.way[1]);
	}
	assert_false(under_way());
}

/* What a raw socket has sent gets AUTH, and not as far as the upper layer. */
static void accepting_side_refuses(struct kv_error *err)
{
	struct tr_conn_config config = { .ops = &upper, .arg = (void *)(uintptr_t)ACCEPTING };
	int64_t deadline = kv_deadline_ns(WAIT_MS);
	int ret;

	while (tr_accept(listener, &config, &end[ACCEPTING].conn, err) == TR_AGAIN)
		assert_true(kv_now_ns() < deadline);
	while ((ret = tr_conn_step(end[ACCEPTING].conn, err)) == TR_AGAIN)
		assert_true(kv_now_ns() < deadline);
	assert_int_equal(ret, KV_ERR_AUTH);
	assert_int_equal(seen[ACCEPTING].hellos, 0);
}

CASE(an_old_handshake_is_of_no_use)
{
	struct kv_error err;
	int fd;

	ends_open(KEY_A, KEY_A);
	relay_open();
	they_meet_over_relay();
	assert_int_equal(end[CONNECTING].ret | end[ACCEPTING].ret, 0);
	conns_close();
	memset(seen, 0, sizeof(seen));
	fd = connect_to(tr_listener_port(listener));
	assert_int_equal(send(fd, relay.way[0].bytes, relay.way[0].len, 0), relay.way[0].len);
	accepting_side_refuses(&err);
	assert_non_null(strstr(err.message, "was not made with the key"));
	close(fd);
	relay_close();
	ends_close();
}

/* Whichever byte is changed, in whichever direction: nobody goes on with it. */
CASE(a_byte_that_is_changed_on_the_way_ends_the_handshake)
{
	size_t len[2];

	ends_open(KEY_A, KEY_A);
	relay_open();
	they_meet_over_relay();
	assert_int_equal(end[CONNECTING].ret | end[ACCEPTING].ret, 0);
	conns_close();
	for (int i = 0; i < 2; i++)
		len[i] = relay.way[i].len;
	relay_close();
	len[0] -= 1 + MAC_BYTES; /* the goodbye is not of the handshake */
	for (int i = 0; i < 2; i++)
		for (size_t at = 0; at < len[i]; at++) {
			/* The length in a header would have the other end wait for more. */
			int receiver = i ? CONNECTING : ACCEPTING;

			relay_open();
			relay.way[i].flip = at;
			conns_begin(relay.port);
			conns_step();
			relay_join();
			for (int k = 0; k < 400 && end[receiver].ret == TR_AGAIN; k++) {
				conns_step();
				way_move(&relay.way[0]);
				way_move(&relay.way[1]);
			}
			if (!end[receiver].ret)
				fail_msg("byte %zu to the %s side was changed, and nothing said",
					 at, i ? "connecting" : "accepting");
			conns_close();
			relay_close();
		}
	ends_close();
}

/* A goodbye says that the end is wanted; one that the peer has not sent must not. */
CASE(a_goodbye_needs_the_key)
{
	static const uint8_t forged[1 + MAC_BYTES] = { 4 };
	int64_t deadline = kv_deadline_ns(WAIT_MS);
	struct tr_event event;
	int n;

	flags = TR_POLLED; /* else there is no control socket for it */
	ends_open(KEY_A, KEY_A);
	relay_open();
	they_meet_over_relay();
	assert_int_equal(send(relay.way[1].to, forged, sizeof(forged), 0), sizeof(forged));
	while (!(n = tr_poll(end[CONNECTING].conn, &event, 1)))
		assert_true(kv_now_ns() < deadline);
	assert_false(tr_conn_peer_left(end[CONNECTING].conn));
	assert_int_equal(event.kind, TR_PEER_LOST);
	assert_int_equal(event.cause->code, KV_ERR_PROTOCOL);
	conns_close();
	relay_close();

	conns_begin(tr_listener_port(listener));
	while (under_way() && kv_now_ns() < deadline)
		conns_step();
	tr_conn_close(end[ACCEPTING].conn);
	end[ACCEPTING].conn = NULL;
	while (!tr_conn_peer_left(end[CONNECTING].conn))
		assert_true(kv_now_ns() < deadline);
	ends_close();
	flags = 0;
}

/* ---------------------------------------------------------------- an older version */

static void put_old_hello(int fd)
{
	uint8_t buf[FRAME_HEADER + FRAME_HELLO_MAX];
	struct wire_writer w = wire_writer_of(buf + FRAME_HEADER, FRAME_HELLO_MAX);
	struct frame_hello hello = { .upper_id = TR_UPPER_TEST,
				     .upper_version = 1,
				     .upper = { (const uint8_t *)"hello", 5 } };

	frame_put_hello(&w, &hello);
	frame_put_header(buf, FRAME_HELLO, (uint32_t)w.len);
	assert_int_equal(send(fd, buf, FRAME_HEADER + w.len, 0), FRAME_HEADER + w.len);
}

CASE(a_version_without_keys_is_not_let_in)
{
	int64_t deadline = kv_deadline_ns(WAIT_MS);
	struct kv_error err;
	int fd;

	ends_open(KEY_A, KEY_A);
	memset(seen, 0, sizeof(seen));
	fd = connect_to(tr_listener_port(listener));
	put_old_hello(fd);
	accepting_side_refuses(&err);
	close(fd);
	conns_close();

	/* And one that answers a knock with its hello, as if no key were asked for. */
	relay_open();
	conns_begin(relay.port);
	conns_step();
	fd = accept4(relay.listens, NULL, NULL, SOCK_CLOEXEC);
	put_old_hello(fd);
	while (end[CONNECTING].ret == TR_AGAIN && kv_now_ns() < deadline)
		end[CONNECTING].ret = tr_conn_step(end[CONNECTING].conn, &end[CONNECTING].err);
	assert_int_equal(end[CONNECTING].ret, KV_ERR_AUTH);
	assert_non_null(strstr(end[CONNECTING].err.message, "it did not ask for the key"));
	assert_int_equal(seen[CONNECTING].hellos, 0);
	close(fd);
	close(relay.listens);
	ends_close();
}

/* A stage of its own, with a name: in kv_dump, and in the error at the deadline. */
CASE(an_answer_that_does_not_come_is_named)
{
	struct tr_conn_config config = { .ops = &upper, .handshake_ms = slow_ms(100) };
	int64_t deadline = kv_deadline_ns(WAIT_MS);
	struct tr_conn *conn;
	struct kv_error err;
	int fd, ret;

	ends_open(KEY_A, KEY_A);
	relay_open();
	assert_int_equal(tr_connect(end[CONNECTING].tr, NULL, relay.port, &config, &conn, NULL), 0);
	assert_int_equal(tr_conn_step(conn, &err), TR_AGAIN);
	fd = accept4(relay.listens, NULL, NULL, SOCK_CLOEXEC);
	assert_int_equal(send(fd, "K", 1, 0), 1); /* the deadline begins */
	while ((ret = tr_conn_step(conn, &err)) == TR_AGAIN) {
		assert_string_equal(tr_conn_stage(conn), "waiting for challenge");
		assert_true(kv_now_ns() < deadline);
	}
	assert_int_equal(ret, KV_ERR_TIMEOUT);
	assert_non_null(strstr(err.message, "waiting for challenge"));
	tr_conn_close(conn);
	close(fd);
	close(relay.listens);
	ends_close();
}

/* ---------------------------------------------------------------- the local socket */

/* Name and token of the shm offer in a HELLO that went over the relay; NULL: not there yet. */
static const uint8_t *find_offer(const struct way *way)
{
	struct frame_header header;
	struct frame_hello hello;

	for (size_t at = 0; at + FRAME_HEADER <= way->len; at += FRAME_HEADER + header.len) {
		uint32_t len;

		assert_int_equal(frame_get_header(way->bytes + at, &header), 0);
		if (at + FRAME_HEADER + header.len > way->len)
			return NULL;
		len = header.len - (end[0].tr->psk ? MAC_BYTES : 0);
		if (header.type != FRAME_HELLO)
			continue;
		assert_int_equal(frame_get_hello(way->bytes + at + FRAME_HEADER, len, &hello), 0);
		assert_true(hello.offers && hello.offer[0].provider == tr_shm_provider.id);
		return hello.offer[0].bytes.p;
	}
	return NULL;
}

static int local_stranger(const uint8_t *offer)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct link_message message = { .kind = LINK_SEGMENT };
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	size_t len = 0;
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { &message, sizeof(message) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.buf,
			      .msg_controllen = sizeof(control.buf) };
	int fd = memfd_create("stranger", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	len = (size_t)snprintf(sa.sun_path + 1, sizeof(sa.sun_path) - 1, "kvrail-");
	for (int i = 0; i < 16; i++)
		len += (size_t)snprintf(sa.sun_path + 1 + len, sizeof(sa.sun_path) - 1 - len,
					"%02x", offer[i]);
	assert_int_equal(connect(sock, (struct sockaddr *)&sa,
				 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len)),
			 0);
	memcpy(message.token, offer + 16, 16);
	CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
	CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
	CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &fd, sizeof(int));
	assert_int_equal(sendmsg(sock, &msg, 0), sizeof(message));
	close(fd);
	return sock;
}

/* Somebody of the host who has read the token, and is the first at the local socket. */
static void quicker_stranger(int expected)
{
	int64_t deadline = kv_deadline_ns(WAIT_MS);
	const uint8_t *offer;
	int stranger = -1;

	relay_open();
	conns_begin(relay.port);
	conns_step();
	relay_join();
	while (under_way() && kv_now_ns() < deadline) {
		conns_step();
		way_move(&relay.way[0]);
		/* Before the connecting side has it. */
		if (stranger < 0) {
			struct way *way = &relay.way[1];
			ssize_t n = recv(way->from, way->bytes + way->len, RELAY_MOST - way->len,
					 MSG_DONTWAIT);
			size_t fresh = n > 0 ? (size_t)n : 0;

			way->len += fresh;
			offer = find_offer(way);
			if (offer)
				stranger = local_stranger(offer);
			send(way->to, way->bytes + way->len - fresh, fresh, MSG_NOSIGNAL);
		} else {
			way_move(&relay.way[1]);
		}
	}
	assert_int_equal(!end[ACCEPTING].ret, !expected);
	if (!expected) { /* it was sent away */
		char byte;

		assert_true(recv(stranger, &byte, 1, 0) <= 0);
	}
	close(stranger);
	conns_close();
	relay_close();
}

CASE(the_local_socket_needs_the_key)
{
	if (setenv("KVCACHE_TRANSPORT", "shm", 1))
		fail();
	ends_open(NULL, NULL);
	quicker_stranger(KV_ERR_PROTOCOL); /* so the attack is one */
	ends_close();
	ends_open(KEY_A, KEY_A);
	quicker_stranger(0);
	ends_close();
	unsetenv("KVCACHE_TRANSPORT");
}

/* ---------------------------------------------------------------- */

#ifdef KVRAIL_FAULTS
CASE(no_handshake_without_a_nonce)
{
	ends_open(KEY_A, KEY_A);
	kv_fault_arm(KV_FAULT_AUTH_RANDOM, 1);
	conns_begin(tr_listener_port(listener));
	while (end[CONNECTING].ret == TR_AGAIN)
		conns_step();
	assert_int_equal(end[CONNECTING].ret, KV_ERR_SYSTEM);
	ends_close();
}
#endif

static int compare(const void *a, const void *b)
{
	return *(const int64_t *)a < *(const int64_t *)b ? -1 : 1;
}

static int64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

/* Of the processor: both ends are in this process, and others may keep the machine busy. */
static double median_us(const char *key)
{
	enum { ROUNDS = 101 };
	int64_t ns[ROUNDS];

	ends_open(key, key);
	for (int i = 0; i < ROUNDS; i++) {
		ns[i] = cpu_ns();
		they_meet(0, 0);
		ns[i] = cpu_ns() - ns[i];
	}
	ends_close();
	qsort(ns, ROUNDS, sizeof(*ns), compare);
	return (double)ns[ROUNDS / 2] / 1000;
}

CASE(a_key_costs_less_than_a_millisecond)
{
	double without = median_us(NULL), with = median_us(KEY_A);

	print_message("a handshake without a key %.0f us, with one %.0f us (medians)\n", without,
		      with);
	assert_true(with - without < 1000.0 * (double)(slow_ms(1) * BAR_FACTOR));
}
