/* SPDX-License-Identifier: Apache-2.0 */
/* op.c -- transfers: started, waited for, cancelled; one by one or in groups */
#include "ext.h"

#include <string.h>

enum transfer_kind { T_WRITE, T_READ, T_SEND, T_RECV };

struct transfer {
	enum transfer_kind kind;
	struct handle *peer, *cache;
	struct kv_layers layers;
	struct ids local, remote;
	struct kv_options options;
	struct handle *group;
};

/* Of each kind the call that waits and the one that does not; write and read take both ids. */
static const struct {
	int (*run)(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		   const int64_t *local_ids, const int64_t *remote_ids, size_t n,
		   const struct kv_options *opts, struct kv_error *err);
	int (*start)(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		     const int64_t *local_ids, const int64_t *remote_ids, size_t n,
		     const struct kv_options *opts, struct kv_op **op_p, struct kv_error *err);
} one_sided[] = { [T_WRITE] = { kv_write_blocks, kv_write_blocks_async },
		  [T_READ] = { kv_read_blocks, kv_read_blocks_async } };
static const struct {
	int (*run)(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		   const int64_t *ids, size_t n, uint64_t tag, const struct kv_options *opts,
		   struct kv_error *err);
	int (*start)(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		     const int64_t *ids, size_t n, uint64_t tag, const struct kv_options *opts,
		     struct kv_op **op_p, struct kv_error *err);
} two_sided[] = { [T_SEND] = { kv_send_blocks, kv_send_blocks_async },
		  [T_RECV] = { kv_recv_blocks, kv_recv_blocks_async } };

static bool wants_remote(const struct transfer *t)
{
	return t->kind == T_WRITE || t->kind == T_READ;
}

/* op_p NULL: waits until it has ended. */
static int call(const struct transfer *t, struct kv_op **op_p, struct kv_error *err)
{
	struct kv_peer *peer = t->peer->ptr;
	struct kv_cache *cache = t->cache->ptr;
	const struct kv_options *o = &t->options;
	const int64_t *local = t->local.id, *remote = t->remote.id;
	size_t n = t->local.n;

	if (wants_remote(t))
		return op_p ? one_sided[t->kind].start(peer, cache, t->layers, local, remote, n, o,
						       op_p, err)
			    : one_sided[t->kind].run(peer, cache, t->layers, local, remote, n, o,
						     err);
	return op_p ? two_sided[t->kind].start(peer, cache, t->layers, local, n, o->tag, o, op_p,
					       err)
		    : two_sided[t->kind].run(peer, cache, t->layers, local, n, o->tag, o, err);
}

static void transfer_leave(struct transfer *t)
{
	ids_drop(&t->local);
	ids_drop(&t->remote);
	handle_leave(t->group);
	handle_leave(t->cache);
	handle_leave(t->peer);
}

/* An integer of any kind (numpy's too) that must lie in 0..max. */
static int number_of(PyObject *obj, uint64_t max, const char *what, uint64_t *n)
{
	PyObject *index = PyNumber_Index(obj);
	int overflow;
	long long low;

	if (!index) {
		if (PyErr_ExceptionMatches(PyExc_TypeError))
			PyErr_Format(PyExc_TypeError, "%s must be an integer", what);
		return -1;
	}
	low = PyLong_AsLongLongAndOverflow(index, &overflow);
	*n = overflow > 0 ? PyLong_AsUnsignedLongLong(index) : (uint64_t)low;
	Py_DECREF(index);
	if (low >= 0 && !overflow && *n <= max)
		return 0;
	if (overflow > 0 && !PyErr_Occurred() && *n <= max)
		return 0;
	PyErr_Clear();
	if (overflow) /* too long to be printed, maybe */
		PyErr_Format(PyExc_OverflowError, "%s does not fit; it must lie between 0 and %llu",
			     what, (unsigned long long)max);
	else
		PyErr_Format(PyExc_OverflowError, "%s is %lld; it must lie between 0 and %llu",
			     what, low, (unsigned long long)max);
	return -1;
}

