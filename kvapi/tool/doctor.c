/* SPDX-License-Identifier: Apache-2.0 */
/* doctor.c -- kvrail doctor: is this machine ready for RDMA, and if not, what to do */
#include "doctor.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "tool.h"

enum { PORT = 7471, LISTEN_SECONDS = 3600 };

static const char *const status_name[] = { "ok", "warn", "fail" };

void doctor_note(struct doctor *d, enum doctor_status status, const char *what, const char *device,
		 const char *fix, const char *fmt, ...)
{
	struct finding *f = &d->finding[d->findings];
	va_list ap;

	if (d->findings == FINDINGS_MAX)
		return;
	d->findings++;
	f->status = status;
	snprintf(f->what, sizeof(f->what), "%s", what);
	snprintf(f->device, sizeof(f->device), "%s", device);
	snprintf(f->fix, sizeof(f->fix), "%s", status == DOCTOR_OK ? "" : fix);
	va_start(ap, fmt);
	vsnprintf(f->text, sizeof(f->text), fmt, ap);
	va_end(ap);
}

int doctor_read(char *buf, size_t cap, const char *fmt, ...)
{
	char path[512];
	va_list ap;
	FILE *file;
	char *line;

	va_start(ap, fmt);
	vsnprintf(path, sizeof(path), fmt, ap);
	va_end(ap);
	*buf = '\0';
	file = fopen(path, "re");
	if (!file)
		return -1;
	line = fgets(buf, (int)cap, file);
	fclose(file);
	buf[strcspn(buf, "\n")] = '\0';
	return line ? 0 : -1;
}

static size_t count(const struct doctor *d, enum doctor_status status)
{
	size_t n = 0;

	for (size_t i = 0; i < d->findings; i++)
		n += d->finding[i].status == status;
	return n;
}

static void print_text(const struct doctor *d)
{
	for (size_t i = 0; i < d->findings; i++) {
		const struct finding *f = &d->finding[i];

		printf("%-4s  %-12s  %s%s%s\n", status_name[f->status], f->what, f->device,
		       *f->device ? ": " : "", f->text);
		if (*f->fix)
			printf("      %-12s  fix: %s\n", "", f->fix);
	}
	printf("\n%zu ok, %zu warnings, %zu failures\n", count(d, DOCTOR_OK), count(d, DOCTOR_WARN),
	       count(d, DOCTOR_FAIL));
}

static int print_json(const struct doctor *d)
{
	json_t *checks = json_array(), *document;
	int ret;

	for (size_t i = 0; i < d->findings; i++) {
		const struct finding *f = &d->finding[i];

		json_array_append_new(checks,
				      json_pack("{ss ss ss ss ss}", "status",
						status_name[f->status], "what", f->what, "device",
						f->device, "text", f->text, "fix", f->fix));
	}
	document = json_pack("{ss so sI sI sI}", "version", kv_version(), "checks", checks, "ok",
			     (json_int_t)count(d, DOCTOR_OK), "warnings",
			     (json_int_t)count(d, DOCTOR_WARN), "failures",
			     (json_int_t)count(d, DOCTOR_FAIL));
	ret = document ? json_dumpf(document, stdout, JSON_INDENT(2)) : -1;
	json_decref(document);
	printf("\n");
	return ret;
}

static void print_list(const char *name, const struct doctor *d, int with_port)
{
	printf("export %s=", name);
	for (size_t i = 0; i < d->rails; i++) {
		int len = (int)strlen(d->rail[i].name);

		if (!with_port)
			len = (int)strcspn(d->rail[i].name, ":");
		printf("%s%.*s", i ? "," : "", len, d->rail[i].name);
	}
	printf("\n");
}

