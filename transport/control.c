/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control.c -- the TCP socket of a connection: made by the handshake, silent afterwards
 *
 * After READY it only shows that the peer's process or host is gone: EOF when it dies or closes, no
 * answer to keepalives when its host disappears (silence.c). An end that closes in good order sends
 * one byte first, and one that gives the handshake up while READY is on its way a REJECT frame; any
 * other byte after READY is a protocol error. Where the provider has a link of its own that shows
 * the end (tr_conn_own_link) the accepting side closes the socket when READY has come, and the
 * connecting side when it sees that.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/fds.h"
#include "base/log.h"
#include "base/option.h"
#include "conn.h"
#include "resolve.h"

/* One byte, and its MAC where there is a key. */
enum { GOODBYE = 4, GOODBYE_MOST = 1 + MAC_BYTES };

enum { WARN_MS = 10000 };

int control_bind_interface(struct tr *tr, int fd, struct kv_error *err)
{
	const char *name = kv_option_string(tr->options, KV_OPT_SOCKET_IFNAME);

	if (!name[0])
		return 0;
	if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, (socklen_t)strlen(name) + 1)) {
		kv_fail_errno(err, KV_ERR_SYSTEM, errno, "socket", "cannot bind to interface %s",
			      name);
		kv_error_hint(
			err,
			"KVCACHE_SOCKET_IFNAME must name an interface of this machine (ip link)");
		return KV_ERR_SYSTEM;
	}
	return 0;
}

/* Address and port of one end: `name` is getsockname or getpeername. */
static bool end_of(const struct tr_conn *conn, int (*name)(int, struct sockaddr *, socklen_t *),
		   uint8_t end[18])
{
	static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };
	struct sockaddr_storage sa;
	const struct sockaddr_in *ipv4 = (const struct sockaddr_in *)&sa;
	const struct sockaddr_in6 *ipv6 = (const struct sockaddr_in6 *)&sa;
	socklen_t len = sizeof(sa);

	if (kv_fault(TR_CONN_LOCAL) || name(conn->sock, (struct sockaddr *)&sa, &len))
		return false;
	if (sa.ss_family == AF_INET6) {
		memcpy(end, &ipv6->sin6_addr, 16);
		memcpy(end + 16, &ipv6->sin6_port, 2);
		return true;
	}
	memcpy(end, mapped, sizeof(mapped));
	memcpy(end + sizeof(mapped), &ipv4->sin_addr, sizeof(ipv4->sin_addr));
	memcpy(end + 16, &ipv4->sin_port, 2);
	return sa.ss_family == AF_INET;
}

bool tr_conn_local(const struct tr_conn *conn, uint8_t address[16])
{
	uint8_t end[18];

	if (!end_of(conn, getsockname, end))
		return false;
	memcpy(address, end, 16);
	return true;
}

bool tr_conn_ends(const struct tr_conn *conn, struct tr_conn_ends *ends)
{
	return end_of(conn, getsockname, ends->local) && end_of(conn, getpeername, ends->remote);
}

uint64_t tr_conn_host(const struct tr_conn *conn)
{
	return conn->host;
}

static void set_port_of(struct sockaddr_storage *sa, uint16_t port)
{
	if (sa->ss_family == AF_INET6)
		((struct sockaddr_in6 *)sa)->sin6_port = htons(port);
	else
		((struct sockaddr_in *)sa)->sin_port = htons(port);
}