/* Everything that may run foreign code (ids) comes first. On failure all is given back. */
static int transfer_enter(struct transfer *t, PyObject *const *a, Py_ssize_t n)
{
	uint64_t kind, first, count, timeout_ms, stream = 0;

	memset(t, 0, sizeof(*t));
	t->options.size = sizeof(t->options);
	if (n != 11 && n != 12) {
		PyErr_Format(PyExc_TypeError, "11 or 12 arguments are needed, not %zd", n);
		return -1;
	}
	if (number_of(a[0], T_RECV, "kind", &kind) ||
	    number_of(a[3], UINT32_MAX, "layer", &first) ||
	    number_of(a[4], UINT32_MAX, "layers", &count) ||
	    number_of(a[7], KV_TIMEOUT_MAX_MS, "timeout_ms", &timeout_ms) ||
	    number_of(a[8], UINT64_MAX, "tag", &t->options.tag) ||
	    number_of(a[9], UINT64_MAX, "lease", &t->options.lease) ||
	    (n == 12 && number_of(a[11], UINTPTR_MAX, "stream", &stream)))
		return -1;
	t->layers = (struct kv_layers){ (uint32_t)first, (uint32_t)count };
	t->options.timeout_ms = (int64_t)timeout_ms;
	t->options.stream = (void *)(uintptr_t)stream;
	t->kind = (enum transfer_kind)kind;
	if (ids_take(&t->local, a[5], wants_remote(t) ? "local_ids" : "ids"))
		return -1;
	if (wants_remote(t) && ids_take(&t->remote, a[6], "remote_ids"))
		goto err_leave;
	if (wants_remote(t) && t->local.n != t->remote.n) {
		PyErr_Format(PyExc_ValueError, "%zd local ids but %zd remote ids",
			     (Py_ssize_t)t->local.n, (Py_ssize_t)t->remote.n);
		goto err_leave;
	}
	t->peer = handle_enter(a[1], H_PEER);
	t->cache = t->peer ? handle_enter(a[2], H_CACHE) : NULL;
	if (!t->cache)
		goto err_leave;
	if (a[10] != Py_None) {
		t->group = handle_enter(a[10], H_GROUP);
		/* The group reads the ids when it ends. */
		if (!t->group || ids_own(&t->local, &t->remote))
			goto err_leave;
		t->options.group = t->group->ptr;
	}
	return 0;

err_leave:
	transfer_leave(t);
	return -1;
}

/*
 * transfer(kind, peer, cache, first, count, local, remote, timeout_ms, tag, lease, None[, stream]):
 * blocking.
 * `interrupted` of engine.c sees signals, and that the peer or the cache is being closed.
 */
static PyObject *transfer(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
	struct kv_error err;
	struct transfer t;
	int rc;

	if (transfer_enter(&t, args, nargs))
		return NULL;
	WITHOUT_GIL(rc = call(&t, NULL, &err));
	transfer_leave(&t);
	if (PyErr_Occurred()) /* a signal's handler raised it */
		return NULL;
	if (rc == KV_ERR_CANCELLED)
		return raise_code(KV_ERR_CLOSED, "wait", "it was closed meanwhile");
	if (rc)
		return raise_error(&err);
	Py_RETURN_NONE;
}

/*
 * start(kind, peer, cache, first, count, local, remote, timeout_ms, tag, lease, group[, stream])
 * -> operation
 */
static PyObject *start(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
	struct kv_error err;
	struct kv_op *op = NULL;
	struct transfer t;
	struct handle *h;
	int rc;

	if (transfer_enter(&t, args, nargs))
		return NULL;
	engine_reap(handle_engine(t.peer));
	h = handle_new(H_OP, NULL, handle_engine(t.peer));
	if (!h) {
		transfer_leave(&t);
		return NULL;
	}
	WITHOUT_GIL(rc = call(&t, &op, &err));
	h->ptr = op;
	if (!rc) {
		h->peer = t.peer;
		Py_INCREF((PyObject *)h->peer);
		if (t.group) { /* both arrays of ids */
			h->own = t.local.own;
			t.local.own = NULL;
		}
	}
	transfer_leave(&t);
	if (!rc)
		return (PyObject *)h;
	Py_DECREF((PyObject *)h);
	return raise_error(&err);
}

