/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_tcp_hostile.c -- strangers at the door of a data socket, and a peer that sends nonsense on it:
 * the first get nothing, the connection of the second ends with KV_ERR_PROTOCOL; the process and
 * its memory stay as they were
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/text.h"
#include "conn.h"
#include "lib/port.h"
#include "lib/process.h"
#include "lib/test.h"
#include "tcp/tcp.h"
#include "tr_pair.h"

enum { REGION = 1 << 16, SOURCE_SEED = 1 };

/* ---------------------------------------------------------------- lies on the data socket */

struct attack {
	void (*act)(struct pair_side *s, struct tcp_conn *tc);
	const char *text;    /* in the victim's cause */
	unsigned int access; /* of the victim's region */
	unsigned int stream; /* that it comes by, of two */
};

static unsigned int lie_on; /* the stream */

/* The victim may have ended the connection before the last of several frames. */
static void say_bytes(struct tcp_conn *tc, const void *p, size_t n)
{
	ssize_t sent = send(tc->data->stream[lie_on].sock, p, n, MSG_NOSIGNAL);

	PAIR_CHECK(sent == (ssize_t)n || (sent < 0 && (errno == EPIPE || errno == ECONNRESET)));
}

static void say_frame(struct tcp_conn *tc, struct stream_frame frame,
		      const struct stream_span *spans)
{
	static uint8_t buf[STREAM_HEADER_MAX + 4096];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	stream_put(&w, &frame, spans);
	memset(buf + w.len, 0xee, 64);
	say_bytes(tc, buf, w.len + (frame.payload < 64 ? frame.payload : 64));
}

#define SAY(what, ...)                                                     \
	static void what(struct pair_side *s, struct tcp_conn *tc)         \
	{                                                                  \
		say_frame(tc, (struct stream_frame){ __VA_ARGS__ }, NULL); \
	}
SAY(unknown_type, .type = 99)
SAY(no_type, .type = 0)
SAY(payload_too_long, .type = STREAM_ANSWER, .payload = STREAM_PAYLOAD_MAX + 1)
SAY(message_too_long, .type = STREAM_MSG, .payload = TR_MSG_MAX + 1)
SAY(notify_with_bytes, .type = STREAM_NOTIFY, .payload = 1)
SAY(data_without_spans, .type = STREAM_DATA, .payload = 8)
SAY(answer_without_a_read, .type = STREAM_ANSWER, .payload = 8)
SAY(report_of_what_was_not_sent, .type = STREAM_REPORT, .value = 1 << 20)
SAY(report_of_messages_that_were_not_sent, .type = STREAM_REPORT, .number = 5)
SAY(tell_with_a_value, .type = STREAM_TELL, .value = 1)
SAY(after_itself, .type = STREAM_AFTER, .value = 1)
SAY(after_a_stream_that_is_not, .type = STREAM_AFTER, .number = 2, .value = 1)
SAY(notify_on_the_second, .type = STREAM_NOTIFY, .value = 1)
SAY(message_on_the_second, .type = STREAM_MSG)
SAY(after_on_the_second, .type = STREAM_AFTER, .number = 1, .value = 1)
SAY(report_on_the_second, .type = STREAM_REPORT, .number = 1)

static void random_words(struct pair_side *s, struct tcp_conn *tc)
{
	uint64_t words[64], random = 4711;

	for (int i = 0; i < 64; i++)
		words[i] = pair_random(&random) | 0xf0;
	say_bytes(tc, words, sizeof(words));
}

static void too_many_spans(struct pair_side *s, struct tcp_conn *tc)
{
	uint8_t header[STREAM_FIXED] = { STREAM_DATA, 0, 1, 1 }; /* 257 */

	say_bytes(tc, header, sizeof(header));
}

/* One frame of that type with these spans, whose lengths make its payload. */
static void say_spans(struct tcp_conn *tc, uint8_t type, uint32_t region, uint32_t payload,
		      const struct stream_span *spans, uint16_t n)
{
	say_frame(tc,
		  (struct stream_frame){
			  .type = type, .spans = n, .payload = payload, .number = region },
		  spans);
}

