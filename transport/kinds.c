/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kinds.c -- which kinds of memory of devices there are; a file of its own, so that a test links
 * another table
 */
#include "gpu/gpu.h"
#include "provider.h"

const struct gpu_kind *const tr_kinds[TR_MEM_KINDS] = { [TR_MEM_CUDA] = &gpu_cuda };
