/* SPDX-License-Identifier: Apache-2.0 */
/* ag_plan.c -- a list of pairs becomes runs between two regions; neighbours are merged; pure */
#include <stdlib.h>

#include "ag.h"

enum { RUNS_FEW = 64 }; /* more in the caller's order: the pairs are sorted by their regions */

static int check_pair(const struct ag_pair *pair, size_t index, struct kv_error *err)
{
	const struct ag_region *l = &pair->mem->region, *r = &pair->rmem->region;
	const char *side = NULL;

	if (pair->local < l->addr || pair->len > l->len ||
	    pair->local - l->addr > l->len - pair->len)
		side = "local";
	else if (pair->remote < r->addr || pair->len > r->len ||
		 pair->remote - r->addr > r->len - pair->len)
		side = "remote";
	if (!side)
		return 0;
	kv_fail(err, KV_ERR_ARG, "prepare",
		"pair %zu leaves its %s region (%zu bytes, local %#llx of %#llx + %#llx, remote %#llx of %#llx + %#llx)",
		index, side, pair->len, (unsigned long long)pair->local,
		(unsigned long long)l->addr, (unsigned long long)l->len,
		(unsigned long long)pair->remote, (unsigned long long)r->addr,
		(unsigned long long)r->len);
	if (err)
		err->block_index = (int64_t)index;
	return KV_ERR_ARG;
}

static bool same_regions(const struct ag_pair *a, const struct ag_pair *b)
{
	return a->mem == b->mem && a->rmem == b->rmem;
}

static int by_regions(const void *x, const void *y)
{
	const struct ag_pair *a = x, *b = y;

	if (a->mem != b->mem)
		return a->mem < b->mem ? -1 : 1;
	if (a->rmem != b->rmem)
		return a->rmem < b->rmem ? -1 : 1;
	return a->local < b->local ? -1 : a->local > b->local;
}

static size_t count_runs(const struct ag_pair *pairs, size_t n)
{
	size_t runs = n ? 1 : 0;

	for (size_t i = 1; i < n; i++)
		runs += !same_regions(&pairs[i - 1], &pairs[i]);
	return runs;
}

static void add_pair(struct ag_plan *plan, const struct ag_pair *pair, bool new_run)
{
	uint64_t local = pair->local - pair->mem->base;
	struct tr_span *last = plan->spans ? &plan->span[plan->spans - 1] : NULL;

	if (new_run)
		plan->run[plan->runs++] = (struct ag_run){ .mem = pair->mem,
							   .rmem = pair->rmem,
							   .first = plan->spans };
	plan->bytes += pair->len;
	if (last && plan->run[plan->runs - 1].n && last->local + last->len == local &&
	    last->remote + last->len == pair->remote) {
		last->len += pair->len;
		return;
	}
	plan->span[plan->spans++] = (struct tr_span){ local, pair->remote, pair->len };
	plan->run[plan->runs - 1].n++;
}

static void add_pairs(struct ag_plan *plan, const struct ag_pair *pairs, size_t n)
{
	const struct ag_pair *last = NULL;

	for (size_t i = 0; i < n; i++) {
		if (!pairs[i].len)
			continue;
		add_pair(plan, &pairs[i], !last || !same_regions(last, &pairs[i]));
		last = &pairs[i];
	}
}

int ag_plan_make(struct ag_plan *plan, const struct ag_pair *pairs, size_t n, struct kv_error *err)
{
	size_t runs = count_runs(pairs, n);
	struct ag_pair *sorted = NULL;

	*plan = (struct ag_plan){ 0 };
	if (n > AG_XFER_PAIRS_MAX)
		return kv_fail(err, KV_ERR_ARG, "prepare", "%zu pairs are more than %d", n,
			       AG_XFER_PAIRS_MAX);
	for (size_t i = 0; i < n; i++) {
		int ret = check_pair(&pairs[i], i, err);

		if (ret)
			return ret;
	}
	if (runs > RUNS_FEW) {
		sorted = malloc(n * sizeof(*sorted));
		if (!sorted)
			goto no_memory;
		for (size_t i = 0; i < n; i++)
			sorted[i] = pairs[i];
		qsort(sorted, n, sizeof(*sorted), by_regions);
		pairs = sorted;
		runs = count_runs(pairs, n);
	}
	plan->run = calloc(runs ? runs : 1, sizeof(*plan->run));
	plan->span = calloc(n ? n : 1, sizeof(*plan->span));
	if (!plan->run || !plan->span)
		goto no_memory;
	add_pairs(plan, pairs, n);
	free(sorted);
	return 0;

no_memory:
	free(sorted);
	ag_plan_free(plan);
	return kv_fail(err, KV_ERR_NOMEM, "prepare", "cannot allocate a plan of %zu pairs", n);
}

void ag_plan_free(struct ag_plan *plan)
{
	free(plan->run);
	free(plan->span);
	*plan = (struct ag_plan){ 0 };
}