static void spans_that_are_not_the_payload(struct pair_side *s, struct tcp_conn *tc)
{
	say_spans(tc, STREAM_DATA, s->rmem->id, 9, &(struct stream_span){ 0, 8 }, 1);
}

static void an_empty_span(struct pair_side *s, struct tcp_conn *tc)
{
	const struct stream_span spans[] = { { 0, 8 }, { 100, 0 } };

	say_spans(tc, STREAM_DATA, s->rmem->id, 8, spans, 2);
}

static void unknown_region(struct pair_side *s, struct tcp_conn *tc)
{
	say_spans(tc, STREAM_DATA, s->rmem->id + 1, 8, &(struct stream_span){ 0, 8 }, 1);
}

/* The first span is right: not a byte of it may be placed. */
static void the_second_span_is_outside(struct pair_side *s, struct tcp_conn *tc)
{
	const struct stream_span spans[] = { { 0, 8 }, { REGION - 7, 8 } };

	say_spans(tc, STREAM_DATA, s->rmem->id, 16, spans, 2);
}

static void offset_that_overflows(struct pair_side *s, struct tcp_conn *tc)
{
	say_spans(tc, STREAM_DATA, s->rmem->id, 8, &(struct stream_span){ UINT64_MAX - 3, 8 }, 1);
}

static void write_without_access(struct pair_side *s, struct tcp_conn *tc)
{
	say_spans(tc, STREAM_DATA, s->rmem->id, 8, &(struct stream_span){ 0, 8 }, 1);
}

static void read_without_access(struct pair_side *s, struct tcp_conn *tc)
{
	say_spans(tc, STREAM_READ, s->rmem->id, 0, &(struct stream_span){ 0, 8 }, 1);
}

static void read_beyond(struct pair_side *s, struct tcp_conn *tc)
{
	say_spans(tc, STREAM_READ, s->rmem->id, 0, &(struct stream_span){ REGION - 7, 8 }, 1);
}

/* Answers that nobody takes: the socket is full before they are sent. */
static void too_many_reads(struct pair_side *s, struct tcp_conn *tc)
{
	struct stream_span spans[STREAM_SPANS_MAX];

	for (unsigned int i = 0; i < STREAM_SPANS_MAX; i++)
		spans[i] = (struct stream_span){ 0, REGION };
	for (int i = 0; i <= TCP_READS_MAX / STREAM_SPANS_MAX + 1; i++)
		say_spans(tc, STREAM_READ, s->rmem->id, 0, spans, STREAM_SPANS_MAX);
}

static const struct attack attacks[] = {
	{ unknown_type, "malformed", 0, 0 },
	{ no_type, "malformed", 0, 0 },
	{ random_words, "malformed", 0, 0 },
	{ payload_too_long, "malformed", 0, 0 },
	{ message_too_long, "malformed", 0, 0 },
	{ notify_with_bytes, "malformed", 0, 0 },
	{ data_without_spans, "malformed", 0, 0 },
	{ tell_with_a_value, "malformed", 0, 0 },
	{ too_many_spans, "malformed", 0, 0 },
	{ spans_that_are_not_the_payload, "malformed", 0, 0 },
	{ an_empty_span, "malformed", 0, 0 },
	{ unknown_region, "outside the memory", 0, 0 },
	{ the_second_span_is_outside, "outside the memory", 0, 0 },
	{ offset_that_overflows, "outside the memory", 0, 0 },
	{ write_without_access, "outside the memory", TR_REMOTE_READ, 0 },
	{ read_without_access, "were not opened", TR_REMOTE_WRITE, 0 },
	{ read_beyond, "were not opened", 0, 0 },
	{ too_many_reads, "one read too many", 0, 0 },
	{ answer_without_a_read, "were asked for", 0, 0 },
	{ report_of_what_was_not_sent, "was not sent", 0, 0 },
	{ report_of_messages_that_were_not_sent, "was not sent", 0, 0 },
	{ after_itself, "waits for a stream", 0, 0 },
	{ after_a_stream_that_is_not, "waits for a stream", 0, 0 },
	{ after_on_the_second, "waits for a stream", 0, 1 },
	{ notify_on_the_second, "does not belong", 0, 1 },
	{ message_on_the_second, "does not belong", 0, 1 },
	{ report_on_the_second, "was not sent", 0, 1 },
	{ the_second_span_is_outside, "outside the memory", 0, 1 },
	{ too_many_reads, "one read too many", 0, 1 },
};

