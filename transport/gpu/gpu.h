/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu.h -- memory of a GPU: as peers of this host map it, as NICs reach it, and the kernels that
 * copy it
 *
 *   cuda.c       CUDA's row in the table of kinds (gpu_kind)
 *   cuda_load.c  the driver's functions
 *   dmabuf.c     a DMA-BUF for NICs
 *   vmm.c        regions of memory that is mapped piece by piece
 *   share.c      the IPC handle of a region; a peer's region, and host memory, mapped for a GPU
 *   device.c     a GPU of this process: its primary context, the kernel
 *   copy.c       queues of pieces that a kernel copies
 *   copy.cu      that kernel; copy.ptx is made of it, kernel.c holds it
 *
 * Nothing here keeps a context current: each function enters the one that it needs and leaves it. A
 * queue is its owner's: one thread at a time. Everything else may be called by any thread.
 */
#ifndef GPU_H
#define GPU_H

#include <stdbool.h>
#include <stdint.h>

#include "cuda_load.h"

struct gpu; /* GPUs that a context of the transport has used */
struct gpu_queue;
struct gpu_piece;
enum { GPU_ROOM = 1024 };

/*
 * A kind of memory that no CPU touches: what the transport asks of it. The functions do what those
 * of CUDA, of like names, say below; `struct gpu` and `struct gpu_queue` are each kind's own.
 * Another kind is a file with a row, and its place in ../kinds.c; between processes of a host it
 * goes through the ring, as kernels that reach the other process are CUDA's (../shm/cuda.c).
 */
struct gpu_kind {
	const char *name;
	int (*open)(bool apart, struct gpu **gpu_p, struct kv_error *err);
	void (*close)(struct gpu *gpu);

	/* For NICs. `modules` of the kernel let them register its addresses as they are. */
	int (*dmabuf)(const void *addr, size_t len, int *fd_p, uint64_t *offset_p,
		      struct kv_error *err);
	/* NULL: all of it is in one piece */
	bool (*grid)(const void *addr, size_t len, uint64_t *first_p, uint64_t *bytes_p);
	int (*needs_flush)(const void *addr, bool always);
	int (*scratch)(struct gpu *gpu, int device, void **addr_p, size_t *len_p,
		       struct kv_error *err);
	const char *modules[2], *hint;

	/*
	 * For staging in pinned memory (../stage.c). A queue has room for GPU_ROOM pieces at least
	 * when all before them have ended.
	 */
	int (*of)(const void *addr, size_t len, int *device_p, struct kv_error *err);
	int (*prepare)(struct gpu *gpu, int device, struct kv_error *err);
	int (*pin)(struct gpu *gpu, int device, void *addr, size_t len, bool *pinned_p,
		   uint64_t *at_p, struct kv_error *err);
	void (*unpin)(struct gpu *gpu, int device, void *addr);
	int (*queue_open)(struct gpu *gpu, int device, int sms, struct gpu_queue **queue_p,
			  struct kv_error *err);
	bool (*queue_close)(struct gpu_queue *queue);
	int (*queue_device)(const struct gpu_queue *queue);
	int (*queue_room)(struct gpu_queue *queue, bool engines, struct gpu_piece **piece_p,
			  struct kv_error *err);
	int (*queue_put)(struct gpu_queue *queue, unsigned int n, uint64_t chunks,
			 struct kv_error *err);
	uint64_t (*queue_last)(const struct gpu_queue *queue);
	int (*queue_end)(struct gpu_queue *queue, uint64_t batch, struct kv_error *err);
	bool (*queue_quit)(struct gpu_queue *queue, int64_t deadline_ns);
};
extern const struct gpu_kind gpu_cuda;

/* ---------------------------------------------------------------- regions */

/* 0 if [addr, addr + len) is one GPU's, and all of it in one allocation; else ARG. */
int gpu_check_range(const struct cuda_driver *cuda, const void *addr, size_t len,
		    struct kv_error *err);

/*
 * A DMA-BUF that holds [addr, addr + len), from *offset_p of it on; the caller closes it.
 * UNSUPPORTED: CUDA does not run in this process, or its driver exports none. ARG: not memory of a
 * GPU, or more than one allocation.
 */
int gpu_dmabuf(const void *addr, size_t len, int *fd_p, uint64_t *offset_p, struct kv_error *err);
/*
 * Of memory that is mapped piece by piece: all pieces begin at *first_p, which is not behind addr,
 * or a multiple of *bytes_p behind it. Drivers that export no DMA-BUF over several pieces do so of
 * what lies in one. false: it is one piece, or a part of it is not mapped.
 */
bool gpu_grid(const void *addr, size_t len, uint64_t *first_p, uint64_t *bytes_p);
/*
 * The ordinal of its GPU if that does not see a NIC's writes in their order (before compute
 * capability 9.0), or if `always`; else -1.
 */
int gpu_needs_flush(const void *addr, bool always);

