/* SPDX-License-Identifier: Apache-2.0 */
/* kernel.c -- copy.ptx, as the text that the driver compiles */
#include "gpu.h"

#ifndef GPU_COPY_PTX /* a build by hand, from the top of the tree */
#define GPU_COPY_PTX "transport/gpu/copy.ptx"
#endif

__asm__(".section .rodata\n"
	".balign 16\n"
	".globl gpu_copy_ptx\n"
	".hidden gpu_copy_ptx\n"
	"gpu_copy_ptx:\n"
	".incbin \"" GPU_COPY_PTX "\"\n"
	".byte 0\n"
	".text\n");
