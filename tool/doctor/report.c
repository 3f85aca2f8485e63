/* SPDX-License-Identifier: Apache-2.0 */
/* report.c -- the findings as text, as JSON, and as environment for other libraries */
#include "doctor.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "tool.h"

enum { INDENT = 4 + 2 + 12 + 2 };

static const char *const status_name[] = { "ok", "warn", "fail" };
static const char *const check_name[CHECKS] = {
#define CHECK(id, name) [CHECK_##id] = name,
#include "lines.def"
#undef CHECK
};

void doctor_note(struct doctor *d, enum doctor_check check, enum doctor_status status,
		 const char *device, const char *fmt, ...)
{
	struct finding *f = &d->finding[d->findings];
	va_list ap;

	if (d->findings == FINDINGS_MAX - 1)
		return;
	d->findings++;
	f->check = check;
	f->status = status;
	snprintf(f->device, sizeof(f->device), "%s", device);
	va_start(ap, fmt);
	vsnprintf(f->text, sizeof(f->text), fmt, ap);
	va_end(ap);
}

void doctor_fix(struct doctor *d, const char *fmt, ...)
{
	struct finding *f = &d->finding[d->findings - 1];
	va_list ap;

	if (f->status == DOCTOR_OK)
		return;
	va_start(ap, fmt);
	vsnprintf(f->fix, sizeof(f->fix), fmt, ap);
	va_end(ap);
}

size_t doctor_count(const struct doctor *d, enum doctor_status status)
{
	size_t n = 0;

	for (size_t i = 0; i < d->findings; i++)
		n += d->finding[i].status == status;
	return n;
}

void doctor_print(const struct doctor *d)
{
	size_t warnings = doctor_count(d, DOCTOR_WARN), failures = doctor_count(d, DOCTOR_FAIL);

	for (size_t i = 0; i < d->findings; i++) {
		const struct finding *f = &d->finding[i];
		char text[sizeof(f->device) + sizeof(f->text) + 4];

		printf("%-4s  %-12s  ", status_name[f->status], check_name[f->check]);
		snprintf(text, sizeof(text), "%s%s%s", f->device, *f->device ? ": " : "", f->text);
		text_print(INDENT, text);
		if (*f->fix) {
			printf("%*sfix: ", INDENT, "");
			text_print(INDENT + 5, f->fix);
		}
	}
	printf("\n%zu ok, %zu warning%s, %zu failure%s\n", doctor_count(d, DOCTOR_OK), warnings,
	       warnings == 1 ? "" : "s", failures, failures == 1 ? "" : "s");
}

int doctor_print_json(const struct doctor *d)
{
	json_t *checks = json_array(), *document;
	int ret;

	for (size_t i = 0; i < d->findings; i++) {
		const struct finding *f = &d->finding[i];

		json_array_append_new(checks, json_pack("{ss ss ss ss ss}", "status",
							status_name[f->status], "what",
							check_name[f->check], "device", f->device,
							"text", f->text, "fix", f->fix));
	}
	document = json_pack("{ss so sI sI sI}", "version", kv_version(), "checks", checks, "ok",
			     (json_int_t)doctor_count(d, DOCTOR_OK), "warnings",
			     (json_int_t)doctor_count(d, DOCTOR_WARN), "failures",
			     (json_int_t)doctor_count(d, DOCTOR_FAIL));
	ret = document ? json_dumpf(document, stdout, JSON_INDENT(2)) : -1;
	json_decref(document);
	printf("\n");
	return ret;
}

/* ---------------------------------------------------------------- environment */

static void export_nics(const struct doctor *d, const char *name, const char *before)
{
	printf("export %s='%s", name, before); /* quoted: some shells expand a leading "=" */
	for (size_t i = 0; i < d->rails; i++)
		printf("%s%s", i ? "," : "", d->rail[i].name);
	printf("'\n");
}

/* The value in force of one of kvrail's options, under the names that others have for it. */
static void export_option(const char *option, const char *nccl, const char *ucx)
{
	struct kv_option_info row = KV_INIT(kv_option_info);

	for (size_t i = 0; !kv_option_get(NULL, i, &row, NULL); i++)
		if (!strcmp(row.name, option) && *row.value != '-') /* -1: automatic */
			printf("export %s=%s\nexport %s=%s\nexport %s=%s\n", option, row.value,
			       nccl, row.value, ucx, row.value);
}

/* UCX takes the queue pairs' timeout as a time: 4.096 us x 2^n, rounded up. */
static void export_timeout(void)
{
	struct kv_option_info row = KV_INIT(kv_option_info);

	for (size_t i = 0; !kv_option_get(NULL, i, &row, NULL); i++)
		if (!strcmp(row.name, "KVCACHE_IB_TIMEOUT"))
			printf("export KVCACHE_IB_TIMEOUT=%s\nexport NCCL_IB_TIMEOUT=%s\n"
			       "export UCX_RC_TIMEOUT=%.0fus\n",
			       row.value, row.value,
			       4.096 * (double)(1ull << strtoul(row.value, NULL, 10)));
}

/*
 * The names of NCCL, UCX and kvrail with the values that kvrail would choose; nothing where it
 * would choose no device.
 */
int doctor_print_env(const struct doctor *d)
{
	bool same_index = true, roce = true;

	if (!d->rails) {
		fprintf(stderr, "kvrail doctor: no usable RDMA device, nothing to export\n");
		return 1;
	}
	for (size_t i = 0; i < d->rails; i++) {
		same_index = same_index && d->rail[i].gid_index == d->rail[0].gid_index;
		roce = roce && d->rail[i].gid_index >= 0;
	}
	export_nics(d, "KVCACHE_RDMA_NICS", "");
	export_nics(d, "NCCL_IB_HCA", "="); /* "=": mlx5_1 is not to mean mlx5_10 as well */
	export_nics(d, "UCX_NET_DEVICES", "");
	if (roce && same_index) /* no one index is right for all otherwise */
		printf("export KVCACHE_RDMA_GID_INDEX=%d\nexport NCCL_IB_GID_INDEX=%d\n"
		       "export UCX_IB_GID_INDEX=%d\n",
		       d->rail[0].gid_index, d->rail[0].gid_index, d->rail[0].gid_index);
	export_timeout();
	export_option("KVCACHE_IB_RETRY", "NCCL_IB_RETRY_CNT", "UCX_RC_RETRY_COUNT");
	export_option("KVCACHE_IB_TRAFFIC_CLASS", "NCCL_IB_TC", "UCX_IB_TRAFFIC_CLASS");
	export_option("KVCACHE_IB_SERVICE_LEVEL", "NCCL_IB_SL", "UCX_IB_SL");
	return 0;
}
