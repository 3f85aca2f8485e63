/* SPDX-License-Identifier: Apache-2.0 */
/*
 * handshake_fuzz.c -- a connection from the lobby to READY and its end, with and without a key, of
 * a peer that sends frames in any order: right, changed, cut, said twice, or its own sent back
 *
 * Rules: with a key nothing of a peer reaches the upper layer that was not made with it; what a
 * stranger costs before its hello is accepted is less than 4 KiB; a refusal has a cause and is
 * final; frames that are taken are the same bytes when they are written again.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/option.h"
#include "lobby.h"
#include "rig.h"

#define KEY_A "0123456789abcdef0123456789abcdef-a"
#define KEY_B "0123456789abcdef0123456789abcdef-b"

enum { COST_MAX = 4096 + FRAME_HEADER + AUTH_CHALLENGE + 64, FRAMES_MAX = 6 };

/* Kept over all inputs. */
static struct {
	struct kv_option_set *options[2];
	struct tr *tr[2];	 /* without a key, and with KEY_A */
	struct psk_file *key[2]; /* the peer's: KEY_A, KEY_B */
} world;

static struct {
	bool keyed, right_key;
	bool tampered; /* something was not as the protocol has it */
	bool refuses;
	struct tr_conn *conn;
	struct lobby lobby;
	int epfd;
	bool in_lobby;
	int result; /* of the handshake; 0 while it is not over */
	bool ready;
	unsigned int hellos, setups, frames;
} h;

/* ---------------------------------------------------------------- the upper layer */

static void check_proven(void)
{
	FUZZ_CHECK(!h.keyed || (far.auth.on && h.right_key));
}

static int hello_put(void *arg, struct tr_conn *conn, void *buf, size_t cap)
{
	FUZZ_CHECK(cap == TR_HELLO_MAX);
	memcpy(buf, "hello", 5);
	return 5;
}

static int hello_get(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	check_proven();
	FUZZ_CHECK(!h.hellos++ && len <= TR_HELLO_MAX);
	FUZZ_CHECK(!len || ((const uint8_t *)buf)[0] + ((const uint8_t *)buf)[len - 1] >= 0);
	if (conn->accepting)
		FUZZ_CHECK(rig_heap() <= COST_MAX);
	return h.refuses ? kv_fail(err, KV_ERR_GEOMETRY, "handshake", "not this one") : 0;
}

static int setup_put(void *arg, struct tr_conn *conn, void *buf, size_t cap, struct kv_error *err)
{
	FUZZ_CHECK(cap == TR_SETUP_MAX);
	memcpy(buf, "setup", 5);
	return 5;
}

static int setup_get(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	check_proven();
	FUZZ_CHECK(h.hellos && !h.setups++);
	FUZZ_CHECK(!len || ((const uint8_t *)buf)[0] + ((const uint8_t *)buf)[len - 1] >= 0);
	return 0;
}

static const struct tr_upper_ops upper = { TR_UPPER_TEST, 1,	     hello_put, hello_get,
					   setup_put,	  setup_get, NULL };

/* ---------------------------------------------------------------- the product's end */

static void over(int ret, const struct kv_error *err)
{
	if (ret == TR_AGAIN)
		return;
	if (!ret) {
		FUZZ_CHECK(!h.result && h.hellos == 1 && h.setups == 1 && !h.refuses);
		FUZZ_CHECK(!h.keyed || !h.tampered);
		check_proven();
		h.ready = true;
		return;
	}
	FUZZ_CHECK(err->code == ret && err->message[0] && ret != KV_ERR_INTERNAL);
	FUZZ_CHECK(!h.result || h.result == ret);
	h.result = ret;
}

static void leave_lobby(void)
{
	struct tr_conn_config config = { .ops = &upper };
	struct kv_error err;
	int fd;

	if (h.lobby.n)
		lobby_look(&h.lobby, LOBBY_TOKEN, far.fd < 0 ? EPOLLRDHUP : 0);
	lobby_expire(&h.lobby, kv_now_ns());
	fd = lobby_leave(&h.lobby);
	h.in_lobby = h.lobby.n;
	if (fd >= 0)
		rig_accepted(h.lobby.tr, &config, fd, &h.conn, &err);
}

static void step(void)
{
	struct kv_error err = { 0 };

	if (h.in_lobby)
		leave_lobby();
	else if (h.conn && !h.ready)
		over(tr_conn_step(h.conn, &err), &err);
}

/* After the handshake: what comes on the control socket is a goodbye, or the end. */
static void poll_conn(void)
{
	struct tr_event event[2];
	int n = 0;

	if (!h.ready)
		return;
	for (int i = 0; i < 70 && !n; i++)
		n = tr_poll(h.conn, event, 2);
	for (int i = 0; i < n; i++)
		FUZZ_CHECK(event[i].kind != TR_PEER_LOST || event[i].status < 0);
	tr_conn_arm(h.conn);
	if (tr_conn_peer_left(h.conn) && h.keyed)
		FUZZ_CHECK(far.auth.on);
}

