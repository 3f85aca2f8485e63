/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_shm_peers.c -- peers that one cannot reach in every way: other users, other namespaces; the
 * right path, the right reason, the right bytes
 */
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "lib/test.h"
#include "tr_pair.h"

enum { REGION = 1 << 18, CANNOT = 76, STRANGER = 54321 };

struct case_arg {
	/* What a process does to become special: 0, or it exits with CANNOT. */
	void (*change)(void);
	bool parent_changes, child_changes;
	const char *parent_text, *child_text; /* in tr_conn_path */
};

/* Both sides write their region to the other's second half and look at it. */
static void exchange(struct pair_side *s)
{
	const struct case_arg *arg = s->config->arg;

	if (s->child ? arg->child_changes : arg->parent_changes)
		arg->change();
	pair_swap(s, s->child ? arg->child_text : arg->parent_text);
	pair_down(s);
}

static void cannot(const char *what)
{
	perror(what);
	_exit(CANNOT);
}

/* Whether this machine lets a process change so: tried in a process of its own. */
static bool can(void (*change)(void))
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		change();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return !status;
}

static void run_case(struct case_arg *arg, bool pool)
{
	struct pair_config config = {
		.region = REGION, .parent_pool = pool, .child_pool = pool, .arg = arg
	};

	if (!can(arg->change))
		skip();
	assert_int_equal(pair_run_apart(&config, exchange, exchange), 0);
}

static void become_stranger(void)
{
	if (setgid(STRANGER) || setuid(STRANGER))
		cannot("skipped: setuid");
}

static void become_undumpable(void)
{
	become_stranger();
	if (prctl(PR_SET_DUMPABLE, 0))
		cannot("skipped: PR_SET_DUMPABLE");
}

/* Also where the kernel would let root write into the other user's process. */
CASE(another_user_gets_the_ring_whatever_the_memory_is)
{
	static const char ring[] = "ring (the peer is another user's process)";
	struct case_arg arg = { become_stranger, false, true, ring, ring };

	run_case(&arg, true);
	run_case(&arg, false);
}

CASE(two_processes_that_forbid_process_vm_use_the_ring)
{
	struct case_arg arg = { become_undumpable, true, true, "Operation not permitted)",
				"Operation not permitted)" };

	run_case(&arg, false);
}

/* Root may everything; who was root before must allow others to look again. */
static void become_ordinary(void)
{
	if (!geteuid())
		become_stranger();
	if (prctl(PR_SET_DUMPABLE, 1))
		cannot("skipped: PR_SET_DUMPABLE");
}

static int ptrace_scope(void)
{
	FILE *file = fopen("/proc/sys/kernel/yama/ptrace_scope", "re");
	int scope = 0; /* a kernel without yama allows what 0 allows */

	if (file && fscanf(file, "%d", &scope) != 1)
		fail_msg("cannot read ptrace_scope");
	if (file)
		fclose(file);
	return scope;
}

/* 0: any process of the user; 1: its own children; 2 and 3: nobody without capabilities. */
CASE(yama_decides_who_is_written_directly_and_the_path_gives_the_reason)
{
	static const char direct[] = "process_vm_writev";
	static const char ring[] = "ring (process_vm_readv of process";
	int scope = ptrace_scope();
	struct case_arg arg = { become_ordinary, true, true, scope < 2 ? direct : ring,
				scope < 1 ? direct : ring };

	printf("kernel.yama.ptrace_scope is %d\n", scope);
	run_case(&arg, false);
}

static void enter_pid_namespace(void)
{
	if (unshare(CLONE_NEWPID))
		cannot("skipped: unshare(CLONE_NEWPID)");
}

