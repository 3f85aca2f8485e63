/* SPDX-License-Identifier: Apache-2.0 */
/* crypto_load.h -- HMAC-SHA256 of OpenSSL's libcrypto, opened only where a key is set */
#ifndef TR_CRYPTO_LOAD_H
#define TR_CRYPTO_LOAD_H

#include <stddef.h>
#include <stdint.h>

#include <kvrail/kv_error.h>

enum { MAC_BYTES = 32 };

/* UNSUPPORTED: there is no libcrypto. It stays loaded until the process ends. */
int crypto_load(struct kv_error *err);
/* After crypto_load. Any thread. */
void crypto_mac(const uint8_t *key, size_t key_len, const void *data, size_t len,
		uint8_t mac[MAC_BYTES]);

#endif
