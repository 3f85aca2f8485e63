/* SPDX-License-Identifier: Apache-2.0 */
/* unload.h -- what kv_unload_world.c offers by name to the program that opens it */
#ifndef UNLOAD_H
#define UNLOAD_H

#include <stdbool.h>

#define VISIBLE __attribute__((visibility("default")))

/* Each leaves a thread behind in the library. The first: the process whose end ends it. */
VISIBLE int unload_stuck_call(void);
VISIBLE void unload_resolver(void);
/*
 * A thread that has come into `log` is left there: the engine's own, or (KV_PROGRESS_CALLER) one of
 * the application, which drives the engine. `inside` says whether it is there.
 */
VISIBLE void unload_log(int progress, void (*log)(void *arg, int level, const char *line),
			bool (*inside)(void));

#endif
