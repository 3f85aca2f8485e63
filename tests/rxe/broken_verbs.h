/* SPDX-License-Identifier: Apache-2.0 */
/*
 * broken_verbs.h -- the real verbs behind a table that can fail the nth call of each, and counts
 * what was made
 *
 * A failing call does not reach the device, and fails as the verb does (NULL and errno, or an errno
 * value). Work requests and completions fail in programs of one thread only.
 */
#ifndef BROKEN_VERBS_H
#define BROKEN_VERBS_H

#include "fake.h"

/*
 * In the place of libibverbs' own table, until broken_end: true if everything made was destroyed;
 * disarms everything.
 */
void broken_begin(void);
bool broken_end(void);

/*
 * From broken_begin on: the nth call fails once with this errno; the nth work request posted is
 * refused with ENOMEM.
 */
void broken_fail_verb(enum fake_verb verb, int nth, int error);
void broken_fail_wr(int nth);
/* The nth successful completion that is taken has this status instead. */
void broken_fail_completion(int nth, enum ibv_wc_status status);

/* In what began last. */
bool broken_verb_fired(enum fake_verb verb);
bool broken_completion_fired(void);

#endif
