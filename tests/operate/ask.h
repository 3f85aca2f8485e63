/* SPDX-License-Identifier: Apache-2.0 */
/* ask.h -- runs the command kvrail beside a test, and looks for words in what it says */
#ifndef ASK_H
#define ASK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "lib/bar.h"
#include "lib/test.h"

enum { ANSWER_MS = 1000, TEXT_MAX = 1 << 20 };

static const char *ask_program;
static char text[TEXT_MAX];

/* Runs `kvrail WORDS`; its output is in `text`. Returns the exit status. */
static inline int kvrail(const char *words)
{
	char command[512];
	FILE *out;
	int status;

	snprintf(command, sizeof(command), "%s %s 2>&1", ask_program, words);
	out = popen(command, "re");
	assert_non_null(out);
	text[fread(text, 1, sizeof(text) - 1, out)] = 0;
	status = pclose(out);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* Of this process, in the time that it may take. */
static inline void dump(const char *flags)
{
	struct bar begun = bar_begin();
	char words[64];

	snprintf(words, sizeof(words), "dump %d %s", (int)getpid(), flags);
	if (kvrail(words))
		fail_msg("kvrail dump failed: %s", text);
	assert_true(bar_holds(begun, ANSWER_MS, "kvrail dump"));
}

static inline void says(const char *word)
{
	if (!strstr(text, word))
		fail_msg("it does not say \"%s\":\n%s", word, text);
}

/* Looks until it says so: what others do takes a moment. */
static inline void dump_until(const char *word)
{
	int64_t end = kv_deadline_ns(slow_ms(20000));

	for (dump(""); !strstr(text, word) && kv_now_ns() < end; dump(""))
		usleep(10000);
	says(word);
}

/* What stands behind the first of these words, and 0 if that is not a number. */
static inline double number_after(const char *key)
{
	const char *at = strstr(text, key);

	if (!at)
		fail_msg("it does not say %s: %s", key, text);
	return at ? strtod(at + strlen(key), NULL) : 0;
}

#endif
