/* SPDX-License-Identifier: Apache-2.0 */
/* doctor.h -- the findings of kvrail doctor and who makes them */
#ifndef KVRAIL_DOCTOR_H
#define KVRAIL_DOCTOR_H

#include <stddef.h>

#include <kvrail/kv.h>

enum doctor_status { DOCTOR_OK = 0, DOCTOR_WARN, DOCTOR_FAIL };

struct finding {
	enum doctor_status status;
	char what[24];	 /* "memlock", "gid" */
	char device[32]; /* "rxe0:1", or "" */
	char text[256];
	char fix[256]; /* "" where there is nothing to mend */
};

enum { FINDINGS_MAX = 256, RAILS_MAX = 32 };

/* One port that the ib transport would use. */
struct doctor_rail {
	char name[32]; /* "rxe0:1" */
	int gid_index; /* -1: InfiniBand, addressed by LID */
};

struct doctor {
	struct finding finding[FINDINGS_MAX];
	size_t findings;
	struct doctor_rail rail[RAILS_MAX];
	size_t rails;
};

/* The fix is told only with a warning or a failure. */
void doctor_note(struct doctor *d, enum doctor_status status, const char *what, const char *device,
		 const char *fix, const char *fmt, ...) __attribute__((format(printf, 6, 7)));

/* Reads one line of a small file into buf, without the newline; -1 if it cannot be read (buf is then ""). */
int doctor_read(char *buf, size_t cap, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

void doctor_host(struct doctor *d);    /* limits, permissions, kernel */
void doctor_devices(struct doctor *d); /* RDMA devices, as sysfs shows them */
/* What kvrail itself can use: opens an engine and registers memory. */
void doctor_engine(struct doctor *d);
/* A connection to `kvrail doctor --listen` on another machine, a write, and the bytes read back. */
void doctor_peer(struct doctor *d, const char *host, uint32_t port);
/* The other end of it; returns the exit status. */
int doctor_listen(const char *host, uint32_t port, int seconds);

#endif