enum { ATTACKS = sizeof(attacks) / sizeof(attacks[0]) };

static void victim(struct pair_side *s)
{
	const struct attack *attack = s->config->arg;

	pair_up(s);
	pair_suffer(s, SOURCE_SEED, attack->text); /* asleep: what comes wakes it */
	pair_say(s, 1);
	pair_down(s);
}

static void attacker(struct pair_side *s)
{
	const struct attack *attack = s->config->arg;

	pair_up(s);
	pair_meet(s);
	lie_on = attack->stream;
	attack->act(s, tr_conn_priv(s->conn));
	PAIR_CHECK(pair_hear(s) == 1);
	pair_down(s);
}

CASE(each_lie_on_the_socket_ends_the_connection_and_nothing_else)
{
	for (size_t i = 0; i < ATTACKS; i++) {
		struct pair_config config = { .parent_path = "tcp",
					      .child_path = "tcp",
					      .region = REGION,
					      .access = attacks[i].access,
					      .option = "KVCACHE_TCP_STREAMS=2",
					      .arg = (void *)(uintptr_t)&attacks[i] };

		assert_int_equal(pair_run(&config, victim, attacker), 0);
	}
}

/* ---------------------------------------------------------------- strangers at the door */

static uint32_t door_port; /* the only one of KVCACHE_TCP_PORTS */

/* -1: it is not open. */
static int connect_to_door(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)door_port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	PAIR_CHECK(fd >= 0);
	if (!connect(fd, (struct sockaddr *)&sa, sizeof(sa)))
		return fd;
	PAIR_CHECK(errno == ECONNREFUSED);
	close(fd);
	return -1;
}

/* The door opens a moment after the hello was sent. */
static int knock_at_door(void)
{
	int64_t deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);
	int fd;

	while ((fd = connect_to_door()) < 0) {
		PAIR_CHECK(kv_now_ns() < deadline_ns);
		poll(NULL, 0, 1);
	}
	return fd;
}

/* It is sent away, without a word. */
static void await_end(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char byte;

	PAIR_CHECK(poll(&p, 1, (int)PAIR_WAIT_MS) == 1);
	PAIR_CHECK(recv(fd, &byte, 1, 0) <= 0);
	close(fd);
}

static uint8_t last_token[STREAM_PROOF]; /* of the handshake before */

static void say_greeting(int fd, uint8_t stream, const uint8_t proof[STREAM_PROOF])
{
	uint8_t greeting[STREAM_GREETING];

	stream_put_greeting(greeting, stream, proof);
	PAIR_CHECK(send(fd, greeting, sizeof(greeting), MSG_NOSIGNAL) == sizeof(greeting));
}

enum { LORISES = TCP_STRANGERS * 3 };
static int loris[LORISES];

/* Each begins well and says no more: the newest few wait, the others are sent away. */
static void slow_ones(struct pair_side *s)
{
	for (int i = 0; i < LORISES; i++) {
		loris[i] = knock_at_door();
		PAIR_CHECK(send(loris[i], "KVR", 3, MSG_NOSIGNAL) == 3);
	}
	for (int i = 0; i < LORISES - TCP_STRANGERS; i++)
		await_end(loris[i]);
}

