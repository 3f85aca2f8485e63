/* SPDX-License-Identifier: Apache-2.0 */
/* libc_sweep.h -- a scene is played again and again; each time another call of libc fails */
#ifndef LIBC_SWEEP_H
#define LIBC_SWEEP_H

#include <stdbool.h>

#include <kvrail/kv_error.h>

/*
 * `play` returns 0, or a code with its cause in err. Fails the test where it does not say why,
 * leaves a descriptor or a thread behind, or does not work again. `patient`: nothing fails, so it
 * waits as long as a busy machine needs; otherwise for a moment, since what it waits for may never
 * come. KVCACHE_HANDSHAKE_MS is set to match. KVRAIL_LONG=1: every call, not only some of many.
 */
void libc_sweep(int (*play)(bool patient, struct kv_error *err));

#endif