/* ---------------------------------------------------------------- the peer's frames */

static void hear(void)
{
	struct kv_error err;
	struct psk psk;

	if (far.fd < 0 || !far_hear())
		return;
	FUZZ_CHECK(++h.frames <= FRAMES_MAX);
	if (far.last[6] == FRAME_CHALLENGE && far.connecting && !far.auth.on &&
	    !psk_get(world.key[!h.right_key], NULL, &psk, &err) &&
	    far.last_len == FRAME_HEADER + AUTH_CHALLENGE)
		auth_challenged(&far.auth, &psk, far.knock, far.last, &err);
	if (far.last[6] == FRAME_KNOCK)
		memcpy(far.knock, far.last, sizeof(far.knock));
}

static void knock(void)
{
	struct kv_error err;
	struct psk psk;

	frame_put_header(far.knock, FRAME_KNOCK, AUTH_KNOCK);
	if (auth_knock(world.key[!h.right_key], &psk, far.knock, &err))
		return;
	far_send(FRAME_KNOCK, far.knock + FRAME_HEADER, AUTH_KNOCK);
}

static void challenge(void)
{
	uint8_t answer[FRAME_HEADER + AUTH_CHALLENGE] = { 0 };
	struct auth auth = { 0 };
	struct kv_error err;
	bool made;

	frame_put_header(answer, FRAME_CHALLENGE, AUTH_CHALLENGE);
	made = !auth_challenge(&auth, world.key[!h.right_key], far.knock, answer, &err);
	far_send(FRAME_CHALLENGE, answer + FRAME_HEADER, AUTH_CHALLENGE);
	if (made && !far.auth.on) {
		far.auth = auth;
		far.auth.on = true;
	} else {
		h.tampered = true;
	}
}

static void reject(const struct step *s)
{
	static const char *const text[] = { "", "layers: 32 here, 80 there", "\x1b[2J" };
	uint8_t buf[FRAME_REJECT_MAX];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	frame_put_reject(&w, s->c & 1 ? KV_ERR_GEOMETRY : -(int)(s->e >> 1), text[s->a % 3],
			 text[s->b % 3]);
	far_send(FRAME_REJECT, buf, w.len);
}

static void say_frame(const struct step *s)
{
	static const uint8_t words[1200] = { 1, 2, 3 };

	switch (s->a % 8) {
	case 0:
	case 1:
		far_hello((uint16_t)(TR_UPPER_TEST + (s->how & 1)),
			  (uint16_t)(1 + (s->how >> 1 & 1)), words, s->how & 4 ? s->c % 1100 : 5);
		break;
	case 2:
		far_setup(words, s->c % 1200);
		break;
	case 3:
		far_send(FRAME_READY, NULL, 0);
		break;
	case 4:
		reject(s);
		break;
	case 5:
		knock();
		break;
	case 6:
		challenge();
		break;
	default: /* of any type and length */
		h.tampered = true;
		far_send((enum frame_type)s->b, words, s->c % sizeof(words));
	}
}

/*
 * The same, but what goes out is kept back: cut, changed, in two pieces. A socket pair in between
 * is the peer's own.
 */
