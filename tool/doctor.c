/* SPDX-License-Identifier: Apache-2.0 */
/* doctor.c -- kvrail doctor: is this machine ready for RDMA, and if not, what to do */
#include "doctor.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "tool.h"

enum { PORT = 7471, LISTEN_SECONDS = 3600 };

static void usage(FILE *out)
{
	fputs("usage: kvrail doctor [--json | --export-env] [--peer HOST] [--port N]\n"
	      "       kvrail doctor --listen HOST [--port N] [--seconds N]\n"
	      "       kvrail doctor --sysroot DIR [--json]\n"
	      "\n"
	      "Checks limits, permissions, RDMA devices, their ports and GID tables, and whether\n"
	      "kvrail can use them; each line is ok, warn or fail, with the fix. docs/rdma.md\n"
	      "explains each line.\n"
	      "  --json         the same as one JSON document\n"
	      "  --export-env   only lines for eval: the devices and values that kvrail would\n"
	      "                 choose, under the names of NCCL, UCX and kvrail\n"
	      "  --peer HOST    also connect to `kvrail doctor --listen` there, write, and read\n"
	      "                 the bytes back\n"
	      "  --listen HOST  be that other end, on this address of this machine, for --seconds\n"
	      "                 (3600)\n"
	      "  --port N       its TCP port (7471)\n"
	      "  --sysroot DIR  look at a copy of another machine's /sys, /proc and /dev below DIR;\n"
	      "                 nothing is opened\n"
	      "Exit status: 0, 1 if a check failed, 2 for wrong usage. Warnings do not fail.\n",
	      out);
}

struct request {
	int json, env, seconds;
	uint32_t port;
	const char *peer, *listen, *root;
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
		{ "sysroot", required_argument, NULL, 'r' },
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
		case 'r':
			r->root = optarg;
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
	if (bad || optind < argc || (r->json && r->env) || (r->listen && r->peer) ||
	    (r->root && (r->listen || r->peer || r->env))) {
		usage(stderr);
		return EXIT_USAGE + 1;
	}
	return 0;
}

static void examine(struct doctor *d)
{
	struct doctor_engine *engine;

	doctor_find_ports(d);
	/* First, as the lines about a port say what was chosen for it. */
	engine = d->copy ? NULL : doctor_engine_open(d);
	doctor_host(d);
	doctor_driver(d);
	doctor_devices(d);
	doctor_pcie(d);
	doctor_lossless(d);
	doctor_gpu(d);
	doctor_engine_note(d, engine);
}

static int report(struct doctor *d, const struct request *r)
{
	examine(d);
	if (r->env)
		return doctor_print_env(d);
	if (r->peer)
		doctor_peer(d, r->peer, r->port);
	if (!r->json)
		doctor_print(d);
	else if (doctor_print_json(d))
		return 1;
	return doctor_count(d, DOCTOR_FAIL) ? 1 : 0;
}

int doctor_main(int argc, char **argv)
{
	struct request r = { .port = PORT, .seconds = LISTEN_SECONDS };
	struct stat root;
	struct doctor *d;
	int ret = parse(argc, argv, &r);

	if (ret)
		return ret - 1;
	if (r.listen)
		return doctor_listen(r.listen, r.port, r.seconds);
	if (r.root && (stat(r.root, &root) || !S_ISDIR(root.st_mode))) {
		fprintf(stderr, "kvrail doctor: %s is not a directory\n", r.root);
		return EXIT_USAGE;
	}
	d = calloc(1, sizeof(*d));
	if (!d) {
		fprintf(stderr, "kvrail doctor: out of memory\n");
		return 1;
	}
	d->root = r.root ? r.root : "";
	d->copy = r.root;
	ret = report(d, &r);
	free(d);
	return ret;
}
