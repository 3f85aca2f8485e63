/* SPDX-License-Identifier: Apache-2.0 */
/* comm.c -- communicators: the engines of several processes, connected with each other */
#include "ext.h"

#include <string.h>

struct gather {
	PyObject *function;
	Py_ssize_t ranks;
};

/* Copies what the function returned: a sequence of one bytes object for each rank. */
static int gathered(PyObject *list, Py_ssize_t ranks, char *all, Py_ssize_t len)
{
	Py_ssize_t size;
	char *bytes;

	if (PyList_Size(list) != ranks) {
		PyErr_Format(PyExc_ValueError, "allgather returned %zd items for %zd ranks",
			     PyList_Size(list), ranks);
		return -1;
	}
	for (Py_ssize_t r = 0; r < ranks; r++) {
		if (!PyBytes_Check(PyList_GetItem(list, r))) {
			PyErr_Format(PyExc_TypeError,
				     "allgather returned no bytes object for rank %zd", r);
			return -1;
		}
		if (PyBytes_AsStringAndSize(PyList_GetItem(list, r), &bytes, &size))
			return -1;
		if (size != len) {
			PyErr_Format(PyExc_ValueError,
				     "allgather returned %zd bytes for rank %zd, not %zd", size, r,
				     len);
			return -1;
		}
		memcpy(all + r * len, bytes, (size_t)len);
	}
	return 0;
}

/* Called by kv_comm_init without the GIL. The exception stays set. */
static int allgather(void *arg, const void *mine, void *all, size_t len)
{
	PyGILState_STATE gil = PyGILState_Ensure();
	const struct gather *g = arg;
	PyObject *got = PyObject_CallFunction(g->function, "y#", mine, (Py_ssize_t)len);
	bool sequence = got && PySequence_Check(got);
	PyObject *list = sequence ? PySequence_List(got) : NULL;
	int rc = list ? gathered(list, g->ranks, all, (Py_ssize_t)len) : -1;

	if (got && !sequence)
		PyErr_Format(PyExc_TypeError, "allgather returned %R, not a sequence", got);

	Py_XDECREF(list);
	Py_XDECREF(got);
	PyGILState_Release(gil);
	return rc;
}

/* Of each rank a peer, or None where there is no connection. */
static PyObject *peers_of(struct handle *comm, Py_ssize_t ranks)
{
	PyObject *list = PyList_New(0);

	for (Py_ssize_t r = 0; list && r < ranks; r++) {
		struct kv_peer *peer = kv_comm_peer(comm->ptr, (uint32_t)r);
		struct handle *h = peer ? handle_new(H_PEER, peer, comm) : NULL;

		if (h)
			h->borrowed = true;
		if ((peer && !h) || PyList_Append(list, h ? (PyObject *)h : Py_None))
			Py_CLEAR(list);
		Py_XDECREF((PyObject *)h);
	}
	return list;
}

/*
 * comm_init(engine, rank, nranks, group, host, allgather, timeout_ms) -> (comm, [peer of each rank
 * or None])
 */
static PyObject *comm_init(PyObject *Py_UNUSED(module), PyObject *args)
{
	struct kv_comm_config config = KV_INIT(kv_comm_config);
	struct handle *engine, *made;
	struct kv_error err = { 0 };
	struct kv_comm *comm = NULL;
	PyObject *obj, *peers;
	long long timeout_ms;
	struct gather g;
	int rc;

	if (!PyArg_ParseTuple(args, "OIIizOL", &obj, &config.rank, &config.nranks, &config.group,
			      &config.host, &g.function, &timeout_ms))
		return NULL;
	engine = handle_enter(obj, H_ENGINE);
	if (!engine)
		return NULL;
	made = handle_new(H_COMM, NULL, engine);
	if (!made) {
		handle_leave(engine);
		return NULL;
	}
	g.ranks = (Py_ssize_t)config.nranks;
	config.allgather = allgather;
	config.arg = &g;
	config.timeout_ms = timeout_ms;
	WITHOUT_GIL(rc = kv_comm_init(engine->ptr, &config, &comm, &err));
	made->ptr = comm;
	handle_leave(engine);
	if (!PyErr_Occurred() && rc == KV_ERR_CANCELLED)
		raise_code(KV_ERR_CLOSED, "comm", "the engine was closed meanwhile");
	else if (!PyErr_Occurred() && rc) /* else it is allgather's, or Ctrl-C */
		raise_error(&err);
	peers = PyErr_Occurred() ? NULL : peers_of(made, g.ranks);
	if (!peers) {
		Py_DECREF((PyObject *)made);
		return NULL;
	}
	return Py_BuildValue("NN", made, peers);
}

PyMethodDef comm_methods[] = {
	{ "comm_init", comm_init, METH_VARARGS, NULL },
	{ NULL, NULL, 0, NULL },
};
