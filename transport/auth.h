/* SPDX-License-Identifier: Apache-2.0 */
/*
 * auth.h -- both ends of a connection prove that they have the same key, and every frame that it
 * was made with it
 *
 *   connecting side                           accepting side
 *   KNOCK: which key, nonce c           ->    finds the key, or REJECT
 *                                       <-    CHALLENGE: nonce a, MAC over both up to here
 *   HELLO, MAC                          ->    the MAC is the proof; only now is the hello read
 *                                       <-    HELLO, MAC ... as in frame.h, each with a MAC
 *
 * All MACs are HMAC-SHA256. The session's secret comes from the key and both nonces, so nothing of
 * an earlier handshake is right in a later one. Each direction has its own, which changes with
 * every frame: HMAC(secret, MAC of the frame). So a MAC covers all that was sent before it, in this
 * order.
 * What the other transports of the connection open is proven with a third (auth_prove).
 */
#ifndef TR_AUTH_H
#define TR_AUTH_H

#include <stdbool.h>

#include "psk.h"

enum {
	AUTH_NONCE = 32,
	AUTH_KNOCK = PSK_ID + AUTH_NONCE, /* payloads */
	AUTH_CHALLENGE = AUTH_NONCE + MAC_BYTES,
	AUTH_HEADER = 12, /* FRAME_HEADER: the two frames are proven with their headers */
};

struct auth {
	bool on; /* the secrets are there: every frame has its MAC */
	uint8_t out[MAC_BYTES], in[MAC_BYTES], link[MAC_BYTES];
};

/*
 * `knock` and `challenge` are whole frames, as they are sent or came in; what makes one finds its
 * header there.
 *
 * Connecting side: the key is kept for the answer.
 */
int auth_knock(struct psk_file *file, struct psk *psk, uint8_t knock[AUTH_HEADER + AUTH_KNOCK],
	       struct kv_error *err);
/* AUTH: the answer was not made with the key. */
int auth_challenged(struct auth *auth, const struct psk *psk,
		    const uint8_t knock[AUTH_HEADER + AUTH_KNOCK],
		    const uint8_t challenge[AUTH_HEADER + AUTH_CHALLENGE], struct kv_error *err);
/*
 * Accepting side: the answer to a KNOCK. AUTH: the key is not known here. The answer itself has no
 * frame's MAC: `on` is the caller's, once it is made.
 */
int auth_challenge(struct auth *auth, struct psk_file *file,
		   const uint8_t knock[AUTH_HEADER + AUTH_KNOCK],
		   uint8_t challenge[AUTH_HEADER + AUTH_CHALLENGE], struct kv_error *err);

/* The MAC of the next frame (header and payload) that goes out, or came in. */
void auth_seal(struct auth *auth, const void *frame, size_t len, uint8_t mac[MAC_BYTES]);
bool auth_opens(struct auth *auth, const void *frame, size_t len, const uint8_t mac[MAC_BYTES]);
/* How many bytes are equal is not to be learnt from the time that it takes. */
bool auth_equal(const uint8_t *a, const uint8_t *b, size_t len);
/*
 * 16 bytes that only the two ends know, for a nonce that only one of them has chosen. Not `on`: the
 * nonce itself. label: what they are for, 8 bytes.
 */
void auth_prove(const struct auth *auth, const char label[8], const uint8_t nonce[16],
		uint8_t proof[16]);

#endif
