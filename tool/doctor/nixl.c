/* SPDX-License-Identifier: Apache-2.0 */
/* nixl.c -- whether NIXL finds libplugin_KVRAIL.so: an engine goes on without what it misses */
#include "doctor.h"

#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_NAME "libplugin_KVRAIL.so"

/* The first path that matches; false: there is none. */
static bool find(char path[PATH_MAX], const char *folder, const char *pattern)
{
	char full[PATH_MAX];
	glob_t found = { 0 };

	snprintf(full, sizeof(full), "%s/%s", folder, pattern);
	glob(full, 0, NULL, &found);
	snprintf(path, PATH_MAX, "%s", found.gl_pathc ? found.gl_pathv[0] : "");
	globfree(&found);
	return *path;
}

/* The folder of this command: in the wheel that of the package, which holds the plugins, too. */
static void own_folder(char folder[PATH_MAX])
{
	ssize_t len = readlink("/proc/self/exe", folder, PATH_MAX - 1);

	folder[len < 0 ? 0 : len] = '\0';
	folder[strrchr(folder, '/') ? strrchr(folder, '/') - folder : 0] = '\0';
}

static bool find_plugin(char path[PATH_MAX], const char *own)
{
	return find(path, own, "plugins/" FILE_NAME) ||
	       find(path, own, "../lib*/kvrail/" FILE_NAME) ||
	       find(path, own, "../lib/*/kvrail/" FILE_NAME) ||
	       find(path, own, "../nixl_plugin/" FILE_NAME);
}

/* Where NIXL looks; *engines: the entry points of vLLM and SGLang add our folder to it. */
static bool find_nixl(char folder[PATH_MAX], const char *own, bool *engines)
{
	const char *dir = getenv("NIXL_PLUGIN_DIR"), *venv = getenv("VIRTUAL_ENV");

	*engines = find(folder, own, "plugins/" FILE_NAME);
	if (dir && *dir) {
		snprintf(folder, PATH_MAX, "%s", dir);
		return true;
	}
	if (find(folder, own, "../.nixl_cu1*.mesonpy.libs/plugins"))
		return true;
	*engines = false;
	return venv &&
	       find(folder, venv, "lib/python3*/site-packages/.nixl_cu1*.mesonpy.libs/plugins");
}

static void note_found(struct doctor *d, const char *path)
{
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

	if (library && dlsym(library, "nixl_plugin_init")) {
		doctor_note(d, CHECK_NIXL, DOCTOR_OK, "", "NIXL finds %s", path);
	} else {
		doctor_note(d, CHECK_NIXL, DOCTOR_FAIL, "", "NIXL finds %s and cannot load it: %s",
			    path, library ? "it has no nixl_plugin_init" : dlerror());
		doctor_fix(d,
			   "put the file of this kvrail there: python3 -m kvrail.nixl --install");
	}
	if (library)
		dlclose(library);
}

void check_nixl(struct doctor *d)
{
	char own[PATH_MAX], plugin[PATH_MAX], nixl[PATH_MAX], path[PATH_MAX];
	bool engines, is_there, built;

	own_folder(own);
	built = find_plugin(plugin, own);
	is_there = find_nixl(nixl, own, &engines);
	if (!is_there) {
		doctor_note(d, CHECK_NIXL, DOCTOR_OK, "",
			    "no NIXL beside this command or in VIRTUAL_ENV; the plugin is %s",
			    built ? plugin : "not installed");
	} else if (find(path, nixl, FILE_NAME)) {
		note_found(d, path);
	} else if (!built) {
		doctor_note(d, CHECK_NIXL, DOCTOR_WARN, "",
			    "NIXL is here and " FILE_NAME " is not: kvrail was built without g++");
		doctor_fix(d, "install g++, then kvrail again");
	} else if (engines) {
		doctor_note(d, CHECK_NIXL, DOCTOR_OK, "",
			    "vLLM and SGLang find %s by kvrail's entry points; for other programs: "
			    "python3 -m kvrail.nixl --install",
			    plugin);
	} else {
		doctor_note(d, CHECK_NIXL, DOCTOR_WARN, "",
			    "%s, where NIXL looks, has no " FILE_NAME ": an engine that asks for "
			    "KVRAIL logs a warning and goes on without it",
			    nixl);
		doctor_fix(d, "ln -s %s %s/", plugin, nixl);
	}
}
