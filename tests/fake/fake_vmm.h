/* SPDX-License-Identifier: Apache-2.0 */
/* fake_vmm.h -- what fake_cuda.c asks of the stand-in's virtual memory management */
#ifndef FAKE_VMM_H
#define FAKE_VMM_H

#include <stdint.h>

enum { FAKE_GPU = 3 }; /* its ordinal */

/* A buffer of whole pages of one mapping, positioned where they begin; -1: they are not. */
int fake_vmm_export(unsigned long long ptr, size_t len);
uint8_t *fake_vmm_seen(unsigned long long ptr); /* NULL: not in reserved address space */
int fake_vmm_attribute(void *value, int attribute, unsigned long long ptr);

#endif