/* The names of NCCL, UCX and kvrail with the values that kvrail would choose; nothing where it would choose no device. */
static int print_env(const struct doctor *d)
{
	int index = d->rails ? d->rail[0].gid_index : -1;

	if (!d->rails) {
		fprintf(stderr, "kvrail doctor: no usable RDMA device, nothing to export\n");
		return 1;
	}
	for (size_t i = 1; i < d->rails; i++)
		if (d->rail[i].gid_index != index)
			index = -1; /* no one index is right for all */
	print_list("NCCL_IB_HCA", d, 1);
	print_list("UCX_NET_DEVICES", d, 1);
	print_list("KVCACHE_RDMA_NICS", d, 1);
	if (index >= 0)
		printf("export NCCL_IB_GID_INDEX=%d\nexport UCX_IB_GID_INDEX=%d\n"
		       "export KVCACHE_RDMA_GID_INDEX=%d\n",
		       index, index, index);
	return 0;
}

static void usage(FILE *out)
{
	fputs("usage: kvrail doctor [--json | --export-env] [--peer HOST] [--port N]\n"
	      "       kvrail doctor --listen HOST [--port N] [--seconds N]\n"
	      "\n"
	      "Checks limits, permissions, RDMA devices, their ports and GID tables, and whether kvrail can use\n"
	      "them; each line is ok, warn or fail, with the fix.\n"
	      "  --json         the same as one JSON document\n"
	      "  --export-env   only lines for eval: the devices and GID index that kvrail would choose, under the\n"
	      "                 names of NCCL, UCX and kvrail\n"
	      "  --peer HOST    also connect to `kvrail doctor --listen` there, write, and read the bytes back\n"
	      "  --listen HOST  be that other end, on this address of this machine, for --seconds (3600)\n"
	      "  --port N       its TCP port (7471)\n"
	      "Exit status: 0, 1 if a check failed, 2 for wrong usage. Warnings do not fail.\n",
	      out);
}

struct request {
	int json, env, seconds;
	uint32_t port;
	const char *peer, *listen;
};

static int number(const char *text, long low, long high, long *to)
{
	char *end;

	*to = strtol(text, &end, 10);
	return *text && !*end && *to >= low && *to <= high ? 0 : -1;
}

/* 0, or the exit status plus 1. */
static int parse(int argc, char **argv, struct request *r)
{
	static const struct option flags[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "export-env", no_argument, NULL, 'e' },
		{ "peer", required_argument, NULL, 'p' },
		{ "listen", required_argument, NULL, 'l' },
		{ "port", required_argument, NULL, 'P' },
		{ "seconds", required_argument, NULL, 's' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	long n = 0;
	int flag, bad = 0;

	while ((flag = getopt_long(argc, argv, "jeh", flags, NULL)) != -1) {
		switch (flag) {
		case 'h':
			usage(stdout);
			return 1;
		case 'j':
			r->json = 1;
			break;
		case 'e':
			r->env = 1;
			break;
		case 'p':
			r->peer = optarg;
			break;
		case 'l':
			r->listen = optarg;
			break;
		case 'P':
			bad |= number(optarg, 1, 65535, &n);
			r->port = (uint32_t)n;
			break;
		case 's':
			bad |= number(optarg, 1, 86400, &n);
			r->seconds = (int)n;
			break;
		default:
			bad = 1;
		}
	}
	if (bad || optind < argc || (r->json && r->env) || (r->listen && r->peer)) {
		usage(stderr);
		return EXIT_USAGE + 1;
	}
	return 0;
}

int doctor_main(int argc, char **argv)
{
	struct request r = { .port = PORT, .seconds = LISTEN_SECONDS };
	struct doctor *d;
	int ret = parse(argc, argv, &r);

	if (ret)
		return ret - 1;
	if (r.listen)
		return doctor_listen(r.listen, r.port, r.seconds);
	d = calloc(1, sizeof(*d));
	if (!d) {
		fprintf(stderr, "kvrail doctor: out of memory\n");
		return 1;
	}
	if (!r.env) {
		doctor_host(d);
		doctor_devices(d);
	}
	doctor_engine(d);
	if (r.peer)
		doctor_peer(d, r.peer, r.port);
	if (r.env)
		ret = print_env(d);
	else if (r.json)
		ret = print_json(d) ? 1 : 0;
	else
		print_text(d);
	if (!r.env && count(d, DOCTOR_FAIL))
		ret = 1;
	free(d);
	return ret;
}