int tr_conn_socket(struct tr_conn *conn, bool peer, uint16_t port, struct sockaddr_storage *sa,
		   socklen_t *len_p, int *fd_p, struct kv_error *err)
{
	int ret;

	*fd_p = -1;
	*len_p = sizeof(*sa);
	if (peer ? getpeername(conn->sock, (struct sockaddr *)sa, len_p)
		 : getsockname(conn->sock, (struct sockaddr *)sa, len_p))
		return kv_fail_errno(err, KV_ERR_PEER_LOST, errno, "handshake",
				     "the address of the control connection");
	set_port_of(sa, port);
	*fd_p = kv_fd_new(
		kv_fault(TR_CONN_SOCKET)
			? (errno = EMFILE, -1)
			: socket(sa->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
	if (*fd_p < 0)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake", "socket");
	ret = control_bind_interface(conn->tr, *fd_p, err);
	if (ret) {
		kv_fd_close(*fd_p);
		*fd_p = -1;
	}
	return ret;
}

void control_set_options(const struct tr_conn *conn)
{
	int on = 1;

	setsockopt(conn->sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	silence_prepare(conn);
}

void control_name(struct tr_conn *conn, const struct sockaddr_storage *sa, socklen_t len)
{
	uint64_t seed;

	address_print((const struct sockaddr *)sa, len, conn->address);
	memcpy(&seed, conn->tr->incarnation, sizeof(seed));
	conn->host = address_key(sa, seed);
}

int control_prepare(struct tr_conn *conn, struct kv_error *err)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);

	control_set_options(conn);
	if (!getpeername(conn->sock, (struct sockaddr *)&sa, &len))
		control_name(conn, &sa, len);
	return tr_conn_watch(conn, conn->sock, err);
}

size_t control_finish_frame(uint8_t *buf, enum frame_type type, size_t len, struct auth *auth)
{
	size_t mac = auth && auth->on ? MAC_BYTES : 0;

	frame_put_header(buf, type, (uint32_t)(len + mac));
	if (mac)
		auth_seal(auth, buf, FRAME_HEADER + len, buf + FRAME_HEADER + len);
	return FRAME_HEADER + len + mac;
}

void control_warn(struct tr *tr, const char *why)
{
	int64_t now = kv_now_ns(), last = atomic_load(&tr->warned_ns);

	if ((!last || now - last >= WARN_MS * KV_NS_PER_MS) &&
	    atomic_compare_exchange_strong(&tr->warned_ns, &last, now))
		kv_log_warn(tr->log, "connections are refused: %s", why);
}

/*
 * What the other end sent meanwhile is read away, or closing would reset the connection under the
 * refusal.
 */
void control_reject(int fd, struct auth *auth, int code, const char *message, const char *hint)
{
	uint8_t buf[FRAME_HEADER + FRAME_REJECT_MAX + MAC_BYTES], drain[4096];
	struct wire_writer w = wire_writer_of(buf + FRAME_HEADER, FRAME_REJECT_MAX);

	frame_put_reject(&w, code, message, hint);
	send(fd, buf, control_finish_frame(buf, FRAME_REJECT, w.len, auth),
	     MSG_NOSIGNAL | MSG_DONTWAIT);
	shutdown(fd, SHUT_WR);
	for (int i = 0; i < 64 && recv(fd, drain, sizeof(drain), MSG_DONTWAIT) > 0; i++)
		;
}

/* What there is stays in the socket. */
static ssize_t peek(const struct tr_conn *conn, uint8_t *bytes, size_t len)
{
	ssize_t n;

	do
		n = recv(conn->sock, bytes, len, MSG_DONTWAIT | MSG_PEEK);
	while (n < 0 && errno == EINTR);
	return n;
}

bool control_refusal(const struct tr_conn *conn, struct frame_reject *reject)
{
	uint8_t bytes[FRAME_HEADER + FRAME_REJECT_MAX + MAC_BYTES], *payload = bytes + FRAME_HEADER;
	struct auth auth = conn->auth; /* looking changes nothing */
	ssize_t n = peek(conn, bytes, sizeof(bytes));
	struct frame_header header;
	size_t len;

	if (n < FRAME_HEADER || frame_get_header(bytes, &header) || header.type != FRAME_REJECT ||
	    (size_t)n < FRAME_HEADER + header.len)
		return false;
	len = header.len;
	if (auth.on) {
		if (len < MAC_BYTES)
			return false;
		len -= MAC_BYTES;
		if (!auth_opens(&auth, bytes, FRAME_HEADER + len, payload + len))
			return false;
	}
	return !frame_get_reject(payload, len, reject);
}

int control_flush(struct tr_conn *conn, struct kv_error *err)
{
	struct conn_handshake *hs = conn->hs;

	while (hs->out && hs->out_pos < hs->out_len) {
		ssize_t n = kv_fault(TR_CONN_SEND)
				    ? (errno = ECONNRESET, -1)
				    : send(conn->sock, hs->out + hs->out_pos,
					   hs->out_len - hs->out_pos, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			int ret = tr_conn_watch_for(conn, conn->sock, TR_WATCH_IN | TR_WATCH_OUT,
						    err);

			return ret ? ret : TR_AGAIN;
		}
		if (n < 0)
			return kv_fail_errno(err, KV_ERR_PEER_LOST, errno, "handshake",
					     "sending to %s", conn->address);
		hs->out_pos += (size_t)n;
	}
	return 0;
}

int control_fill(struct tr_conn *conn, size_t want, struct kv_error *err)
{
	struct conn_handshake *hs = conn->hs;

	while (hs->got < want) {
		uint8_t *to = hs->got < FRAME_HEADER ? hs->header + hs->got
						     : hs->payload + hs->got - FRAME_HEADER;
		ssize_t n = kv_fault(TR_CONN_RECV)
				    ? (errno = ECONNRESET, -1)
				    : recv(conn->sock, to, want - hs->got, MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return TR_AGAIN;
		if (n < 0)
			return kv_fail_errno(err, KV_ERR_PEER_LOST, errno, "handshake",
					     "receiving from %s", conn->address);
		if (!n)
			return kv_fail(err, KV_ERR_PEER_LOST, "handshake",
				       "%s closed the connection %s", conn->address,
				       hs->got ? "in the middle of a frame" : "without a word");
		hs->got += (size_t)n;
	}
	return 0;
}

/* The network's word, or the kernel's that waits for the network; not the peer's. */
static bool is_silence(int error)
{
	return error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH ||
	       error == ENETDOWN;
}

/* Whether the other end has said that it closes. */
static bool says_goodbye(const struct tr_conn *conn, const uint8_t *bytes, ssize_t n)
{
	struct auth auth = conn->auth; /* looking changes nothing */

	if (n < 1 || bytes[0] != GOODBYE)
		return false;
	return !auth.on || (n == GOODBYE_MOST && auth_opens(&auth, bytes, 1, bytes + 1));
}

void control_close(struct tr_conn *conn)
{
	tr_conn_unwatch(conn, conn->sock);
	kv_fd_close(conn->sock);
	conn->sock = -1;
}

bool control_is_dead(struct tr_conn *conn, struct kv_error *err)
{
	uint8_t bytes[GOODBYE_MOST];
	ssize_t n;

	if (conn->silence.deaf)
		return false;
	n = peek(conn, bytes, sizeof(bytes));
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return false;
	if (n <= 0 &&
	    conn->own_link) { /* the other end is through, too; or that link shows why not */
		control_close(conn);
		return false;
	}
	if (n < 0 && is_silence(errno)) {
		conn->silence.deaf = true;
		tr_conn_unwatch(conn, conn->sock);
		return false;
	}
	if (!n || says_goodbye(conn, bytes, n))
		kv_fail(err, KV_ERR_PEER_LOST, "poll", "%s closed the connection", conn->address);
	else if (n > 0)
		kv_fail(err, KV_ERR_PROTOCOL, "poll", "%s sent bytes after the handshake",
			conn->address);
	else
		kv_fail_errno(err, KV_ERR_PEER_LOST, errno, "poll", "the connection to %s",
			      conn->address);
	return true;
}

void control_goodbye(struct tr_conn *conn)
{
	uint8_t bytes[GOODBYE_MOST] = { GOODBYE };

	if (conn->hs || !conn->data || conn->sock < 0)
		return;
	if (conn->auth.on)
		auth_seal(&conn->auth, bytes, 1, bytes + 1);
	/* If it cannot be sent the peer takes this end for one that died. */
	send(conn->sock, bytes, conn->auth.on ? GOODBYE_MOST : 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void tr_conn_goodbye(struct tr_conn *conn)
{
	if (conn->leaving)
		control_goodbye(conn);
	conn->leaving = false;
}

bool tr_conn_peer_left(const struct tr_conn *conn)
{
	uint8_t bytes[GOODBYE_MOST];

	return !conn->hs && conn->data && conn->sock >= 0 &&
	       says_goodbye(conn, bytes, peek(conn, bytes, sizeof(bytes)));
}
