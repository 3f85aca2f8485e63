/* SPDX-License-Identifier: Apache-2.0 */
/* memory.c -- pools that peers of the host write directly, and the registration of caches */
#include "ext.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/*
 * alloc(engine, len) -> memory
 *
 * Arrays may outlive the engine, whose memory goes with it. So Python gets a second mapping of the
 * same pages (mremap of length 0 makes one of a shared mapping), which lives as long as the handle.
 * memory_info translates.
 */
static PyObject *memory_alloc(PyObject *Py_UNUSED(module), PyObject *args)
{
	struct kv_error err = { 0 };
	void *ptr = NULL, *own;
	struct handle *h, *mem;
	Py_ssize_t len;
	PyObject *obj;
	int rc;

	if (!PyArg_ParseTuple(args, "On", &obj, &len))
		return NULL;
	if (len < 0)
		return PyErr_Format(PyExc_ValueError, "a length of %zd bytes", len);
	h = handle_enter(obj, H_ENGINE);
	if (!h)
		return NULL;
	mem = handle_new(H_MEMORY, NULL, h);
	if (!mem) {
		handle_leave(h);
		return NULL;
	}
	WITHOUT_GIL(rc = kv_alloc(h->ptr, (size_t)len, &ptr, &err));
	mem->ptr = ptr;
	own = rc ? MAP_FAILED : mremap(ptr, 0, (size_t)len, MREMAP_MAYMOVE);
	if (rc)
		raise_error(&err);
	else if (own == MAP_FAILED)
		PyErr_SetFromErrno(PyExc_OSError);
	if (own == MAP_FAILED) {
		Py_CLEAR(mem);
	} else {
		madvise(own, (size_t)len,
			MADV_DOFORK); /* a child that looks at an array must not crash */
		mem->own = own;
		mem->len = (size_t)len;
	}
	handle_leave(h);
	return (PyObject *)mem;
}

/* memory_info(memory) -> (address for Python, the engine's address, length) */
static PyObject *memory_info(PyObject *Py_UNUSED(module), PyObject *obj)
{
	struct handle *h = handle_enter(obj, H_MEMORY);
	PyObject *info;

	if (!h)
		return NULL;
	info = Py_BuildValue("KKn", (unsigned long long)(uintptr_t)h->own,
			     (unsigned long long)(uintptr_t)h->ptr, (Py_ssize_t)h->len);
	handle_leave(h);
	return info;
}

/* (name, block_bytes, stride, flags, order, [address of each layer]) */
static int tensor_of(PyObject *tuple, struct kv_tensor *t, uint32_t layers)
{
	unsigned long long block_bytes, stride;
	unsigned int flags, order;
	PyObject *list;
	void **bases;

	if (!PyArg_ParseTuple(tuple, "sKKIIO", &t->name, &block_bytes, &stride, &flags, &order,
			      &list))
		return -1;
	if (PyList_Size(list) != (Py_ssize_t)layers) {
		if (!PyErr_Occurred())
			PyErr_Format(PyExc_ValueError, "tensor %s has %zd layers, the first has %u",
				     t->name, PyList_Size(list), layers);
		return -1;
	}
	bases = calloc(layers ? layers : 1, sizeof(*bases));
	if (!bases) {
		PyErr_NoMemory();
		return -1;
	}
	t->layer_base = bases;
	t->block_bytes = block_bytes;
	t->stride = stride;
	t->flags = flags;
	t->order = order;
	for (uint32_t l = 0; l < layers; l++) {
		bases[l] = PyLong_AsVoidPtr(PyList_GetItem(list, l));
		if (PyErr_Occurred())
			return -1;
	}
	return 0;
}

static PyObject *cache_register_entered(struct handle *h, struct kv_layout *layout, PyObject *list)
{
	struct kv_tensor tensors[KV_TENSORS_MAX] = { 0 };
	Py_ssize_t n = PyList_Size(list);
	struct kv_cache *cache = NULL;
	struct kv_error err = { 0 };
	struct handle *made = NULL;
	bool ok = true;
	int rc;

	if (n < 1 || n > KV_TENSORS_MAX)
		return PyErr_Format(PyExc_ValueError, "%zd tensors; a cache has 1 to %d", n,
				    KV_TENSORS_MAX);
	for (Py_ssize_t i = 0; ok && i < n; i++)
		ok = !tensor_of(PyList_GetItem(list, i), &tensors[i], layout->layers);
	made = ok ? handle_new(H_CACHE, NULL, h) : NULL;
	if (made) {
		layout->tensor = tensors;
		layout->tensors = (uint32_t)n;
		WITHOUT_GIL(rc = kv_cache_register(h->ptr, layout, &cache, &err));
		made->ptr = cache;
		if (rc) {
			raise_error(&err);
			Py_CLEAR(made);
		}
	}
	for (Py_ssize_t i = 0; i < n; i++)
		free((void *)(uintptr_t)tensors[i].layer_base);
	return (PyObject *)made;
}

/*
 * cache_register(engine, cache_id, layers, blocks, tensors, tp_size, tp_rank, block_tokens, dtype,
 * kv_heads, flags, mem_kind)
 */
static PyObject *cache_register(PyObject *Py_UNUSED(module), PyObject *args)
{
	struct kv_layout layout = KV_INIT(kv_layout);
	PyObject *obj, *list, *cache;
	struct handle *h;

	if (!PyArg_ParseTuple(args, "OIIIO!IIIIIIi", &obj, &layout.cache_id, &layout.layers,
			      &layout.blocks, &PyList_Type, &list, &layout.tp_size, &layout.tp_rank,
			      &layout.block_tokens, &layout.dtype, &layout.kv_heads, &layout.flags,
			      &layout.mem_kind))
		return NULL;
	h = handle_enter(obj, H_ENGINE);
	if (!h)
		return NULL;
	cache = cache_register_entered(h, &layout, list);
	handle_leave(h);
	return cache;
}

PyMethodDef memory_methods[] = {
	{ "alloc", memory_alloc, METH_VARARGS, NULL },
	{ "memory_info", memory_info, METH_O, NULL },
	{ "cache_register", cache_register, METH_VARARGS, NULL },
	{ "dlpack_info", core_dlpack_info, METH_O, NULL },
	{ NULL, NULL, 0, NULL },
};
