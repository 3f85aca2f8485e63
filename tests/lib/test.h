/* SPDX-License-Identifier: Apache-2.0 */
/* test.h -- cmocka, and the headers that must come before its own */
#ifndef TEST_H
#define TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
