/* SPDX-License-Identifier: Apache-2.0 */
/* dump_signal.c -- the handler of KVCACHE_DUMP_SIGNAL */
#include "dump_signal.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "unload.h"

static atomic_int wake = -1;
static atomic_bool came;
static int number; /* 0: no handler of ours */

static void on_dump_signal(int sig)
{
	int kept = errno, fd = atomic_load(&wake);
	uint64_t one = 1;
	ssize_t n;

	atomic_store(&came, true);
	n = fd >= 0 ? write(fd, &one, sizeof(one)) : 0;
	(void)n; /* full: the thread is awake */
	errno = kept;
}

static bool is_default(const struct sigaction *action)
{
	return !(action->sa_flags & SA_SIGINFO) && action->sa_handler == SIG_DFL;
}

static bool is_ours(const struct sigaction *action)
{
	return !(action->sa_flags & SA_SIGINFO) && action->sa_handler == on_dump_signal;
}

static int signal_number(const char *name)
{
	static const struct {
		const char *name;
		int number;
	} known[] = {
		{ "HUP", SIGHUP }, { "QUIT", SIGQUIT }, { "USR1", SIGUSR1 }, { "USR2", SIGUSR2 }
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (!strcmp(known[i].name, name))
			return known[i].number;
	return 0;
}

void kv_dump_signal_on(const char *name, int wake_fd, struct kv_log *log)
{
	struct sigaction ours = { .sa_handler = on_dump_signal, .sa_flags = SA_RESTART }, before;
	int sig = signal_number(name);

	if (!sig || number)
		return;
	if (sigaction(sig, NULL, &before) || !is_default(&before)) {
		kv_log_warn(log,
			    "KVCACHE_DUMP_SIGNAL: SIG%s is the application's, and is left to it",
			    name);
		return;
	}
	kv_stay_loaded(); /* another handler may go on calling ours */
	atomic_store(&wake, wake_fd);
	number = sig;
	sigemptyset(&ours.sa_mask);
	sigaction(sig, &ours, NULL);
}

void kv_dump_signal_off(void)
{
	struct sigaction none = { .sa_handler = SIG_DFL }, now;

	atomic_store(&wake, -1);
	atomic_store(&came, false);
	if (number && !sigaction(number, NULL, &now) && is_ours(&now))
		sigaction(number, &none, NULL);
	number = 0;
}

bool kv_dump_signal_came(void)
{
	return atomic_exchange(&came, false);
}
