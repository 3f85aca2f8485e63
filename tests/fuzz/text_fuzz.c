/* SPDX-License-Identifier: Apache-2.0 */
/*
 * text_fuzz.c -- what comes as text, or as a few bytes, from people, files, the environment, the
 * kernel and NCCL: each is taken and keeps its limits, or is refused in words. The first byte says
 * which; the rest is it.
 */
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/option.h"
#include "base/pci.h"
#include "doctor/doctor.h"
#include "fuzz.h"
#include "np.h"
#include "psk.h"
#include "resolve.h"
#include "shm/shm.h"
#include "trace.h"
#include "util.h"

static void check_option(const char *text)
{
	const char *list[] = { text, NULL };
	size_t name = strcspn(text, "=");
	struct kv_option_set *set;
	struct kv_option_row row;
	struct kv_error err;
	unsigned int known = 0;

	if (kv_option_read(list, &set, &err)) {
		FUZZ_CHECK(err.code == KV_ERR_ARG && err.message[0]);
		return;
	}
	for (int i = 0; i < KV_OPTIONS; i++) {
		kv_option_row(set, (enum kv_option_id)i, &row);
		if (strlen(row.name) != name || strncmp(row.name, text, name))
			continue;
		known++;
		FUZZ_CHECK(!strcmp(row.value, text + name + 1) && !strcmp(row.source, "config"));
	}
	FUZZ_CHECK(known == 1);
	kv_option_free(set);
}

static void check_uids(const char *text)
{
	char option[4200];
	const char *list[] = { option, NULL };
	struct kv_option_set *set;
	struct kv_error err;
	struct tr tr = { 0 };
	struct shm_ctx ctx = { .tr = &tr };
	int ret;

	snprintf(option, sizeof(option), "KVCACHE_SHM_ALLOW_UIDS=%s", text);
	if (kv_option_read(list, &set, &err))
		return;
	tr.options = set;
	ret = trust_read(&ctx, &err);
	FUZZ_CHECK(ctx.uids <= SHM_UIDS_MAX && (!ret || (ret == KV_ERR_ARG && err.message[0])));
	for (unsigned int i = 0; i < ctx.uids; i++)
		FUZZ_CHECK(ctx.uid[i] != (uid_t)-1);
	kv_option_free(set);
}

static int file_of(const void *bytes, size_t len, char path[64])
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	FUZZ_CHECK(fd >= 0 && !fchmod(fd, 0600) && write(fd, bytes, len) == (ssize_t)len);
	snprintf(path, 64, "/proc/self/fd/%d", fd);
	return fd;
}

static void check_key_file(const uint8_t *data, size_t size)
{
	struct psk_file *file;
	struct kv_error err;
	struct psk psk, same;
	char path[64];
	int fd = file_of(data, size, path);
	int ret = psk_open(path, &file, &err);

	if (ret) {
		FUZZ_CHECK(ret == KV_ERR_AUTH && !file && err.message[0]);
	} else {
		FUZZ_CHECK(size >= PSK_LEAST);
		FUZZ_CHECK(!psk_get(file, NULL, &psk, &err));
		FUZZ_CHECK(!psk_get(file, psk.id, &same, &err) &&
			   !memcmp(&psk, &same, sizeof(psk)));
	}
	psk_close(file);
	close(fd);
}

static void check_trace_line(const uint8_t *data, size_t size)
{
	struct trace_request r;
	char why[256] = "";

	if (trace_parse_line((const char *)data, size, &r, why, sizeof(why))) {
		FUZZ_CHECK(why[0] && !r.hash);
		return;
	}
	FUZZ_CHECK(r.input_tokens && r.input_tokens <= TRACE_TOKENS_MAX &&
		   r.output_tokens <= TRACE_TOKENS_MAX);
	FUZZ_CHECK(r.hashes == (r.input_tokens + TRACE_HASH_TOKENS - 1) / TRACE_HASH_TOKENS);
	trace_request_free(&r);
}

static void check_size(const char *text)
{
	char again[64];
	uint64_t value, same;

	if (size_parse(text, &value))
		return;
	snprintf(again, sizeof(again), "%llu", (unsigned long long)value);
	FUZZ_CHECK(!size_parse(again, &same) && same == value);
}

/* The part before a '\n' is a name, the rest the list: excluding it is the opposite of choosing. */
static void check_names(const char *text)
{
	size_t len = strcspn(text, "\n");
	char name[64], inverse[4200];
	const char *list = text + len + (text[len] != 0);
	bool chosen;

	snprintf(name, sizeof(name), "%.*s", (int)(len < 60 ? len : 60), text);
	chosen = np_name_matches(list, name, 1);
	if (!*list || *list == '^' || !strcmp(list, "="))
		return;
	snprintf(inverse, sizeof(inverse), "^%s", list);
	FUZZ_CHECK(np_name_matches(inverse, name, 1) != chosen);
}

