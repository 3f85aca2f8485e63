/* SPDX-License-Identifier: Apache-2.0 */
/* info.c -- kvrail info: what this machine has and which options are in force */
#include "tool.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include <jansson.h>

enum { DEVICES_MAX = 64, OPTIONS_MAX = 128, WARNINGS_MAX = 32 };

/* Everything that kvrail info prints, gathered before the first line. */
struct report {
	struct kv_device_info device[DEVICES_MAX];
	size_t devices;
	struct kv_option_info option[OPTIONS_MAX];
	size_t options;
	char warning[WARNINGS_MAX][256];
	size_t warnings;
};

static void keep_warning(void *arg, int level, const char *line)
{
	struct report *report = arg;

	if (level > KV_LOG_WARN || report->warnings == WARNINGS_MAX)
		return;
	snprintf(report->warning[report->warnings++], sizeof(report->warning[0]), "%s", line);
}

static void gather(struct kv_engine *engine, struct report *report)
{
	while (report->devices < DEVICES_MAX) {
		struct kv_device_info *device = &report->device[report->devices];

		device->size = sizeof(*device);
		if (kv_device_get(engine, report->devices, device, NULL))
			break;
		report->devices++;
	}
	while (report->options < OPTIONS_MAX) {
		struct kv_option_info *option = &report->option[report->options];

		option->size = sizeof(*option);
		if (kv_option_get(engine, report->options, option, NULL))
			break;
		report->options++;
	}
}

static void print_text(const struct report *report)
{
	static const char *const device_head[] = { "transport", "device", "usable", "detail" };
	static const char *const option_head[] = { "option", "value", "source", "default",
						   "takes" };
	const char *device_cells[DEVICES_MAX][4], *option_cells[OPTIONS_MAX][5];

	for (size_t i = 0; i < report->devices; i++) {
		const struct kv_device_info *device = &report->device[i];

		device_cells[i][0] = device->transport;
		device_cells[i][1] = *device->name ? device->name : "-";
		device_cells[i][2] = device->usable ? "yes" : "no";
		device_cells[i][3] = device->detail;
	}
	for (size_t i = 0; i < report->options; i++) {
		const struct kv_option_info *option = &report->option[i];

		option_cells[i][0] = option->name;
		option_cells[i][1] = *option->value ? option->value : "(empty)";
		option_cells[i][2] = option->source;
		option_cells[i][3] = *option->def ? option->def : "(empty)";
		option_cells[i][4] = option->range;
	}
	printf("kvrail %s\n\n", kv_version());
	for (size_t i = 0; i < report->warnings; i++) {
		printf("warning: ");
		text_print(9, report->warning[i]);
	}
	if (report->warnings)
		printf("\n");
	table_print(device_head, device_cells[0], 4, report->devices);
	printf("\n");
	table_print(option_head, option_cells[0], 5, report->options);
}

static int print_json(json_t *document)
{
	int ret = document ? json_dumpf(document, stdout, JSON_INDENT(2)) : -1;

	json_decref(document);
	if (ret) {
		fprintf(stderr, "kvrail info: cannot write the JSON document\n");
		return 1;
	}
	printf("\n");
	return 0;
}

/* The second half of a row is an RDMA port's. */
static json_t *device_json(const struct kv_device_info *device)
{
	json_t *row = json_pack("{ss ss sb ss}", "transport", device->transport, "device",
				device->name, "usable", device->usable, "detail", device->detail);

	if (*device->link)
		json_object_update_new(
			row,
			json_pack("{ss ss si sI sI sI ss si ss sb sb ss}", "link", device->link,
				  "gid", device->gid, "gid_index", device->gid_index, "lid",
				  (json_int_t)device->lid, "speed_mbps",
				  (json_int_t)device->speed_mbps, "mtu_bytes",
				  (json_int_t)device->mtu_bytes, "pci", device->pci, "numa_node",
				  device->numa_node, "distance", device->distance, "dmabuf",
				  device->gpu_reach & KV_GPU_DMABUF, "peermem",
				  device->gpu_reach & KV_GPU_PEERMEM, "reason", device->reason));
	return row;
}

static json_t *report_json(const struct report *report)
{
	json_t *devices = json_array(), *options = json_array(), *warnings = json_array();

	for (size_t i = 0; i < report->devices; i++) {
		const struct kv_device_info *device = &report->device[i];

		json_array_append_new(devices, device_json(device));
	}
	for (size_t i = 0; i < report->options; i++) {
		const struct kv_option_info *option = &report->option[i];

		json_array_append_new(options,
				      json_pack("{ss ss ss ss ss ss ss}", "name", option->name,
						"type", option->type, "range", option->range,
						"default", option->def, "value", option->value,
						"source", option->source, "help", option->help));
	}
	for (size_t i = 0; i < report->warnings; i++)
		json_array_append_new(warnings, json_string(report->warning[i]));
	return json_pack("{ss so so so}", "version", kv_version(), "devices", devices, "options",
			 options, "warnings", warnings);
}

static int tell_error(const struct kv_error *err, int json)
{
	char line[1024];

	if (json)
		print_json(json_pack("{ss s{ss ss ss ss}}", "version", kv_version(), "error",
				     "code", kv_error_name(err->code), "message", err->message,
				     "device", err->device, "hint", err->hint));
	kv_error_format(err, line, sizeof(line));
	fprintf(stderr, "kvrail info: %s\n", line);
	return 1;
}

static void usage(FILE *out)
{
	fputs("usage: kvrail info [--json]\n"
	      "\n"
	      "Lists the transports and devices that this build knows, with the reason where one cannot be\n"
	      "used, and every option with the value in force and where it came from.\n"
	      "Exit status: 0, or 1 if no engine can be opened (a bad option, a device that is not there).\n",
	      out);
}

int info_main(int argc, char **argv)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_engine *engine;
	struct report *report;
	struct kv_error err;
	bool json = false;
	int ret = flags_json(argc, argv, usage, &json);

	if (ret >= 0)
		return ret;
	if (optind < argc) {
		fprintf(stderr, "kvrail info: it takes no argument \"%s\"\n", argv[optind]);
		usage(stderr);
		return EXIT_USAGE;
	}
	report = calloc(1, sizeof(*report));
	if (!report) {
		fprintf(stderr, "kvrail info: out of memory\n");
		return 1;
	}
	config.name = "kvrail info";
	config.progress = KV_PROGRESS_CALLER;
	config.log = keep_warning;
	config.log_arg = report;
	if (kv_engine_open(&config, &engine, &err)) {
		free(report);
		return tell_error(&err, json);
	}
	gather(engine, report);
	ret = 0;
	if (json)
		ret = print_json(report_json(report));
	else
		print_text(report);
	kv_engine_close(engine);
	free(report);
	return ret;
}
