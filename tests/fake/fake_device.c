/* SPDX-License-Identifier: Apache-2.0 */
/* fake_device.c -- devices, their ports and GIDs, protection domains and memory regions */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fake_world.h"

void fake_device_init(struct fake_device *device, int host, int index)
{
	snprintf(device->device.name, sizeof(device->device.name), "fake%d", index);
	device->host = host;
	device->index = index;
	device->up = true;
	device->lid = (uint16_t)((host * DEVICES_MAX + index + 1) * 8);
	device->port = (struct fake_port){ .mtu = index ? IBV_MTU_4096 : IBV_MTU_1024,
					   .width = 2,
					   .speed = 64,
					   .max_msg = 8 << 20,
					   .pkey = { 0xffff } };
	for (int h = 0; h < HOSTS_MAX; h++)
		device->port.routed_from[h] = index + 1;
	model_gids(device->gid, world.config.infiniband, host, index);
}

static struct fake_device *device_of(struct ibv_device *device)
{
	return (struct fake_device *)device;
}

struct fake_context *fake_context_of(struct ibv_context *context)
{
	return (struct fake_context *)context;
}

struct ibv_device **fake_get_device_list(int *n)
{
	struct ibv_device **list = NULL;
	int host = fake_current_host();

	fake_lock();
	if (!fake_fault(FAKE_get_device_list)) {
		list = calloc((size_t)world.config.devices + 1, sizeof(struct ibv_device *));
		for (int d = 0; d < world.config.devices; d++)
			list[d] = &world.device[host][d].device;
		*n = world.config.devices;
	}
	fake_unlock();
	return list;
}

void fake_free_device_list(struct ibv_device **list)
{
	free(list);
}

const char *fake_get_device_name(struct ibv_device *device)
{
	return device->name;
}

struct ibv_context *fake_open_device(struct ibv_device *device)
{
	struct fake_context *c = NULL;

	fake_lock();
	if (device_of(device)->fatal) {
		errno = EIO;
	} else if (!fake_fails(device_of(device), FAKE_open_device)) {
		c = calloc(1, sizeof(*c));
		c->device = device_of(device);
		c->context.device = device;
		c->context.async_fd = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);
		c->next = world.contexts;
		world.contexts = c;
		world.counts.contexts++;
	}
	fake_unlock();
	return c ? &c->context : NULL;
}

int fake_close_device(struct ibv_context *context)
{
	struct fake_context *c = fake_context_of(context), **at;
	int ret = 0;

	fake_lock();
	if (c->users) {
		ret = fake_misuse("close_device with objects in it");
	} else {
		for (at = &world.contexts; *at != c; at = &(*at)->next)
			;
		*at = c->next;
		world.counts.contexts--;
		close(context->async_fd);
		free(c);
	}
	fake_unlock();
	return ret;
}

int fake_query_device(struct ibv_context *context, struct ibv_device_attr *attr)
{
	int ret;

	fake_lock();
	ret = fake_fails(fake_context_of(context)->device, FAKE_query_device) ? errno : 0;
	model_device(attr);
	attr->vendor_id = world.config.soft ? 0xffffff : 0x2c9;
	attr->max_mr_size = world.config.max_mr_size;
	fake_unlock();
	return ret;
}

int fake_query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr)
{
	const struct fake_device *device = fake_context_of(context)->device;
	int ret;

	fake_lock();
	ret = fake_fails(device, FAKE_query_port) ? errno : port == 1 ? 0 : EINVAL;
	memset(attr, 0, sizeof(*attr));
	attr->state = device->up ? IBV_PORT_ACTIVE : IBV_PORT_DOWN;
	attr->max_mtu = IBV_MTU_4096;
	attr->active_mtu = device->port.mtu;
	attr->gid_tbl_len = 8;
	attr->max_msg_sz = device->port.max_msg;
	attr->active_width = device->port.width;
	attr->active_speed = device->port.speed;
	attr->pkey_tbl_len = FAKE_PKEYS;
	attr->lmc = device->port.lmc;
	attr->flags = device->port.grh_required ? IBV_QPF_GRH_REQUIRED : 0;
	attr->lid = world.config.infiniband ? device->lid : 0;
	attr->link_layer =
		world.config.infiniband ? IBV_LINK_LAYER_INFINIBAND : IBV_LINK_LAYER_ETHERNET;
	fake_unlock();
	return ret;
}

