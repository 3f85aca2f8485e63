/* SPDX-License-Identifier: Apache-2.0 */
/* handle.c -- the one object type of the extension: who may use it, and how it ends */
#include "ext.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* An operation that has not ended although nobody holds it any more. */
struct orphan {
	struct kv_op *op;
	void *own;
	struct orphan *next;
};

static PyTypeObject *handle_type;
static const char *const kind_names[] = { "?",	       "engine", "memory", "cache", "peer",
					  "operation", "lease",	 "group",  "comm" };

struct handle *handle_new(enum handle_kind kind, void *ptr, struct handle *parent)
{
	struct handle *h = PyObject_New(struct handle, handle_type);

	if (!h)
		return NULL;
	h->kind = kind;
	h->closing = false;
	h->borrowed = false;
	h->pid = getpid();
	h->users = 0;
	h->ptr = ptr;
	h->parent = parent;
	Py_XINCREF((PyObject *)parent);
	h->peer = NULL;
	h->own = NULL;
	h->len = 0;
	h->orphans = NULL;
	h->kept = NULL;
	return h;
}

/*
 * What calls of this thread are inside of. Code of the application may run there (a signal's
 * handler, an allgather, a finalizer), and a close() in it would wait for itself.
 */
enum { INSIDE_MAX = 64 };
static __thread struct handle *inside[INSIDE_MAX];
static __thread int inside_n;

static void count_users(struct handle *h, int more)
{
	for (; h; h = h->parent)
		h->users += more;
}

static void enter(struct handle *h)
{
	inside[inside_n++] = h;
	count_users(h, 1);
}

static bool is_inside(const struct handle *h)
{
	for (int i = 0; i < inside_n; i++)
		for (const struct handle *up = inside[i]; up; up = up->parent)
			if (up == h)
				return true;
	return false;
}

bool handle_closing(const struct handle *h)
{
	for (; h; h = h->parent)
		if (h->closing || !h->ptr)
			return true;
	return false;
}

bool handle_inside_closing(void)
{
	for (int i = 0; i < inside_n; i++)
		if (handle_closing(inside[i]))
			return true;
	return false;
}

struct handle *handle_engine(struct handle *h)
{
	while (h->parent)
		h = h->parent;
	return h;
}

struct handle *handle_enter(PyObject *obj, enum handle_kind kind)
{
	struct handle *h = (struct handle *)obj;

	if (Py_TYPE(obj) != handle_type || h->kind != kind) {
		PyErr_Format(PyExc_TypeError, "a kvrail %s is needed", kind_names[kind]);
		return NULL;
	}
	if (handle_closing(h)) {
		raise_code(KV_ERR_CLOSED, kind_names[kind], "it was closed");
		return NULL;
	}
	if (inside_n == INSIDE_MAX) {
		PyErr_SetString(PyExc_RecursionError, "calls of kvrail inside calls of kvrail");
		return NULL;
	}
	enter(h);
	return h;
}

void handle_leave(struct handle *h)
{
	int i = inside_n;

	if (!h)
		return;
	while (inside[--i] != h)
		;
	for (inside_n--; i < inside_n; i++)
		inside[i] = inside[i + 1];
	count_users(h, -1);
}

/* Frees the orphans that have ended. */
void engine_reap(struct handle *engine)
{
	struct orphan **link = &engine->orphans, *o;

	while ((o = *link)) {
		if (kv_op_free(o->op, NULL)) {
			link = &o->next;
			continue;
		}
		*link = o->next;
		free(o->own);
		free(o);
	}
}

/* kv_engine_close has freed the operations themselves. */
static void orphans_forget(struct handle *engine)
{
	struct orphan *o;

	while ((o = engine->orphans)) {
		engine->orphans = o->next;
		free(o->own);
		free(o);
	}
}

/* The library's end of a handle. */
static int end(struct handle *h, int64_t timeout_ms, struct kv_error *err)
{
	int rc = 0;

	Py_BEGIN_ALLOW_THREADS;
	switch (h->kind) {
	case H_ENGINE:
		kv_engine_close(h->ptr);
		break;
	case H_MEMORY:
		rc = kv_free(h->parent->ptr, h->ptr, err);
		break;
	case H_CACHE:
		rc = kv_cache_unregister(h->ptr, err);
		break;
	case H_PEER:
		rc = kv_peer_close(h->ptr, timeout_ms, err);
		break;
	case H_OP:
		rc = kv_op_free(h->ptr, err);
		break;
	case H_LEASE:
		rc = kv_revoke(h->ptr, timeout_ms, err);
		break;
	case H_GROUP:
		rc = kv_group_end(h->ptr, timeout_ms, NULL, err);
		break;
	case H_COMM:
		rc = kv_comm_free(h->ptr, timeout_ms, err);
		break;
	}
	Py_END_ALLOW_THREADS;
	return rc;
}

/* Without memory for the note the operation stays the engine's until it closes. */
static void note_orphan(struct handle *h)
{
	struct handle *engine = h->parent;
	struct orphan *o = malloc(sizeof(*o));

	if (o) {
		*o = (struct orphan){ h->ptr, h->own, engine->orphans };
		engine->orphans = o;
	}
	h->own = NULL;
}

/*
 * The end of a handle that nobody refers to: nobody can be inside it either. What cannot end now is
 * left to the engine: a pool with a cache in it, an operation under way. A group posts nothing any
 * more.
 */
