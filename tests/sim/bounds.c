/* SPDX-License-Identifier: Apache-2.0 */
/* bounds.c -- how long a call may take */
#include "bounds.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "faults.h"
#include "schedule.h"
#include "sim.h"

enum { ROWS = 64, SPARE_MS = 50 };

static struct {
	char name[40];
	int64_t device_ms;
} row[ROWS];
static int rows;

void bounds_read(const char *path)
{
	FILE *file = fopen(path, "r");
	char line[512], deadline[128];
	long slack, device;

	if (!file) {
		perror(path);
		exit(2);
	}
	while (rows < ROWS && fgets(line, sizeof(line), file))
		if (sscanf(line, "| `%39[a-z_]` | %127[^|] | %ld | %ld |", row[rows].name, deadline,
			   &slack, &device) == 4)
			row[rows++].device_ms = device;
	fclose(file);
}

struct bound bound_begin(void)
{
	struct sched_counts c;

	sched_counts(&c);
	return (struct bound){ c.now_ns, c.stalled_ns };
}

void bound_end(const struct bound *bound, const char *function, int64_t timeout_ms)
{
	struct sched_counts c;
	int64_t took_ms, held_ms = faults_held_ms(bound->began_ns);

	sched_counts(&c);
	took_ms = (c.now_ns - bound->began_ns - (c.stalled_ns - bound->stalled_ns)) / 1000000;
	for (int i = 0; i < rows; i++)
		if (!strcmp(row[i].name, function)) {
			if (took_ms > timeout_ms + row[i].device_ms + held_ms + SPARE_MS)
				sim_fail("%s with %lld ms took %lld ms; its slack is %lld ms",
					 function, (long long)timeout_ms, (long long)took_ms,
					 (long long)(row[i].device_ms + held_ms));
			return;
		}
	sim_fail("%s has no row in docs/deadlines.md", function);
}