/* The child is the first process of a new namespace: it sees no number for its parent. */
CASE(another_pid_namespace_is_written_by_pool_and_else_by_ring)
{
	struct case_arg by_pool = { 0, false, false, "memfd pool", "memfd pool" };
	struct case_arg without = { 0, false, false, "process_vm_writev",
				    "the peer is not visible in this pid namespace" };
	struct pair_config config[] = {
		{ .region = REGION, .parent_pool = true, .child_pool = true, .arg = &by_pool },
		{ .region = REGION, .arg = &without },
	};

	if (!can(enter_pid_namespace))
		skip();
	for (int i = 0; i < 2; i++) {
		int status;
		pid_t pid = fork();

		assert_true(pid >= 0);
		if (!pid) {
			enter_pid_namespace();
			_exit(pair_run(&config[i], exchange, exchange) ? 1 : 0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
}

static void enter_mount_namespace(void)
{
	if (unshare(CLONE_NEWNS))
		cannot("skipped: unshare(CLONE_NEWNS)");
}

CASE(another_mount_namespace_makes_no_difference)
{
	struct case_arg arg = { enter_mount_namespace, false, true, "memfd pool", "memfd pool" };

	run_case(&arg, true);
}

/* ---------------------------------------------------------------- another network namespace */

static void elsewhere_parent(struct pair_side *s)
{
	struct kv_error err;
	int ret;

	pair_open(s);
	ret = pair_connect(s, &err);
	PAIR_CHECK(ret == KV_ERR_UNREACHABLE);
	if (!strstr(err.message,
		    "shm: the peer is on another host or in another network namespace") ||
	    !strstr(err.message, "; ib: KVCACHE_TRANSPORT is shm here"))
		fprintf(stderr, "%s\n", err.message);
	PAIR_CHECK(strstr(err.message,
			  "shm: the peer is on another host or in another network namespace"));
	PAIR_CHECK(strstr(err.message, "; ib: KVCACHE_TRANSPORT is shm here"));
	PAIR_CHECK(strstr(err.hint, "one network namespace"));
	pair_down(s);
}

static void enter_net_namespace(void)
{
	if (unshare(CLONE_NEWNET))
		cannot("skipped: unshare(CLONE_NEWNET)");
}

/* Takes the TCP connection where the parent is, and makes its local socket elsewhere. */
static void elsewhere_child(struct pair_side *s)
{
	struct kv_error err;
	struct tr_listener *listener;

	pair_open(s);
	PAIR_CHECK(!tr_listen(s->tr, NULL, 0, &listener, &err));
	s->listener = listener;
	enter_net_namespace();
	PAIR_CHECK(pair_connect(s, &err) == KV_ERR_PEER_LOST || err.code == KV_ERR_UNREACHABLE);
	pair_down(s);
}

CASE(another_network_namespace_is_refused_with_a_clear_sentence)
{
	struct pair_config config = { .region = REGION };

	if (!can(enter_net_namespace))
		skip();
	assert_int_equal(pair_run(&config, elsewhere_parent, elsewhere_child), 0);
}

/*
 * ---------------------------------------------------------------- a path that is asked for by name
 */

static void forced_parent(struct pair_side *s)
{
	struct kv_error err;

	pair_open(s);
	PAIR_CHECK(pair_connect(s, &err) == KV_ERR_UNREACHABLE);
	if (!strstr(err.message, s->config->arg))
		fprintf(stderr, "%s\n", err.message);
	PAIR_CHECK(strstr(err.message, s->config->arg));
	pair_down(s);
}

static void forced_child(struct pair_side *s)
{
	struct kv_error err;

	pair_open(s);
	PAIR_CHECK(pair_connect(s, &err) < 0);
	pair_down(s);
}

CASE(a_forced_path_that_cannot_be_is_unreachable_with_the_reason)
{
	struct pair_config no_pool = {
		.parent_path = "pool",
		.region = REGION,
		.arg = (void *)(uintptr_t) "the region is not in a memfd pool"
	};
	struct pair_config no_cma = {
		.parent_path = "cma",
		.region = REGION,
		.flags = TR_LINE_ORDER,
		.arg = (void *)(uintptr_t) "does not keep the order within lines"
	};
	struct pair_config refused = {
		.parent_path = "cma",
		.child_path = "ring",
		.region = REGION,
		.arg = (void *)(uintptr_t) "the peer allows no direct writes"
	};

	assert_int_equal(pair_run(&no_pool, forced_parent, forced_child), 0);
	assert_int_equal(pair_run(&no_cma, forced_parent, forced_child), 0);
	assert_int_equal(pair_run(&refused, forced_parent, forced_child), 0);
}

CASE(a_pool_can_be_written_by_the_other_paths_too)
{
	struct case_arg cma = { 0, false, false, "process_vm_writev", "process_vm_writev" };
	struct case_arg ring = { 0, false, false, "ring (KVCACHE_SHM_PATH)",
				 "ring (the peer allows no direct writes)" };
	struct pair_config config = { .region = REGION, .parent_pool = true, .child_pool = true };

	config.parent_path = config.child_path = "cma";
	config.arg = &cma;
	assert_int_equal(pair_run(&config, exchange, exchange), 0);
	config.parent_path = "ring";
	config.child_path = NULL;
	config.arg = &ring;
	assert_int_equal(pair_run(&config, exchange, exchange), 0);
}

/* An argument is the pattern of the tests to run. */
