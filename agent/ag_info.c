/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ag_info.c -- bytes that an engine carries to other processes: where an agent is, what a region is
 */
#include <string.h>

#include "ag.h"
#include "base/wire.h"

static const uint8_t place_magic[8] = { 'k', 'v', 'r', 'a', 'i', 'l', 'A', 1 };

size_t ag_place_put(const struct ag_place *place, uint8_t buf[AG_INFO_MAX])
{
	struct wire_writer w = wire_writer_of(buf, AG_INFO_MAX);

	wire_put_bytes(&w, place_magic, sizeof(place_magic));
	wire_put_bytes(&w, place->incarnation, AG_INCARNATION);
	wire_put_bytes(&w, place->secret, AG_SECRET);
	wire_put_u16(&w, place->port);
	wire_put_u8(&w, (uint8_t)place->hosts);
	for (unsigned int i = 0; i < place->hosts; i++)
		wire_put_string(&w, place->host[i]);
	return w.len;
}

int ag_place_get(struct ag_place *place, const void *buf, size_t len, struct kv_error *err)
{
	struct wire_reader r = wire_reader_of(buf, len);
	uint8_t magic[sizeof(place_magic)];

	wire_get_bytes(&r, magic, sizeof(magic));
	if (memcmp(magic, place_magic, sizeof(magic)))
		return kv_fail(err, KV_ERR_ARG, "load",
			       "%zu bytes are not where an agent of this version is", len);
	wire_get_bytes(&r, place->incarnation, AG_INCARNATION);
	wire_get_bytes(&r, place->secret, AG_SECRET);
	place->port = wire_get_u16(&r);
	place->hosts = wire_get_u8(&r);
	if (place->hosts > AG_ADDRESSES)
		r.bad = true;
	for (unsigned int i = 0; !r.bad && i < place->hosts; i++)
		wire_get_string(&r, place->host[i], AG_HOST_TEXT);
	if (!wire_done(&r) || !place->hosts || !place->port)
		return kv_fail(err, KV_ERR_ARG, "load", "%zu bytes of an agent's place are damaged",
			       len);
	return 0;
}

size_t ag_region_put(const struct ag_region *region, uint8_t buf[AG_MEM_INFO_MAX])
{
	struct wire_writer w = wire_writer_of(buf, AG_MEM_INFO_MAX);

	wire_put_u64(&w, region->id);
	wire_put_u64(&w, region->addr);
	wire_put_u64(&w, region->len);
	return w.len;
}

int ag_region_get(struct ag_region *region, const void *buf, size_t len, struct kv_error *err)
{
	struct wire_reader r = wire_reader_of(buf, len);

	region->id = wire_get_u64(&r);
	region->addr = wire_get_u64(&r);
	region->len = wire_get_u64(&r);
	if (!wire_done(&r) || !region->len || region->addr > UINT64_MAX - region->len)
		return kv_fail(err, KV_ERR_ARG, "load", "%zu bytes are not an agent's region", len);
	return 0;
}
