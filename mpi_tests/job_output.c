/* SPDX-License-Identifier: Apache-2.0 */
/* job_output.c -- where the results of a job go: files that can be written, and a plot */
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "job_options.h"
#include "results.h"

enum { PATH_CAP = 4096 };

/* Runs plot.py, which lies beside this program: 0, or -1 after a sentence of its own. */
static int run_plot(const char *what, const char *picture)
{
	char script[PATH_CAP];
	ssize_t len = readlink("/proc/self/exe", script, sizeof(script) - sizeof("plot.py") - 1);
	int status;
	pid_t pid;

	if (len <= 0)
		return -1;
	script[len] = 0;
	memcpy(strrchr(script, '/') + 1, "plot.py", sizeof("plot.py"));
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		execlp("python3", "python3", script, what, picture, (char *)NULL);
		perror("python3");
		_exit(1);
	}
	return pid < 0 || waitpid(pid, &status, 0) < 0 || status != 0 ? -1 : 0;
}

int job_output_ready(const struct job_options *o)
{
	return results_can_write(o->program, o->json_path) ||
			       results_can_write(o->program, o->plot_path) ||
			       (o->plot_path && run_plot("--check", o->plot_path))
		       ? -1
		       : 0;
}

void job_output_plot(const struct job_options *o)
{
	if (o->plot_path && run_plot(o->json_path, o->plot_path))
		fprintf(stderr, "%s: no plot was made; the numbers are in %s\n", o->program,
			o->json_path);
}
