/* SPDX-License-Identifier: Apache-2.0 */
/* library.h -- a table of functions of a shared library that is opened when it is needed */
#ifndef BASE_LIBRARY_H
#define BASE_LIBRARY_H

#include <stdbool.h>

struct kv_symbol {
	const char *name; /* NULL: the end of the table */
	void **to;
	bool optional; /* stays NULL where the library is too old */
};

struct kv_library {
	const char *file;
	int flags; /* of dlopen */
	const struct kv_symbol *symbols;
	bool loaded;
};

/*
 * Once for the process, and again after a failure. fault: it fails. *lacks_p after a failure: the
 * symbol that it does not have, or NULL: it cannot be opened (dlerror).
 */
bool kv_library_load(struct kv_library *library, bool fault, const char **lacks_p);

#endif
