/* SPDX-License-Identifier: Apache-2.0 */
/* peer.c -- peers and the leases that are opened for them */
#include "ext.h"

/* connect(engine, host, port, timeout_ms) -> peer */
static PyObject *peer_connect(PyObject *Py_UNUSED(module), PyObject *args)
{
	struct kv_peer *peer = NULL;
	struct kv_error err = { 0 };
	struct handle *h, *made;
	long long timeout_ms;
	unsigned int port;
	const char *host;
	PyObject *obj;
	int rc;

	if (!PyArg_ParseTuple(args, "OsIL", &obj, &host, &port, &timeout_ms))
		return NULL;
	h = handle_enter(obj, H_ENGINE);
	if (!h)
		return NULL;
	made = handle_new(H_PEER, NULL, h);
	if (!made) {
		handle_leave(h);
		return NULL;
	}
	WITHOUT_GIL(rc = kv_connect(h->ptr, host, port, timeout_ms, &peer, &err));
	made->ptr = peer;
	handle_leave(h);
	if (!rc && !PyErr_Occurred())
		return (PyObject *)made;
	Py_DECREF((PyObject *)made);
	if (PyErr_Occurred()) /* Ctrl-C */
		return NULL;
	if (rc == KV_ERR_CANCELLED)
		return raise_code(KV_ERR_CLOSED, "connect", "the engine was closed meanwhile");
	return raise_error(&err);
}

/* peer_info(peer) -> (name, address, transport, path, incarnation, connected, incoming) */
static PyObject *peer_info(PyObject *Py_UNUSED(module), PyObject *obj)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_error err = { 0 };
	struct handle *h = handle_enter(obj, H_PEER);
	int rc;

	if (!h)
		return NULL;
	WITHOUT_GIL(rc = kv_peer_info(h->ptr, &info, &err));
	handle_leave(h);
	if (rc)
		return raise_error(&err);
	return Py_BuildValue("NNNNy#ii", text_of(info.name), text_of(info.address),
			     text_of(info.transport), text_of(info.path),
			     (const char *)info.incarnation, (Py_ssize_t)sizeof(info.incarnation),
			     info.connected, info.incoming);
}

/* lease_open(peer, cache, ids, tag, lifetime_ms) -> (lease, its number) */
static PyObject *lease_open(PyObject *Py_UNUSED(module), PyObject *args)
{
	PyObject *obj, *cache_obj, *ids_obj;
	struct handle *peer, *cache, *made;
	struct kv_lease *lease = NULL;
	struct kv_error err = { 0 };
	unsigned long long tag;
	long long lifetime_ms;
	struct ids ids;
	uint64_t id;
	int rc;

	if (!PyArg_ParseTuple(args, "OOOKL", &obj, &cache_obj, &ids_obj, &tag, &lifetime_ms))
		return NULL;
	if (ids_take(&ids, ids_obj, "ids"))
		return NULL;
	peer = handle_enter(obj, H_PEER);
	cache = peer ? handle_enter(cache_obj, H_CACHE) : NULL;
	made = cache ? handle_new(H_LEASE, NULL, peer) : NULL;
	if (!made) {
		handle_leave(cache);
		handle_leave(peer);
		ids_drop(&ids);
		return NULL;
	}
	WITHOUT_GIL(rc = kv_blocks_open(peer->ptr, cache->ptr, ids.id, ids.n, tag, lifetime_ms,
					&lease, &err));
	ids_drop(&ids);
	handle_leave(cache);
	made->ptr = lease;
	handle_leave(peer);
	if (rc) {
		Py_DECREF((PyObject *)made);
		return raise_error(&err);
	}
	id = kv_lease_id(lease);
	return Py_BuildValue("NK", made, (unsigned long long)id);
}

PyMethodDef peer_methods[] = {
	{ "connect", peer_connect, METH_VARARGS, NULL },
	{ "peer_info", peer_info, METH_O, NULL },
	{ "lease_open", lease_open, METH_VARARGS, NULL },
	{ NULL, NULL, 0, NULL },
};
