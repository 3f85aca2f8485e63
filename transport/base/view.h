/* SPDX-License-Identifier: Apache-2.0 */
/*
 * view.h -- the local socket at which `kvrail dump` and `kvrail top` ask (KVCACHE_VIEW)
 *
 * An abstract name of AF_UNIX, so that a process that is killed leaves nothing behind:
 *
 *     kvrail.PIDNS.PID.RANDOM     both in decimal as this process sees them, 64 random bits in hex
 *
 * PIDNS is the inode of the process's PID namespace: containers that share a network all have a
 * process 1. Nobody else can take a name before, because nobody knows its last part. An abstract
 * name has no mode: the kernel says who connects (SO_PEERCRED), and only the same user
 * and root are read from.
 *
 * The client sends one line, "dump", "dump json", "top" or "top peers", and reads until the end.
 */
#ifndef BASE_VIEW_H
#define BASE_VIEW_H

#include "log.h"

enum { KV_VIEW_QUESTION_MAX = 64 };

int kv_view_open(struct kv_log *log); /* a descriptor of fds.h, or -1 and a warning */
/*
 * The next client that may ask, a descriptor of fds.h; -1: none. A stranger is closed, and *nap_p
 * is set: the caller sleeps for a moment, so that strangers cannot keep it busy.
 */
int kv_view_accept(int fd, int *nap_p);

#endif
