/* SPDX-License-Identifier: Apache-2.0 */
/* segment.c -- makes, checks, maps and unmaps the shared segment */
#include "segment.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/memfd.h"

#define SEGMENT_MAGIC UINT64_C(0x31676573726b766b)

enum {
	SEGMENT_VERSION = 2,
	SEGMENT_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL,
	SEGMENT_RINGS_AT = 4096,
};
_Static_assert(sizeof(struct segment_shared) <= SEGMENT_RINGS_AT,
	       "the rings begin after the words");

static size_t total(uint64_t ring_bytes)
{
	return SEGMENT_RINGS_AT + 2 * (size_t)ring_bytes;
}

static int map(struct segment *seg, int fd, uint64_t ring_bytes, int side, struct kv_error *err)
{
	size_t len = total(ring_bytes);
	void *at = kv_fault(SHM_SEGMENT_MMAP)
			   ? (errno = ENOMEM, MAP_FAILED)
			   : mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (at == MAP_FAILED)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake",
				     "cannot map a shared segment of %zu bytes", len);
	madvise(at, len, MADV_DONTFORK);
	seg->shared = at;
	seg->mine = &seg->shared->side[side];
	seg->theirs = &seg->shared->side[!side];
	seg->len = len;
	seg->ring_bytes = ring_bytes;
	return 0;
}

int segment_create(struct segment *seg, uint64_t ring_bytes, const uint8_t nonce[16], int *fd_p,
		   struct kv_error *err)
{
	int fd = kv_fault(SHM_SEGMENT_MEMFD)
			 ? (errno = EMFILE, -1)
			 : memfd_create("kvrail-segment", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int ret;

	if (fd < 0)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake", "memfd_create");
	if (kv_fault(SHM_SEGMENT_SIZE) ? (errno = ENOMEM, -1)
				       : kv_memfd_size(fd, total(ring_bytes))) {
		ret = kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake",
				    "cannot give a shared segment %zu bytes", total(ring_bytes));
		goto close_fd;
	}
	if (kv_fault(SHM_SEGMENT_SEAL) ? (errno = EPERM, -1)
				       : fcntl(fd, F_ADD_SEALS, SEGMENT_SEALS)) {
		ret = kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake",
				    "cannot seal a shared segment");
		goto close_fd;
	}
	ret = map(seg, fd, ring_bytes, SEGMENT_CONNECTING, err);
	if (ret)
		goto close_fd;
	seg->shared->magic = SEGMENT_MAGIC;
	seg->shared->version = SEGMENT_VERSION;
	seg->shared->ring_bytes = (uint32_t)ring_bytes;
	memcpy(seg->shared->nonce, nonce, sizeof(seg->shared->nonce));
	*fd_p = fd;
	return 0;

close_fd:
	close(fd);
	return ret;
}

bool memfd_is_sound(int fd, uint64_t len)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct statfs fs;
	struct stat st;

	return seals >= 0 && (seals & F_SEAL_SHRINK) && !fstatfs(fd, &fs) &&
	       fs.f_type == TMPFS_MAGIC && !fstat(fd, &st) && len && len <= INT64_MAX &&
	       st.st_size >= (int64_t)len;
}

int segment_open(struct segment *seg, int fd, uint64_t ring_bytes, struct kv_error *err)
{
	struct segment_shared header;
	struct stat st;
	ssize_t n;

	if (!memfd_is_sound(fd, total(RING_BYTES_MIN)) || fstat(fd, &st))
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
			       "the peer's shared segment is not a sealed memfd");
	do
		n = kv_fault(SHM_SEGMENT_READ) ? (errno = EIO, -1)
					       : pread(fd, &header, sizeof(header), 0);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake",
				     "cannot read the peer's shared segment");
	if (n != sizeof(header) || header.magic != SEGMENT_MAGIC ||
	    header.version != SEGMENT_VERSION || header.ring_bytes < RING_BYTES_MIN ||
	    header.ring_bytes > ring_bytes || (header.ring_bytes & (header.ring_bytes - 1)) ||
	    (uint64_t)st.st_size != total(header.ring_bytes))
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
			       "the peer's shared segment of %lld bytes has a bad header",
			       (long long)st.st_size);
	return map(seg, fd, header.ring_bytes, SEGMENT_ACCEPTING, err);
}

void segment_close(struct segment *seg)
{
	if (seg->shared && !seg->kept)
		munmap(seg->shared, seg->len);
	seg->shared = NULL;
}

void segment_rings(const struct segment *seg, int side, struct ring_out *out, struct ring_in *in)
{
	uint8_t *rings = (uint8_t *)seg->shared + SEGMENT_RINGS_AT;

	*out = (struct ring_out){
		.data = rings + (size_t)side * seg->ring_bytes,
		.shared = &seg->shared->ring[side],
		.size = seg->ring_bytes,
	};
	*in = (struct ring_in){
		.data = rings + (size_t)!side * seg->ring_bytes,
		.shared = &seg->shared->ring[!side],
		.size = seg->ring_bytes,
	};
}

void segment_promise(struct segment *seg)
{
	/*
	 * release: our last stores to the peer's memory come before the word that promises that
	 * there will be no more.
	 */
	atomic_store_explicit(&seg->mine->stopped, 1, memory_order_release);
}
