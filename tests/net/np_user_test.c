/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_user_test.c -- two ranks of one host that run as different users: the bytes arrive, and
 * neither process reaches the other's memory unless both allow it
 *
 * Needs root, to become another user; else it exits with 77.
 */
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/check.h"
#include "lib/test.h"
#include "net_side.h"
#include "np.h"

extern const ncclNet_v12_t ncclNetPlugin_v12;
static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

enum { STRANGER = 54321, LEN = 3 << 20, MESSAGES = 5 };

struct scene {
	const char *root_allows, *stranger_allows; /* KVCACHE_SHM_ALLOW_UIDS */
	bool root_sends;
	const char *path; /* in the sender's tr_conn_path, */
	bool direct;	  /* which says that it may use process_vm too */
};

static void check_path(const struct scene *scene, const struct np_comm *comm)
{
	const char *path = tr_conn_path(comm->conn);
	bool direct = strstr(path, "process_vm for any order");

	if (!strstr(path, scene->path) || direct != scene->direct)
		fprintf(stderr, "path: %s\n", path);
	CHECK(strstr(path, scene->path));
	CHECK(direct == scene->direct);
}

static void move_all(const struct scene *scene, struct side *s)
{
	PASSES(s, side_link(s, &s->comm));
	PASSES(s, side_buffer(s, s->comm, LEN, &s->b));
	for (uint64_t m = 0; m < MESSAGES; m++)
		PASSES(s, side_message(s, s->comm, &s->b, LEN, m));
	if (s->sender)
		check_path(scene, s->comm);
	PASSES(s, side_buffer_free(s, s->comm, &s->b));
	PASSES(s, side_barrier(s));
	PASSES(s, side_unlink(s, s->comm));
}

static int one_side(const struct scene *scene, bool root, int sock)
{
	const char *allows = root ? scene->root_allows : scene->stranger_allows;
	struct side s = { .net = net, .sock = sock, .sender = root == scene->root_sends };

	/* What changes its user is not dumpable; then not even its own user reaches it. */
	CHECK(root || (!setgid(STRANGER) && !setuid(STRANGER) && !prctl(PR_SET_DUMPABLE, 1)));
	CHECK(!setenv("KVCACHE_TRANSPORT", "shm", 1));
	CHECK(!allows || !setenv("KVCACHE_SHM_ALLOW_UIDS", allows, 1));
	CHECK(!net->init(&s.ctx, 1, &(ncclNetCommConfig_v10_t){ 0 }, side_logger, NULL));
	move_all(scene, &s);
	PASSES(&s, side_stop(&s));
	return 0;
}

static void run(const struct scene *scene)
{
	int sock[2], status;
	pid_t pid[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	fflush(NULL);
	for (int i = 0; i < 2; i++) {
		pid[i] = fork();
		assert_true(pid[i] >= 0);
		if (!pid[i]) {
			close(sock[!i]); /* so that the end of one is seen by the other */
			_exit(one_side(scene, i, sock[i]));
		}
	}
	close(sock[0]);
	close(sock[1]);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
		assert_int_equal(status, 0);
	}
}

static const char another_user[] = "ring (the peer is another user's process)";

CASE(neither_reaches_the_other_s_memory)
{
	run(&(struct scene){ NULL, NULL, false, another_user, false });
	/* root could: the kernel would let it */
	run(&(struct scene){ NULL, NULL, true, another_user, false });
}

CASE(it_takes_both_to_agree)
{
	run(&(struct scene){ "54321", NULL, true, "the peer allows no direct writes", false });
	run(&(struct scene){ NULL, "0", true, another_user, false });
}

/* What lets root reach the memory of another user's process; a container may lack it. */
static bool may_trace(void)
{
	unsigned long long caps = 0;
	FILE *f = fopen("/proc/self/status", "re");
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "CapEff: %llx", &caps) == 1)
			break;
	if (f)
		fclose(f);
	return caps >> CAP_SYS_PTRACE & 1;
}

CASE(allowed_by_both_the_sender_places_the_bytes_itself)
{
	if (!may_trace()) {
		print_message("skipped: root has no CAP_SYS_PTRACE here\n");
		skip();
	}
	run(&(struct scene){ "77,54321", "0", true, "process_vm", true });
}

/* Allowed, but by the kernel not able to: the ring carries. */
CASE(what_the_kernel_forbids_goes_by_the_ring)
{
	run(&(struct scene){ "54321", "0", false, "ring (", false });
}

int main(void)
{
	if (geteuid()) {
		printf("skipped: only root can act as another user\n");
		return 77;
	}
	return run_cases(NULL, NULL);
}
