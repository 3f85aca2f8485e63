/* SPDX-License-Identifier: Apache-2.0 */
/*
 * psk.h -- the pre-shared keys of KVCACHE_PSK_FILE
 *
 * One key a line; empty lines and those that begin with # are skipped. The first is used to
 * connect, every one of them is accepted: so a key is exchanged without a moment in which two ends
 * have none in common (SECURITY.md). The file is read again when it has changed.
 */
#ifndef TR_PSK_H
#define TR_PSK_H

#include "crypto_load.h"

enum { PSK_ID = 8, PSK_KEYS_MAX = 8, PSK_LEAST = 32, PSK_MOST = 256 };

/* Derived from a line. The id says which one is meant, and nothing of it. */
struct psk {
	uint8_t id[PSK_ID];
	uint8_t secret[MAC_BYTES];
};

struct psk_file;

/*
 * path "": *file_p is NULL, and no key is asked for. Else the file must be there, of this user or
 * root, readable by nobody else, with 1 to PSK_KEYS_MAX keys of PSK_LEAST to PSK_MOST bytes: AUTH
 * says what is wrong. UNSUPPORTED: no libcrypto.
 */
int psk_open(const char *path, struct psk_file **file_p, struct kv_error *err);
void psk_close(struct psk_file *file);
/* The key to connect with (id NULL), or the one of that id: AUTH if the file has it not. */
int psk_get(struct psk_file *file, const uint8_t *id, struct psk *psk, struct kv_error *err);

#endif
