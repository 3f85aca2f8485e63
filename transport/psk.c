/* SPDX-License-Identifier: Apache-2.0 */
/* psk.c -- the key file: who may have it, what stands in it, when it is read again */
#include "psk.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"

enum { FILE_MOST = 16384 };

struct psk_file {
	pthread_mutex_t lock;
	char *path;
	struct stat read; /* the file as it was when it was read */
	unsigned int keys;
	struct psk key[PSK_KEYS_MAX];
};

static int bad_file(const struct psk_file *file, const char *hint, struct kv_error *err,
		    const char *fmt, ...) __attribute__((format(printf, 4, 5)));

static int bad_file(const struct psk_file *file, const char *hint, struct kv_error *err,
		    const char *fmt, ...)
{
	char why[160];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	kv_fail(err, KV_ERR_AUTH, "key", "the key file %s %s", file->path, why);
	kv_error_hint(err, "%s", hint);
	return KV_ERR_AUTH;
}

static void derive(const char *line, size_t len, struct psk *psk)
{
	uint8_t mac[MAC_BYTES];

	crypto_mac((const uint8_t *)line, len, "kvrail key", 10, psk->secret);
	crypto_mac((const uint8_t *)line, len, "kvrail id", 9, mac);
	memcpy(psk->id, mac, PSK_ID);
}

/* Keys of the text into `found`, which has none yet. */
static int parse(const struct psk_file *file, char *text, struct psk_file *found,
		 struct kv_error *err)
{
	char *rest = text, *line;

	for (int number = 1; (line = strsep(&rest, "\n")); number++) {
		size_t len = strcspn(line, "\r");

		if (!len || line[0] == '#')
			continue;
		if (len < PSK_LEAST || len > PSK_MOST)
			return bad_file(file, "openssl rand -hex 32 makes a key", err,
					"has a key of %zu bytes in line %d; %d to %d are allowed",
					len, number, PSK_LEAST, PSK_MOST);
		if (found->keys == PSK_KEYS_MAX)
			return bad_file(file, "take out those that are not used any more", err,
					"has more than %d keys", PSK_KEYS_MAX);
		derive(line, len, &found->key[found->keys++]);
	}
	if (!found->keys)
		return bad_file(file, "openssl rand -hex 32 makes a key", err, "has no key in it");
	return 0;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
	       a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

static int check_owner(const struct psk_file *file, const struct stat *st, struct kv_error *err)
{
	if (!S_ISREG(st->st_mode))
		return bad_file(file, "KVCACHE_PSK_FILE names a file with a key in it", err,
				"is not a regular file");
	if (st->st_uid != geteuid() && st->st_uid)
		return bad_file(file, "chown it to the user of this process", err,
				"belongs to user %u, and this process is of user %u", st->st_uid,
				geteuid());
	if (st->st_mode & (S_IRWXG | S_IRWXO))
		return bad_file(file, "chmod 600 it, and make a new key: this one was readable",
				err, "may be read or written by other users (mode %03o)",
				st->st_mode & 0777);
	return 0;
}

static int read_all(const struct psk_file *file, int fd, char *text, struct kv_error *err)
{
	size_t len = 0;
	ssize_t n;

	while ((n = kv_fault(PSK_READ) ? (errno = EIO, -1)
				       : read(fd, text + len, FILE_MOST - len)) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return bad_file(file, "", err, "cannot be read: %s", kv_errno_text(errno));
		len += (size_t)n;
	}
	if (len == FILE_MOST)
		return bad_file(file, "it holds one key a line", err, "has %d bytes or more",
				FILE_MOST);
	if (memchr(text, 0, len))
		return bad_file(file, "it holds one key a line, as text", err,
				"has a byte 0 in it");
	text[len] = 0;
	return 0;
}

/* Nothing of the file is kept unless all of it is right. */
static int read_file(struct psk_file *file, struct kv_error *err)
{
	char text[FILE_MOST + 1];
	struct psk_file found = { .keys = 0 };
	int ret, fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

	if (fd < 0)
		return bad_file(file, "KVCACHE_PSK_FILE names it", err, "cannot be opened: %s",
				kv_errno_text(errno));
	if (fstat(fd, &found.read))
		ret = bad_file(file, "", err, "cannot be looked at: %s", kv_errno_text(errno));
	else
		ret = check_owner(file, &found.read, err);
	if (!ret)
		ret = read_all(file, fd, text, err);
	close(fd);
	if (!ret)
		ret = parse(file, text, &found, err);
	explicit_bzero(text, sizeof(text));
	if (!ret) {
		file->read = found.read;
		file->keys = found.keys;
		memcpy(file->key, found.key, sizeof(file->key));
	}
	explicit_bzero(&found, sizeof(found));
	return ret;
}

int psk_open(const char *path, struct psk_file **file_p, struct kv_error *err)
{
	struct psk_file *file;
	int ret;

	*file_p = NULL;
	if (!path[0])
		return 0;
	ret = crypto_load(err);
	if (ret)
		return ret;
	file = kv_fault(PSK_ALLOC) ? NULL : calloc(1, sizeof(*file) + strlen(path) + 1);
	if (!file)
		return kv_fail(err, KV_ERR_NOMEM, "key", "cannot allocate the keys");
	file->path = memcpy(file + 1, path, strlen(path) + 1);
	pthread_mutex_init(&file->lock, NULL);
	ret = read_file(file, err);
	if (ret)
		psk_close(file);
	else
		*file_p = file;
	return ret;
}

void psk_close(struct psk_file *file)
{
	if (!file)
		return;
	explicit_bzero(file->key, sizeof(file->key));
	pthread_mutex_destroy(&file->lock);
	free(file);
}

static const struct psk *key_of(const struct psk_file *file, const uint8_t *id)
{
	for (unsigned int i = 0; i < file->keys; i++)
		if (!id || !memcmp(file->key[i].id, id, PSK_ID))
			return &file->key[i];
	return NULL;
}

int psk_get(struct psk_file *file, const uint8_t *id, struct psk *psk, struct kv_error *err)
{
	const struct psk *found;
	struct stat now;
	int ret = 0;

	pthread_mutex_lock(&file->lock);
	/* A file that cannot be read any more ends connecting: it never means "no key". */
	if (stat(file->path, &now) || !same_file(&now, &file->read))
		ret = read_file(file, err);
	found = ret ? NULL : key_of(file, id);
	if (found)
		*psk = *found;
	pthread_mutex_unlock(&file->lock);
	if (ret || found)
		return ret;
	kv_fail(err, KV_ERR_AUTH, "handshake", "the peer has another key");
	kv_error_hint(err, "the key files (KVCACHE_PSK_FILE) of both ends need a key in common");
	return KV_ERR_AUTH;
}
