/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lobby.h -- connections whose hello is not complete (strangers)
 *
 * A stranger costs one descriptor and one row of a table, made with the listener, until all bytes
 * of its hello are in the socket. They are only looked at there (MSG_PEEK); the handshake reads
 * them. A peer sends its hello as soon as the connection stands, so a silent one counts least: when
 * the table is full, the address with the most strangers loses its oldest, which gets BUSY. One
 * address can never push out another one's, and 256 silent sockets cannot block the listener.
 */
#ifndef TR_LOBBY_H
#define TR_LOBBY_H

#include <stdbool.h>
#include <stdint.h>

#include "resolve.h"
#include "tr.h"

enum {
	LOBBY_CROWDS = 1024,    /* addresses are counted by a hash */
	LOBBY_PATIENCE_MS = 100, /* a stranger is not sent away before */
	/* Strangers may have this part of the process's descriptors, and never the last few. */
	LOBBY_FD_SHARE = 4,
	LOBBY_FD_SPARE = 32,
};

struct stranger;

struct stranger_list {
	struct stranger *first, **last;
};

struct lobby {
	struct tr *tr;
	int epfd;                      /* of the listener; a stranger's token: LOBBY_TOKEN + row */
	struct stranger *row, *unused;
	unsigned int max, n;
	struct stranger_list waiting;  /* for the rest of their hello; the oldest first */
	struct stranger_list ready;    /* for tr_accept */
	uint16_t crowd[LOBBY_CROWDS];  /* how many of an address are waiting */
	uint32_t seed;
	int64_t hello_ms;              /* that a stranger has */
	int64_t retry_ns;              /* full, and none may be sent away before; 0: not full */
	struct tr_refused refused;
};

enum { LOBBY_TOKEN = ADDRESSES_MAX }; /* below: the listening sockets */

int lobby_open(struct lobby *lobby, struct tr *tr, int epfd, struct kv_error *err);
void lobby_close(struct lobby *lobby);

/* Sees to it that one more has room. False: not before lobby->retry_ns. */
bool lobby_make_room(struct lobby *lobby);
/* Sends one away for its descriptor's sake. False: there is none. */
bool lobby_free_fd(struct lobby *lobby);
/* Takes the descriptor over. There must be room. */
void lobby_enter(struct lobby *lobby, int fd, const struct sockaddr_storage *sa);
/* Something has come from, or happened to, a stranger. */
void lobby_look(struct lobby *lobby, uint32_t token, uint32_t events);
void lobby_expire(struct lobby *lobby, int64_t now_ns);
/* The descriptor of the first whose hello is there, or -1. */
int lobby_leave(struct lobby *lobby);
/* When lobby_expire or lobby_make_room has something to do; INT64_MAX: never. */
int64_t lobby_deadline(const struct lobby *lobby);
/* Tells a connection that it cannot be served now, and the log why; closes it. */
void lobby_refuse(struct lobby *lobby, int fd, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#endif
