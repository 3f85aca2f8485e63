/* SPDX-License-Identifier: Apache-2.0 */
/*
 * arrivals.c -- arrivals, from the library's queue to Python's objects
 *
 * What was taken from the queue exists nowhere else, and its writer has its acknowledgement. So all
 * memory that is needed to keep it is there before it is taken, and what cannot be converted now
 * (no memory, an exception of a signal's handler) stays with the engine for the next poll.
 */
#include "ext.h"

#include <stdlib.h>

enum { POLL_MAX = 256 };

struct batch {
	struct batch *next;
	int at, n;
	struct item {
		struct kv_arrival arrival;
		PyObject *peer; /* PEER_UP: the handle, made once, as dropping it closes the peer */
		PyObject *made;
	} item[];
};

static void batch_free(struct batch *b)
{
	for (int i = b->at; i < b->n; i++) {
		Py_XDECREF(b->item[i].peer);
		Py_XDECREF(b->item[i].made);
	}
	free(b);
}

void arrivals_drop(struct handle *engine)
{
	struct batch *b;

	while ((b = engine->kept)) {
		engine->kept = b->next;
		batch_free(b);
	}
}

/* What an earlier poll had to leave, or else what the library has. NULL with an exception. */
static struct batch *batch_take(struct handle *engine, size_t max)
{
	struct kv_arrival arrivals[POLL_MAX];
	struct batch *b = engine->kept;
	struct kv_error err = { 0 };
	int n;

	if (b) {
		engine->kept = b->next;
		return b;
	}
	b = malloc(sizeof(*b) + max * sizeof(b->item[0]));
	if (!b) {
		PyErr_NoMemory();
		return NULL;
	}
	WITHOUT_GIL(n = kv_poll_arrivals(engine->ptr, arrivals, max, &err));
	if (n < 0) {
		free(b);
		raise_error(&err);
		return NULL;
	}
	b->at = 0;
	b->n = n;
	for (int i = 0; i < n; i++)
		b->item[i] = (struct item){ .arrival = arrivals[i] };
	return b;
}

/* A peer that came up gets its handle here; later arrivals name it by number. */
static int convert(struct handle *engine, struct item *item, PyObject *make)
{
	const struct kv_arrival *a = &item->arrival;

	if (a->kind == KV_ARRIVAL_PEER_UP && !item->peer) {
		item->peer = (PyObject *)handle_new(H_PEER, a->peer, engine);
		if (!item->peer)
			return -1;
	}
	if (!item->made)
		item->made = PyObject_CallFunction(
			make, "((iiOKKIIKKKK))", a->kind, a->status,
			item->peer ? item->peer : Py_None, (unsigned long long)(uintptr_t)a->peer,
			(unsigned long long)(uintptr_t)a->cache, a->layers.first, a->layers.count,
			(unsigned long long)a->tag, (unsigned long long)a->lease,
			(unsigned long long)a->blocks, (unsigned long long)a->bytes);
	return item->made ? 0 : -1;
}

/* The next `count` of a batch as a list; NULL with an exception, and then all are still in it. */
static PyObject *list_of(struct handle *engine, struct batch *b, int count, PyObject *make)
{
	PyObject *list;

	for (int i = b->at; i < b->at + count; i++)
		if (convert(engine, &b->item[i], make))
			return NULL;
	list = PyList_New(count);
	for (int i = 0; list && i < count; i++, b->at++) {
		struct item *item = &b->item[b->at];

		PyList_SetItem(list, i, item->made); /* which takes the reference */
		Py_XDECREF(item->peer);
	}
	return list;
}

/*
 * poll(engine, max, make) -> list of make((kind, status, new peer or None, peer, cache, first,
 * count, tag, lease, blocks, bytes))
 */
static PyObject *engine_poll(PyObject *Py_UNUSED(module), PyObject *args)
{
	PyObject *obj, *make, *list = NULL;
	struct handle *h;
	struct batch *b;
	Py_ssize_t max;
	int count;

	if (!PyArg_ParseTuple(args, "OnO", &obj, &max, &make))
		return NULL;
	h = handle_enter(obj, H_ENGINE);
	if (!h)
		return NULL;
	max = max < 0 ? 0 : max > POLL_MAX ? POLL_MAX : max;
	b = batch_take(h, (size_t)max);
	if (b) {
		count = b->n - b->at < max ? b->n - b->at : (int)max;
		list = list_of(h, b, count, make);
		if (b->at < b->n) {
			b->next = h->kept;
			h->kept = b;
		} else {
			batch_free(b);
		}
	}
	handle_leave(h);
	return list;
}

PyMethodDef arrival_methods[] = {
	{ "poll", engine_poll, METH_VARARGS, NULL },
	{ NULL, NULL, 0, NULL },
};
