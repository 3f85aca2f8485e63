/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shm_fuzz.c -- a connection over shared memory whose other end says whatever the input says: in
 * the handshake, on the local socket with and without descriptors, in the ring and its positions,
 * in descriptions of memory; while this end writes, reads, sends and cancels
 *
 * Rules: nothing lands beside the region that was described, or in it without the right; nothing
 * beside it is read to the peer; a lie ends the connection with PROTOCOL; no descriptor, mapping or
 * byte of a budget is left. process_vm is left out: the peer is this process.
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/option.h"
#include "rig.h"
#include "shm/shm.h"
#include "upper.h"

enum { GUARD = 512, REGION = 2048, PATHS = 2, OPS = 4, RING = RING_BYTES_MIN, POOL = 8192 };
enum { OURS = 0x22, BESIDE = 0x33, THEIRS = 0x44 };

static struct tr *transport[PATHS]; /* ring, pool */
static struct kv_option_set *options[PATHS];
static uint8_t memory[GUARD + REGION + GUARD];

static struct {
	struct tr *tr;
	struct tr_listener *listener;
	struct tr_conn *conn;
	struct upper upper;
	unsigned int access, flags;
	bool over, reads; /* a read of this end may have changed the region */
	struct tr_op *op[OPS];
	uint64_t ops;
	/* The peer. */
	const struct step *first;
	unsigned int moves;
	int door, link; /* its listening local socket; the connected one */
	struct segment seg;
	struct ring_out out;
	struct ring_in in;
	uint8_t token[16], nonce[16];
	uint32_t region; /* the product's, as it was described */
} m;

/* The local socket asks which TCP connection each end has. */
static int address_of(struct sockaddr *sa, socklen_t *len, uint16_t port)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(port) };

	memcpy(sa, &in, *len < sizeof(in) ? *len : sizeof(in));
	*len = sizeof(in);
	return 0;
}

int getsockname(int fd, struct sockaddr *sa, socklen_t *len)
{
	return address_of(sa, len, 1);
}

int getpeername(int fd, struct sockaddr *sa, socklen_t *len)
{
	return address_of(sa, len, 2);
}

/* ---------------------------------------------------------------- the peer's local socket */

static socklen_t name_of(struct sockaddr_un *sa, const uint8_t name[16])
{
	int len = 7;

	*sa = (struct sockaddr_un){ .sun_family = AF_UNIX };
	memcpy(sa->sun_path + 1, "kvrail-", 7);
	for (int i = 0; i < 16; i++, len += 2)
		snprintf(sa->sun_path + 1 + len, 3, "%02x", name[i]);
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)len);
}

