/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ext.h -- what the files of the extension module kvrail._core share
 *
 * The module is a thin, flat layer: functions over one handle type. Names, defaults, keywords and
 * types live in the Python packages above it. Compiled against the limited API of 3.10, so one
 * binary serves every later Python.
 *
 * Rules
 *   Every call into the library that may wait, copy or take a lock runs without the GIL.
 *   Fields of a handle are read and written under the GIL only.
 *   Between handle_enter and handle_leave nobody can close the handle or what it belongs to.
 */
#ifndef KVRAIL_EXT_H
#define KVRAIL_EXT_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

#include <kvrail/kv.h>

#define WITHOUT_GIL(...)               \
	do {                           \
		Py_BEGIN_ALLOW_THREADS \
		__VA_ARGS__;           \
		Py_END_ALLOW_THREADS   \
	} while (0)

/* Waits are cut into pieces of this length, so that Ctrl-C and close() are seen. */
enum { SLICE_MS = 50, DROP_MS = 1000 };

enum handle_kind {
	H_ENGINE = 1,
	H_MEMORY,
	H_CACHE,
	H_PEER,
	H_OP,
	H_LEASE,
	H_GROUP,
	H_COMM,
};

struct handle {
	PyObject_HEAD enum handle_kind kind;
	bool closing;
	bool borrowed;	  /* peer: a communicator's, which closes it */
	int pid;	  /* of the process that made it */
	Py_ssize_t users; /* calls that are inside, in this handle or below it */
	void *ptr;	  /* the library's object; NULL once closed */
	struct handle *
		/*
		 * the engine, the peer of a lease, the communicator of a peer; a strong reference
		 */
		parent;
	struct handle *peer; /* op: towards which peer; a strong reference */
	void *own;	     /* memory: our own mapping; op: copies of the ids */
	size_t len;	     /* memory */
	struct orphan
		*orphans; /* engine: operations whose handle is gone but that have not ended */
	struct batch *kept; /* engine: arrivals that were taken but not handed over */
};

/* handle.c */
int handle_type_add(PyObject *module);
/*
 * Before the library is called, with ptr NULL: what it has done must not fail afterwards because
 * there is no memory for the handle. A handle whose ptr stays NULL frees nothing.
 */
struct handle *handle_new(enum handle_kind kind, void *ptr, struct handle *parent);
/* The handle of this kind, open and entered; NULL with an exception. */
struct handle *handle_enter(PyObject *obj, enum handle_kind kind);
void handle_leave(struct handle *h); /* NULL is allowed */
bool handle_closing(const struct handle *h);
/* Whether one that this thread is inside of is being closed. */
bool handle_inside_closing(void);
struct handle *handle_engine(struct handle *h);
void engine_reap(struct handle *engine);
PyObject *core_close(PyObject *module, PyObject *args);
PyObject *core_ident(PyObject *module, PyObject *arg);

/* arrivals.c */
void arrivals_drop(struct handle *engine);

/* error.c: text that may quote a peer's or the system's bytes: what is not UTF-8 is escaped */
PyObject *text_of(const char *s);
/* sets the exception that the cause asks for; returns NULL */
PyObject *raise_error(const struct kv_error *err);
PyObject *raise_code(int code, const char *op, const char *message);
PyObject *core_set_error_factory(PyObject *module, PyObject *factory);

/* ids.c */
struct ids {
	const int64_t *id;
	size_t n;
	int64_t *own;	/* converted, or NULL */
	PyObject *keep; /* whose memory `id` is, or NULL */
};
int ids_take(struct ids *ids, PyObject *obj, const char *what);
/* Makes both a copy that outlives their objects: one allocation, local->own. */
int ids_own(struct ids *local, struct ids *remote);
void ids_drop(struct ids *ids);
PyObject *core_dlpack_info(PyObject *module, PyObject *capsule);

/* engine.c, arrivals.c, memory.c, peer.c, comm.c, op.c, look.c */
extern PyMethodDef engine_methods[], arrival_methods[], memory_methods[], peer_methods[],
	comm_methods[], op_methods[], look_methods[];

#endif