/* A region as another process of this host may map it. */
struct gpu_share {
	int device; /* ordinal in this process */
	char uuid[16];
	struct cuda_ipc_handle handle;
	uint64_t offset; /* of the region in the allocation that the handle stands for */
	uint64_t span;	 /* 0; else there is no handle, but so many bytes of pieces (vmm.c) */
	/* Apart: the only piece, retained: to export it later needs no context. 0: several */
	unsigned long long piece;
};

/*
 * UNSUPPORTED, with the reason: CUDA does not run here; the allocation can be shared in neither way
 * (a memory pool); it belongs to a context that is not the GPU's primary one. ARG: as
 * gpu_check_range, or a part of it is not mapped.
 */
int gpu_share(struct gpu *gpu, const void *addr, size_t len, struct gpu_share *share,
	      struct kv_error *err);

void gpu_unshare(const struct gpu_share *share);

/*
 * The ordinal of the GPU whose kernels may copy it in this process; the other process is not
 * asked. UNSUPPORTED: CUDA does not run here, or it belongs to a context that is not the GPU's
 * primary one. ARG: as gpu_check_range.
 */
int gpu_of(const void *addr, size_t len, int *device_p, struct kv_error *err);

/*
 * The ordinal in this process of a peer's GPU (device_p may be NULL). UNSUPPORTED: there is no CUDA
 * here, the GPU is not visible to this process, or the GPU `from` does not reach it; -1: none asks.
 */
int gpu_find(const char uuid[16], int from, int *device_p, struct kv_error *err);

/*
 * Pieces that begin with the one that holds addr and end with that of addr + len: how far addr is
 * in, and all their bytes. ARG: a hole. UNSUPPORTED: one that cannot be exported.
 */
int gpu_measure(struct gpu *gpu, int device, const void *addr, size_t len,
		struct gpu_share *share, struct kv_error *err);
/* The piece that begins there; the caller closes the descriptor. Returns the driver's number. */
int gpu_export(struct gpu *gpu, int device, const void *addr, int *fd_p, uint64_t *len_p);
int gpu_export_whole(const struct gpu_share *share, int *fd_p); /* share->piece */

/* ---------------------------------------------------------------- GPUs of this process */

/* apart: in contexts of our own, which see only memory that is mapped piece by piece (device.c) */
int gpu_open(bool apart, struct gpu **gpu_p, struct kv_error *err);
bool gpu_is_apart(const struct gpu *gpu);
int gpu_used(struct gpu *gpu); /* the ordinal of one that is in use, or -1 */
/*
 * The GPU takes the kernel now, and not at the first copy: compiling it, and a context that nobody
 * has yet, may take long. DEVICE if it does not take it.
 */
int gpu_prepare(struct gpu *gpu, int device, struct kv_error *err);
/* Memory on that GPU for NICs to read, until gpu_close. */
int gpu_scratch(struct gpu *gpu, int device, void **addr_p, size_t *len_p, struct kv_error *err);
/*
 * Every queue is closed. Where a kernel still ran then, the GPUs stay as they are: taking the
 * module away would wait for it.
 */
void gpu_close(struct gpu *gpu);

/* ---------------------------------------------------------------- queues */

/*
 * A queue whose kernels run on that GPU, on at most `sms` multiprocessors. UNSUPPORTED or DEVICE
 * (the driver's error) otherwise.
 */
int gpu_queue_open(struct gpu *gpu, int device, int sms, struct gpu_queue **queue_p,
		   struct kv_error *err);
/* false: a kernel still runs; nothing was freed, and nothing of it may be. */
bool gpu_queue_close(struct gpu_queue *queue);
int gpu_queue_device(const struct gpu_queue *queue);

/* A peer's allocation where kernels of this queue see it. Mapped again: counted by the driver. */
int gpu_map(struct gpu_queue *queue, const struct cuda_ipc_handle *handle, uint64_t *at_p,
	    struct kv_error *err);
void gpu_unmap(struct gpu_queue *queue, uint64_t at);
/*
 * The same for host memory, which is pinned until gpu_unpin; memory that CUDA has pinned already is
 * used as it is (*pinned_p false). One for all GPUs of the process.
 */
int gpu_pin(struct gpu *gpu, int device, void *addr, size_t len, bool *pinned_p, uint64_t *at_p,
	    struct kv_error *err);
void gpu_unpin(struct gpu *gpu, int device, void *addr);

/* A peer's pieces side by side, in the order in which they are added; len: of all of them. */
struct gpu_range {
	uint64_t at, len, filled;
};
/* The descriptor stays the caller's. UNREACHABLE: the driver refuses it. */
int gpu_range_add(struct gpu *gpu, int device, struct gpu_range *range, int fd, uint64_t len,
		  struct kv_error *err);
/* Kernels of that GPU may use it. */
int gpu_range_allow(struct gpu *gpu, int device, const struct gpu_range *range,
		    struct kv_error *err);
void gpu_range_free(struct gpu *gpu, int device, struct gpu_range *range);

