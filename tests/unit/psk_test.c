/* SPDX-License-Identifier: Apache-2.0 */
/* psk_test.c -- key files: which are taken, and what is said of one that is not right; MACs */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "auth.h"
#include "base/fault.h"
#include "lib/key.h"
#include "psk.h"

static void opens_to(const char *path, int code, const char *why)
{
	struct psk_file *file;
	struct kv_error err = { 0 };

	assert_int_equal(psk_open(path, &file, &err), code);
	assert_null(file);
	if (!strstr(err.message, why))
		fail_msg("\"%s\" is not in \"%s\"", why, err.message);
}

CASE(a_key_file_that_is_not_right_is_refused_with_the_cause)
{
	static const char *const nine = KEY_A "\n" KEY_A "\n" KEY_A "\n" KEY_A "\n" KEY_A "\n" KEY_A
					      "\n" KEY_A "\n" KEY_A "\n" KEY_A "\n";
	char path[] = "/tmp/kvrail-key-XXXXXX", big[20000];
	FILE *file;

	close(mkstemp(path));
	for (mode_t bit = 1; bit < 0100; bit <<= 1) {
		write_key(path, KEY_A, 0600 | bit);
		opens_to(path, KV_ERR_AUTH, "may be read or written by other users");
	}
	write_key(path, "", 0600);
	opens_to(path, KV_ERR_AUTH, "has no key in it");
	write_key(path, "# none\n\n", 0600);
	opens_to(path, KV_ERR_AUTH, "has no key in it");
	write_key(path, "#\n0123456789\n", 0600);
	opens_to(path, KV_ERR_AUTH, "has a key of 10 bytes in line 2; 32 to 256 are allowed");
	write_key(path, nine, 0600);
	opens_to(path, KV_ERR_AUTH, "has more than 8 keys");
	memset(big, '#', sizeof(big) - 1);
	big[sizeof(big) - 1] = 0;
	write_key(path, big, 0600);
	opens_to(path, KV_ERR_AUTH, "has 16384 bytes or more");
	file = fopen(path, "w");
	assert_int_equal(fwrite("0123456789abcdef0123456789abcdef\0", 33, 1, file), 1);
	fclose(file);
	opens_to(path, KV_ERR_AUTH, "has a byte 0 in it");
	if (!geteuid()) {
		write_key(path, KEY_A, 0600);
		assert_int_equal(chown(path, 12345, 12345), 0);
		opens_to(path, KV_ERR_AUTH, "belongs to user 12345");
	}
	unlink(path);
	opens_to(path, KV_ERR_AUTH, "cannot be opened: No such file");
	opens_to("/tmp", KV_ERR_AUTH, "is not a regular file");
	assert_int_equal(mkfifo(path, 0600), 0);
	opens_to(path, KV_ERR_AUTH, "is not a regular file");
	unlink(path);
}

CASE(a_file_is_read_whole_or_not_at_all)
{
	char path[] = "/tmp/kvrail-key-XXXXXX";

	close(mkstemp(path));
	write_key(path, KEY_A, 0600);
	kv_fault_arm(KV_FAULT_PSK_ALLOC, 1);
	opens_to(path, KV_ERR_NOMEM, "cannot allocate");
	kv_fault_arm(KV_FAULT_PSK_READ, 1);
	opens_to(path, KV_ERR_AUTH, "cannot be read");
	unlink(path);
}

/* The text behind the id is what is proven: a peer that knows the id alone has nothing. */
CASE(an_id_is_not_a_key)
{
	struct auth a = { 0 }, b = { 0 };
	uint8_t knock[AUTH_HEADER + AUTH_KNOCK] = { 1 };
	uint8_t challenge[AUTH_HEADER + AUTH_CHALLENGE] = { 2 };
	char path[] = "/tmp/kvrail-key-XXXXXX";
	struct psk_file *file;
	struct psk psk;

	close(mkstemp(path));
	write_key(path, KEY_A, 0600);
	assert_int_equal(psk_open(path, &file, NULL), 0);
	assert_int_equal(auth_knock(file, &psk, knock, NULL), 0);
	assert_int_equal(auth_challenge(&b, file, knock, challenge, NULL), 0);
	assert_int_equal(auth_challenged(&a, &psk, knock, challenge, NULL), 0);
	assert_memory_equal(a.out, b.in, MAC_BYTES);
	psk.secret[0] ^= 1;
	a.on = false;
	assert_int_equal(auth_challenged(&a, &psk, knock, challenge, NULL), KV_ERR_AUTH);
	assert_false(a.on);
	psk_close(file);
	unlink(path);
}

/* Whatever frame it is: not once more, and not in another's place. */
CASE(a_frame_counts_once_and_in_its_place)
{
	struct auth sends = { .on = true }, takes = { .on = true };
	uint8_t mac[2][MAC_BYTES];

	assert_int_equal(crypto_load(NULL), 0);
	for (int i = 0; i < 2; i++)
		auth_seal(&sends, "frame", 5, mac[i]);
	assert_false(auth_opens(&takes, "frame", 5, mac[1]));
	assert_true(auth_opens(&takes, "frame", 5, mac[0]));
	assert_false(auth_opens(&takes, "frame", 5, mac[0]));
	assert_true(auth_opens(&takes, "frame", 5, mac[1]));
}
