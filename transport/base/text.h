/* SPDX-License-Identifier: Apache-2.0 */
/* text.h -- a text that is put together piece by piece, and the first line of a small file */
#ifndef BASE_TEXT_H
#define BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* What does not fit is left out, but counted in `len`, as snprintf does. */
struct kv_text {
	char *buf;
	size_t cap, len;
};

void kv_text_add(struct kv_text *text, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The bytes of a sequence of UTF-8 that begins here; 0: it is none. */
unsigned int kv_utf8_length(const unsigned char *p);

/* Of sysfs and procfs: without its newline. false, and "": there is none. */
bool kv_file_line(char *line, size_t cap, const char *path_fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* The letter that the kernel has for what it does ('T': stopped), of proc(5); 0: there is none. */
char kv_process_state(int pid);

#endif
