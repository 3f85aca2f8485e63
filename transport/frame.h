/* SPDX-License-Identifier: Apache-2.0 */
/*
 * frame.h -- the handshake on the control socket: layout, limits, codec (pure: no I/O, no
 * allocation)
 *
 *   frame   magic "KVRL" | major u8 | minor u8 | type u16 | payload length u32 | payload
 *   HELLO   features u64 (of the upper layer; an older version sends 0 and reads none) |
 *           incarnation 16 B | upper id u16 | upper version u16 | upper length u16 |
 *           upper bytes | offers u8 |
 *           offers x { provider u16 | length u16 | bytes }
 *   SETUP   provider u16 | provider length u32 | bytes | upper length u32 | bytes
 *   READY   (empty)
 *   REJECT  code u32 (the positive value of KV_ERR_*) | message string | hint string
 *   KNOCK, CHALLENGE   with a key: auth.h. After them each payload has a MAC of 32 bytes behind it.
 *
 * Integers are little endian, strings are u8 length + bytes. The first six bytes never change their
 * meaning, so that any two versions can see that they differ.
 *
 *   connecting side                         accepting side
 *   HELLO (no offers)             ->        checks versions and the upper layer's hello
 *                                 <-        HELLO with offers, best first, or REJECT
 *   SETUP of the offer it took    ->        builds its end
 *                                 <-        SETUP, or REJECT
 *   READY                         ->        both may send
 *
 * What a connection costs: the accepting side allocates nothing but the frame itself
 * (FRAME_HELLO_MAX) before the hello is accepted.
 */
#ifndef TR_FRAME_H
#define TR_FRAME_H

#include "auth.h"
#include "base/wire.h"
#include "tr.h"

enum {
	FRAME_MAJOR = 1, /* a change that an older peer cannot follow */
	FRAME_MINOR = 0,
	FRAME_HEADER = 12,
	FRAME_OFFERS_MAX = 4,
	FRAME_OFFER_MAX = 192, /* bytes of one provider's offer */
	FRAME_HELLO_FIXED = 31, /* a hello without the upper layer's bytes and without offers */
	FRAME_HELLO_MAX = TR_HELLO_MAX + FRAME_HELLO_FIXED +
			  FRAME_OFFERS_MAX * (FRAME_OFFER_MAX + 4),
	FRAME_PROVIDER_SETUP_MAX = 16384,
	FRAME_SETUP_MAX = TR_SETUP_MAX + FRAME_PROVIDER_SETUP_MAX + 16,
	FRAME_REJECT_MAX = 520,
};

_Static_assert((int)AUTH_HEADER == FRAME_HEADER, "auth.h has another length of a header");

enum frame_type {
	FRAME_HELLO = 1,
	FRAME_SETUP = 2,
	FRAME_READY = 3,
	FRAME_REJECT = 4,
	FRAME_KNOCK = 5,
	FRAME_CHALLENGE = 6,
};

struct frame_header {
	uint8_t major, minor;
	uint16_t type;
	uint32_t len;
};

struct frame_bytes {
	const uint8_t *p;
	size_t len;
};

struct frame_hello {
	uint64_t features;
	uint8_t incarnation[16];
	uint16_t upper_id, upper_version;
	struct frame_bytes upper;
	unsigned int offers;
	struct {
		uint16_t provider;
		struct frame_bytes bytes;
	} offer[FRAME_OFFERS_MAX];
};

struct frame_setup {
	uint16_t provider;
	struct frame_bytes provider_bytes;
	struct frame_bytes upper;
};

struct frame_reject {
	int code; /* KV_ERR_*; one that this version does not know becomes KV_ERR_PROTOCOL */
	char message[256];
	char hint[160];
};

/*
 * The first `len` bytes that came: 0 if they may still become (or are) a header, PROTOCOL if they
 * are not a kvrail frame. A header is decoded only when len == FRAME_HEADER. VERSION if the major
 * differs, PROTOCOL if the length is above the type's limit (and a MAC's).
 */
int frame_check_prefix(const uint8_t *buf, size_t len);
int frame_get_header(const uint8_t buf[FRAME_HEADER], struct frame_header *header);
/* Its payload, without the MAC, is within the type's limit. */
bool frame_fits(const struct frame_header *header);
/* It is one that a connecting side may begin with. */
bool frame_begins(const struct frame_header *header);
void frame_put_header(uint8_t buf[FRAME_HEADER], enum frame_type type, uint32_t len);

/*
 * Payloads. Decoded byte ranges point into the buffer. put: the writer turns bad if it does not
 * fit. get: 0 or PROTOCOL.
 */
void frame_put_hello(struct wire_writer *w, const struct frame_hello *hello);
int frame_get_hello(const uint8_t *buf, size_t len, struct frame_hello *hello);
void frame_put_setup(struct wire_writer *w, const struct frame_setup *setup);
int frame_get_setup(const uint8_t *buf, size_t len, struct frame_setup *setup);
void frame_put_reject(struct wire_writer *w, int code, const char *message, const char *hint);
int frame_get_reject(const uint8_t *buf, size_t len, struct frame_reject *reject);

#endif
