/* SPDX-License-Identifier: Apache-2.0 */
/* report.c -- the state of something, written as text or as JSON */
#include "report.h"

#include <inttypes.h>
#include <stdio.h>

#include "clock.h"
#include "error.h"

enum { VALUE_MAX = 4096 };

static void add_comma(struct kv_report *r)
{
	if (r->begun)
		kv_text_add(&r->text, ",");
	r->begun = true;
}

static void end_line(struct kv_report *r)
{
	if (r->inside)
		kv_text_add(&r->text, "\n");
	r->inside = false;
}

void kv_report_item(struct kv_report *r, const char *name)
{
	if (r->json) {
		add_comma(r);
		kv_text_add(&r->text, "{");
	} else {
		end_line(r);
		kv_text_add(&r->text, "%*s%s", (int)(2 * r->depth), "", name);
	}
	r->inside = true;
	r->begun = false;
	r->depth++;
}

void kv_report_end_item(struct kv_report *r)
{
	if (r->json)
		kv_text_add(&r->text, "}");
	else
		end_line(r);
	r->depth--;
	r->begun = true;
}

void kv_report_list(struct kv_report *r, const char *name)
{
	if (!r->json) {
		end_line(r);
		return;
	}
	add_comma(r);
	kv_text_add(&r->text, "\"%s\":[", name);
	r->begun = false;
}

void kv_report_end_list(struct kv_report *r)
{
	if (r->json)
		kv_text_add(&r->text, "]");
	r->begun = true;
}

/* The first field of a line needs no name: it follows that of its item. */
static void add_key(struct kv_report *r, const char *key, bool named)
{
	if (r->json) {
		add_comma(r);
		kv_text_add(&r->text, "\"%s\":", key);
		return;
	}
	kv_text_add(&r->text, r->begun ? ", " : " ");
	if (r->begun || named)
		kv_text_add(&r->text, "%s", key);
	if (r->begun && !named)
		kv_text_add(&r->text, " ");
	r->begun = true;
}

void kv_report_int(struct kv_report *r, const char *key, int64_t value)
{
	add_key(r, key, false);
	kv_text_add(&r->text, "%" PRId64, value);
}

void kv_report_flag(struct kv_report *r, const char *key, bool value)
{
	if (!r->json && !value)
		return;
	add_key(r, key, true);
	if (r->json)
		kv_text_add(&r->text, "%s", value ? "true" : "false");
}

static void add_value(struct kv_report *r, const char *value)
{
	const unsigned char *p = (const unsigned char *)value;

	while (*p) {
		unsigned int n = kv_utf8_length(p);

		if (!n || *p < 0x20 || *p == 0x7f)
			kv_text_add(&r->text, *p == '\n' && r->json ? "\\n" : "?");
		else if (r->json && (*p == '"' || *p == '\\'))
			kv_text_add(&r->text, "\\%c", *p);
		else
			kv_text_add(&r->text, "%.*s", (int)n, (const char *)p);
		p += n ? n : 1;
	}
}

void kv_report_text(struct kv_report *r, const char *key, const char *fmt, ...)
{
	char value[VALUE_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(value, sizeof(value), fmt, ap);
	va_end(ap);
	if (!r->json && !*value)
		return;
	add_key(r, key, false);
	if (r->json)
		kv_text_add(&r->text, "\"");
	add_value(r, value);
	if (r->json)
		kv_text_add(&r->text, "\"");
}

void kv_report_age(struct kv_report *r, const char *key, int64_t since_ns)
{
	kv_report_int(r, key, (kv_now_ns() - since_ns) / KV_NS_PER_MS);
}

void kv_report_last_error(struct kv_report *r, const struct kv_error *last, int64_t at_ns)
{
	if (!last->code)
		return;
	kv_report_text(r, "last_error", "KV_ERR_%s", kv_error_name(last->code));
	kv_report_age(r, "last_error_ms_ago", at_ns);
	kv_report_text(r, "last_error_of", "%s %s", last->op, last->peer);
	kv_report_text(r, "last_error_cause", "%s", last->message);
	kv_report_text(r, "last_error_hint", "%s", last->hint);
}
