/* SPDX-License-Identifier: Apache-2.0 */
/* unload.h -- what kv_unload_world.c offers by name to the program that opens it */
#ifndef UNLOAD_H
#define UNLOAD_H

#define VISIBLE __attribute__((visibility("default")))

/* Both leave a thread behind in the library. The first: the process whose end ends it. */
VISIBLE int unload_stuck_call(void);
VISIBLE void unload_resolver(void);

#endif