/* Whatever follows a greeting that is not right: it is not read. */
static void wrong_proof(struct pair_side *s)
{
	static const uint8_t proof[STREAM_PROOF];
	struct stream_frame frame = { .type = STREAM_DATA, .spans = 1, .payload = 8 };
	uint8_t buf[64] = { 0 };
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	int fd = knock_at_door();

	stream_put(&w, &frame, &(struct stream_span){ 0, 8 });
	say_greeting(fd, 0, proof);
	send(fd, buf, w.len + 8, MSG_NOSIGNAL);
	await_end(fd);
}

static void garbage(struct pair_side *s)
{
	int fd = knock_at_door();

	PAIR_CHECK(send(fd, "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL) == 18);
	await_end(fd);
}

static void what_was_right_before(struct pair_side *s)
{
	int fd = knock_at_door();

	say_greeting(fd, 0, last_token);
	await_end(fd);
}

static void half_a_greeting_and_gone(struct pair_side *s)
{
	int fd = knock_at_door();

	PAIR_CHECK(send(fd, "KVRD", 4, MSG_NOSIGNAL) == 4);
	close(fd);
}

static void exchange(struct pair_side *s)
{
	struct tr_span span = { .local = 5, .remote = 6, .len = 4097 };
	struct tr_op *op;

	pair_fill(s->base, s->child ? 7 : SOURCE_SEED, 0, REGION);
	pair_meet(s);
	if (s->child) {
		pair_wait_notifies(s, 1);
		PAIR_CHECK(pair_differs(s->base + 6, SOURCE_SEED, 5, 4097) < 0);
		PAIR_CHECK(pair_differs(s->base, 7, 0, 6) < 0);
		PAIR_CHECK(pair_differs(s->base + 6 + 4097, 7, 6 + 4097, REGION - 4103) < 0);
	} else {
		op = pair_begin(s, TR_WRITE, 1);
		pair_add(s, op, &span, 1);
		pair_commit(s, op, TR_NOTIFY, 1);
		pair_wait_ended(s, 1);
	}
	pair_meet(s);
}

/* With strangers at its door the second handshake is as the first. */
static void besieged(struct pair_side *s)
{
	void (*strangers)(struct pair_side * s) = s->config->arg;
	struct pair_config quiet = *s->config;
	const struct pair_config *loud = s->config;
	struct tcp_conn *tc;
	struct kv_error err;
	int fds;

	quiet.greeted = NULL;
	s->config = &quiet;
	pair_up(s);
	exchange(s);
	tc = tr_conn_priv(s->conn);
	door_prove(tc, TCP_KNOCKS, 0, last_token);
	fds = count_descriptors();
	tr_conn_close(s->conn);
	s->conn = NULL;
	s->notifies = s->ended = 0;
	s->config = loud;
	PAIR_CHECK(!pair_connect(s, &err));
	if (!s->child && strangers == slow_ones)
		for (int i = LORISES - TCP_STRANGERS; i < LORISES; i++)
			await_end(loris[i]); /* the door is closed */
	PAIR_CHECK(count_descriptors() <= fds);
	PAIR_CHECK(s->child || connect_to_door() < 0); /* nobody comes late */
	exchange(s);
	pair_down(s);
}

/*
 * Without a key a reader of the handshake can make a greeting. The other end stands still while
 * these stand before the peer's own sockets at its door.
 */
static void twice_and_one_too_many(struct pair_side *s)
{
	static const uint8_t index[] = { 0, 0, 2, 255 };
	uint8_t proof[STREAM_PROOF], answer[STREAM_GREETING];
	int fd[4];
	struct kv_error err;

	for (int i = 0; i < 4; i++)
		fd[i] = knock_at_door();
	PAIR_CHECK(tr_conn_wait(s->conn, (int)PAIR_WAIT_MS)); /* the offer */
	/* Not between its look at these and its accept of what comes next. */
	while (kv_process_state(s->other) != 'S')
		poll(NULL, 0, 1);
	PAIR_CHECK(stop_process(s->other));
	while (!s->conn->hs->offer_priv[0])
		PAIR_CHECK(tr_conn_step(s->conn, &err) == TR_AGAIN);
	for (int i = 0; i < 4; i++) {
		door_prove(s->conn->hs->offer_priv[0], TCP_KNOCKS, index[i], proof);
		say_greeting(fd[i], index[i], proof);
	}
	PAIR_CHECK(!kill(s->other, SIGCONT));
	PAIR_CHECK(recv(fd[0], answer, sizeof(answer), MSG_WAITALL) == sizeof(answer));
	for (int i = 1; i < 4; i++)
		await_end(fd[i]);
}

/* The peer finds that its place is taken; its next connection is as the first. */
static void crowded(struct pair_side *s)
{
	struct pair_config quiet = *s->config;
	struct kv_error err;

	pair_open(s);
	PAIR_CHECK(pair_connect(s, &err));
	PAIR_CHECK(s->child || strstr(err.message, "closed the data socket"));
	tr_conn_close(s->conn);
	quiet.greeted = NULL;
	s->config = &quiet;
	PAIR_CHECK(!pair_connect(s, &err));
	exchange(s);
	pair_down(s);
}

static void besiege_by(void (*strangers)(struct pair_side *s), pair_fn *both)
{
	char ports[64];
	struct pair_config config = { .parent_path = "tcp",
				      .child_path = "tcp",
				      .region = REGION,
				      .option = ports,
				      .greeted = strangers,
				      .arg = (void *)strangers };
	int holder = port_hold(&door_port);

	snprintf(ports, sizeof(ports), "KVCACHE_TCP_PORTS=%u", door_port);
	setenv("KVCACHE_TCP_STREAMS", "2", 1);
	assert_int_equal(pair_run(&config, both, both), 0);
	close(holder);
}

static void besiege(void (*strangers)(struct pair_side *s))
{
	besiege_by(strangers, besieged);
}

CASE(a_stream_is_opened_once_and_none_is_opened_that_was_not_offered)
{
	besiege_by(twice_and_one_too_many, crowded);
}

CASE(a_stranger_at_the_door_is_sent_away_and_the_peer_comes_in)
{
	besiege(garbage);
	besiege(wrong_proof);
	besiege(what_was_right_before);
	besiege(half_a_greeting_and_gone);
}

CASE(slow_strangers_are_bounded_in_number_and_end_with_the_handshake)
{
	besiege(slow_ones);
}

/* ---------------------------------------------------------------- the key */

static void keyed(struct pair_side *s)
{
	uint8_t knocks[STREAM_PROOF], opens[STREAM_PROOF];
	struct tcp_conn *tc;

	pair_up(s);
	tc = tr_conn_priv(s->conn);
	door_prove(tc, TCP_KNOCKS, 0, knocks);
	door_prove(tc, TCP_OPENS, 0, opens);
	/* The token travels in the handshake; it is not enough, and neither is the other proof. */
	PAIR_CHECK(memcmp(knocks, tc->token, sizeof(knocks)) &&
		   memcmp(knocks, opens, sizeof(opens)));
	PAIR_CHECK(!door_is_proof(tc, TCP_KNOCKS, 0, tc->token));
	PAIR_CHECK(!door_is_proof(tc, TCP_KNOCKS, 0, opens));
	PAIR_CHECK(!door_is_proof(tc, TCP_KNOCKS, 1, knocks));
	PAIR_CHECK(door_is_proof(tc, TCP_KNOCKS, 0, knocks));
	exchange(s);
	pair_down(s);
}

CASE(with_a_key_the_token_does_not_open_the_door)
{
	char name[] = "/tmp/kvrail-key-XXXXXX", option[64];
	struct pair_config config = {
		.parent_path = "tcp", .child_path = "tcp", .region = REGION, .option = option
	};
	int fd = mkstemp(name);

	assert_true(fd >= 0 && !fchmod(fd, 0600));
	assert_int_equal(write(fd, "0123456789abcdef0123456789abcdef\n", 33), 33);
	close(fd);
	snprintf(option, sizeof(option), "KVCACHE_PSK_FILE=%s", name);
	assert_int_equal(pair_run(&config, keyed, keyed), 0);
	unlink(name);
}
