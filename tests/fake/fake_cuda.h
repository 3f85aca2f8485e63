/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_cuda.h -- a stand-in for libcuda.so.1: memory that no CPU may touch, and a DMA-BUF of any
 * pages of it
 *
 * Allocations follow each other without a gap, as CUDA's may. A "DMA-BUF" is a descriptor of the
 * memfd behind them, positioned where the pages begin (fake_device.c). An IPC handle leads another
 * process of this user to the same memfd. The copy kernel is done here by the CPU, warp after warp:
 * at once, or, where it is slow, fails or does not end, when its event is asked for.
 */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Each may be changed while threads of the library run. */
struct fake_cuda {
	_Atomic int ordering;	 /* of a NIC's writes: 0, 100 or 200 (all devices) */
	_Atomic int export_says; /* what cuMemGetHandleForAddressRange returns; 0 = it works */
	_Atomic bool one_mapping; /* a DMA-BUF of mapped pieces is of one of them; else of none */
	_Atomic bool managed;	 /* the driver calls the memory the host's */
	_Atomic int contexts;	 /* pushed and not popped */
	_Atomic int exported;	 /* descriptors given out */
	_Atomic int slow;	 /* questions that each event answers with NOT_READY */
	_Atomic bool hold;	 /* no kernel ends */
	_Atomic int launch_says; /* what cuLaunchKernel returns; 0 = it works */
	_Atomic int kernel_says; /* the same of an event */
	_Atomic int push_says;	 /* the same of cuCtxPushCurrent */
	_Atomic int ipc_says;	 /* the same of cuIpcGetMemHandle, */
	_Atomic int open_says;	 /* cuIpcOpenMemHandle, */
	_Atomic int export_piece_says, import_says; /* cuMemExport..., cuMemImportShareableHandle */
	_Atomic bool hidden;	 /* no GPU is visible, whose memory a peer describes, too */
	_Atomic bool pool;	 /* all memory is a pool's, as cudaMallocAsync's is */
	_Atomic int exported_pieces;
	_Atomic bool no_types;	 /* no piece may be exported */
	_Atomic bool capturing;	 /* another thread captures a graph: calls in a strict mode fail */
	_Atomic int waited;	 /* calls that CUDA would not return from before a kernel ends */
	_Atomic int launched;	 /* kernels */
	_Atomic int asked;	 /* questions for events */
	_Atomic int blocks;	 /* of threads, that the largest of them had */
	_Atomic int mapped;	 /* IPC handles that were opened */
	_Atomic int alloc_on;	 /* the GPU of what is allocated next; 0: FAKE_GPU */
	_Atomic bool linked;	 /* GPUs reach each other's memory */
	_Atomic int engines;	 /* copies of the copy engines, */
	_Atomic int rows;	 /* of these, copies of rows, */
	_Atomic int together;	 /* and those that came several in a call */
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
