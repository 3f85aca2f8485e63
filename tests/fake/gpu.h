/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu.h -- memory as a GPU's is to the library: an address that no CPU may touch, and a descriptor
 * that devices take
 *
 * A memfd stands in for the DMA-BUF. The address is mapped without any right, so the first access
 * ends the test; the test itself looks at the same bytes elsewhere.
 */
#ifndef GPU_H
#define GPU_H

#include <stddef.h>
#include <stdint.h>

struct gpu {
	uint8_t *addr;	/* what the library is given */
	uint8_t *bytes; /* what the test sees */
	size_t len;
	int fd;
};

void gpu_make(struct gpu *gpu, size_t len);
void gpu_free(struct gpu *gpu);

#endif
