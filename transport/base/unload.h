/* SPDX-License-Identifier: Apache-2.0 */
/* unload.h -- a library that NCCL opened is closed by it, whatever still runs in it */
#ifndef BASE_UNLOAD_H
#define BASE_UNLOAD_H

/* From now on nobody can unload this code: a thread of it, or a device, goes on. */
void kv_stay_loaded(void);

#endif
