/* SPDX-License-Identifier: Apache-2.0 */
/* key.h -- key files for tests */
#ifndef KEY_H
#define KEY_H

#include <stdio.h>
#include <sys/stat.h>

#include "lib/test.h"

#define KEY_A "0123456789abcdef0123456789abcdef-a"
#define KEY_B "0123456789abcdef0123456789abcdef-b"

static inline void write_key(const char *path, const char *text, mode_t mode)
{
	FILE *file = fopen(path, "w");

	assert_non_null(file);
	assert_true(fputs(text, file) >= 0);
	assert_int_equal(fclose(file), 0);
	assert_int_equal(chmod(path, mode), 0);
}

#endif