ssize_t fake_query_gid_table(struct ibv_context *context, struct ibv_gid_entry *entries, size_t max)
{
	const struct fake_device *device = fake_context_of(context)->device;
	ssize_t n = 0;

	fake_lock();
	if (fake_fails(device, FAKE_query_gid_table))
		n = -errno;
	for (size_t i = 0; n >= 0 && i < MODEL_GIDS && (size_t)n < max; i++)
		if (!model_gid_is_zero(&device->gid[i].gid))
			entries[n++] = device->gid[i];
	fake_unlock();
	return n;
}

int fake_query_pkey(struct ibv_context *context, uint8_t port, int index, __be16 *pkey)
{
	const struct fake_device *device = fake_context_of(context)->device;
	int ret = -1;

	fake_lock();
	if (!fake_fault(FAKE_query_pkey)) {
		ret = port == 1 && index < FAKE_PKEYS ? 0 : -1;
		errno = EINVAL;
	}
	if (!ret)
		*pkey = htons(device->port.pkey[index]);
	fake_unlock();
	return ret;
}

/* What real ports refuse at once. */
bool fake_port_takes(const struct fake_device *device, const struct ibv_qp_attr *attr, int mask)
{
	const struct ibv_ah_attr *ah = &attr->ah_attr;
	const struct fake_port *port = &device->port;

	if (world.config.infiniband && mask & IBV_QP_PKEY_INDEX &&
	    (attr->pkey_index >= FAKE_PKEYS || !port->pkey[attr->pkey_index]))
		return false;
	if (mask & IBV_QP_PATH_MTU && (attr->path_mtu > port->mtu || !attr->path_mtu))
		return false;
	if (!(mask & IBV_QP_AV))
		return true;
	if (ah->port_num != 1 || ah->sl > 15 || (ah->is_global && ah->grh.sgid_index >= MODEL_GIDS))
		return false;
	return world.config.infiniband ? ah->dlid && !(ah->src_path_bits >> port->lmc)
				       : ah->is_global;
}

static bool ipv4(const union ibv_gid *gid)
{
	return gid->raw[10] == 0xff && gid->raw[11] == 0xff;
}

/*
 * RoCE v1 does not get through; an empty row sends nothing; a link-local address does not leave its
 * host.
 */
static bool routed(const struct ibv_gid_entry *from, const struct ibv_gid_entry *to, bool one_host)
{
	bool local = from->gid.raw[0] == 0xfe || to->gid.raw[0] == 0xfe;

	return from->gid_type == IBV_GID_TYPE_ROCE_V2 && to->gid_type == IBV_GID_TYPE_ROCE_V2 &&
	       !model_gid_is_zero(&from->gid) && !model_gid_is_zero(&to->gid) &&
	       ipv4(&from->gid) == ipv4(&to->gid) && (!local || one_host);
}

/* Does a packet with this address vector come from one port to the other? */
static bool arrives(const struct fake_device *from, const struct fake_device *to,
		    const struct ibv_ah_attr *ah)
{
	const struct ibv_gid_entry *source = &from->gid[ah->grh.sgid_index % MODEL_GIDS];

	if (world.config.infiniband) {
		if (ah->dlid < to->lid || ah->dlid >= to->lid + (1 << to->port.lmc) ||
		    memcmp(&from->gid[0].gid, &to->gid[0].gid, 8) ||
		    (world.sa.strict_sl && ah->sl != world.sa.sl))
			return false;
		if (!ah->is_global)
			return !from->port.grh_required && !to->port.grh_required;
		return !model_gid_is_zero(&source->gid) &&
		       !memcmp(&ah->grh.dgid, &to->gid[0].gid, sizeof(ah->grh.dgid));
	}
	for (int i = 0; i < MODEL_GIDS; i++)
		if (routed(source, &to->gid[i], from->host == to->host) &&
		    !memcmp(&ah->grh.dgid, &to->gid[i].gid, sizeof(ah->grh.dgid)))
			return true;
	return false;
}

