/* SPDX-License-Identifier: Apache-2.0 */
/* resolve.h -- the one place where a host name becomes addresses, for connect and for listen */
#ifndef TR_RESOLVE_H
#define TR_RESOLVE_H

#include <stdint.h>
#include <sys/socket.h>

#include <kvrail/kv_error.h>

enum {
	ADDRESSES_MAX = 8, /* of one name; more are not tried */
	ADDRESS_TEXT = 64, /* "[fe80::1%eth0]:65535" */
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

/*
 * host NULL is 127.0.0.1. ARG: there is no such name; UNREACHABLE: the resolver did not answer, and
 * may do so later.
 */
int address_resolve(const char *host, uint32_t port, const char *op, struct addresses *out,
		    struct kv_error *err);
void address_print(const struct sockaddr *sa, socklen_t len, char buf[ADDRESS_TEXT]);

#endif
