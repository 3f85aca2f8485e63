/* SPDX-License-Identifier: Apache-2.0 */
/* rig.c -- time, the transport and the peer's control socket of rig.h */
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "dial.h"

size_t steps_of(const uint8_t *data, size_t size, struct step steps[STEPS_MAX])
{
	size_t most = STEPS_MAX * sizeof(*steps);

	size = size < most ? size : most;
	memset(steps, 0, most);
	memcpy(steps, data, size);
	return (size + sizeof(*steps) - 1) / sizeof(*steps);
}

/* ---------------------------------------------------------------- time */

static int64_t now_ns;
int64_t rig_tick_ns = 100;

void time_passes(int64_t ms)
{
	now_ns += ms * KV_NS_PER_MS;
}

/* CLOCK_MONOTONIC is the product's alone; libFuzzer asks for another one. */
int clock_gettime(clockid_t id, struct timespec *ts)
{
	if (id != CLOCK_MONOTONIC)
		return (int)syscall(SYS_clock_gettime, id, ts);
	now_ns += rig_tick_ns;
	ts->tv_sec = 1000 + now_ns / 1000000000;
	ts->tv_nsec = now_ns % 1000000000;
	return 0;
}

/* Where nothing comes while the product waits, it waits to the end. */
int epoll_wait(int epfd, struct epoll_event *events, int max, int timeout)
{
	int n;

	do
		n = (int)syscall(SYS_epoll_pwait, epfd, events, max, 0, NULL, 0);
	while (!n && timeout && rig.idle && rig.idle());
	FUZZ_CHECK(n || timeout >= 0); /* or it would wait for ever */
	if (!n)
		time_passes(timeout);
	return n;
}

int poll(struct pollfd *fds, nfds_t n, int timeout)
{
	struct timespec none = { 0 };
	int ret = (int)syscall(SYS_ppoll, fds, n, &none, NULL, 0);

	FUZZ_CHECK(ret || timeout >= 0);
	if (!ret)
		time_passes(timeout);
	return ret;
}

int ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask)
{
	return poll(fds, n, timeout ? (int)(timeout->tv_sec * 1000 + 1) : -1);
}

/* There is no other thread that could wake it. The linker puts it in the place of the product's. */
void __wrap_kv_futex_wait(void *word, uint32_t value, int64_t deadline_ns);
void __wrap_kv_futex_wait(void *word, uint32_t value, int64_t deadline_ns)
{
	int64_t now = kv_now_ns();

	FUZZ_CHECK(deadline_ns != INT64_MAX); /* or it would wait for ever */
	now_ns += deadline_ns > now ? deadline_ns - now : 0;
}

/* ---------------------------------------------------------------- what is left behind */

size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

static size_t heap_before;
static int fds_before;
enum { FDS = 64 }; /* no input opens more */

bool rig_failed(int ret, const struct kv_error *err)
{
	FUZZ_CHECK(ret >= 0 || (err->code == ret && err->message[0] && ret != KV_ERR_INTERNAL));
	return ret < 0;
}

size_t rig_heap(void)
{
	size_t now;

	if (!__sanitizer_get_current_allocated_bytes)
		return 0;
	now = __sanitizer_get_current_allocated_bytes();
	return now > heap_before ? now - heap_before : 0;
}