/* The device that the queue pair's address vector names. */
struct fake_device *fake_find_peer(const struct fake_qp *qp)
{
	for (int h = 0; h < world.config.hosts; h++)
		for (int d = 0; d < world.config.devices; d++)
			if (arrives(qp->device, &world.device[h][d], &qp->attr.ah_attr))
				return &world.device[h][d];
	return NULL;
}

/* What a responder looks at: its partition, the sender's LID, and that both cut packets alike. */
bool fake_hears(const struct fake_qp *to, const struct fake_qp *from)
{
	uint16_t here = to->device->port.pkey[to->attr.pkey_index % FAKE_PKEYS];
	uint16_t there = from->device->port.pkey[from->attr.pkey_index % FAKE_PKEYS];

	if (to->attr.path_mtu != from->attr.path_mtu)
		return false;
	return !world.config.infiniband ||
	       (!((here ^ there) & 0x7fff) && (here | there) & 0x8000 &&
		to->attr.ah_attr.dlid == from->device->lid + from->attr.ah_attr.src_path_bits);
}

struct ibv_pd *fake_alloc_pd(struct ibv_context *context)
{
	struct fake_pd *pd = NULL;

	fake_lock();
	if (!fake_fails(fake_context_of(context)->device, FAKE_alloc_pd)) {
		pd = calloc(1, sizeof(*pd));
		pd->pd.context = context;
		fake_context_of(context)->users++;
		world.counts.pds++;
	}
	fake_unlock();
	return pd ? &pd->pd : NULL;
}

int fake_dealloc_pd(struct ibv_pd *ibv_pd)
{
	struct fake_pd *pd = (struct fake_pd *)ibv_pd;
	int ret = 0;

	fake_lock();
	if (pd->users) {
		ret = fake_misuse("dealloc_pd with objects in it");
	} else {
		fake_context_of(ibv_pd->context)->users--;
		world.counts.pds--;
		free(pd);
	}
	fake_unlock();
	return ret;
}

static struct fake_mr *new_mr(struct ibv_pd *pd, void *addr, size_t len, unsigned int access)
{
	struct fake_mr *mr;
	uint32_t slot;

	if (world.config.max_mr_bytes && len > world.config.max_mr_bytes) {
		errno = world.config.mr_errno ? world.config.mr_errno : ENOMEM;
		return NULL;
	}
	if (!model_may_register(len, access)) {
		errno = EINVAL;
		return NULL;
	}
	do
		slot = world.next_mr++ % MRS_MAX;
	while (world.mr[slot]);
	mr = calloc(1, sizeof(*mr));
	mr->mr = (struct ibv_mr){ .context = pd->context, .pd = pd, .addr = addr, .length = len };
	mr->mr.lkey = slot << 8 | fake_random(256);
	mr->mr.rkey = slot << 8 | fake_random(256);
	mr->access = access;
	mr->bytes = addr;
	world.mr[slot] = mr;
	((struct fake_pd *)pd)->users++;
	world.counts.mrs++;
	return mr;
}

struct ibv_mr *fake_reg_mr(struct ibv_pd *pd, void *addr, size_t len, unsigned int access)
{
	struct fake_mr *mr;

	atomic_fetch_add(&world.reg_waits, 1);
	while (atomic_load(&world.hold_reg))
		poll(NULL, 0, 1);
	atomic_fetch_sub(&world.reg_waits, 1);
	fake_lock();
	mr = fake_fails(fake_context_of(pd->context)->device, FAKE_reg_mr)
		     ? NULL
		     : new_mr(pd, addr, len, access);
	if (mr && world.peermem.len && (uint8_t *)addr >= world.peermem.addr &&
	    (uint8_t *)addr + len <= world.peermem.addr + world.peermem.len)
		mr->bytes = world.peermem.bytes + ((uint8_t *)addr - world.peermem.addr);
	fake_unlock();
	return mr ? &mr->mr : NULL;
}

