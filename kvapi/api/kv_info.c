/* SPDX-License-Identifier: Apache-2.0 */
/* kv_info.c -- what there is: options, devices, a peer */
#include <stdio.h>
#include <string.h>

#include "kv_api.h"

const char *kv_version(void)
{
#define TEXT_OF(x) #x
#define VERSION_OF(a, b, c) TEXT_OF(a) "." TEXT_OF(b) "." TEXT_OF(c)
	return VERSION_OF(KV_VERSION_MAJOR, KV_VERSION_MINOR, KV_VERSION_PATCH);
}

static pthread_mutex_t fresh_lock = PTHREAD_MUTEX_INITIALIZER;
static struct kv_option_set *fresh; /* what an engine opened now would have; read anew at row 0 */

static int refresh(size_t index, struct kv_error *err)
{
	struct kv_option_set *set;
	int ret;

	if (fresh && index)
		return 0;
	ret = kv_option_read(NULL, &set, err);
	if (ret)
		return ret;
	kv_option_free(fresh);
	fresh = set;
	return 0;
}

static void fill_option_info(const struct kv_option_set *set, size_t index,
			     struct kv_option_info *info)
{
	struct kv_option_row row;

	kv_option_row(set, (enum kv_option_id)index, &row);
	*info = (struct kv_option_info){
		.size = sizeof(*info),
		.name = row.name,
		.type = row.type,
		.range = row.range,
		.def = row.def,
		.help = row.help,
		.value = row.value,
		.source = row.source,
	};
}

int kv_option_get(struct kv_engine *engine, size_t index, struct kv_option_info *info,
		  struct kv_error *err)
{
	int ret = engine ? kv_engine_use(engine, "option_get", err) : 0;

	if (ret)
		return ret;
	if (!info || info->size != sizeof(*info))
		return kv_fail(err, KV_ERR_ARG, "option_get",
			       "kv_option_info is NULL or its size is not %zu", sizeof(*info));
	if (index >= KV_OPTIONS)
		return kv_fail(err, KV_ERR_ARG, "option_get", "there are %d options", KV_OPTIONS);
	if (engine) {
		fill_option_info(engine->options, index, info);
		return 0;
	}
	pthread_mutex_lock(&fresh_lock);
	ret = refresh(index, err);
	if (!ret)
		fill_option_info(fresh, index, info);
	pthread_mutex_unlock(&fresh_lock);
	return ret;
}

int kv_device_get(struct kv_engine *engine, size_t index, struct kv_device_info *info,
		  struct kv_error *err)
{
	struct kv_device_info all;
	int ret = kv_engine_use(engine, "device_get", err);

	if (ret)
		return ret;
	if (!info || info->size < offsetof(struct kv_device_info, link) ||
	    info->size > sizeof(*info))
		return kv_fail(err, KV_ERR_ARG, "device_get",
			       "kv_device_info is NULL or its size is not %zu", sizeof(*info));
	if (tr_device_get(engine->tr, index, &all))
		return kv_fail(err, KV_ERR_ARG, "device_get", "there are fewer than %zu devices",
			       index + 1);
	all.size = info->size;
	memcpy(info, &all, info->size);
	return 0;
}

int kv_peer_info(struct kv_peer *peer, struct kv_peer_info *info, struct kv_error *err)
{
	int ret = kv_peer_use(peer, "peer_info", err);

	if (ret)
		return ret;
	if (!info || info->size != sizeof(*info))
		return kv_fail(err, KV_ERR_ARG, "peer_info",
			       "kv_peer_info is NULL or its size is not %zu", sizeof(*info));
	/* No claim, which another call may hold: all of it is final since the handshake. */
	*info = (struct kv_peer_info){
		.size = sizeof(*info),
		.connected = kv_peer_is_connected(peer),
		.incoming = peer->incoming,
		.user = atomic_load(&peer->user),
	};
	snprintf(info->name, sizeof(info->name), "%s", peer->name);
	snprintf(info->address, sizeof(info->address), "%s", tr_conn_address(peer->conn));
	snprintf(info->transport, sizeof(info->transport), "%s", tr_conn_transport(peer->conn));
	snprintf(info->path, sizeof(info->path), "%s", tr_conn_path(peer->conn));
	memcpy(info->incarnation, tr_conn_incarnation(peer->conn), sizeof(info->incarnation));
	return 0;
}

void kv_peer_set_user(struct kv_peer *peer, uint64_t user)
{
	if (peer && peer->magic == KV_MAGIC_PEER)
		atomic_store(&peer->user, user);
}
