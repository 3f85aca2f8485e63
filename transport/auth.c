/* SPDX-License-Identifier: Apache-2.0 */
/* auth.c -- the proofs of a handshake with a key (auth.h has the picture) */
#include "auth.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "base/error.h"
#include "base/fault.h"

static int nonce_of(uint8_t nonce[AUTH_NONCE], struct kv_error *err)
{
	if (kv_fault(AUTH_RANDOM) ? (errno = EIO, true)
				  : getrandom(nonce, AUTH_NONCE, 0) != AUTH_NONCE)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake", "getrandom");
	return 0;
}

bool auth_equal(const uint8_t *a, const uint8_t *b, size_t len)
{
	volatile uint8_t differ = 0;

	for (size_t i = 0; i < len; i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

/* The MAC of CHALLENGE, and the session's secrets: over all of both frames but that MAC. */
static void agree(const struct psk *psk, const uint8_t *knock, const uint8_t *challenge,
		  bool accepting, struct auth *auth, uint8_t mac[MAC_BYTES])
{
	enum { LABEL = 8, FIRST = AUTH_HEADER + AUTH_KNOCK, SECOND = AUTH_HEADER + AUTH_NONCE };
	uint8_t both[LABEL + FIRST + SECOND], session[MAC_BYTES];

	memcpy(both, "accept..", LABEL);
	memcpy(both + LABEL, knock, FIRST);
	memcpy(both + LABEL + FIRST, challenge, SECOND);
	crypto_mac(psk->secret, MAC_BYTES, both, sizeof(both), mac);
	memcpy(both, "session.", LABEL);
	crypto_mac(psk->secret, MAC_BYTES, both, sizeof(both), session);
	crypto_mac(session, MAC_BYTES, "from the connecting side", 24,
		   accepting ? auth->in : auth->out);
	crypto_mac(session, MAC_BYTES, "from the accepting side", 23,
		   accepting ? auth->out : auth->in);
	crypto_mac(session, MAC_BYTES, "local socket", 12, auth->link);
	explicit_bzero(session, sizeof(session));
}

int auth_knock(struct psk_file *file, struct psk *psk, uint8_t knock[AUTH_HEADER + AUTH_KNOCK],
	       struct kv_error *err)
{
	int ret = psk_get(file, NULL, psk, err);

	if (ret)
		return ret;
	memcpy(knock + AUTH_HEADER, psk->id, PSK_ID);
	return nonce_of(knock + AUTH_HEADER + PSK_ID, err);
}

int auth_challenged(struct auth *auth, const struct psk *psk,
		    const uint8_t knock[AUTH_HEADER + AUTH_KNOCK],
		    const uint8_t challenge[AUTH_HEADER + AUTH_CHALLENGE], struct kv_error *err)
{
	uint8_t mac[MAC_BYTES];

	agree(psk, knock, challenge, false, auth, mac);
	if (!auth_equal(mac, challenge + AUTH_HEADER + AUTH_NONCE, MAC_BYTES))
		return kv_fail(err, KV_ERR_AUTH, "handshake",
			       "the answer of the peer was not made with the key");
	auth->on = true;
	return 0;
}

int auth_challenge(struct auth *auth, struct psk_file *file,
		   const uint8_t knock[AUTH_HEADER + AUTH_KNOCK],
		   uint8_t challenge[AUTH_HEADER + AUTH_CHALLENGE], struct kv_error *err)
{
	struct psk psk;
	int ret = psk_get(file, knock + AUTH_HEADER, &psk, err);

	if (!ret)
		ret = nonce_of(challenge + AUTH_HEADER, err);
	if (ret)
		return ret;
	agree(&psk, knock, challenge, true, auth, challenge + AUTH_HEADER + AUTH_NONCE);
	explicit_bzero(&psk, sizeof(psk));
	return 0;
}

/* The secret of the next frame: knowing a MAC is of no use for it. */
static void ratchet(uint8_t secret[MAC_BYTES], const uint8_t mac[MAC_BYTES])
{
	uint8_t next[8 + MAC_BYTES];

	memcpy(next, "goes on.", 8);
	memcpy(next + 8, mac, MAC_BYTES);
	crypto_mac(secret, MAC_BYTES, next, sizeof(next), secret);
}

void auth_seal(struct auth *auth, const void *frame, size_t len, uint8_t mac[MAC_BYTES])
{
	crypto_mac(auth->out, MAC_BYTES, frame, len, mac);
	ratchet(auth->out, mac);
}

bool auth_opens(struct auth *auth, const void *frame, size_t len, const uint8_t mac[MAC_BYTES])
{
	uint8_t right[MAC_BYTES];

	crypto_mac(auth->in, MAC_BYTES, frame, len, right);
	if (!auth_equal(mac, right, MAC_BYTES))
		return false;
	ratchet(auth->in, right);
	return true;
}

void auth_prove(const struct auth *auth, const char label[8], const uint8_t nonce[16],
		uint8_t proof[16])
{
	uint8_t text[24], mac[MAC_BYTES];

	memcpy(text, label, 8);
	memcpy(text + 8, nonce, 16);
	if (auth->on)
		crypto_mac(auth->link, MAC_BYTES, text, sizeof(text), mac);
	memcpy(proof, auth->on ? mac : nonce, 16);
}
