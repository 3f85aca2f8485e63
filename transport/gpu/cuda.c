/* SPDX-License-Identifier: Apache-2.0 */
/* cuda.c -- CUDA as a kind of memory */
#include "gpu.h"

const struct gpu_kind gpu_cuda = {
	.name = "CUDA",
	.open = gpu_open,
	.close = gpu_close,
	.dmabuf = gpu_dmabuf,
	.grid = gpu_grid,
	.needs_flush = gpu_needs_flush,
	.scratch = gpu_scratch,
	.modules = { "nvidia_peermem", "nv_peer_mem" },
	.hint = "modprobe nvidia_peermem, or the open kernel modules (apt-get install nvidia-open) "
		"for DMA-BUF; kvrail doctor",
	.of = gpu_of,
	.prepare = gpu_prepare,
	.pin = gpu_pin,
	.unpin = gpu_unpin,
	.queue_open = gpu_queue_open,
	.queue_close = gpu_queue_close,
	.queue_device = gpu_queue_device,
	.queue_room = gpu_queue_room,
	.queue_put = gpu_queue_put,
	.queue_last = gpu_queue_last,
	.queue_end = gpu_queue_end,
	.queue_quit = gpu_queue_quit,
};
