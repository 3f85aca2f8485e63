/* SPDX-License-Identifier: Apache-2.0 */
/* bench.c -- kvrail bench: its command line */
#include "bench.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "results.h"
#include "tool.h"
#include "util.h"

enum {
	ITERS = BENCH_ROUND_MAX,
	WARMUP = BENCH_ROUND_MAX,
	BATCH = 128,
	WAIT_S = 600,
	TIMEOUT_S = 30
};

static void bench_usage(FILE *out)
{
	fprintf(out,
		"usage: kvrail bench --listen [ADDRESS[:PORT]] [--keep] [--wait SECONDS]\n"
		"       kvrail bench HOST[:PORT] [OPTION]...\n"
		"\n"
		"Measures how fast blocks of a KV cache are written from here to the host that runs\n"
		"`kvrail bench --listen`. Every byte is checked there. Neither side needs MPI.\n"
		"\n"
		"  --listen          be the side that is written to, on this address of this host\n"
		"                    (127.0.0.1, which other hosts do not reach; port %d, 0 takes a free\n"
		"                    one). Ends after one run\n"
		"  --keep            ... serves one run after another, until Ctrl-C\n"
		"  --wait SECONDS    ... for somebody to connect (%d)\n"
		"  --corrupt         ... test of the check itself: flips a bit, so the run must fail\n"
		"\n"
		"  -b, --min-bytes BYTES  first block size (1K); BYTES take K, M, G (powers of two)\n"
		"  -e, --max-bytes BYTES  last block size (256K)\n"
		"  -f, --factor F         from one size to the next (2); at most %d sizes\n"
		"  -n, --batch N          blocks that one operation writes (%d)\n"
		"  -i, --iters N          measured operations of each size (%d)\n"
		"  -w, --warmup N         operations before them (%d)\n"
		"  --seed N               of the test data and of the block ids (1)\n"
		"  --timeout SECONDS      deadline of each step (%d)\n"
		"  --json FILE            the results as JSON, too; \"-\": on stdout, the table on stderr\n"
		"\n"
		"The KVCACHE_* variables choose how the bytes travel (kvrail info).\n"
		"Exit status: 0, 1 a wrong byte or a failure, 2 wrong usage, 130 after Ctrl-C.\n",
		BENCH_PORT, WAIT_S, BENCH_ROWS_MAX, BATCH, ITERS, WARMUP, TIMEOUT_S);
}

enum { FLAG_LISTEN = 256, FLAG_KEEP, FLAG_WAIT, FLAG_CORRUPT, FLAG_SEED, FLAG_TIMEOUT, FLAG_JSON };

static const struct option flags[] = {
	{ "listen", no_argument, NULL, FLAG_LISTEN },
	{ "keep", no_argument, NULL, FLAG_KEEP },
	{ "wait", required_argument, NULL, FLAG_WAIT },
	{ "corrupt", no_argument, NULL, FLAG_CORRUPT },
	{ "min-bytes", required_argument, NULL, 'b' },
	{ "max-bytes", required_argument, NULL, 'e' },
	{ "factor", required_argument, NULL, 'f' },
	{ "batch", required_argument, NULL, 'n' },
	{ "iters", required_argument, NULL, 'i' },
	{ "warmup", required_argument, NULL, 'w' },
	{ "seed", required_argument, NULL, FLAG_SEED },
	{ "timeout", required_argument, NULL, FLAG_TIMEOUT },
	{ "json", required_argument, NULL, FLAG_JSON },
	{ "help", no_argument, NULL, 'h' },
	{ 0 },
};

static int wrong_usage(const char *what, const char *value)
{
	fprintf(stderr, "kvrail bench: %s%s%s%s\n\n", what, *value ? ": \"" : "", value,
		*value ? "\"" : "");
	bench_usage(stderr);
	return -1;
}

/* The value of the flag that getopt has just returned, checked against its range. */
static int take_number(int flag, uint64_t *v)
{
	static const struct {
		int flag;
		uint64_t min, max;
		const char *range;
	} ranges[] = {
		{ 'b', 1, 1 << 30, "--min-bytes takes 1 to 1G" },
		{ 'e', 1, 1 << 30, "--max-bytes takes 1 to 1G" },
		{ 'f', 2, 1 << 20, "--factor takes 2 to 1048576" },
		{ 'n', 1, KV_CALL_BLOCKS_MAX, "--batch takes 1 to 1048576" },
		{ 'i', 1, 1 << 30, "--iters takes 1 to 1G" },
		{ 'w', 0, 1 << 30, "--warmup takes 0 to 1G" },
		{ FLAG_WAIT, 1, 86400, "--wait takes 1 to 86400 seconds" },
		{ FLAG_SEED, 0, INT64_MAX, "--seed takes a number" },
		{ FLAG_TIMEOUT, 1, 3600, "--timeout takes 1 to 3600 seconds" },
	};

	for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++)
		if (ranges[i].flag == flag) {
			if (!size_parse(optarg, v) && *v >= ranges[i].min && *v <= ranges[i].max)
				return 0;
			return wrong_usage(ranges[i].range, optarg);
		}
	return -1;
}

