/* SPDX-License-Identifier: Apache-2.0 */
/* kernel.c -- copy.ptx, as the text that the driver compiles, and cubins where nvcc was found */
#include "gpu.h"

#ifndef GPU_COPY_PTX /* a build by hand, from the top of the tree */
#define GPU_COPY_PTX "transport/gpu/copy.ptx"
#endif
#ifdef GPU_COPY_CUBINS
#define CUBINS ".incbin \"" GPU_COPY_CUBINS "\"\n"
#else
#define CUBINS ""
#endif

__asm__(".section .rodata\n"
	".balign 16\n"
	".globl gpu_copy_ptx\n"
	".hidden gpu_copy_ptx\n"
	"gpu_copy_ptx:\n"
	".incbin \"" GPU_COPY_PTX "\"\n"
	".byte 0\n"
	".balign 16\n"
	".globl gpu_copy_cubins\n"
	".hidden gpu_copy_cubins\n"
	"gpu_copy_cubins:\n" CUBINS ".byte 0\n"
	".text\n");
