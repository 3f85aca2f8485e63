/* SPDX-License-Identifier: Apache-2.0 */
/* unload.h -- NCCL closes the library that it opened, even while a thread still runs in it */
#ifndef BASE_UNLOAD_H
#define BASE_UNLOAD_H

/* From now on this code cannot be unloaded: a thread or a device still uses it. */
void kv_stay_loaded(void);
/* The same until it is dropped, in a call of a caller that keeps it loaded, too. */
void *kv_library_hold(void);
void kv_library_drop(void *held);

#endif
