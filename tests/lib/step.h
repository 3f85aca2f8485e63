/* SPDX-License-Identifier: Apache-2.0 */
/*
 * step.h -- the order in which a copy's instructions store: a child runs the copy, and memory is
 * looked at after each of its instructions
 *
 * This finds a copy that stores the end of a line before its beginning every time, where a second
 * thread that watches the line finds it once in many thousand looks. What the processor itself
 * reorders it does not show: stores on Arm, or those of one `rep movs` on x86.
 */
#ifndef STEP_H
#define STEP_H

#include <assert.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

typedef void step_copy_fn(uint8_t *dst, const uint8_t *src, size_t n);

enum {
	STEP_MAX = 2048,
	STEP_ORDERED = -1,
	STEP_REFUSED = -2, /* no child may be traced here */
	STEP_LINE = 128,
	STEP_WORDS = STEP_LINE / 8
};

#define STEP_NEW 0x5a5a5a5a5a5a5a5au

/* The first old word of a line whose last word is new, among the words first..end. */
static inline int step_look(const volatile uint64_t *words, size_t first, size_t end)
{
	for (size_t last = first | (STEP_WORDS - 1); last < end; last += STEP_WORDS) {
		size_t line = last - (STEP_WORDS - 1);

		for (size_t i = line > first ? line : first; words[last] == STEP_NEW && i < last;
		     i++)
			if (words[i] != STEP_NEW)
				return (int)i;
	}
	return STEP_ORDERED;
}

/*
 * Copies n bytes to `at` bytes after the start of a 128-byte line, both multiples of 8. The result
 * is STEP_ORDERED, STEP_REFUSED, or a word, counted from the start of that line, that was still old
 * when the last word of its line was new.
 */
static inline int step_lines(step_copy_fn *copy, size_t at, size_t n)
{
	enum { LEN = STEP_MAX + 2 * STEP_LINE };
	uint64_t *words = (uint64_t *)mmap(NULL, LEN, PROT_READ | PROT_WRITE,
					   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status = 0, found = STEP_ORDERED;
	uint8_t src[STEP_MAX];
	pid_t child;

	assert(words != MAP_FAILED && n <= STEP_MAX && at < STEP_LINE && !((at | n) & 7));
	memset(src, 0x5a, sizeof(src));
	child = fork();
	assert(child >= 0);
	if (!child) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(77);
		raise(SIGSTOP);
		copy((uint8_t *)words + at, src, n);
		_exit(0);
	}
	while (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
		assert(WSTOPSIG(status) == SIGSTOP || WSTOPSIG(status) == SIGTRAP);
		if (found == STEP_ORDERED)
			found = step_look(words, at / 8, (at + n) / 8);
		if (found == STEP_ORDERED && ptrace(PTRACE_SINGLESTEP, child, NULL, NULL))
			found = STEP_REFUSED;
		if (found != STEP_ORDERED)
			kill(child, SIGKILL);
	}
	if (WIFEXITED(status) && WEXITSTATUS(status))
		found = STEP_REFUSED;
	for (size_t i = 0; found == STEP_ORDERED && i < n / 8; i++)
		assert(words[at / 8 + i] == STEP_NEW);
	munmap(words, LEN);
	return found;
}

#endif