static void handle_drop(struct handle *h)
{
	bool alive = h->ptr && !(h->parent && handle_closing(h->parent));
	int rc = KV_ERR_BUSY;

	if (alive && !h->borrowed) {
		count_users(h->parent, 1);
		rc = end(h, h->kind == H_GROUP ? 0 : DROP_MS, NULL);
		count_users(h->parent, -1);
	}
	if (h->kind == H_OP && h->ptr && h->parent->ptr && rc == KV_ERR_BUSY)
		note_orphan(h);
	if (h->kind == H_MEMORY && h->own)
		munmap(h->own, h->len);
	else
		free(h->own);
	if (h->kind == H_ENGINE) {
		h->ptr = NULL;
		orphans_forget(h);
		arrivals_drop(h);
	}
}

static void handle_dealloc(PyObject *self)
{
	struct handle *h = (struct handle *)self;
	PyObject *type, *value, *trace;

	PyErr_Fetch(&type, &value, &trace);
	handle_drop(h);
	PyErr_Restore(type, value, trace);
	Py_XDECREF((PyObject *)h->peer);
	Py_XDECREF((PyObject *)h->parent);
	PyObject_Free(self);
	Py_DECREF((PyObject *)handle_type);
}

/*
 * Waits until no call is inside. Those that wait in the library see `closing` after a slice at
 * most. In a forked child the other threads do not exist and will never leave.
 */
static int handle_quiet(struct handle *h)
{
	const struct timespec nap = { .tv_nsec = 1000000 };

	while (h->users && h->pid == getpid()) {
		WITHOUT_GIL(nanosleep(&nap, NULL));
		if (PyErr_CheckSignals())
			return -1;
	}
	return 0;
}

/* close(handle, timeout_ms): a handle that is closed already, or whose engine is, is fine. */
PyObject *core_close(PyObject *Py_UNUSED(module), PyObject *args)
{
	struct kv_error err = { 0 };
	long long timeout_ms;
	struct handle *h;
	PyObject *obj;
	int rc;

	if (!PyArg_ParseTuple(args, "OL", &obj, &timeout_ms))
		return NULL;
	h = (struct handle *)obj;
	if (Py_TYPE(obj) != handle_type)
		return PyErr_Format(PyExc_TypeError, "a kvrail handle is needed");
	if (handle_closing(h))
		Py_RETURN_NONE;
	if (h->borrowed)
		return raise_code(KV_ERR_BUSY, "close",
				  "the communicator that it belongs to closes it");
	if (h->pid == getpid() && (is_inside(h) || inside_n == INSIDE_MAX))
		return raise_code(KV_ERR_BUSY, "close",
				  "this thread is inside a call that uses it");
	h->closing = true;
	if (handle_quiet(h)) {
		h->closing = false;
		return NULL;
	}
	/* What it belongs to must not be closed meanwhile. */
	if (h->parent && handle_closing(h->parent))
		Py_RETURN_NONE;
	if (h->parent)
		enter(h->parent);
	rc = end(h, timeout_ms, &err);
	handle_leave(h->parent);
	/* A group is gone whatever its operations did. */
	if (!rc || h->kind == H_GROUP)
		h->ptr = NULL;
	h->closing = false;
	if (h->kind == H_ENGINE) {
		orphans_forget(h);
		arrivals_drop(h);
	}
	if (PyErr_Occurred()) /* Ctrl-C while a group waited */
		return NULL;
	if (rc)
		return raise_error(&err);
	Py_RETURN_NONE;
}

/* ident(handle): the number under which arrivals name it */
PyObject *core_ident(PyObject *Py_UNUSED(module), PyObject *arg)
{
	if (Py_TYPE(arg) != handle_type)
		return PyErr_Format(PyExc_TypeError, "a kvrail handle is needed");
	return PyLong_FromVoidPtr(((struct handle *)arg)->ptr);
}

static PyObject *handle_repr(PyObject *self)
{
	struct handle *h = (struct handle *)self;

	return PyUnicode_FromFormat("<kvrail %s handle%s>", kind_names[h->kind],
				    handle_closing(h) ? ", closed" : "");
}

/* Handles are made here only. */
static PyObject *refuse_new(PyTypeObject *Py_UNUSED(type), PyObject *Py_UNUSED(args),
			    PyObject *Py_UNUSED(kwargs))
{
	return PyErr_Format(PyExc_TypeError, "kvrail handles are made by kvrail's functions");
}

static PyType_Slot handle_slots[] = {
	{ Py_tp_new, (void *)refuse_new },
	{ Py_tp_dealloc, (void *)handle_dealloc },
	{ Py_tp_repr, (void *)handle_repr },
	{ Py_tp_doc,
	  (void *)"An object of the library. Made and used by the functions of this module." },
	{ 0, NULL },
};

static PyType_Spec handle_spec = {
	.name = "kvrail._core.Handle",
	.basicsize = sizeof(struct handle),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = handle_slots,
};

int handle_type_add(PyObject *module)
{
	handle_type = (PyTypeObject *)PyType_FromSpec(&handle_spec);
	if (!handle_type)
		return -1;
	Py_INCREF((PyObject *)handle_type);
	return PyModule_AddObject(module, "Handle", (PyObject *)handle_type);
}
