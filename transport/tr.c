/* SPDX-License-Identifier: Apache-2.0 */
/* tr.c -- the context: which providers this machine has */
#include "tr.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include <kvrail/kv.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/option.h"
#include "conn.h"
#include "gpu/gpu.h"

const struct tr_provider *const tr_known[TR_PROVIDERS] = { &tr_shm_provider, &tr_ib_provider,
							   &tr_tcp_provider };

const char *tr_transport_name(unsigned int i)
{
	return i < TR_PROVIDERS ? tr_known[i]->name : NULL;
}

bool tr_has_cuda(void)
{
	return cuda_is_installed();
}

int tr_runs_cuda(struct kv_error *err)
{
	return cuda_driver("open", err) ? 0 : KV_ERR_UNSUPPORTED;
}

static bool allowed(const struct tr *tr, const struct tr_provider *provider)
{
	return kv_option_has(tr->options, KV_OPT_TRANSPORT, "auto") ||
	       kv_option_has(tr->options, KV_OPT_TRANSPORT, provider->name);
}

static int open_providers(struct tr *tr, struct kv_error *err)
{
	const char *words = kv_option_string(tr->options, KV_OPT_TRANSPORT);
	struct kv_error why = { 0 };

	for (int i = 0; i < TR_PROVIDERS; i++) {
		int ret;

		if (!allowed(tr, tr_known[i])) {
			snprintf(tr->absent[i], TR_WHY, "KVCACHE_TRANSPORT is %s here", words);
			continue;
		}
		ret = tr_known[i]->open(tr, &tr->provider_ctx[tr->providers], &why);
		if (!ret) {
			tr->provider[tr->providers++] = tr_known[i];
			continue;
		}
		if (ret != KV_ERR_UNSUPPORTED)
			return kv_error_copy(err, &why);
		snprintf(tr->absent[i], TR_WHY, "%.*s", TR_WHY - 1, why.message);
		kv_log_info(tr->log, "transport %s is not used: %s", tr_known[i]->name,
			    why.message);
	}
	if (tr->providers)
		return 0;
	kv_fail(err, KV_ERR_DEVICE, "open", "KVCACHE_TRANSPORT is %s: %s", words, why.message);
	kv_error_hint(err, "%s", why.hint);
	return KV_ERR_DEVICE;
}

static void close_providers(struct tr *tr)
{
	while (tr->providers--)
		tr->provider[tr->providers]->close(tr->provider_ctx[tr->providers]);
	for (int i = 0; i < TR_MEM_KINDS; i++)
		if (tr->gpu[i])
			tr_kinds[i]->close(tr->gpu[i]);
}

int tr_open(const struct tr_config *config, struct tr **tr_p, struct kv_error *err)
{
	struct tr *tr = kv_fault(TR_ALLOC) ? NULL : calloc(1, sizeof(*tr));
	int ret;

	if (!tr)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate a context");
	tr->options = config->options;
	tr->log = config->log;
	if (kv_fault(TR_RANDOM) ||
	    getrandom(tr->incarnation, sizeof(tr->incarnation), 0) != sizeof(tr->incarnation)) {
		ret = kv_fail_errno(err, KV_ERR_SYSTEM, errno, "open", "getrandom");
		goto free_tr;
	}
	ret = psk_open(kv_option_string(tr->options, KV_OPT_PSK_FILE), &tr->psk, err);
	if (ret)
		goto free_tr;
	ret = tr_memory_open(tr, err);
	if (ret)
		goto close_psk;
	for (int i = 0; i < TR_MEM_KINDS && !ret; i++)
		if (tr_kinds[i])
			ret = tr_kinds[i]->open(config->gpu_apart, &tr->gpu[i], err);
	if (!ret)
		ret = open_providers(tr, err);
	if (!ret) {
		*tr_p = tr;
		return 0;
	}

	tr_memory_close(tr);
	close_providers(tr);
close_psk:
	psk_close(tr->psk);
free_tr:
	free(tr);
	return ret;
}

void tr_close(struct tr *tr)
{
	if (!tr)
		return;
	tr_memory_close(tr);
	close_providers(tr);
	psk_close(tr->psk);
	free(tr);
}

uint64_t tr_help(struct tr *tr, uint64_t most)
{
	uint64_t moved = 0;

	for (int i = 0; i < tr->providers && !moved; i++)
		if (tr->provider[i]->help)
			moved = tr->provider[i]->help(tr->provider_ctx[i], most);
	return moved;
}

void tr_alarm(struct tr *tr)
{
	for (int i = 0; i < tr->providers; i++)
		if (tr->provider[i]->alarm)
			tr->provider[i]->alarm(tr->provider_ctx[i]);
}

const uint8_t *tr_incarnation(const struct tr *tr)
{
	return tr->incarnation;
}

int tr_device_get(struct tr *tr, size_t index, struct kv_device_info *info)
{
	*info = (struct kv_device_info){ .size = sizeof(*info), .gid_index = -1, .numa_node = -1 };
	for (int k = 0; k < TR_PROVIDERS; k++) {
		int i = tr_provider_at(tr, tr_known[k]);
		void *ctx = i < 0 ? NULL : tr->provider_ctx[i];

		if (!tr_known[k]->device_get)
			continue;
		for (size_t row = 0; !tr_known[k]->device_get(ctx, row, info); row++)
			if (!index--)
				return 0;
	}
	return KV_ERR_ARG;
}