static int count_fds(void)
{
	int n = 0;

	for (int fd = 0; fd < FDS; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

void rig_heap_from_here(void)
{
	heap_before = 0;
	heap_before = rig_heap();
}

void rig_fault(uint32_t which)
{
#ifdef KVRAIL_FAULTS
	static unsigned int armed; /* point + 1 */

	if (armed)
		kv_fault_arm((enum kv_fault_point)(armed - 1), 0);
	armed = which ? which % KV_FAULT_POINTS + 1 : 0;
	if (armed)
		kv_fault_arm((enum kv_fault_point)(armed - 1), 1 + (which >> 16) % 4);
#else
#endif
}

void rig_begin(void)
{
	setenv("KVCACHE_VIEW", "0", 1); /* its thread waits for ever */
	memset(&rig, 0, sizeof(rig));
	memset(&far, 0, sizeof(far));
	far.fd = -1;
	time_passes(3600 * 1000); /* what was measured before is forgotten */
	fds_before = count_fds();
	rig_heap_from_here();
}

void rig_end(void)
{
	rig_fault(0);
	far_close();
	FUZZ_CHECK(count_fds() == fds_before);
}

/* ---------------------------------------------------------------- the transport */

struct rig rig;

static struct tr *taken;
static const struct tr_provider *was;

static void give_back(void *ctx)
{
	was->close(ctx);
}

void rig_take(struct tr *tr)
{
	FUZZ_CHECK(tr->providers == 1);
	taken = tr;
	was = tr->provider[0];
	tr->provider[0] = &rig_provider;
}

static int rig_reg(void *ctx, struct tr_mem *mem, void **handle_p, struct kv_error *err)
{
	*handle_p = NULL;
	return 0;
}

static void rig_dereg(void *ctx, void *handle)
{
}

static int rig_offer(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_writer *w,
		     struct kv_error *err)
{
	*priv_p = &rig;
	wire_put_u8(w, 7);
	return 0;
}

static int rig_start(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_reader *r,
		     struct kv_error *err)
{
	*priv_p = &rig;
	return wire_get_u8(r) == 7 && wire_done(r)
		       ? 0
		       : kv_fail(err, KV_ERR_PROTOCOL, "handshake", "the offer is malformed");
}

static int rig_setup_put(struct tr_conn *conn, struct wire_writer *w, struct kv_error *err)
{
	wire_put_u8(w, 8);
	return 0;
}

static int rig_setup_get(struct tr_conn *conn, struct wire_reader *r, struct kv_error *err)
{
	return wire_get_u8(r) == 8
		       ? 0
		       : kv_fail(err, KV_ERR_PROTOCOL, "handshake", "the setup is malformed");
}

static void rig_stop(struct tr_conn *conn, void *priv)
{
	FUZZ_CHECK(priv == &rig);
}

static int rig_pack(struct tr_conn *conn, struct tr_mem *mem, struct wire_writer *w,
		    struct kv_error *err)
{
	return 0;
}

static int rig_unpack(struct tr_conn *conn, struct tr_rmem *rmem, struct wire_reader *r,
		      struct kv_error *err)
{
	return 0;
}

static void rig_unpacked(struct tr_conn *conn, struct tr_rmem *rmem)
{
	FUZZ_CHECK(rmem->conn == conn);
}

static void rig_op_begin(struct tr_op *op)
{
}

static long rig_op_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		       const struct tr_span *spans, size_t n, struct kv_error *err)
{
	for (size_t i = 0; i < n; i++) {
		if (rig.refuses)
			return (long)i;
		FUZZ_CHECK(rmem->conn == op->conn);
		FUZZ_CHECK(spans[i].len && spans[i].local <= lmem->len &&
			   spans[i].len <= lmem->len - spans[i].local);
		FUZZ_CHECK(spans[i].remote <= rmem->len &&
			   spans[i].len <= rmem->len - spans[i].remote);
		if (rig.span)
			rig.span(op, lmem, rmem, &spans[i]);
	}
	return (long)n;
}

static int rig_op_commit(struct tr_op *op, unsigned int flags, uint64_t value, struct kv_error *err)
{
	if (rig.refuses)
		return TR_AGAIN;
	if (rig.commit)
		rig.commit(op, flags, value);
	return 0;
}

static void rig_op_cancel(struct tr_op *op, int64_t deadline_ns)
{
	if (!rig.holds)
		tr_op_end(op, TR_CANCELLED);
}

static int rig_msg(struct tr_conn *conn, const void *buf, size_t len, bool wake,
		   struct kv_error *err)
{
	if (rig.refuses)
		return TR_AGAIN;
	rig.said++;
	if (rig.message)
		rig.message(buf, len);
	return 0;
}

static int end_ops(struct tr_conn *conn)
{
	int done = 0;

	for (unsigned int i = 0; i < tr_conn_ops(conn) && !rig.holds; i++) {
		struct tr_op *op = tr_conn_op(conn, i);

		if (op->state != TR_OP_COMMITTED && op->state != TR_OP_STOPPING)
			continue;
		tr_op_end(op, op->state == TR_OP_STOPPING ? TR_CANCELLED
			      : op->kind == TR_WRITE	  ? TR_WRITTEN
							  : TR_READ);
		done++;
	}
	return done;
}

static int rig_progress(struct tr_conn *conn)
{
	int done = end_ops(conn);
	unsigned int i;

	for (i = 0; i < rig.events && tr_conn_room(conn); i++) {
		const struct rig_event *event = &rig.event[i];

		if (event->commit)
			tr_conn_notified(conn, event->value);
		else
			tr_conn_message(conn, event->bytes, event->len);
	}
	rig.events -= i;
	memmove(rig.event, rig.event + i, rig.events * sizeof(rig.event[0]));
	return done + (int)i;
}

static int rig_arm(struct tr_conn *conn)
{
	return rig.events > 0;
}

static int rig_fence(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err)
{
	if (rig.busy)
		return TR_AGAIN;
	tr_conn_goodbye(conn);
	return 0;
}

static bool rig_ask(struct tr_conn *conn)
{
	return true;
}

static int rig_dump(const struct tr_conn *conn, char *buf, size_t cap)
{
	return snprintf(buf, cap, "a transport of the fuzzer\n");
}

static bool rig_places(const struct tr_conn *conn)
{
	return rig.places;
}

const struct tr_provider rig_provider = {
	.name = "fuzz",
	.id = TR_PROVIDER_SHM,
	.close = give_back,
	.mem_reg = rig_reg,
	.mem_dereg = rig_dereg,
	.offer = rig_offer,
	.start = rig_start,
	.setup_put = rig_setup_put,
	.setup_get = rig_setup_get,
	.stop = rig_stop,
	.mem_pack = rig_pack,
	.mem_open = rig_unpack,
	.mem_close = rig_unpacked,
	.op_begin = rig_op_begin,
	.op_add = rig_op_add,
	.op_commit = rig_op_commit,
	.op_cancel = rig_op_cancel,
	.msg = rig_msg,
	.progress = rig_progress,
	.arm = rig_arm,
	.fence = rig_fence,
	.ask = rig_ask,
	.dump = rig_dump,
	.places = rig_places,
};

static struct rig_event *next_event(void)
{
	static struct rig_event none;
	struct rig_event *event = rig.events < RIG_QUEUE ? &rig.event[rig.events++] : &none;

	memset(event, 0, sizeof(*event));
	return event;
}

void rig_say(const void *buf, size_t len)
{
	struct rig_event *event = next_event();

	FUZZ_CHECK(len <= TR_MSG_MAX);
	event->len = len;
	memcpy(event->bytes, buf, len);
}

void rig_commit(uint64_t value)
{
	struct rig_event *event = next_event();

	event->commit = true;
	event->value = value;
}

void rig_lose(struct tr_conn *conn)
{
	struct kv_error cause;

	kv_fail(&cause, KV_ERR_LINK, "poll", "the transport broke");
	tr_conn_lost(conn, &cause);
}

/* ---------------------------------------------------------------- the peer's control socket */

struct far far;

int far_open(bool connecting)
{
	int pair[2];

	FUZZ_CHECK(far.fd < 0 && !socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
	far.fd = pair[1];
	far.connecting = connecting;
	return pair[0];
}

void far_close(void)
{
	if (far.fd >= 0)
		close(far.fd);
	far.fd = -1;
}

void far_send(enum frame_type type, const void *payload, size_t len)
{
	static uint8_t buf[FRAME_HEADER + FRAME_SETUP_MAX + MAC_BYTES];

	if (len)
		memcpy(buf + FRAME_HEADER, payload, len);
	len = control_finish_frame(buf, type, len, &far.auth);
	send(far.fd, buf, len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static ssize_t far_read(size_t at, size_t len)
{
	if (at + len > sizeof(far.last))
		return -1;
	return len ? recv(far.fd, far.last + at, len, MSG_DONTWAIT) : 0;
}

bool far_hear(void)
{
	struct frame_header header;
	size_t mac = far.auth.on ? MAC_BYTES : 0;

	far.last_len = 0;
	if (far_read(0, FRAME_HEADER) != FRAME_HEADER || frame_get_header(far.last, &header))
		return false;
	if (far_read(FRAME_HEADER, header.len) != (ssize_t)header.len || header.len < mac)
		return false;
	far.last_len = FRAME_HEADER + header.len - mac;
	/* Not where the two have no secret in common: the product's end says so without a MAC. */
	return !mac || auth_opens(&far.auth, far.last, far.last_len, far.last + far.last_len);
}

void far_hello(uint16_t upper_id, uint16_t version, const void *upper, size_t len)
{
	static const uint8_t offer[] = { 7 };
	uint8_t buf[FRAME_HELLO_MAX];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct frame_hello hello = { .features = far.features,
				     .incarnation = { 1, 2, 3 },
				     .upper_id = upper_id,
				     .upper_version = version,
				     .upper = { upper, len },
				     .offers = !far.connecting };

	hello.offer[0].provider = TR_PROVIDER_SHM;
	hello.offer[0].bytes = (struct frame_bytes){ offer, sizeof(offer) };
	frame_put_hello(&w, &hello);
	far_send(FRAME_HELLO, buf, w.len);
}

void far_setup(const void *upper, size_t len)
{
	static const uint8_t setup[] = { 8 };
	uint8_t buf[4096];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	frame_put_setup(&w, &(struct frame_setup){
				    TR_PROVIDER_SHM, { setup, sizeof(setup) }, { upper, len } });
	FUZZ_CHECK(!w.bad);
	far_send(FRAME_SETUP, buf, w.len);
}

size_t far_region(void *buf, uint32_t id, unsigned int access, uint64_t len)
{
	struct wire_writer w = wire_writer_of(buf, TR_MEM_PACK_MAX);

	wire_put_u32(&w, id);
	wire_put_u32(&w, access);
	wire_put_u64(&w, len);
	return w.len;
}

int rig_accepted(struct tr *tr, const struct tr_conn_config *config, int fd,
		 struct tr_conn **conn_p, struct kv_error *err)
{
	struct tr_conn *conn;
	int ret = conn_new(tr, config, true, &conn, err);

	if (ret) {
		close(fd);
		return ret;
	}
	conn->sock = fd;
	conn->stage = CONN_WAIT_HELLO;
	conn->deadline_ns = kv_deadline_ns(conn->handshake_ms);
	ret = control_prepare(conn, err);
	if (ret)
		tr_conn_close(conn);
	else
		*conn_p = conn;
	return ret;
}

/* ---------------------------------------------------------------- listener.c, of the peer */

struct tr_listener {
	struct tr *tr;
	int bell;
};

static int waiting = -1; /* the product's end of a connection that was not accepted */

static void ring_bell(const struct tr_listener *l, bool up)
{
	uint64_t n = 1;

	FUZZ_CHECK((up ? write(l->bell, &n, sizeof(n)) : read(l->bell, &n, sizeof(n))) ||
		   errno == EAGAIN);
}

int tr_listen(struct tr *tr, const char *host, uint32_t port, struct tr_listener **listener_p,
	      struct kv_error *err)
{
	struct tr_listener *l = malloc(sizeof(*l));

	FUZZ_CHECK(l);
	l->tr = tr;
	l->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ring_bell(l, true);
	*listener_p = l;
	return 0;
}

uint32_t tr_listener_port(const struct tr_listener *l)
{
	return 4711;
}

int tr_listener_fd(const struct tr_listener *l)
{
	return l->bell;
}

int64_t tr_listener_deadline(const struct tr_listener *l)
{
	return INT64_MAX;
}

bool tr_listener_waiting(const struct tr_listener *l)
{
	return waiting >= 0;
}

void tr_listener_refused(struct tr_listener *l, struct tr_refused *refused)
{
	*refused = (struct tr_refused){ 0 };
}

void tr_listener_close(struct tr_listener *l)
{
	if (!l)
		return;
	close(l->bell);
	if (waiting >= 0)
		close(waiting);
	waiting = -1;
	free(l);
}

int tr_listener_tend(struct tr_listener *l, struct kv_error *err)
{
	ring_bell(l, false);
	return 0;
}

int tr_accept(struct tr_listener *l, const struct tr_conn_config *config, struct tr_conn **conn_p,
	      struct kv_error *err)
{
	int fd = waiting;

	ring_bell(l, false);
	waiting = -1;
	return fd < 0 ? TR_AGAIN : rig_accepted(l->tr, config, fd, conn_p, err);
}

void far_connect(void)
{
	waiting = far_open(true);
}

/* ---------------------------------------------------------------- dial.h, to the peer */

struct dial {
	int fd;
};

int dial_start(struct tr_conn *conn, const char *host, uint32_t port, struct dial **dial_p,
	       struct kv_error *err)
{
	*dial_p = malloc(sizeof(struct dial));
	FUZZ_CHECK(*dial_p);
	(*dial_p)->fd = far_open(false);
	return 0;
}

int dial_finish(struct tr_conn *conn, struct kv_error *err)
{
	conn->sock = conn->hs->dial->fd;
	conn->hs->dial->fd = -1;
	dial_free(conn->hs->dial);
	conn->hs->dial = NULL;
	snprintf(conn->address, sizeof(conn->address), "a peer");
	control_set_options(conn);
	return tr_conn_watch(conn, conn->sock, err);
}

bool dial_resolves(const struct dial *dial)
{
	return false;
}

void dial_free(struct dial *dial)
{
	if (dial && dial->fd >= 0)
		close(dial->fd);
	free(dial);
}
