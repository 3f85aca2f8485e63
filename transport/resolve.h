/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resolve.h -- the one place where a host name becomes addresses, for connect and for listen
 *
 * getaddrinfo waits for name servers as long as resolv.conf says, and nothing ends it. So a thread
 * of its own asks it, and is left behind by a caller that goes away: it ends with the answer.
 */
#ifndef TR_RESOLVE_H
#define TR_RESOLVE_H

#include <stdint.h>
#include <sys/socket.h>

#include <kvrail/kv_error.h>

enum {
	ADDRESSES_MAX = 8, /* of one name; more are not tried */
	ADDRESS_TEXT = 64, /* "[fe80::1%eth0]:65535" */
	RESOLVERS_MAX = 32, /* names of this process that are being asked for */
};

struct address {
	struct sockaddr_storage sa;
	socklen_t len;
};

/* In the order in which they are to be tried. */
struct addresses {
	struct address at[ADDRESSES_MAX];
	unsigned int n;
};

struct resolver;

/*
 * host NULL is 127.0.0.1. 0: `out` is filled; addresses in numbers need no resolver. TR_AGAIN: the
 * answer comes by *resolver_p. BUSY: RESOLVERS_MAX names are being asked for.
 */
int resolver_ask(const char *host, uint32_t port, const char *op, struct addresses *out,
		 struct resolver **resolver_p, struct kv_error *err);
int resolver_fd(const struct resolver *resolver); /* polls readable when the answer is there */
/*
 * TR_AGAIN: not yet. Otherwise the resolver is gone. ARG: there is no such name; UNREACHABLE: the
 * name server did not answer, and may do so later.
 */
int resolver_end(struct resolver *resolver, struct addresses *out, struct kv_error *err);
void resolver_leave(struct resolver *resolver); /* the answer is not wanted any more; may be NULL */

/* The three, waiting: UNREACHABLE at the deadline. */
int address_resolve(const char *host, uint32_t port, const char *op, int64_t deadline_ns,
		    struct addresses *out, struct kv_error *err);
/*
 * Equal for the addresses of one host and, with a seed, not known to others: of IPv6 the first 64
 * bits count, which are one host's to choose from.
 */
uint64_t address_key(const struct sockaddr_storage *sa, uint64_t seed);
void address_print(const struct sockaddr *sa, socklen_t len, char buf[ADDRESS_TEXT]);

#endif
