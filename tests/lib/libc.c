/* SPDX-License-Identifier: Apache-2.0 */
/* libc.c -- what the linker puts in the place of functions of the C library */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>

#include "libc.h"

static _Atomic int armed = -1;
static atomic_bool fired;
static _Atomic uint32_t left;
static _Atomic int delay_ms; /* of a call that succeeds, but late */

int __real_poll(struct pollfd *p, nfds_t n, int ms);

static bool fails(enum libc_call call)
{
	if (atomic_load(&armed) != (int)call || atomic_fetch_sub(&left, 1) != 1)
		return false;
	atomic_store(&fired, true);
	__real_poll(NULL, 0, atomic_load(&delay_ms));
	return !atomic_load(&delay_ms);
}

static void arm(enum libc_call call, uint32_t nth, int ms)
{
	atomic_store(&armed, -1);
	if (!nth)
		return;
	atomic_store(&fired, false);
	atomic_store(&delay_ms, ms);
	atomic_store(&left, nth);
	atomic_store(&armed, (int)call);
}

void libc_arm(enum libc_call call, uint32_t nth)
{
	arm(call, nth, 0);
}

void libc_delay(enum libc_call call, int ms)
{
	arm(call, 1, ms);
}

bool libc_fired(void)
{
	return atomic_load(&fired);
}

uint32_t libc_next(uint32_t nth)
{
	return getenv("KVRAIL_LONG") || nth < 16 ? nth + 1 : nth + nth / 3;
}

const char *libc_name(enum libc_call call)
{
	static const char *const names[] = {
#define LIBC_NAME(name, ...) #name,
		LIBC_CALLS(LIBC_NAME)
	};

	return names[call];
}

/* Those with variable arguments get them as the machine passes them: in registers. */
#define LIBC_WRAP(name, type, parameters, arguments, failure, error) \
	type __real_##name parameters;                               \
	type __wrap_##name parameters;                               \
	type __wrap_##name parameters                                \
	{                                                            \
		if (fails(LIBC_##name)) {                            \
			errno = error;                               \
			return failure;                              \
		}                                                    \
		return __real_##name arguments;                      \
	}
LIBC_CALLS(LIBC_WRAP)
