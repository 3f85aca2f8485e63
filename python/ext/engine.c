/* SPDX-License-Identifier: Apache-2.0 */
/* engine.c -- engines: opening, listening, progress */
#include "ext.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * Log lines go into a pipe, which a Python thread reads: the library logs from its own threads and
 * under its locks, where waiting for the GIL could wait for ever. The pipe does not block; lines
 * beyond its capacity are lost.
 */
static void log_to_pipe(void *arg, int level, const char *line)
{
	char text[1100];
	int n = snprintf(text, sizeof(text), "%d%s", level, line);

	n = n < (int)sizeof(text) - 1 ? n : (int)sizeof(text) - 2;
	for (int i = 0; i < n; i++)
		if (text[i] == '\n')
			text[i] = ' ';
	text[n++] = '\n';
	if (write((int)(intptr_t)arg, text, (size_t)n) < 0)
		errno = 0; /* there is no caller to report it to */
}

/*
 * Asked by calls that wait. An exception of a signal handler stays set.
 */
static int interrupted(void *arg)
{
	PyGILState_STATE gil = PyGILState_Ensure();
	int stop = handle_inside_closing() || PyErr_CheckSignals();

	PyGILState_Release(gil);
	return stop;
}

/* A NULL-terminated array of the strings of a list; they live as long as the list. */
static const char **strings_of(PyObject *list)
{
	Py_ssize_t n = PyList_Size(list);
	const char **s;

	if (n < 0)
		return NULL;
	s = calloc((size_t)n + 1, sizeof(*s));
	if (!s) {
		PyErr_NoMemory();
		return NULL;
	}
	for (Py_ssize_t i = 0; i < n; i++) {
		s[i] = PyUnicode_AsUTF8AndSize(PyList_GetItem(list, i), NULL);
		if (!s[i]) {
			free(s);
			return NULL;
		}
	}
	return s;
}

/*
 * engine_open(name, progress, arrivals_off, options, log_fd): log_fd -1 = the library's own log
 * files
 */
static PyObject *engine_open(PyObject *Py_UNUSED(module), PyObject *args)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_engine *engine = NULL;
	struct kv_error err = { 0 };
	const char **options;
	struct handle *h;
	PyObject *list;
	int log_fd, rc;

	if (!PyArg_ParseTuple(args, "ziiOi", &config.name, &config.progress, &config.arrivals_off,
			      &list, &log_fd))
		return NULL;
	options = strings_of(list);
	h = options ? handle_new(H_ENGINE, NULL, NULL) : NULL;
	if (!h) {
		free(options);
		return NULL;
	}
	config.options = options;
	if (log_fd >= 0) {
		config.log = log_to_pipe;
		config.log_arg = (void *)(intptr_t)log_fd;
	}
	WITHOUT_GIL(rc = kv_engine_open(&config, &engine, &err));
	free(options);
	if (rc) {
		Py_DECREF((PyObject *)h);
		return raise_error(&err);
	}
	h->ptr = engine;
	kv_engine_set_interrupt(engine, interrupted, NULL);
	return (PyObject *)h;
}

/* listen(engine, host, port) -> port */
static PyObject *engine_listen(PyObject *Py_UNUSED(module), PyObject *args)
{
	struct kv_error err = { 0 };
	unsigned int port;
	struct handle *h;
	const char *host;
	uint32_t got = 0;
	PyObject *obj;
	int rc;

	if (!PyArg_ParseTuple(args, "OzI", &obj, &host, &port))
		return NULL;
	h = handle_enter(obj, H_ENGINE);
	if (!h)
		return NULL;
	WITHOUT_GIL(rc = kv_listen(h->ptr, host, port, &got, &err));
	handle_leave(h);
	return rc ? raise_error(&err) : PyLong_FromUnsignedLong(got);
}

/* progress(engine, timeout_ms) -> events handled; waits a slice at most */
static PyObject *engine_progress(PyObject *Py_UNUSED(module), PyObject *args)
{
	struct kv_error err = { 0 };
	long long timeout_ms;
	struct handle *h;
	PyObject *obj;
	int rc;

	if (!PyArg_ParseTuple(args, "OL", &obj, &timeout_ms))
		return NULL;
	h = handle_enter(obj, H_ENGINE);
	if (!h)
		return NULL;
	WITHOUT_GIL(rc = kv_progress(h->ptr, timeout_ms > SLICE_MS ? SLICE_MS : timeout_ms, &err));
	handle_leave(h);
	return rc < 0 ? raise_error(&err) : PyLong_FromLong(rc);
}

static PyObject *engine_arrivals_fd(PyObject *Py_UNUSED(module), PyObject *obj)
{
	struct handle *h = handle_enter(obj, H_ENGINE);
	int fd;

	if (!h)
		return NULL;
	fd = kv_arrivals_fd(h->ptr);
	handle_leave(h);
	return PyLong_FromLong(fd);
}

PyMethodDef engine_methods[] = {
	{ "engine_open", engine_open, METH_VARARGS, NULL },
	{ "listen", engine_listen, METH_VARARGS, NULL },
	{ "progress", engine_progress, METH_VARARGS, NULL },
	{ "arrivals_fd", engine_arrivals_fd, METH_O, NULL },
	{ "close", core_close, METH_VARARGS, NULL },
	{ "ident", core_ident, METH_O, NULL },
	{ "set_error_factory", core_set_error_factory, METH_O, NULL },
	{ NULL, NULL, 0, NULL },
};
