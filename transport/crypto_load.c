/* SPDX-License-Identifier: Apache-2.0 */
/* crypto_load.c -- libcrypto of OpenSSL 3 or 1.1; the only file that names its symbols */
#include "crypto_load.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/fault.h"

static unsigned char *(*hmac)(const void *md, const void *key, int key_len,
			      const unsigned char *data, size_t len, unsigned char *out,
			      unsigned int *out_len);
static const void *sha256;

static int load(struct kv_error *err)
{
	static const char *const names[] = { "libcrypto.so.3", "libcrypto.so.1.1" };
	const void *(*get_sha256)(void);
	void *handle = NULL;

	for (int i = 0; !handle && i < 2 && !kv_fault(CRYPTO_DLOPEN); i++)
		handle = dlopen(names[i], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
	if (!handle) {
		kv_fail(err, KV_ERR_UNSUPPORTED, "key",
			"KVCACHE_PSK_FILE is set, and OpenSSL's libcrypto.so.3 is not here");
		kv_error_hint(err, "install OpenSSL (Debian, Ubuntu: libssl3; RHEL: openssl-libs)");
		return KV_ERR_UNSUPPORTED;
	}
	*(void **)&get_sha256 = dlsym(handle, "EVP_sha256");
	*(void **)&hmac = dlsym(handle, "HMAC");
	sha256 = get_sha256 ? get_sha256() : NULL;
	if (sha256 && hmac)
		return 0;
	return kv_fail(err, KV_ERR_UNSUPPORTED, "key", "this libcrypto has no HMAC with SHA-256");
}

int crypto_load(struct kv_error *err)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static bool loaded;
	int ret = 0;

	pthread_mutex_lock(&lock);
	if (!loaded)
		ret = load(err);
	loaded = !ret;
	pthread_mutex_unlock(&lock);
	return ret;
}

void crypto_mac(const uint8_t *key, size_t key_len, const void *data, size_t len,
		uint8_t mac[MAC_BYTES])
{
	hmac(sha256, key, (int)key_len, data, len, mac, NULL);
}
