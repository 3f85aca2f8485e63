/* SPDX-License-Identifier: Apache-2.0 */
/*
 * copy.cu -- one kernel a batch: pieces of memory, each from one address to another, shared out to
 * the warps by bytes
 *
 * copy.ptx is made of it (transport/gpu/make_ptx.sh) and is what the library carries.
 */
#include <stdint.h>

/* As copy.c lays them out in pinned memory of the host. */
struct piece {
	uint64_t to, from, len;
};
/* Where a warp begins, and where the one before it ends: a chunk of a piece. */
struct start {
	uint32_t piece, chunk;
};
/* A block of base.len bytes, so many times STEP behind `to` and `from` of the base. */
struct block {
	uint32_t to, from;
};

enum { CHUNK = 512, LANES = 32, DEPTH = 4, STEP = 64 };

/* [first, end) of a piece, by all lanes. T divides both addresses, `first` and `end`. */
template <typename T>
static __device__ void move(uint64_t to, uint64_t from, uint64_t first, uint64_t end, uint32_t lane)
{
	T *dst = (T *)(to + first);
	const T *src = (const T *)(from + first);
	uint64_t n = (end - first) / sizeof(T), i = lane;

	for (; i + (DEPTH - 1) * LANES < n; i += DEPTH * LANES) {
		T v[DEPTH];

#pragma unroll
		for (int k = 0; k < DEPTH; k++)
			v[k] = __ldcs(src + i + k * LANES);
#pragma unroll
		for (int k = 0; k < DEPTH; k++)
			__stcs(dst + i + k * LANES, v[k]);
	}
	for (; i < n; i += LANES)
		__stcs(dst + i, __ldcs(src + i));
}

/* Of n chunks in pieces of `even`: those before warp w. */
static __device__ uint32_t first_of(uint32_t w, uint32_t warps, uint32_t n)
{
	return w * (n / warps) + min(w, n % warps);
}

/* What warp `warp` has to do of it. */
static __device__ void copy_share(const void *list, const struct start *starts, uint32_t warp,
				  uint32_t warps, uint32_t n, struct piece base, uint32_t lane)
{
	struct start begin, end;
	uint64_t to = 0, from = 0, len = 0;

	if (base.len) {
		uint32_t even = (uint32_t)((base.len + CHUNK - 1) / CHUNK);
		uint32_t first = first_of(warp, warps, n * even);
		uint32_t last = first_of(warp + 1, warps, n * even) - 1;

		begin.piece = first / even;
		begin.chunk = first % even;
		end.piece = last / even;
		end.chunk = last % even + 1;
	} else {
		begin = starts[warp];
		end = starts[warp + 1];
	}
	for (uint32_t i = begin.piece; i <= end.piece; i++) {
		uint32_t k = (i - begin.piece) % LANES;
		uint64_t t, f, l, a, b;

		if (!k) { /* 32 pieces by one read over the bus */
			uint32_t mine = i + lane;

			to = from = len = 0;
			if (mine <= end.piece && base.len) {
				struct block block = ((const struct block *)list)[mine];

				to = base.to + (uint64_t)block.to * STEP;
				from = base.from + (uint64_t)block.from * STEP;
				len = base.len;
			} else if (mine <= end.piece) {
				struct piece piece = ((const struct piece *)list)[mine];

				to = piece.to;
				from = piece.from;
				len = piece.len;
			}
		}
		t = __shfl_sync(0xffffffff, to, k);
		f = __shfl_sync(0xffffffff, from, k);
		l = __shfl_sync(0xffffffff, len, k);
		a = i == begin.piece ? (uint64_t)begin.chunk * CHUNK : 0;
		b = i == end.piece ? (uint64_t)end.chunk * CHUNK : l;
		if (b > l)
			b = l;
		if (a >= b)
			continue;
		if (!((t | f | l) & 15))
			move<uint4>(t, f, a, b, lane);
		else if (!((t | f | l) & 3))
			move<uint32_t>(t, f, a, b, lane);
		else
			move<uint8_t>(t, f, a, b, lane);
	}
}

/*
 * base.len: `list` has blocks, whose shares are worked out here: a third of the bytes and one read
 * over the bus less. 0: it has pieces, and `starts` has the shares. When all bytes of a thread
 * block are visible everywhere it writes `number` into its word of `ended`, in pinned memory of
 * the host: the processor sees that sooner than the end of the kernel, and asks no driver.
 */
extern "C" __global__ void __launch_bounds__(1024, 1)
	kvrail_copy(const void *list, const struct start *starts, uint32_t warps, uint32_t n,
		    struct piece base, volatile uint32_t *ended, uint32_t number)
{
	uint32_t warp = (blockIdx.x * blockDim.x + threadIdx.x) / LANES;

	if (warp < warps)
		copy_share(list, starts, warp, warps, n, base, threadIdx.x % LANES);
	__syncthreads();
	if (threadIdx.x)
		return;
	__threadfence_system(); /* of the block: the barrier has ordered its stores before this */
	ended[blockIdx.x] = number;
}