/* As copy.cu has them. */
enum { GPU_CHUNK = 512 };
struct gpu_piece {
	uint64_t to, from, len;
};
/* One of many of the same length: so many times GPU_STEP bytes behind a base. */
struct gpu_block {
	uint32_t to, from;
};
enum { GPU_STEP = 64, GPU_BLOCK_MAX = 64 << 20 };
struct gpu_bounds {
	uint64_t first, end;
};
/*
 * Where to write pieces, and how many; 0 if kernels that have not ended use all batches; or the
 * queue's failure. engines: the copy engines take them, in any order of their bytes, and not the
 * kernel, which stores whole 128-byte lines. Those that gpu_queue_put takes are copied at some time
 * between that and the end of gpu_queue_end for gpu_queue_last.
 */
int gpu_queue_room(struct gpu_queue *queue, bool engines, struct gpu_piece **piece_p,
		   struct kv_error *err);
/*
 * From so many bytes on, several of them by one call, the copy engines are faster than 8
 * multiprocessors on every way, and need none (docs/gpu.md). false: the driver has no such call,
 * or the kernel has more.
 */
enum { GPU_LARGE = 4 << 20 };
bool gpu_queue_takes_large(const struct gpu_queue *queue);
int gpu_queue_put(struct gpu_queue *queue, unsigned int n, uint64_t chunks, struct kv_error *err);
/*
 * The same for the kernel, where blocks of `len` bytes, at most GPU_BLOCK_MAX, lie in `to` and
 * `from`, of GPU_STEP << 31 bytes at most, everything a multiple of GPU_STEP: as a third of the
 * bytes over the bus, and of the cache lines that the GPU has to give back. *base_p: what the
 * blocks are counted from. gpu_queue_put takes them. Only after gpu_queue_takes_blocks: others
 * that the batch has differ in length, or are too far away.
 */
bool gpu_queue_takes_blocks(const struct gpu_queue *queue, const struct gpu_bounds *to,
			    const struct gpu_bounds *from, uint64_t len);
int gpu_queue_room_blocks(struct gpu_queue *queue, const struct gpu_bounds *to,
			  const struct gpu_bounds *from, uint64_t len, struct gpu_block **block_p,
			  struct gpu_piece *base_p, struct kv_error *err);
/*
 * Apart, and after gpu_queue_room for engines: the same for host memory, which is read before this
 * returns and may then change. Words of 8 bytes arrive whole where `to` is a multiple of 8.
 */
enum { GPU_STAGE = 128 << 10 }; /* at most */
int gpu_queue_put_host(struct gpu_queue *queue, uint64_t to, const void *from, size_t len,
		       struct kv_error *err);
/* Of a piece: what the warps share out. The sum over all goes to gpu_queue_put. */
static inline uint64_t gpu_chunks(uint64_t len)
{
	return (len + GPU_CHUNK - 1) / GPU_CHUNK;
}
/* The batch of the piece that was added last. */
uint64_t gpu_queue_last(const struct gpu_queue *queue);
/*
 * Starts what is not started up to that batch. 0: its kernel has ended, and its bytes are visible
 * to every reader that begins after this; 1: not yet; or the queue's failure (DEVICE).
 */
int gpu_queue_end(struct gpu_queue *queue, uint64_t batch, struct kv_error *err);
/* Starts what is not started, if nothing was put since this was called last. */
void gpu_queue_go(struct gpu_queue *queue);
/* What is not started never will be. */
void gpu_queue_drop(struct gpu_queue *queue);
/* A kernel of it does, as far as it has looked. */
bool gpu_queue_runs(const struct gpu_queue *queue);
/* No kernel of it runs. */
bool gpu_queue_quiet(struct gpu_queue *queue);
/* What is not started never will be, and what runs is waited for; false: it does so no longer. */
bool gpu_queue_quit(struct gpu_queue *queue, int64_t deadline_ns);

/* device.c, for copy.c and share.c */
struct gpu_device {
	struct gpu *gpu;
	const struct cuda_driver *cuda;
	int device;
	void *context, *module, *kernel;
};
/*
 * In the GPU's context until gpu_leave; 0, or the driver's error and nothing to leave. Meanwhile
 * the thread may call what a CUDA graph that another thread captures would forbid it: the calls
 * have nothing to do with that graph.
 */
int gpu_enter(const struct gpu_device *device, int *capture_mode);
void gpu_leave(const struct gpu_device *device, int *capture_mode);
int gpu_device(struct gpu *gpu, int device, const struct gpu_device **device_p,
	       struct kv_error *err);
/* A queue could not be closed: what its kernel uses is kept for the life of the process. */
void gpu_keep(struct gpu *gpu, struct gpu_queue *queue, struct gpu_queue **next_p);
/* kernel.c: the text of copy.ptx; cubins as a fat binary, "" if there are none */
extern const char gpu_copy_ptx[], gpu_copy_cubins[];

#endif
