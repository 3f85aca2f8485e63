/* SPDX-License-Identifier: Apache-2.0 */
/*
 * doctor.h -- the findings of kvrail doctor and who makes them
 *
 * What is read from /sys, /proc and /dev is read below doctor.root, so that a copy of another
 * machine's files can be looked at; only what must be tried (opening, sending) is left out then.
 */
#ifndef KVRAIL_DOCTOR_H
#define KVRAIL_DOCTOR_H

#include <stdbool.h>
#include <stddef.h>

#include <kvrail/kv.h>

enum doctor_status { DOCTOR_OK = 0, DOCTOR_WARN, DOCTOR_FAIL };

enum doctor_check {
#define CHECK(id, name) CHECK_##id,
#include "lines.def"
#undef CHECK
	CHECKS
};

struct finding {
	enum doctor_check check;
	enum doctor_status status;
	char device[48]; /* "rxe0:1", or "" */
	char text[400];
	char fix[400]; /* "" where there is nothing to fix */
};

enum { FINDINGS_MAX = 1024, DEVICES_MAX = 64 };

/* One port of an RDMA device, as sysfs shows it. */
struct doctor_port {
	char device[24];
	char name[32];	  /* "rxe0:1" */
	char path[128];	  /* its folder below the root */
	char netdev[32];  /* "" for InfiniBand */
	char address[16]; /* of the PCI device; "" for a software device */
	bool ethernet, active;
};

struct doctor {
	const char *root; /* "" = this machine */
	bool copy;	  /* the root is a copy of another machine's files */
	struct finding finding[FINDINGS_MAX];
	size_t findings;
	struct doctor_port port[DEVICES_MAX];
	size_t ports;
	struct kv_device_info rail[DEVICES_MAX]; /* the ports that kvrail would use */
	size_t rails;
	bool config_unseen; /* a card's configuration space is not for this user */
	struct kv_engine *engine; /* NULL: engine_err */
	struct kv_error engine_err;
};

/* report.c */
void doctor_note(struct doctor *d, enum doctor_check check, enum doctor_status status,
		 const char *device, const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* Of the last note, and only if that is a warning or a failure. */
void doctor_fix(struct doctor *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
size_t doctor_count(const struct doctor *d, enum doctor_status status);
void doctor_print(const struct doctor *d);
int doctor_print_json(const struct doctor *d);
int doctor_print_env(const struct doctor *d);

/* read.c: below the root. */
/* One line without its newline; false if it cannot be read (buf is then ""). */
bool doctor_read(const struct doctor *d, char *buf, size_t cap, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
bool doctor_exists(const struct doctor *d, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* The last part of what a link leads to: a driver's name. */
bool doctor_link(const struct doctor *d, char *buf, size_t cap, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* The value of the line of a file that begins with `key`. */
bool doctor_field(const struct doctor *d, const char *path, const char *key, char *buf, size_t cap);
/* This process's control group, "/a/b"; the controller is "" for version 2. */
bool doctor_group(const struct doctor *d, const char *controller, char *buf, size_t cap);
/* Calls back with each path that matches, without the root. Returns how many there were. */
size_t doctor_each(struct doctor *d, const char *pattern,
		   void (*fn)(struct doctor *d, const char *path, void *arg), void *arg);
bool doctor_capable(const struct doctor *d, unsigned int capability);

/* The checks, in the order of the table in doctor.c. Each adds lines; lines.def has their names. */
void check_memlock(struct doctor *d); /* host.c */
void check_ptrace(struct doctor *d);
void check_container(struct doctor *d);
void check_seccomp(struct doctor *d);
void check_cgroup(struct doctor *d);
void check_firewall(struct doctor *d);
void check_driver(struct doctor *d); /* driver.c */
void check_nodes(struct doctor *d);
void check_rdma_cm(struct doctor *d);
void check_library(struct doctor *d);
void check_port(struct doctor *d, const struct doctor_port *port); /* port.c */
void check_gids(struct doctor *d, const struct doctor_port *port);
void check_pkey(struct doctor *d, const struct doctor_port *port);
void check_mtu(struct doctor *d, const struct doctor_port *port);
void check_counters(struct doctor *d, const struct doctor_port *port);
void check_pfc(struct doctor *d, const struct doctor_port *port);
void check_ecn(struct doctor *d, const struct doctor_port *port);
void check_slot(struct doctor *d, const struct doctor_port *port); /* pci.c */
void check_ordering(struct doctor *d, const struct doctor_port *port);
void check_ordering_unseen(struct doctor *d);
void check_acs(struct doctor *d);
void check_gpu(struct doctor *d);
void check_distance(struct doctor *d);
void check_engine(struct doctor *d);
void check_key(struct doctor *d);  /* engine.c */
void check_nixl(struct doctor *d); /* nixl.c */

void doctor_find_ports(struct doctor *d);
void doctor_engine_open(struct doctor *d);

/*
 * Which priorities of an interface have flow control, by DCB netlink: 0 and the mask, or an errno.
 * doctor_dcb_parse is the pure half: the errno that the answer carries; EBADMSG: it is not such an
 * answer; ENODATA: the device reports nothing.
 */
int doctor_dcb_ask(const char *netdev, uint8_t *mask);
int doctor_dcb_parse(const uint8_t *reply, size_t len, uint8_t *mask);

/* A connection to `kvrail doctor --listen` on another machine, a write, and the bytes read back. */
void doctor_peer(struct doctor *d, const char *host, uint32_t port);
/* The other end of it; returns the exit status. */
int doctor_listen(const char *host, uint32_t port, int seconds);

#endif
