/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_cuda.h -- a stand-in for libcuda.so.1: memory that no CPU may touch, and a DMA-BUF of any
 * pages of it
 *
 * Allocations follow each other without a gap, as CUDA's may. A "DMA-BUF" is a descriptor of the
 * memfd behind them, positioned where the pages begin (fake_device.c). An IPC handle leads another
 * process of this user to the same memfd. The copy kernel is done here by the CPU when its event is
 * asked for, warp after warp.
 */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fake_cuda {
	int ordering;	 /* of a NIC's writes: 0, 100 or 200 (all devices) */
	int export_says; /* what cuMemGetHandleForAddressRange returns; 0 = it works */
	bool managed;	 /* the driver calls the memory the host's */
	_Atomic int contexts; /* pushed and not popped */
	int exported;	 /* descriptors given out */
	int slow;	 /* questions that each event answers with NOT_READY */
	bool hold;	 /* no kernel ends */
	int launch_says; /* what cuLaunchKernel returns; 0 = it works */
	int kernel_says; /* the same of an event */
	int push_says;	 /* the same of cuCtxPushCurrent */
	int ipc_says;	 /* the same of cuIpcGetMemHandle, */
	int open_says;	 /* cuIpcOpenMemHandle, */
	int export_piece_says, import_says; /* cuMemExport..., cuMemImportShareableHandle */
	bool hidden;	 /* no GPU is visible, whose memory a peer describes, too */
	bool pool;	 /* all memory is a pool's, as cudaMallocAsync's is */
	int exported_pieces;
	bool no_types;	 /* no piece may be exported */
	bool capturing;	 /* another thread captures a graph: calls in a strict mode fail */
	int waited;	 /* calls that CUDA would not return from before a kernel ends */
	int launched;	 /* kernels */
	int blocks;	 /* of threads, that the largest of them had */
	int mapped;	 /* IPC handles that were opened */
	int alloc_on;	 /* the GPU of what is allocated next; 0: FAKE_GPU */
	bool linked;	 /* GPUs reach each other's memory */
	int engines;	 /* copies of the copy engines */
	_Atomic int open; /* streams, events, mappings, pinned ranges, retained contexts, modules */
};
extern struct fake_cuda fake_cuda;

/*
 * A whole number of pages: where this process sees them; *addr_p is what CUDA calls them. NULL:
 * there is no more.
 */
uint8_t *fake_cuda_alloc(size_t len, uint8_t **addr_p);
/* The same in n mappings of 2 MiB, in address space that has room for more (fake_vmm.c). */
uint8_t *fake_cuda_map(int n, uint8_t **addr_p);
void fake_cuda_unmap(uint8_t *addr);
/* All of them. */
void fake_cuda_reset(void);

/* A stream with work on it that does not end before fake_cuda_stream_ends; free() frees it. */
void *fake_cuda_stream(void);
void fake_cuda_stream_ends(void *stream, int error); /* 0: well */
/* As an application calls it. */
int cuDevicePrimaryCtxRetain(void **context_p, int device);
int cuDevicePrimaryCtxRelease_v2(int device);
int cuCtxSetCurrent(void *context); /* NULL: none, where there was one */
int cuEventCreate(void **event_p, unsigned int flags);
int cuEventDestroy_v2(void *event);
int cuEventRecord(void *event, void *stream);

#endif