void fake_peermem(void *addr, size_t len, uint8_t *bytes)
{
	fake_lock();
	world.peermem.addr = bytes ? addr : NULL;
	world.peermem.len = bytes ? len : 0;
	world.peermem.bytes = bytes;
	fake_unlock();
}

void fake_unmaps(void *addr, size_t len)
{
	uint8_t *first = addr, *end = first + len;

	fake_lock();
	for (int i = 0; i < MRS_MAX; i++) {
		struct fake_mr *mr = world.mr[i];

		if (!mr || mr->map || mr->pinned || mr->bytes >= end ||
		    mr->bytes + mr->mr.length <= first)
			continue;
		fake_place_mr(mr);
		mr->pinned = malloc(mr->mr.length);
		memcpy(mr->pinned, mr->bytes, mr->mr.length);
		mr->gone_at = mr->bytes < first ? (uint64_t)(first - mr->bytes) : 0;
		mr->gone_end = end < mr->bytes + mr->mr.length ? (uint64_t)(end - mr->bytes)
							       : mr->mr.length;
	}
	fake_unlock();
}

/*
 * As the kernel does: EOPNOTSUPP before the descriptor is looked at, EBADF, EINVAL past the
 * buffer's end. The buffer begins where the descriptor is positioned.
 */
static struct fake_mr *new_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t len, uint64_t iova,
				     int fd, unsigned int access)
{
	size_t map_len = (size_t)(offset & 4095) + len;
	uint64_t first;
	struct stat st;
	struct fake_mr *mr;
	void *map;

	errno = !world.config.dmabuf ? EOPNOTSUPP : EBADF;
	if (!world.config.dmabuf || fstat(fd, &st))
		return NULL;
	offset += (uint64_t)lseek(fd, 0, SEEK_CUR);
	first = offset & ~UINT64_C(4095);
	errno = EINVAL;
	if (offset > (uint64_t)st.st_size || len > (uint64_t)st.st_size - offset ||
	    (offset ^ iova) & 4095)
		return NULL;
	map = mmap(NULL, map_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)first);
	if (map == MAP_FAILED)
		return NULL;
	mr = new_mr(pd, (void *)(uintptr_t)iova, len, access);
	if (!mr) {
		munmap(map, map_len);
		return NULL;
	}
	mr->map = map;
	mr->map_len = map_len;
	mr->bytes = (uint8_t *)map + (offset - first);
	return mr;
}

struct ibv_mr *fake_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t len, uint64_t iova,
				  int fd, int access)
{
	struct fake_mr *mr;

	fake_lock();
	mr = fake_fault(FAKE_reg_dmabuf_mr)
		     ? NULL
		     : new_dmabuf_mr(pd, offset, len, iova, fd, (unsigned int)access);
	fake_unlock();
	return mr ? &mr->mr : NULL;
}

int fake_dereg_mr(struct ibv_mr *ibv_mr)
{
	struct fake_mr *mr = (struct fake_mr *)ibv_mr;

	fake_lock();
	fake_place_mr(mr);
	world.mr[ibv_mr->lkey >> 8] = NULL;
	((struct fake_pd *)ibv_mr->pd)->users--;
	world.counts.mrs--;
	if (mr->map)
		munmap(mr->map, mr->map_len);
	free(mr->pinned);
	free(mr);
	fake_unlock();
	return 0;
}

/*
 * The region that the key opens for all of [addr, addr + len) in this domain, or NULL. Works for
 * local and remote keys.
 */
struct fake_mr *fake_find_mr(uint32_t key, uint64_t addr, uint64_t len, const struct ibv_pd *pd)
{
	struct fake_mr *mr = key >> 8 < MRS_MAX ? world.mr[key >> 8] : NULL;
	uint64_t first = mr ? (uint64_t)(uintptr_t)mr->mr.addr : 0;

	if (!mr || mr->mr.pd != pd || (key != mr->mr.lkey && key != mr->mr.rkey))
		return NULL;
	if (addr < first || len > mr->mr.length || addr - first > mr->mr.length - len)
		return NULL;
	return mr;
}
