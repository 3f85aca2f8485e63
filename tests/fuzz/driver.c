/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver.c -- runs a fuzz target without libFuzzer, over the inputs that are known: its corpus, and
 * what once made it fail
 *
 *     kv_fuzz FILE|DIRECTORY...
 */
#include <dirent.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

static unsigned int inputs;
static char name[4096]; /* of the input that runs */

void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void say_name(void)
{
	fprintf(stderr, "the input is %s\n", name);
}

static void aborted(int signal)
{
	say_name();
}

static void run_file(const char *path)
{
	FILE *file = fopen(path, "rb");
	struct stat st;
	uint8_t *bytes;

	FUZZ_CHECK(file && !fstat(fileno(file), &st));
	/* Exactly as long as the input, so that a sanitizer sees a read past its end. */
	bytes = malloc(st.st_size ? (size_t)st.st_size : 1);
	FUZZ_CHECK(bytes && fread(bytes, 1, (size_t)st.st_size, file) == (size_t)st.st_size);
	fclose(file);
	LLVMFuzzerTestOneInput(bytes, (size_t)st.st_size);
	free(bytes);
	inputs++;
}

static void run_folder(const char *path)
{
	DIR *dir = opendir(path);
	const struct dirent *entry;

	FUZZ_CHECK(dir);
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
		run_file(name);
	}
	closedir(dir);
}

int main(int argc, char **argv)
{
	struct stat st;

	signal(SIGABRT, aborted);
	if (__sanitizer_set_death_callback)
		__sanitizer_set_death_callback(say_name);
	for (int i = 1; i < argc; i++) {
		FUZZ_CHECK(!stat(argv[i], &st));
		if (S_ISDIR(st.st_mode))
			run_folder(argv[i]);
		else
			run_file(argv[i]);
	}
	printf("%u inputs\n", inputs);
	return !inputs;
}