static void link_say(int sock, const struct link_message *message, size_t len, const int *fds,
		     size_t n)
{
	uint8_t buf[sizeof(*message) + 32] = { 0 };
	struct iovec iov = { buf, len % sizeof(buf) };
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(2 * sizeof(int))];
	} control = { .header = { CMSG_LEN(n * sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	memcpy(buf, message, sizeof(*message));
	if (n) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, n * sizeof(int));
	}
	sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static struct link_message link_word(uint32_t kind)
{
	struct link_message message = { .kind = kind };

	memcpy(message.token, m.token, sizeof(message.token));
	message.ends.local[10] = message.ends.local[11] = 0xff;
	message.ends.remote[10] = message.ends.remote[11] = 0xff;
	message.ends.local[17] = 2;
	message.ends.remote[17] = 1;
	return message;
}

/* Connecting peer: to the name in the product's hello, with a segment. */
static void link_connect(const struct frame_hello *hello)
{
	struct link_message message;
	struct wire_reader r = wire_reader_of(hello->offer[0].bytes.p, hello->offer[0].bytes.len);
	uint8_t name[16], word = (uint8_t)m.first->d;
	struct sockaddr_un sa;
	socklen_t len;
	struct kv_error err;
	int fd;

	wire_get_bytes(&r, name, sizeof(name));
	wire_get_bytes(&r, m.token, sizeof(m.token));
	len = name_of(&sa, name);
	m.link = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	FUZZ_CHECK(!connect(m.link, (struct sockaddr *)&sa, len));
	if (segment_create(&m.seg, RING, m.nonce, &fd, &err))
		return;
	if (m.first->how & 1) /* a header that is wrong */
		((uint8_t *)m.seg.shared)[m.first->c % 64] ^= word;
	message = link_word(LINK_SEGMENT);
	if (m.first->how & 2)
		((uint8_t *)&message)[m.first->c % sizeof(message)] ^= word;
	link_say(m.link, &message, m.first->how & 4 ? m.first->c % 90 : sizeof(message), &fd,
		 !(m.first->how & 8));
	close(fd);
}

/* Accepting peer: a name for its offer. */
static void link_listen(struct wire_writer *w)
{
	struct sockaddr_un sa;
	socklen_t len;
	static uint64_t names;

	names++;
	memcpy(m.nonce, &names, sizeof(names));
	m.nonce[15] = (uint8_t)getpid();
	m.nonce[14] = (uint8_t)(getpid() >> 8);
	m.nonce[13] = 0xfa;
	len = name_of(&sa, m.nonce);
	m.door = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	FUZZ_CHECK(!bind(m.door, (struct sockaddr *)&sa, len) && !listen(m.door, 2));
	wire_put_bytes(w, m.nonce, 16);
	wire_put_bytes(w, m.token, 16);
	wire_put_u64(w, m.first->how & 1 ? m.first->e : RING);
}

static void link_accept(void)
{
	struct link_message message;
	struct tr_conn conn = { 0 };
	struct shm_conn sc = { .conn = &conn };
	struct link_fds fds;
	struct kv_error err;
	int ret;

	m.link = accept4(m.door, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (m.link < 0 || link_receive(&sc, m.link, &message, 1, &fds, &err))
		return;
	FUZZ_CHECK(fds.n == 1);
	ret = segment_open(&m.seg, fds.fd[0], RING_BYTES_MAX, &err);
	link_close_fds(&fds);
	if (ret)
		return;
	memcpy(m.nonce, m.seg.shared->nonce, sizeof(m.nonce));
	message = link_word(LINK_ENDS);
	if (m.first->how & 2)
		((uint8_t *)&message)[m.first->c % sizeof(message)] ^= (uint8_t)m.first->d;
	link_say(m.link, &message, sizeof(message), NULL, 0);
}

/* ---------------------------------------------------------------- the peer's handshake */

static void put_offer(void)
{
	uint8_t offer[FRAME_OFFER_MAX], buf[FRAME_HELLO_MAX];
	struct wire_writer o = wire_writer_of(offer, sizeof(offer));
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct frame_hello hello = { .upper_id = TR_UPPER_TEST, .upper_version = 1 };

	if (!far.connecting) {
		link_listen(&o);
		hello.offers = 1;
		hello.offer[0].provider = TR_PROVIDER_SHM;
		hello.offer[0].bytes = (struct frame_bytes){ offer, o.len };
	}
	frame_put_hello(&w, &hello);
	far_send(FRAME_HELLO, buf, w.len);
}

static size_t describe(const struct step *s, uint8_t buf[TR_MEM_PACK_MAX])
{
	struct wire_writer w = wire_writer_of(buf, TR_MEM_PACK_MAX);

	wire_put_u32(&w, 7);
	wire_put_u32(&w, TR_REMOTE_READ | TR_REMOTE_WRITE);
	wire_put_u64(&w, REGION);
	wire_put_u64(&w, 0x10000);
	wire_put_u8(&w, s->a & 1);
	wire_put_u64(&w, 1); /* the pool */
	wire_put_u64(&w, POOL);
	wire_put_u64(&w, s->b * 64u);
	if (s->how & 0x10)
		buf[s->c % w.len] ^= (uint8_t)s->d;
	return s->how & 0x20 ? s->d % (w.len + 1) : w.len;
}

static void pass_pool(uint64_t id, uint64_t len, int seals, unsigned int fds)
{
	struct link_message message = link_word(LINK_POOL);
	int fd[2] = { memfd_create("pool", MFD_CLOEXEC | MFD_ALLOW_SEALING), STDIN_FILENO };

	FUZZ_CHECK(fd[0] >= 0 && !ftruncate(fd[0], POOL) && !fcntl(fd[0], F_ADD_SEALS, seals));
	message.id = id;
	message.len = len;
	link_say(m.link, &message, sizeof(message), fd, fds);
	close(fd[0]);
}

static void put_setup(void)
{
	uint8_t provider[64], region[TR_MEM_PACK_MAX], buf[1024];
	struct wire_writer p = wire_writer_of(provider, sizeof(provider));
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	size_t len = describe(m.first, region);

	if (m.first->a & 1 && m.link >= 0)
		pass_pool(1, POOL, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, 1);
	wire_put_u32(&p, m.first->a >> 1 & 7);
	wire_put_bytes(&p, m.nonce, sizeof(m.nonce));
	if (m.first->how & 0x40)
		provider[m.first->c % p.len] ^= (uint8_t)m.first->d;
	frame_put_setup(
		&w, &(struct frame_setup){ TR_PROVIDER_SHM, { provider, p.len }, { region, len } });
	far_send(FRAME_SETUP, buf, w.len);
}

/* What the product's setup says of its region. */
static void hear_setup(void)
{
	struct frame_setup setup;
	struct wire_reader r;

	if (!far_hear() || far.last[6] != FRAME_SETUP ||
	    frame_get_setup(far.last + FRAME_HEADER, far.last_len - FRAME_HEADER, &setup))
		return;
	r = wire_reader_of(setup.upper.p, setup.upper.len);
	m.region = wire_get_u32(&r);
}

static void far_moves(void)
{
	struct frame_hello hello;

	switch (m.moves++) {
	case 0:
		if (far.connecting || far_hear())
			put_offer();
		break;
	case 1:
		if (!far.connecting) {
			hear_setup();
			link_accept();
		} else if (far_hear() &&
			   !frame_get_hello(far.last + FRAME_HEADER, far.last_len - FRAME_HEADER,
					    &hello) &&
			   hello.offers) {
			link_connect(&hello);
		}
		put_setup();
		break;
	case 2:
		if (far.connecting)
			hear_setup();
		far_send(FRAME_READY, NULL, 0);
		break;
	default:
		break;
	}
}

/* ---------------------------------------------------------------- the peer's ring */

static void put_record(const struct step *s)
{
	struct ring_record r = { .type = s->a % 8,
				 .len = s->c % 400,
				 .a = s->d,
				 .b = s->e % 2100,
				 .mem = m.region + (s->how >> 6),
				 .line = s->f };
	uint64_t at = m.out.tail & (m.out.size - 1);

	if (!m.seg.shared)
		return;
	if (s->how & 1)
		r.len = s->f;
	if (s->how & 2)
		r.a = (uint64_t)s->f << 32 | s->e;
	if (r.type == RING_PAD && s->how & 4)
		r.len = (uint32_t)(m.out.size - at - RING_ALIGN);
	memcpy(m.out.data + at, &r, sizeof(r));
	memset(m.out.data + ((at + RING_ALIGN) & (m.out.size - 1)), THEIRS,
	       at + RING_ALIGN + 400 <= m.out.size ? 400 : RING_ALIGN);
	m.out.tail += ring_record_bytes(r.len < RING ? r.len : s->c % 400);
	if (s->how & 8)
		m.out.tail += s->b;
	atomic_store(&m.out.shared->tail, m.out.tail);
}

static void put_word(const struct step *s)
{
	struct segment_side *side;

	if (!m.seg.shared)
		return;
	side = &m.seg.shared->side[s->b & 1 ? far.connecting : !far.connecting];
	switch (s->a % 5) {
	case 0:
		atomic_store(&side->asleep, s->c);
		break;
	case 1:
		atomic_store(&side->stop, s->c & 1);
		break;
	case 2:
		atomic_store(&side->stopped, s->c & 1);
		break;
	case 3: /* as far as the product has written, or not */
		atomic_store(&m.in.shared->head, atomic_load(&m.in.shared->tail) - s->d * 32u);
		break;
	default:
		atomic_store(&m.in.shared->head, (uint64_t)s->f << 32 | s->e);
	}
}

/* What the product has written: only bytes of the region may be among it. */
static void take_records(void)
{
	struct ring_record r;
	const uint8_t *payload;

	if (!m.seg.shared)
		return;
	m.in.head = atomic_load(&m.in.shared->head);
	m.in.tail = m.in.head;
	for (int i = 0; i < 64 && ring_next(&m.in, &r, &payload) > 0; i++) {
		if (r.type == RING_READ_DATA)
			for (uint32_t k = 0; k < r.len; k++)
				FUZZ_CHECK(payload[k] != BESIDE);
		ring_consume(&m.in, &r);
	}
	atomic_store(&m.in.shared->head, m.in.head);
}

static void say_link(const struct step *s)
{
	struct link_message message = link_word(s->a % 6);

	if (m.link < 0)
		return;
	switch (s->how % 4) {
	case 0:
		pass_pool(s->b % 4, s->c & 1 ? POOL : (uint64_t)s->f << 32 | s->e, s->d & 0x1f,
			  1 + (s->how >> 2 & 1));
		break;
	case 1:
		link_say(m.link, &message, s->c % (sizeof(message) + 20), NULL, 0);
		break;
	case 2:
		link_say(m.link, &message, sizeof(message), &(int){ STDIN_FILENO }, s->b & 1);
		break;
	default:
		close(m.link);
		m.link = -1;
	}
}

/* ---------------------------------------------------------------- the product's end */

static void poll_conn(void)
{
	struct tr_event event[8];
	int n = tr_poll(m.conn, event, 8);

	for (int i = 0; i < n; i++) {
		if (event[i].kind == TR_PEER_LOST || event[i].kind == TR_IN_DOUBT)
			FUZZ_CHECK(event[i].status < 0 && event[i].status != KV_ERR_INTERNAL);
		if (event[i].kind == TR_PEER_LOST || event[i].kind == TR_IN_DOUBT ||
		    event[i].kind == TR_WRITTEN || event[i].kind == TR_READ ||
		    event[i].kind == TR_CANCELLED)
			for (int k = 0; k < OPS; k++)
				if (m.op[k] && (event[i].kind == TR_PEER_LOST ||
						m.op[k]->user == event[i].user))
					m.op[k] = NULL;
	}
}

static void operate(const struct step *s)
{
	struct tr_op **op = &m.op[s->a % OPS];
	struct tr_span span = { s->c % REGION, s->d % REGION, 1 + s->e % REGION };
	struct kv_error err;
	int ret = 0;

	if (m.conn->stage != CONN_READY || !m.upper.rmem)
		return;
	if (!*op) {
		ret = tr_op_begin(m.conn, s->how & 1 ? TR_READ_OP : TR_WRITE, ++m.ops, op, &err);
		m.reads |= s->how & 1;
		if (ret)
			*op = NULL;
	} else if (s->how % 4 < 2) {
		long n = (*op)->state == TR_OP_OPEN
				 ? tr_op_add(*op, m.upper.mem, m.upper.rmem, &span, 1, &err)
				 : 0;

		FUZZ_CHECK(n >= 0 || err.code);
	} else if (s->how % 4 == 2) {
		if ((*op)->state == TR_OP_OPEN)
			tr_op_commit(*op, s->how & 8 ? TR_NOTIFY : 0, s->f, &err);
	} else {
		tr_op_cancel(*op, kv_deadline_ns(s->b), &err);
	}
}

static void act(const struct step *s)
{
	struct kv_error err;

	switch (s->how % 6) {
	case 0:
		if (m.conn->stage == CONN_READY)
			tr_msg(m.conn, memory + GUARD, s->c % TR_MSG_MAX, &err);
		break;
	case 1:
		tr_conn_arm(m.conn);
		break;
	case 2:
		tr_fence(m.conn, 0, &err);
		break;
	case 3:
		time_passes(s->c % 2000);
		break;
	case 4:
		far_close();
		break;
	default: {
		char text[512];

		tr_conn_dump(m.conn, text, sizeof(text));
		if (m.conn->stage == CONN_READY)
			m.conn->provider->ask(m.conn);
	}
	}
}

static void run_step(const struct step *s)
{
	uint8_t buf[TR_MEM_PACK_MAX];
	struct tr_rmem *rmem;
	struct kv_error err;
	size_t len;

	switch (s->what % 12) {
	case 0:
	case 1:
	case 2:
		put_record(s);
		break;
	case 3:
		put_word(s);
		break;
	case 4:
		say_link(s);
		break;
	case 5:
		take_records();
		break;
	case 6:
	case 7:
		operate(s);
		break;
	case 8:
		act(s);
		break;
	case 9: /* a region more */
		len = describe(s, buf);
		if (m.conn->stage == CONN_READY && !tr_mem_open(m.conn, buf, len, &rmem, &err))
			tr_mem_close(rmem);
		break;
	default:
		poll_conn();
	}
}

/* ---------------------------------------------------------------- */

static void open_transports(void)
{
	static const char *const paths[PATHS] = { "KVCACHE_SHM_PATH=ring",
						  "KVCACHE_SHM_PATH=pool" };
	struct kv_error err;

	for (int i = 0; i < PATHS; i++) {
		const char *list[] = { "KVCACHE_TRANSPORT=shm", paths[i], "KVCACHE_SHM_RING=64K",
				       NULL };
		struct tr_config config = { 0 };

		FUZZ_CHECK(!kv_option_read(list, &options[i], &err));
		config.options = options[i];
		FUZZ_CHECK(!tr_open(&config, &transport[i], &err));
	}
}

static void handshake(bool connecting)
{
	struct tr_conn_config config = { .ops = &upper_ops, .arg = &m.upper, .flags = m.flags };
	struct kv_error err;

	if (connecting) {
		FUZZ_CHECK(!tr_listen(m.tr, NULL, 0, &m.listener, &err));
		far_connect();
		m.over = tr_accept(m.listener, &config, &m.conn, &err);
	} else {
		m.over = tr_connect(m.tr, "far", 1, &config, &m.conn, &err);
	}
	for (int i = 0; i < 4 && !m.over; i++) {
		int ret = tr_conn_step(m.conn, &err);

		m.over |= rig_failed(ret, &err);
		if (ret && !m.over)
			far_moves();
	}
	if (m.seg.shared)
		segment_rings(&m.seg, far.connecting ? SEGMENT_CONNECTING : SEGMENT_ACCEPTING,
			      &m.out, &m.in);
}

static void close_all(void)
{
	struct kv_error err;

	rig_fault(0);
	tr_conn_close(m.conn);
	tr_listener_close(m.listener);
	FUZZ_CHECK(!tr_mem_dereg(m.upper.mem, &err));
	segment_close(&m.seg);
	if (m.link >= 0)
		close(m.link);
	if (m.door >= 0)
		close(m.door);
	for (int i = 0; i < GUARD; i++)
		FUZZ_CHECK(memory[i] == BESIDE && memory[GUARD + REGION + i] == BESIDE);
	for (int i = 0; i < REGION && !(m.access & TR_REMOTE_WRITE) && !m.reads; i++)
		FUZZ_CHECK(memory[GUARD + i] == OURS);
	FUZZ_CHECK(!atomic_load(&((struct shm_ctx *)m.tr->provider_ctx[0])->mapped));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct step steps[STEPS_MAX];
	size_t n = steps_of(data, size, steps);
	struct kv_error err;

	if (!n)
		return 0;
	if (!transport[0])
		open_transports();
	rig_begin();
	memset(&m, 0, sizeof(m));
	memset(memory, BESIDE, sizeof(memory));
	memset(memory + GUARD, OURS, REGION);
	m.first = &steps[0];
	m.door = m.link = -1;
	m.tr = transport[steps[0].what >> 1 & 1];
	m.access = steps[0].what >> 2 & 3;
	m.flags = steps[0].what >> 4 & (TR_LINE_ORDER | TR_POLLED);
	FUZZ_CHECK(!tr_mem_reg(m.tr, memory + GUARD, REGION, TR_MEM_HOST, m.access, &m.upper.mem,
			       &err));
	rig_fault(steps[0].f);
	handshake(steps[0].what & 1);
	for (size_t i = 1; i < n && !m.over && m.conn->stage >= CONN_READY; i++)
		run_step(&steps[i]);
	FUZZ_CHECK(rig_heap() < (1 << 20));
	close_all();
	rig_end();
	return 0;
}
