/* SPDX-License-Identifier: Apache-2.0 */
/*
 * report.h -- the state of something, said once and written as text or as JSON
 *
 *     kv_report_item(r, "peer");             text:  peer 0, name decode-3, age_ms 12
 *     kv_report_int(r, "index", 0);          JSON:  {"index":0,"name":"decode-3","age_ms":12}
 *     kv_report_text(r, "name", "%s", ...);
 *     kv_report_int(r, "age_ms", 12);
 *     kv_report_end_item(r);
 *
 * An item is a line of text; its lists, which come after its fields, stand below it. A field that
 * says nothing ("" or false) is left out of the text.
 */
#ifndef BASE_REPORT_H
#define BASE_REPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "text.h"

struct kv_report {
	struct kv_text text;
	bool json;
	bool brief;	     /* numbers of the whole, nothing of its parts */
	bool peers;	     /* brief, and numbers of each peer */
	bool inside, begun;  /* the writer's: an item's line is open; something stands in it */
	unsigned int depth;  /* items around the next one */
};

void kv_report_item(struct kv_report *r, const char *name);
void kv_report_end_item(struct kv_report *r);
void kv_report_list(struct kv_report *r, const char *name); /* inside an item */
void kv_report_end_list(struct kv_report *r);
void kv_report_int(struct kv_report *r, const char *key, int64_t value);
void kv_report_flag(struct kv_report *r, const char *key, bool value);
/* At most 4096 bytes of it. Control characters become question marks. */
void kv_report_text(struct kv_report *r, const char *key, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void kv_report_age(struct kv_report *r, const char *key, int64_t since_ns); /* ms since then */
/* Fields last_error and so on; nothing, if it has no code. */
struct kv_error;
void kv_report_last_error(struct kv_report *r, const struct kv_error *last, int64_t at_ns);

#endif
