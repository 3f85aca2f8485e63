/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test.h -- cmocka, and the headers that must come before its own
 *
 * CASE(name) { ... } is a case, CASE_WITH(name, setup, teardown) one between these two; run_cases
 * runs those of a program in the order of the file, or the one that KVRAIL_CASE names: none can be
 * written and not run. main.c calls it where there is no main. Where arguments choose among lists,
 * these are made as with cmocka.
 */
#ifndef TEST_H
#define TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CASES_MAX = 128 };

struct test_case {
	struct CMUnitTest test;
	int line;
};

/* The linker's: a pointer to each case, in whatever order the compiler has left them. */
extern const struct test_case *const __start_cases[], *const __stop_cases[];

#define CASE(name) CASE_WITH(name, NULL, NULL)
#define CASE_WITH(name, setup, teardown)                \
	static void name(void **state);                 \
	CASE_ENTRY(name, name, #name, setup, teardown); \
	static void name(void **state __attribute__((unused)))
/* A declared function as a case, maybe one more; `id` is the entry's own name. */
#define CASE_ENTRY(id, name, text, setup, teardown)                                            \
	static const struct test_case case_##id = { { text, name, setup, teardown, NULL },     \
						    __LINE__ };                                \
	static const struct test_case *const at_##id __attribute__((section("cases"), used)) = \
		&case_##id

static inline int by_line(const void *a, const void *b)
{
	return (*(const struct test_case *const *)a)->line -
	       (*(const struct test_case *const *)b)->line;
}

static inline int run_cases(CMFixtureFunction setup, CMFixtureFunction teardown)
{
	size_t n = ((uintptr_t)__stop_cases - (uintptr_t)__start_cases) / sizeof(*__start_cases);
	const struct test_case *cases[CASES_MAX];
	struct CMUnitTest tests[CASES_MAX];

	if (n > CASES_MAX)
		abort();
	memcpy(cases, __start_cases, n * sizeof(cases[0]));
	qsort(cases, n, sizeof(cases[0]), by_line);
	for (size_t i = 0; i < n; i++)
		tests[i] = cases[i]->test;
	if (getenv("KVRAIL_CASE"))
		cmocka_set_test_filter(getenv("KVRAIL_CASE"));
	return _cmocka_run_group_tests("tests", tests, n, setup, teardown);
}

#endif
