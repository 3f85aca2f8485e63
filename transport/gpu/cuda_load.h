/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_load.h -- what the CUDA driver says of an address
 *
 * cuda_load.c is the only file that names libcuda's symbols. The library is never loaded here: a
 * process that has memory of a GPU has loaded it.
 */
#ifndef GPU_CUDA_LOAD_H
#define GPU_CUDA_LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <kvrail/kv_error.h>

/*
 * A DMA-BUF that holds [addr, addr + len), from *offset_p of it on; the caller closes it.
 * `written`: by NICs, for kernels that start after a notify. UNSUPPORTED: CUDA does not run in this
 * process, or its driver exports none. ARG: not memory of a GPU, or more than one allocation.
 * DEVICE: its GPU sees a NIC's writes only after a flush, which nothing here does.
 */
int gpu_dmabuf(const void *addr, size_t len, bool written, int *fd_p, uint64_t *offset_p,
	       struct kv_error *err);

#endif