static void say_wrongly(const struct step *s)
{
	static uint8_t bytes[1 << 16];
	int real = far.fd, pair[2];
	ssize_t n, cut;

	FUZZ_CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
	far.fd = pair[0];
	say_frame(s);
	far.fd = real;
	n = recv(pair[1], bytes, sizeof(bytes), MSG_DONTWAIT);
	close(pair[0]);
	close(pair[1]);
	if (n <= 0)
		return;
	if (s->how & 0x10 && s->d & 0xff) {
		bytes[s->e % (uint32_t)n] ^= (uint8_t)s->d;
		h.tampered = true;
	}
	cut = (ssize_t)(s->f % ((uint32_t)n + 1));
	send(real, bytes, (size_t)cut, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (s->how & 0x20) {
		h.tampered |= cut < n;
		return;
	}
	step();
	send(real, bytes + cut, (size_t)(n - cut), MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void send_raw(const void *bytes, size_t len)
{
	h.tampered |= !h.ready && len;
	if (len)
		send(far.fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void goodbye(void)
{
	uint8_t bytes[1 + MAC_BYTES] = { 4 };

	if (far.auth.on)
		auth_seal(&far.auth, bytes, 1, bytes + 1);
	send_raw(bytes, far.auth.on ? sizeof(bytes) : 1);
}

static void run_step(const struct step *s)
{
	switch (s->what % 16) {
	case 0:
	case 1:
		hear();
		break;
	case 2:
		say_wrongly(s);
		break;
	case 3: /* the product's own frame comes back to it */
		send_raw(far.last, far.last_len);
		break;
	case 4:
		send_raw(s, s->a % (sizeof(*s) + 1));
		break;
	case 5:
		far_close();
		break;
	case 6:
		time_passes(s->c % 5000);
		break;
	case 7:
		goodbye();
		break;
	case 8:
		poll_conn();
		break;
	case 9:
	case 10:
	case 11:
		step();
		break;
	default: /* an honest move, both ways */
		say_frame(s);
		step();
		hear();
	}
}

/* ---------------------------------------------------------------- frames by themselves */

static void inside(struct frame_bytes b, const uint8_t *data, size_t size)
{
	FUZZ_CHECK(!b.len || (b.p >= data && b.len <= size && b.p + b.len <= data + size));
}

static void check_hello(const uint8_t *data, size_t size)
{
	struct frame_hello hello;
	struct wire_writer out;
	uint8_t *again;

	if (frame_get_hello(data, size, &hello))
		return;
	inside(hello.upper, data, size);
	FUZZ_CHECK(hello.offers <= FRAME_OFFERS_MAX);
	for (unsigned int i = 0; i < hello.offers; i++)
		inside(hello.offer[i].bytes, data, size);
	again = malloc(size);
	FUZZ_CHECK(again);
	out = wire_writer_of(again, size);
	frame_put_hello(&out, &hello);
	/* All but the u64 that is not read. */
	FUZZ_CHECK(!out.bad && out.len == size && !memcmp(again + 8, data + 8, size - 8));
	free(again);
}

static void check_bytes(const uint8_t *data, size_t size)
{
	struct frame_header header;
	struct frame_reject refusal;
	struct frame_setup setup;

	if (size >= FRAME_HEADER && !frame_get_header(data, &header))
		FUZZ_CHECK(header.len <= FRAME_SETUP_MAX + MAC_BYTES);
	check_hello(data, size);
	if (!frame_get_setup(data, size, &setup)) {
		inside(setup.provider_bytes, data, size);
		inside(setup.upper, data, size);
	}
	if (!frame_get_reject(data, size, &refusal))
		FUZZ_CHECK(refusal.code < 0 && strlen(refusal.message) < sizeof(refusal.message));
}

/* ---------------------------------------------------------------- */

static const char *key_path(const char *key, char path[64])
{
	int fd = memfd_create("key", MFD_CLOEXEC);

	FUZZ_CHECK(fd >= 0 && !fchmod(fd, 0600));
	FUZZ_CHECK(write(fd, key, strlen(key)) == (ssize_t)strlen(key));
	snprintf(path, 64, "/proc/self/fd/%d", fd);
	return path;
}

static void open_world(void)
{
	char a[64], b[64], option[128];
	const char *list[2][3] = { { "KVCACHE_TRANSPORT=shm", NULL },
				   { "KVCACHE_TRANSPORT=shm", option, NULL } };
	struct kv_error err;

	FUZZ_CHECK(!psk_open(key_path(KEY_A, a), &world.key[0], &err));
	FUZZ_CHECK(!psk_open(key_path(KEY_B, b), &world.key[1], &err));
	snprintf(option, sizeof(option), "KVCACHE_PSK_FILE=%s", a);
	for (int i = 0; i < 2; i++) {
		struct tr_config config = { 0 };

		FUZZ_CHECK(!kv_option_read(list[i], &world.options[i], &err));
		config.options = world.options[i];
		FUZZ_CHECK(!tr_open(&config, &world.tr[i], &err));
		rig_take(world.tr[i]);
	}
}

static void enter(struct tr *tr, const struct step *s)
{
	struct sockaddr_storage sa = { .ss_family = s->b & 1 ? AF_INET6 : AF_INET };
	struct kv_error err;
	int fd = far_open(true);

	FUZZ_CHECK(!fcntl(fd, F_SETFL, O_NONBLOCK));
	memset((uint8_t *)&sa + 8, s->b, 16);
	h.epfd = epoll_create1(EPOLL_CLOEXEC);
	if (lobby_open(&h.lobby, tr, h.epfd, &err)) {
		close(fd);
		return;
	}
	FUZZ_CHECK(lobby_make_room(&h.lobby));
	lobby_enter(&h.lobby, fd, &sa);
	h.in_lobby = h.lobby.n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct step steps[STEPS_MAX];
	size_t n = steps_of(data, size, steps);
	struct tr_conn_config config = { .ops = &upper };
	struct kv_error err;
	struct tr *tr;

	if (!n)
		return 0;
	if (steps[0].what & 0x80) {
		check_bytes(data + 1, size - 1);
		return 0;
	}
	if (!world.tr[0])
		open_world();
	rig_begin();
	memset(&h, 0, sizeof(h));
	h.epfd = -1;
	h.keyed = steps[0].what & 2;
	h.right_key = !(steps[0].what & 4);
	h.refuses = steps[0].what & 8;
	tr = world.tr[h.keyed];
	rig_fault(steps[0].f);
	if (steps[0].what & 1)
		enter(tr, &steps[0]);
	else if (tr_connect(tr, "far", 1, &config, &h.conn, &err))
		h.conn = NULL;
	rig_heap_from_here();
	for (size_t i = 1; i < n; i++)
		run_step(&steps[i]);
	tr_conn_close(h.conn);
	lobby_close(&h.lobby);
	if (h.epfd >= 0)
		close(h.epfd);
	rig_end();
	return 0;
}
