/* SPDX-License-Identifier: Apache-2.0 */
/* look.c -- counters, state, options and devices */
#include "ext.h"

#include <stddef.h>
#include <stdlib.h>

/* The fields of struct kv_stats, by name. */
static const struct counter {
	const char *name;
	size_t at;
} counters[] = {
#define C(name)                                        \
	{                                              \
#name, offsetof(struct kv_stats, name) \
	}
	C(writes),
	C(reads),
	C(sends),
	C(recvs),
	C(ok),
	C(failed),
	C(cancelled),
	C(in_flight),
	C(blocks_out),
	C(bytes_out),
	C(blocks_in),
	C(bytes_in),
	C(spans_out),
	C(arrivals),
	C(arrivals_waiting),
	C(leases_opened),
	C(leases_open),
	C(leases_revoked),
	C(leases_expired),
	C(leases_fenced),
	C(peers_accepted),
	C(peers_connected),
	C(peers_now),
	C(peers_lost),
	C(rejected_garbage),
	C(rejected_version),
	C(rejected_geometry),
	C(rejected_timeout),
	C(rejected_limit),
	C(unknown_messages),
	C(work_requests),
	C(doorbells),
	C(completions),
	C(syscalls),
#undef C
};
_Static_assert(sizeof(counters) / sizeof(counters[0]) * sizeof(uint64_t) + sizeof(size_t) ==
		       sizeof(struct kv_stats),
	       "every counter of kv.h is listed");

/* stats(engine) -> {name: number} */
static PyObject *look_stats(PyObject *Py_UNUSED(module), PyObject *obj)
{
	struct handle *h = handle_enter(obj, H_ENGINE);
	struct kv_stats stats = KV_INIT(kv_stats);
	struct kv_error err = { 0 };
	PyObject *dict, *n;
	int rc;

	if (!h)
		return NULL;
	WITHOUT_GIL(rc = kv_stats(h->ptr, &stats, &err));
	handle_leave(h);
	if (rc)
		return raise_error(&err);
	dict = PyDict_New();
	for (size_t i = 0; dict && i < sizeof(counters) / sizeof(counters[0]); i++) {
		const uint64_t *v = (const void *)((const char *)&stats + counters[i].at);

		n = PyLong_FromUnsignedLongLong(*v);
		if (!n || PyDict_SetItemString(dict, counters[i].name, n))
			Py_CLEAR(dict);
		Py_XDECREF(n);
	}
	return dict;
}

/* dump(engine) -> text; the state may grow between the two calls, then its end is missing */
static PyObject *look_dump(PyObject *Py_UNUSED(module), PyObject *obj)
{
	struct handle *h = handle_enter(obj, H_ENGINE);
	PyObject *text = NULL;
	char *buf = NULL;
	int n;

	if (!h)
		return NULL;
	Py_BEGIN_ALLOW_THREADS;
	n = kv_dump(h->ptr, NULL, 0);
	if (n >= 0)
		buf = malloc((size_t)n + 1);
	if (buf)
		kv_dump(h->ptr, buf, (size_t)n + 1);
	Py_END_ALLOW_THREADS;
	handle_leave(h);
	if (buf)
		text = text_of(buf);
	else if (n < 0)
		raise_code(n, "dump", kv_error_text(n));
	else
		PyErr_NoMemory();
	free(buf);
	return text;
}

/* The engine of an argument that may be None. */
static int maybe_enter(PyObject *obj, struct handle **h_p)
{
	*h_p = obj == Py_None ? NULL : handle_enter(obj, H_ENGINE);
	return obj != Py_None && !*h_p ? -1 : 0;
}

static PyObject *option_tuple(struct kv_engine *engine, size_t i)
{
	struct kv_option_info o = KV_INIT(kv_option_info);

	if (kv_option_get(engine, i, &o, NULL))
		return NULL;
	return Py_BuildValue("sssssNs", o.name, o.type, o.range, o.def, o.help, text_of(o.value),
			     o.source);
}

static PyObject *device_tuple(struct kv_engine *engine, size_t i)
{
	struct kv_device_info d = KV_INIT(kv_device_info);

	if (kv_device_get(engine, i, &d, NULL))
		return NULL;
	return Py_BuildValue("NNNNNNiIIINiNN", text_of(d.transport), text_of(d.name),
			     PyBool_FromLong(d.usable), text_of(d.detail), text_of(d.link),
			     text_of(d.gid), d.gid_index, d.lid, d.speed_mbps, d.mtu_bytes,
			     text_of(d.pci), d.numa_node, text_of(d.distance), text_of(d.reason));
}

static PyObject *table(PyObject *obj, PyObject *(*row)(struct kv_engine *engine, size_t i))
{
	PyObject *list, *item;
	struct handle *h;

	if (maybe_enter(obj, &h))
		return NULL;
	list = PyList_New(0);
	for (size_t i = 0; list && (item = row(h ? h->ptr : NULL, i)); i++) {
		if (PyList_Append(list, item))
			Py_CLEAR(list);
		Py_DECREF(item);
	}
	handle_leave(h);
	if (PyErr_Occurred())
		Py_CLEAR(list);
	return list;
}

/* options(engine or None) -> [(name, type, range, default, help, value, source)] */
static PyObject *look_options(PyObject *Py_UNUSED(module), PyObject *obj)
{
	return table(obj, option_tuple);
}

/* devices(engine or None) -> [the fields of struct kv_device_info from transport to reason] */
static PyObject *look_devices(PyObject *Py_UNUSED(module), PyObject *obj)
{
	return table(obj, device_tuple);
}

static PyObject *look_version(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
	return PyUnicode_FromString(kv_version());
}

PyMethodDef look_methods[] = {
	{ "stats", look_stats, METH_O, NULL },		{ "dump", look_dump, METH_O, NULL },
	{ "options", look_options, METH_O, NULL },	{ "devices", look_devices, METH_O, NULL },
	{ "version", look_version, METH_NOARGS, NULL }, { NULL, NULL, 0, NULL },
};