static void check_handle(const uint8_t *data, size_t size)
{
	uint8_t bytes[NCCL_HANDLE_MAX] = { 0 }, again[NCCL_HANDLE_MAX] = { 0 };
	struct np_handle handle, same;

	memcpy(bytes, data, size < sizeof(bytes) ? size : sizeof(bytes));
	np_handle_set_cookie(again, np_handle_cookie(bytes));
	FUZZ_CHECK(np_handle_cookie(again) == np_handle_cookie(bytes));
	/* A stranger can make the checksum, too. */
	memcpy(&handle, bytes, sizeof(handle));
	handle.host[sizeof(handle.host) - 1] = 0;
	np_handle_put(again, &handle);
	FUZZ_CHECK(np_handle_get(again, &same) == !!handle.port);
	if (np_handle_get(bytes, &handle))
		FUZZ_CHECK(handle.port && memchr(handle.host, 0, sizeof(handle.host)));
}

/* In numbers only: a name would be asked for. */
static void check_address(const char *text)
{
	struct resolver *resolver = NULL;
	struct addresses list;
	struct kv_error err;
	char again[ADDRESS_TEXT];
	int ret;

	if (!*text || strspn(text, "0123456789abcdef.:%ABCDEF[]") != strlen(text))
		return;
	if (!strpbrk(text, ".:") || strspn(text, "0123456789.") != strcspn(text, ":"))
		return; /* "abc" and "1.2.x" are names */
	ret = resolver_ask(text, 80, "connect", &list, &resolver, &err);
	if (ret == TR_AGAIN)
		resolver_leave(resolver);
	if (ret)
		return;
	FUZZ_CHECK(list.n && list.n <= ADDRESSES_MAX);
	address_print((const struct sockaddr *)&list.at[0].sa, list.at[0].len, again);
	FUZZ_CHECK(again[0] && strlen(again) < ADDRESS_TEXT);
}

static void check_pci(const char *text)
{
	char address[16], again[16];

	if (pci_address_parse(text, address, sizeof(address)))
		FUZZ_CHECK(pci_address_parse(address, again, sizeof(again)) &&
			   !strcmp(address, again));
}

static void check_dcb(const uint8_t *data, size_t size)
{
	uint8_t mask = 0;

	FUZZ_CHECK(doctor_dcb_parse(data, size, &mask) >= 0);
}

static void check_field(const uint8_t *data, size_t size)
{
	static struct doctor doctor = { .root = "" };
	char path[64], value[32];
	int fd = file_of(data, size, path);

	doctor_field(&doctor, path, "CapEff:", value, sizeof(value));
	FUZZ_CHECK(strlen(value) < sizeof(value));
	close(fd);
}

/* What becomes of NCCL's numbers are options that are taken. */
static void check_nccl(const char *text)
{
	static const char *const names[] = { "NCCL_IB_GID_INDEX", "NCCL_IB_TIMEOUT",
					     "NCCL_IB_RETRY_CNT", "NCCL_IB_PKEY_VALUE",
					     "NCCL_IB_PKEY",	  "NCCL_IB_DISABLE" };
	static struct np_options options;
	struct kv_option_set *set;
	struct kv_error err;
	char why[128];

	if (!*text)
		return;
	for (int i = 0; i < 6; i++)
		setenv(names[i], text + (i == *text % 6), 1);
	setenv("WORLD_SIZE", text, 1);
	setenv("LOCAL_WORLD_SIZE", text + 1, 1);
	np_env_options(&options);
	FUZZ_CHECK(!kv_option_read(options.list, &set, &err));
	kv_option_free(set);
	np_env_is_on_several_hosts(why, sizeof(why));
	FUZZ_CHECK(why[0]);
	for (int i = 0; i < 6; i++)
		unsetenv(names[i]);
	unsetenv("WORLD_SIZE");
	unsetenv("LOCAL_WORLD_SIZE");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const texts[])(const char *) = { check_option, check_uids, check_size,
						       check_names,  check_pci,	 check_nccl,
						       check_address };
	static void (*const bytes[])(const uint8_t *, size_t) = { check_key_file, check_trace_line,
								  check_handle, check_dcb,
								  check_field };
	enum { TEXTS = sizeof(texts) / sizeof(texts[0]), BYTES = sizeof(bytes) / sizeof(bytes[0]) };
	unsigned int kind;
	char *text;

	if (!size || size > 4096)
		return 0;
	kind = data[0] % (TEXTS + BYTES);
	if (kind >= TEXTS) {
		bytes[kind - TEXTS](data + 1, size - 1);
		return 0;
	}
	text = strndup((const char *)data + 1, size - 1);
	FUZZ_CHECK(text);
	texts[kind](text);
	free(text);
	return 0;
}
