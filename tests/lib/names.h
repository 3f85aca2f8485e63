/* SPDX-License-Identifier: Apache-2.0 */
/*
 * names.h -- a resolver for tests, in the place of the C library's getaddrinfo
 *
 * never.test has no answer until names_answer(true), and then none either (EAI_AGAIN). later.test:
 * the name server does not answer, at once. nobody.test: there is no such name. here.test is
 * 127.0.0.1. Every other name goes to the C library.
 */
#ifndef NAMES_H
#define NAMES_H

#include <stdbool.h>

void names_answer(bool answer); /* true: returns when no thread waits any more */
int names_asked(void); /* threads that wait for never.test */

#endif