/* Enters an operation, and its peer if that is still open (else the operation has ended). */
static struct handle *op_enter(PyObject *obj, bool *peer_entered)
{
	struct handle *h = handle_enter(obj, H_OP);

	*peer_entered = h && h->peer && !handle_closing(h->peer);
	if (*peer_entered && !handle_enter((PyObject *)h->peer, H_PEER)) {
		handle_leave(h);
		return NULL;
	}
	return h;
}

static void op_leave(struct handle *h, bool peer_entered)
{
	if (peer_entered)
		handle_leave(h->peer);
	handle_leave(h);
}

/* op_test(op) -> grade */
static PyObject *op_test(PyObject *Py_UNUSED(module), PyObject *obj)
{
	struct kv_error err = { 0 };
	struct handle *h;
	bool peer;
	int rc;

	h = op_enter(obj, &peer);
	if (!h)
		return NULL;
	WITHOUT_GIL(rc = kv_test(h->ptr, &err));
	op_leave(h, peer);
	return rc < 0 ? raise_error(&err) : PyLong_FromLong(rc);
}

/* op_wait(op, grade, timeout_ms) -> whether it was reached; raises what the operation ended with */
static PyObject *op_wait(PyObject *Py_UNUSED(module), PyObject *args)
{
	struct kv_error err = { 0 };
	long long timeout_ms, slice;
	struct handle *h;
	PyObject *obj;
	int grade, rc;
	bool peer;

	if (!PyArg_ParseTuple(args, "OiL", &obj, &grade, &timeout_ms))
		return NULL;
	do {
		h = op_enter(obj, &peer);
		if (!h)
			return NULL;
		slice = timeout_ms > SLICE_MS ? SLICE_MS : timeout_ms;
		WITHOUT_GIL(rc = kv_wait(h->ptr, grade, slice, &err));
		op_leave(h, peer);
		if (rc != KV_ERR_TIMEOUT || strcmp(err.op, "wait") != 0)
			break;
		if (PyErr_CheckSignals())
			return NULL;
		timeout_ms -= slice;
	} while (timeout_ms > 0);
	if (rc == KV_ERR_TIMEOUT && !strcmp(err.op, "wait"))
		return PyBool_FromLong(0);
	return rc ? raise_error(&err) : PyBool_FromLong(1);
}

/* op_cancel(op, timeout_ms) */
static PyObject *op_cancel(PyObject *Py_UNUSED(module), PyObject *args)
{
	struct kv_error err = { 0 };
	long long timeout_ms;
	struct handle *h;
	PyObject *obj;
	bool peer;
	int rc;

	if (!PyArg_ParseTuple(args, "OL", &obj, &timeout_ms))
		return NULL;
	h = op_enter(obj, &peer);
	if (!h)
		return NULL;
	WITHOUT_GIL(rc = kv_cancel(h->ptr, timeout_ms, &err));
	op_leave(h, peer);
	if (rc)
		return raise_error(&err);
	Py_RETURN_NONE;
}

static PyObject *group_start(PyObject *Py_UNUSED(module), PyObject *obj)
{
	struct handle *h = handle_enter(obj, H_ENGINE), *made;
	struct kv_group *group = NULL;
	struct kv_error err = { 0 };

	if (!h)
		return NULL;
	made = handle_new(H_GROUP, NULL, h);
	if (made && kv_group_start(h->ptr, &group, &err)) {
		Py_CLEAR(made);
		raise_error(&err);
	}
	handle_leave(h);
	if (made)
		made->ptr = group;
	return (PyObject *)made;
}

PyMethodDef op_methods[] = {
	{ "transfer", (PyCFunction)(void (*)(void))transfer, METH_FASTCALL, NULL },
	{ "start", (PyCFunction)(void (*)(void))start, METH_FASTCALL, NULL },
	{ "op_test", op_test, METH_O, NULL },
	{ "op_wait", op_wait, METH_VARARGS, NULL },
	{ "op_cancel", op_cancel, METH_VARARGS, NULL },
	{ "group_start", group_start, METH_O, NULL },
	{ NULL, NULL, 0, NULL },
};
