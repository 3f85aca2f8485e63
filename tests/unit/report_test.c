/* SPDX-License-Identifier: Apache-2.0 */
/* report_test.c -- one state as text and as JSON, whatever the names in it are made of */
#include <string.h>

#include "base/report.h"
#include "lib/test.h"

static void say(struct kv_report *r)
{
	kv_report_item(r, "engine");
	kv_report_text(r, "name", "a \"b\" \\ \n\x1b[2J \xff \xc3\xa9 \xed\xa0\x80");
	kv_report_text(r, "nothing", "%s", "");
	kv_report_flag(r, "listening", true);
	kv_report_flag(r, "closing", false);
	kv_report_list(r, "peers");
	for (int i = 0; i < 2; i++) {
		kv_report_item(r, "peer");
		kv_report_int(r, "index", i);
		kv_report_int(r, "age_ms", -i);
		kv_report_list(r, "leases");
		kv_report_item(r, "lease");
		kv_report_int(r, "id", INT64_MIN);
		kv_report_end_item(r);
		kv_report_end_list(r);
		kv_report_list(r, "granted");
		kv_report_end_list(r);
		kv_report_end_item(r);
	}
	kv_report_end_list(r);
	kv_report_end_item(r);
}

CASE(an_item_is_a_line_and_its_lists_stand_below_it)
{
	char buf[1024];
	struct kv_report r = { .text = { buf, sizeof(buf), 0 } };

	say(&r);
	assert_string_equal(buf, "engine a \"b\" \\ ??[2J ? \xc3\xa9 ???, listening\n"
				 "  peer 0, age_ms 0\n"
				 "    lease -9223372036854775808\n"
				 "  peer 1, age_ms -1\n"
				 "    lease -9223372036854775808\n");
	assert_int_equal(r.text.len, strlen(buf));
}

CASE(json_has_every_field_and_no_byte_that_is_none_of_json)
{
	char buf[1024], small[40];
	struct kv_report r = { .text = { buf, sizeof(buf), 0 }, .json = true };
	struct kv_report cut = { .text = { small, sizeof(small), 0 }, .json = true };

	say(&r);
	assert_string_equal(
		buf, "{\"name\":\"a \\\"b\\\" \\\\ \\n?[2J ? \xc3\xa9 ???\",\"nothing\":\"\","
		     "\"listening\":true,\"closing\":false,\"peers\":["
		     "{\"index\":0,\"age_ms\":0,\"leases\":[{\"id\":-9223372036854775808}],"
		     "\"granted\":[]},"
		     "{\"index\":1,\"age_ms\":-1,\"leases\":[{\"id\":-9223372036854775808}],"
		     "\"granted\":[]}]}");
	say(&cut); /* and says how much there would be */
	assert_int_equal(cut.text.len, r.text.len);
	assert_int_equal(strlen(small), sizeof(small) - 1);
}
