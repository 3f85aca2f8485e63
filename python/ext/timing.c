/* SPDX-License-Identifier: Apache-2.0 */
/* timing.c -- the bare C call, timed: what bench/call.py compares with */
#include "ext.h"

#include <time.h>

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/*
 * time_write(peer, cache, layer, local, remote) -> nanoseconds of one kv_write_blocks, its ids
 * being ready
 */
static PyObject *time_write(PyObject *module, PyObject *args)
{
	PyObject *peer_obj, *cache_obj, *local_obj, *remote_obj;
	struct ids local = { 0 }, remote = { 0 };
	struct kv_layers layers = { .count = 1 };
	struct handle *peer, *cache = NULL;
	struct kv_error err = { 0 };
	int64_t ns = 0;
	int rc = 0;

	(void)module;
	if (!PyArg_ParseTuple(args, "OOIOO", &peer_obj, &cache_obj, &layers.first, &local_obj,
			      &remote_obj))
		return NULL;
	if (ids_take(&local, local_obj, "local_ids") ||
	    ids_take(&remote, remote_obj, "remote_ids")) {
		ids_drop(&local);
		return NULL;
	}
	peer = handle_enter(peer_obj, H_PEER);
	if (peer)
		cache = handle_enter(cache_obj, H_CACHE);
	if (cache && local.n == remote.n) {
		Py_BEGIN_ALLOW_THREADS;
		ns = now_ns();
		rc = kv_write_blocks(peer->ptr, cache->ptr, layers, local.id, remote.id, local.n,
				     NULL, &err);
		ns = now_ns() - ns;
		Py_END_ALLOW_THREADS;
	}
	handle_leave(cache);
	handle_leave(peer);
	ids_drop(&local);
	ids_drop(&remote);
	if (rc)
		return raise_error(&err);
	return cache ? PyLong_FromLongLong(ns) : NULL;
}

PyMethodDef timing_methods[] = {
	{ "time_write", time_write, METH_VARARGS, NULL },
	{ NULL, NULL, 0, NULL },
};
