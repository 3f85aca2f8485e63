/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_user_test.c -- two ranks of one host that run as different users: the bytes arrive, and
 * neither process reaches the other's memory unless both allow it
 *
 * Needs root, to become another user; else it exits with 77.
 */
#include <linux/capability.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "check.h"
#include "np.h"

extern const ncclNet_v12_t ncclNetPlugin_v12;
static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

enum { STRANGER = 54321, LEN = 3 << 20, MESSAGES = 5, WAIT_MS = 20000 };

struct scene {
	const char *root_allows, *stranger_allows; /* KVCACHE_SHM_ALLOW_UIDS */
	bool root_sends;
	const char *path; /* in the sender's tr_conn_path, */
	bool direct;	  /* which says that it may use process_vm too */
};

static void logger(ncclDebugLogLevel level, unsigned long flags, const char *file, int line,
		   const char *fmt, ...)
{
	va_list ap;

	(void)flags;
	if (level != NCCL_LOG_WARN)
		return;
	va_start(ap, fmt);
	fprintf(stderr, "%s:%d: ", file, line);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
}

static uint8_t byte_of(int message, size_t i)
{
	return (uint8_t)(i * 7 + i / 251 + (size_t)message * 31);
}

static int wait_for(void *request)
{
	int64_t end = kv_deadline_ns(WAIT_MS);
	int done = 0, size = -1;

	while (!done) {
		CHECK(!net->test(request, &done, &size));
		CHECK(kv_now_ns() < end);
	}
	return size;
}

static void send_all(const struct scene *scene, void *ctx, int sock)
{
	int64_t end = kv_deadline_ns(WAIT_MS);
	uint8_t handle[NCCL_HANDLE_MAX], *bytes = malloc(LEN);
	void *comm = NULL, *mh;
	const char *path;
	bool direct;

	CHECK(recv(sock, handle, sizeof(handle), MSG_WAITALL) == sizeof(handle));
	while (!comm) {
		CHECK(!net->connect(ctx, 0, handle, &comm, NULL));
		CHECK(kv_now_ns() < end);
	}
	CHECK(!net->regMr(comm, bytes, LEN, NCCL_PTR_HOST, &mh));
	for (int m = 0; m < MESSAGES; m++) {
		void *request = NULL;

		for (size_t i = 0; i < LEN; i++)
			bytes[i] = byte_of(m, i);
		while (!request)
			CHECK(!net->isend(comm, bytes, LEN, m, mh, NULL, &request));
		CHECK(wait_for(request) == LEN);
	}
	path = tr_conn_path(((struct np_comm *)comm)->conn);
	direct = strstr(path, "process_vm for any order");
	if (!strstr(path, scene->path) || direct != scene->direct)
		fprintf(stderr, "path: %s\n", path);
	CHECK(strstr(path, scene->path));
	CHECK(direct == scene->direct);
	CHECK(!net->deregMr(comm, mh));
	CHECK(send(sock, "", 1, 0) == 1 && recv(sock, handle, 1, MSG_WAITALL) == 1);
	CHECK(!net->closeSend(comm));
	free(bytes);
}

static void receive_all(void *ctx, int sock)
{
	int64_t end = kv_deadline_ns(WAIT_MS);
	uint8_t handle[NCCL_HANDLE_MAX], *bytes = malloc(LEN);
	void *listen, *comm = NULL, *mh, *data = bytes;
	size_t size = LEN;

	CHECK(!net->listen(ctx, 0, handle, &listen));
	CHECK(send(sock, handle, sizeof(handle), 0) == sizeof(handle));
	while (!comm) {
		CHECK(!net->accept(listen, &comm, NULL));
		CHECK(kv_now_ns() < end);
	}
	CHECK(!net->regMr(comm, bytes, LEN, NCCL_PTR_HOST, &mh));
	for (int m = 0; m < MESSAGES; m++) {
		void *request = NULL;

		memset(bytes, 0, LEN);
		while (!request)
			CHECK(!net->irecv(comm, 1, &data, &size, &m, &mh, NULL, &request));
		CHECK(wait_for(request) == LEN);
		for (size_t i = 0; i < LEN; i++)
			CHECK(bytes[i] == byte_of(m, i));
	}
	CHECK(!net->deregMr(comm, mh));
	CHECK(send(sock, "", 1, 0) == 1 && recv(sock, handle, 1, MSG_WAITALL) == 1);
	CHECK(!net->closeRecv(comm));
	CHECK(!net->closeListen(listen));
	free(bytes);
}

static int side(const struct scene *scene, bool root, int sock)
{
	const char *allows = root ? scene->root_allows : scene->stranger_allows;
	void *ctx;

	/* What changes its user is not dumpable; then not even its own user reaches it. */
	CHECK(root || (!setgid(STRANGER) && !setuid(STRANGER) && !prctl(PR_SET_DUMPABLE, 1)));
	CHECK(!setenv("KVCACHE_TRANSPORT", "shm", 1));
	CHECK(!allows || !setenv("KVCACHE_SHM_ALLOW_UIDS", allows, 1));
	CHECK(!net->init(&ctx, 1, &(ncclNetCommConfig_v10_t){ 0 }, logger, NULL));
	if (root == scene->root_sends)
		send_all(scene, ctx, sock);
	else
		receive_all(ctx, sock);
	CHECK(!net->finalize(ctx));
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
			_exit(side(scene, i, sock[i]));
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

static void neither_reaches_the_other_s_memory(void **state)
{
	(void)state;
	run(&(struct scene){ NULL, NULL, false, another_user, false });
	/* root could: the kernel would let it */
	run(&(struct scene){ NULL, NULL, true, another_user, false });
}

static void it_takes_both_to_agree(void **state)
{
	(void)state;
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

static void allowed_by_both_the_sender_places_the_bytes_itself(void **state)
{
	(void)state;
	if (!may_trace()) {
		print_message("skipped: root has no CAP_SYS_PTRACE here\n");
		skip();
	}
	run(&(struct scene){ "77,54321", "0", true, "process_vm", true });
}

/* Allowed, but by the kernel not able to: the ring carries. */
static void what_the_kernel_forbids_goes_by_the_ring(void **state)
{
	(void)state;
	run(&(struct scene){ "54321", "0", false, "ring (", false });
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(neither_reaches_the_other_s_memory),
		cmocka_unit_test(it_takes_both_to_agree),
		cmocka_unit_test(allowed_by_both_the_sender_places_the_bytes_itself),
		cmocka_unit_test(what_the_kernel_forbids_goes_by_the_ring),
	};

	if (geteuid()) {
		printf("skipped: only root can act as another user\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
