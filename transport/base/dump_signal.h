/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dump_signal.h -- the signal at which a process writes its state to its log (KVCACHE_DUMP_SIGNAL)
 *
 * The handler wakes a thread, and does nothing else. A signal that the application handles or
 * ignores is left to it, with a warning; what it installs later stays, too.
 */
#ifndef BASE_DUMP_SIGNAL_H
#define BASE_DUMP_SIGNAL_H

#include <stdbool.h>

#include "log.h"

/* `name`: without SIG. `wake_fd`: an eventfd that does not block. */
void kv_dump_signal_on(const char *name, int wake_fd, struct kv_log *log);
void kv_dump_signal_off(void);
bool kv_dump_signal_came(void); /* since the last call */

#endif
