/* SPDX-License-Identifier: Apache-2.0 */
/* view.c -- the local socket of a process, and who may use it */
#include "view.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "error.h"
#include "fds.h"

enum {
	BACKLOG = 8,
	/* What the kernel shows instead of a user that this user namespace does not have. */
	NO_SUCH_USER = 65534,
};

static socklen_t name_socket(struct sockaddr_un *at)
{
	struct stat ns = { .st_ino = 0 };
	uint64_t random;
	int n;

	if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != sizeof(random))
		return 0;
	stat("/proc/self/ns/pid", &ns);
	*at = (struct sockaddr_un){ .sun_family = AF_UNIX };
	n = snprintf(at->sun_path + 1, sizeof(at->sun_path) - 1, "kvrail.%ju.%d.%016" PRIx64,
		     (uintmax_t)ns.st_ino, (int)getpid(), random);
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

int kv_view_open(struct kv_log *log)
{
	struct sockaddr_un at;
	socklen_t len = name_socket(&at);
	int fd = kv_fd_new(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));

	if (fd >= 0 && len && !bind(fd, (struct sockaddr *)&at, len) && !listen(fd, BACKLOG))
		return fd;
	kv_log_warn(log, "kvrail dump will not see this process: its socket failed: %s",
		    kv_errno_text(errno));
	kv_fd_close(fd);
	return -1;
}

static bool may_look(int fd)
{
	struct ucred who;
	socklen_t len = sizeof(who);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len))
		return false;
	if (who.uid == NO_SUCH_USER)
		return false; /* of whom nothing is known */
	return who.uid == geteuid() || who.uid == 0;
}

int kv_view_accept(int fd, int *nap_p)
{
	int client = kv_fd_new(accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));

	*nap_p = client < 0;
	if (client < 0 || may_look(client))
		return client;
	kv_fd_close(client);
	*nap_p = 1;
	return -1;
}
