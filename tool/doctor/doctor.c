/* SPDX-License-Identifier: Apache-2.0 */
/* doctor.c -- kvrail doctor: is this machine ready for RDMA, and if not, what to do */
#include "doctor.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

/* When a check runs. What is for each port runs port by port, with those of the same ten. */
enum when {
	ALWAYS,
	IF_DEVICES,
	IF_PORTS,
	LIVE,
	EACH_PORT = 10,
	EACH_ACTIVE,
	EACH_CARD = 20,
	EACH_WIRE = 30
};

static const struct check {
	enum when when;
	void (*once)(struct doctor *d);
	void (*port)(struct doctor *d, const struct doctor_port *port);
} checks[] = {
	{ ALWAYS, check_memlock, NULL },
	{ ALWAYS, check_ptrace, NULL },
	{ ALWAYS, check_container, NULL },
	{ ALWAYS, check_seccomp, NULL },
	{ ALWAYS, check_cgroup, NULL },
	{ IF_PORTS, check_firewall, NULL },
	{ ALWAYS, check_driver, NULL },
	{ IF_DEVICES, check_nodes, NULL },
	{ IF_DEVICES, check_rdma_cm, NULL },
	{ IF_DEVICES, check_library, NULL },
	{ EACH_PORT, NULL, check_port },
	{ EACH_ACTIVE, NULL, check_gids },
	{ EACH_ACTIVE, NULL, check_pkey },
	{ EACH_ACTIVE, NULL, check_mtu },
	{ EACH_ACTIVE, NULL, check_counters },
	{ EACH_CARD, NULL, check_slot },
	{ EACH_CARD, NULL, check_ordering },
	{ ALWAYS, check_ordering_unseen, NULL },
	{ ALWAYS, check_acs, NULL },
	{ EACH_WIRE, NULL, check_pfc },
	{ EACH_WIRE, NULL, check_ecn },
	{ ALWAYS, check_gpu, NULL },
	{ IF_PORTS, check_distance, NULL },
	{ LIVE, check_engine, NULL },
	{ LIVE, check_key, NULL },
	{ LIVE, check_nixl, NULL },
};

static bool is_first_of_card(const struct doctor *d, const struct doctor_port *port)
{
	const struct doctor_port *other = d->port;

	while (other < port && strcmp(other->device, port->device))
		other++;
	return other == port;
}

static bool applies(struct doctor *d, enum when when, const struct doctor_port *port)
{
	switch (when) {
	case IF_DEVICES:
		return doctor_each(d, "/sys/class/infiniband/*", NULL, NULL);
	case IF_PORTS:
		return d->ports;
	case LIVE:
		return !d->copy;
	case EACH_ACTIVE: /* else it is not set up, or nobody's concern */
		return port->active;
	case EACH_CARD:
		return is_first_of_card(d, port);
	case EACH_WIRE: /* a software device sends through its interface's own queues */
		return port->ethernet && port->active && *port->address;
	default:
		return true;
	}
}

static void examine(struct doctor *d)
{
	const struct check *check = checks, *end = checks + sizeof(checks) / sizeof(checks[0]),
			   *next;

	doctor_find_ports(d);
	if (!d->copy)
		doctor_engine_open(d);
	for (; check < end; check = next) {
		next = check + 1;
		if (check->once) {
			if (applies(d, check->when, NULL))
				check->once(d);
			continue;
		}
		while (next < end && next->when / 10 == check->when / 10)
			next++;
		for (size_t i = 0; i < d->ports; i++)
			for (const struct check *c = check; c < next; c++)
				if (applies(d, c->when, &d->port[i]))
					c->port(d, &d->port[i]);
	}
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