static int take_flag(int flag, struct bench_options *opt)
{
	uint64_t v = 0;

	switch (flag) {
	case FLAG_LISTEN:
		opt->listen = true;
		return 0;
	case FLAG_KEEP:
		opt->keep = true;
		return 0;
	case FLAG_CORRUPT:
		opt->corrupt = true;
		return 0;
	case FLAG_JSON:
		opt->json_path = optarg;
		return 0;
	case '?':
		bench_usage(stderr);
		return -1;
	}
	if (take_number(flag, &v))
		return -1;
	switch (flag) {
	case 'b':
		opt->first_bytes = v;
		break;
	case 'e':
		opt->last_bytes = v;
		break;
	case 'f':
		opt->factor = (uint32_t)v;
		break;
	case 'n':
		opt->plan.batch = (uint32_t)v;
		break;
	case 'i':
		opt->iters = (uint32_t)v;
		break;
	case 'w':
		opt->warmup = (uint32_t)v;
		break;
	case FLAG_WAIT:
		opt->wait_s = (int64_t)v;
		break;
	case FLAG_SEED:
		opt->plan.seed = v;
		break;
	default:
		opt->plan.timeout_ms = (uint32_t)v * 1000;
	}
	return 0;
}

/* "host", "host:port", "[::1]", "[::1]:port", "::1". */
static int take_address(const char *text, struct bench_options *opt)
{
	const char *host = text, *end = text + strlen(text), *colon = strrchr(text, ':');
	uint64_t port = opt->port;

	if (*text == '[') {
		host++;
		end = strchr(text, ']');
		if (!end)
			return wrong_usage("the ] is missing", text);
		colon = end[1] ? end + 1 : NULL;
	} else if (colon && strchr(text, ':') != colon) {
		colon = NULL; /* several colons: an IPv6 address */
	} else if (colon) {
		end = colon;
	}
	if (end == host || (size_t)(end - host) >= sizeof(opt->host))
		return wrong_usage("this is not an address", text);
	if (colon && (*colon != ':' || size_parse(colon + 1, &port) || port > 65535 ||
		      (!port && !opt->listen)))
		return wrong_usage("the port is not a number from 1 to 65535", text);
	memcpy(opt->host, host, (size_t)(end - host));
	opt->host[end - host] = 0;
	opt->port = (uint32_t)port;
	return 0;
}

static int finish_options(struct bench_options *opt)
{
	struct bench_plan *plan = &opt->plan;

	if (!opt->listen && !*opt->host)
		return wrong_usage("HOST is missing, or --listen", "");
	if (!opt->listen && (opt->keep || opt->corrupt))
		return wrong_usage("--keep and --corrupt are for --listen", "");
	if (opt->listen && opt->json_path)
		return wrong_usage("--json is for the side that connects, which measures", "");
	if (opt->first_bytes > opt->last_bytes)
		return wrong_usage("--min-bytes is larger than --max-bytes", "");
	for (uint64_t bytes = opt->first_bytes; bytes <= opt->last_bytes; bytes *= opt->factor) {
		if (plan->rows == BENCH_ROWS_MAX)
			return wrong_usage("too many block sizes: a larger --factor", "");
		plan->row_bytes[plan->rows++] = bytes;
	}
	if (plan->row_bytes[plan->rows - 1] > BENCH_POOL_MAX / plan->batch)
		return wrong_usage("a batch of the largest blocks is above 8 GiB", "");
	return 0;
}

static void on_signal(int number)
{
	bench_interrupted = 1;
}

/* The first Ctrl-C ends what is under way, a second one ends the program. */
static void catch_signals(void)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND };

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
}

int bench_main(int argc, char **argv)
{
	struct bench_options opt = {
		.port = BENCH_PORT,
		.wait_s = WAIT_S,
		.iters = ITERS,
		.warmup = WARMUP,
		.first_bytes = 1 << 10,
		.last_bytes = 256 << 10,
		.factor = 2,
		.plan = { .magic = BENCH_MAGIC,
			  .batch = BATCH,
			  .timeout_ms = TIMEOUT_S * 1000,
			  .seed = 1 },
	};
	static char name[] = "kvrail bench", *command; /* until the process ends */
	int flag;

	argv[0] = name;
	opt.command = command = results_command(argc, argv);
	while ((flag = getopt_long(argc, argv, "b:e:f:n:i:w:h", flags, NULL)) != -1) {
		if (flag == 'h') {
			bench_usage(stdout);
			return 0;
		}
		if (take_flag(flag, &opt))
			return EXIT_USAGE;
	}
	if (argc - optind > 1) {
		wrong_usage("one address is enough", argv[optind + 1]);
		return EXIT_USAGE;
	}
	if (optind < argc ? take_address(argv[optind], &opt) : 0)
		return EXIT_USAGE;
	if (opt.listen && !*opt.host)
		snprintf(opt.host, sizeof(opt.host), "127.0.0.1");
	if (finish_options(&opt))
		return EXIT_USAGE;
	catch_signals();
	return opt.listen ? bench_listen(&opt) : bench_connect(&opt);
}
