/* SPDX-License-Identifier: Apache-2.0 */
/* library.c -- a table of functions of a shared library that is opened when it is needed */
#include "library.h"

#include <dlfcn.h>
#include <pthread.h>

static bool load_table(const struct kv_library *library, const char **lacks_p)
{
	void *handle = dlopen(library->file, library->flags);

	if (!handle)
		return false;
	for (const struct kv_symbol *symbol = library->symbols; symbol->name; symbol++) {
		*symbol->to = dlsym(handle, symbol->name);
		if (*symbol->to || symbol->optional)
			continue;
		*lacks_p = symbol->name;
		dlclose(handle);
		return false;
	}
	return true;
}

bool kv_library_load(struct kv_library *library, bool fault, const char **lacks_p)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	bool loaded;

	*lacks_p = NULL;
	pthread_mutex_lock(&lock);
	if (fault || !library->loaded)
		library->loaded = !fault && load_table(library, lacks_p);
	loaded = library->loaded;
	pthread_mutex_unlock(&lock);
	return loaded;
}
