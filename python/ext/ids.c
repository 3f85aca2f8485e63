/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ids.c -- block ids from whatever Python has: lists, arrays and tensors of integers
 *
 * int64 arrays that lie in one piece are used where they are (numpy by __array_struct__, tensors by
 * DLPack); all else is converted once. The buffer protocol is not in the limited API of 3.10, and
 * not needed: what has only that (array.array, memoryview, range) is a sequence too.
 */
#include "ext.h"

#include <stdlib.h>
#include <string.h>

/* numpy's documented __array_struct__. */
struct array_struct {
	int two;
	int nd;
	char typekind;
	int itemsize;
	int flags;
	Py_ssize_t *shape;
	Py_ssize_t *strides;
	void *data;
	PyObject *descr;
};
enum { ARRAY_NATIVE = 0x200 };

/* DLPack, version 0: what __dlpack__() without arguments returns. */
struct dl_tensor {
	void *data;
	struct {
		int32_t type, id;
	} device;
	int32_t ndim;
	struct {
		uint8_t code, bits;
		uint16_t lanes;
	} dtype;
	int64_t *shape;
	int64_t *strides; /* in elements; NULL: one piece */
	uint64_t byte_offset;
};
/* DLPack from version 1 on, which some return without being asked for it. */
struct dl_versioned {
	uint32_t major, minor;
	void *manager;
	void (*deleter)(struct dl_versioned *self);
	uint64_t flags;
	struct dl_tensor tensor;
};
enum { DL_MAJOR = 1, DL_READ_ONLY = 1 << 0 };
enum { DL_INT = 0, DL_UINT = 1, DL_CPU = 1, DL_CUDA_HOST = 3, DL_CUDA_MANAGED = 13 };

/* One dimension of integers, from either protocol. */
struct vector {
	const char *data;
	size_t n;
	Py_ssize_t stride; /* bytes */
	int itemsize;
	bool is_signed;
};

void ids_drop(struct ids *ids)
{
	free(ids->own);
	Py_XDECREF(ids->keep);
	*ids = (struct ids){ 0 };
}

static int ids_alloc(struct ids *ids, size_t n)
{
	ids->own = malloc((n ? n : 1) * sizeof(*ids->own));
	if (!ids->own) {
		PyErr_NoMemory();
		return -1;
	}
	ids->id = ids->own;
	ids->n = n;
	return 0;
}

int ids_own(struct ids *local, struct ids *remote)
{
	struct ids both;

	if (ids_alloc(&both, local->n + remote->n))
		return -1;
	if (local->n)
		memcpy(both.own, local->id, local->n * sizeof(*both.own));
	if (remote->n)
		memcpy(both.own + local->n, remote->id, remote->n * sizeof(*both.own));
	both.keep = NULL;
	both.n = local->n;
	ids_drop(local);
	*local = both;
	both = (struct ids){ .id = local->own + local->n, .n = remote->n };
	ids_drop(remote);
	*remote = both;
	return 0;
}

static int not_an_id(const char *what, Py_ssize_t i, PyObject *item)
{
	PyObject *name = PyObject_GetAttrString((PyObject *)Py_TYPE(item), "__name__");

	PyErr_Clear();
	PyErr_Format(PyExc_TypeError, "%s[%zd] is a %S, not an integer", what, i,
		     name ? name : Py_None);
	Py_XDECREF(name);
	return -1;
}

/* Anything but an int itself: numpy's integers, tensors of one element. Runs foreign code. */
static int id_of_object(PyObject *item, const char *what, Py_ssize_t i, int64_t *id)
{
	PyObject *index;

	Py_INCREF(item);
	index = PyNumber_Index(item);
	if (!index) {
		if (PyErr_ExceptionMatches(PyExc_TypeError))
			not_an_id(what, i, item);
		Py_DECREF(item);
		return -1;
	}
	Py_DECREF(item);
	*id = PyLong_AsLongLong(index);
	Py_DECREF(index);
	return 0;
}

_Static_assert(sizeof(Py_ssize_t) == sizeof(int64_t), "PyLong_AsSsize_t takes every id");

/* PyLong_AsSsize_t takes fewer instructions than PyLong_AsLongLong. */
static int ids_from_list(struct ids *ids, PyObject *list, const char *what)
{
	Py_ssize_t n = PyList_Size(list);
	int64_t id, *own;

	if (ids_alloc(ids, (size_t)n))
		return -1;
	own = ids->own;
	for (Py_ssize_t i = 0; i < n; i++) {
		PyObject *item = PyList_GetItem(list, i); /* the list may have shrunk */

		if (!item)
			return -1;
		if (PyLong_CheckExact(item))
			id = PyLong_AsSsize_t(item);
		else if (id_of_object(item, what, i, &id))
			return -1;
		if (id == -1 && PyErr_Occurred()) {
			PyErr_Format(PyExc_OverflowError, "%s[%zd] does not fit in 64 bits", what,
				     i);
			return -1;
		}
		own[i] = id;
	}
	return 0;
}

static int64_t load(const char *at, int itemsize, bool is_signed)
{
	union {
		int8_t i8;
		int16_t i16;
		int32_t i32;
		int64_t i64;
		uint8_t u8;
		uint16_t u16;
		uint32_t u32;
	} v;

	memcpy(&v, at, (size_t)itemsize);
	switch (itemsize) {
	case 1:
		return is_signed ? v.i8 : v.u8;
	case 2:
		return is_signed ? v.i16 : v.u16;
	case 4:
		return is_signed ? (int64_t)v.i32 : (int64_t)v.u32;
	default:
		return v.i64;
	}
}

static int ids_from_vector(struct ids *ids, const struct vector *v, PyObject *keep,
			   const char *what)
{
	if (v->itemsize != 1 && v->itemsize != 2 && v->itemsize != 4 && v->itemsize != 8) {
		PyErr_Format(PyExc_TypeError, "%s has items of %d bytes", what, v->itemsize);
		return -1;
	}
	if (v->itemsize == 8 && v->is_signed && v->stride == 8 && !((uintptr_t)v->data % 8)) {
		ids->id = (const int64_t *)(const void *)v->data;
		ids->n = v->n;
		ids->keep = keep;
		Py_INCREF(keep);
		return 0;
	}
	if (ids_alloc(ids, v->n))
		return -1;
	for (size_t i = 0; i < v->n; i++) {
		int64_t id = load(v->data + (Py_ssize_t)i * v->stride, v->itemsize, v->is_signed);

		if (v->itemsize == 8 && !v->is_signed && id < 0) {
			PyErr_Format(PyExc_OverflowError,
				     "%s[%zd] does not fit in 64 bits with a sign", what,
				     (Py_ssize_t)i);
			return -1;
		}
		ids->own[i] = id;
	}
	return 0;
}

static int not_one_dimension(const char *what, int nd)
{
	PyErr_Format(PyExc_TypeError, "%s has %d dimensions; block ids have one", what, nd);
	return -1;
}

static const void *capsule_of(PyObject *obj, const char *name, const char *what)
{
	if (PyCapsule_IsValid(obj, name))
		return PyCapsule_GetPointer(obj, name);
	PyErr_Format(PyExc_TypeError, "%s is described by a %R, not by a capsule %s", what,
		     Py_TYPE(obj), name ? name : "of numpy's");
	return NULL;
}

static int ids_from_array(struct ids *ids, PyObject *capsule, const char *what)
{
	const struct array_struct *a = capsule_of(capsule, NULL, what);
	struct vector v;

	if (!a)
		return -1;
	if (a->two != 2 || (a->typekind != 'i' && a->typekind != 'u') ||
	    !(a->flags & ARRAY_NATIVE)) {
		PyErr_Format(PyExc_TypeError, "%s is an array whose items are not integers", what);
		return -1;
	}
	if (a->nd != 1)
		return not_one_dimension(what, a->nd);
	v = (struct vector){ .data = a->data,
			     .n = (size_t)a->shape[0],
			     .stride = a->strides ? a->strides[0] : a->itemsize,
			     .itemsize = a->itemsize,
			     .is_signed = a->typekind == 'i' };
	return ids_from_vector(ids, &v, capsule, what); /* the capsule holds the array */
}

static const struct dl_tensor *tensor_of(PyObject *capsule, const char *what, bool *readonly_p)
{
	const struct dl_versioned *v;

	*readonly_p = false;
	if (!PyCapsule_IsValid(capsule, "dltensor_versioned"))
		return capsule_of(capsule, "dltensor", what);
	v = PyCapsule_GetPointer(capsule, "dltensor_versioned");
	if (v->major != DL_MAJOR) {
		PyErr_Format(PyExc_TypeError, "%s is described in version %u of DLPack", what,
			     v->major);
		return NULL;
	}
	*readonly_p = v->flags & DL_READ_ONLY;
	return &v->tensor;
}

static int ids_from_dlpack(struct ids *ids, PyObject *capsule, const char *what)
{
	bool readonly;
	const struct dl_tensor *t = tensor_of(capsule, what, &readonly);
	struct vector v;

	if (!t)
		return -1;
	if (t->device.type != DL_CPU && t->device.type != DL_CUDA_HOST &&
	    t->device.type != DL_CUDA_MANAGED) {
		PyErr_Format(PyExc_TypeError,
			     "%s lies in a device's memory; block ids are needed on the host",
			     what);
		return -1;
	}
	if ((t->dtype.code != DL_INT && t->dtype.code != DL_UINT) || t->dtype.lanes != 1) {
		PyErr_Format(PyExc_TypeError, "%s is a tensor whose items are not integers", what);
		return -1;
	}
	if (t->ndim != 1)
		return not_one_dimension(what, t->ndim);
	v = (struct vector){ .data = (const char *)t->data + t->byte_offset,
			     .n = (size_t)t->shape[0],
			     .stride = (t->strides ? t->strides[0] : 1) * (t->dtype.bits / 8),
			     .itemsize = t->dtype.bits / 8,
			     .is_signed = t->dtype.code == DL_INT };
	/* Its name is left as it is, so the capsule's own destructor gives the tensor back. */
	return ids_from_vector(ids, &v, capsule, what);
}

/* The attribute, or NULL without an exception if there is none; an exception otherwise. */
static PyObject *attribute(PyObject *obj, const char *name)
{
	PyObject *value = PyObject_GetAttrString(obj, name);

	if (!value && PyErr_ExceptionMatches(PyExc_AttributeError))
		PyErr_Clear();
	return value;
}

static int ids_from_sequence(struct ids *ids, PyObject *obj, const char *what)
{
	PyObject *list;
	int rc;

	if (!PySequence_Check(obj) || PyUnicode_Check(obj) || PyBytes_Check(obj) ||
	    PyByteArray_Check(obj)) {
		PyErr_Format(PyExc_TypeError, "%s must be a list, array or tensor of integers",
			     what);
		return -1;
	}
	list = PySequence_List(obj);
	if (!list &&
	    PyErr_ExceptionMatches(PyExc_NotImplementedError)) /* a memoryview's word for it */
		PyErr_Format(PyExc_TypeError, "%s must have one dimension", what);
	if (!list)
		return -1;
	rc = ids_from_list(ids, list, what);
	Py_DECREF(list);
	return rc;
}

/* Its own exception says why, but not which argument it was. */
static int refused_export(const char *what)
{
	PyObject *type, *value, *trace;

	if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
		return -1;
	PyErr_Fetch(&type, &value, &trace);
	PyErr_Format(PyExc_TypeError, "%s is a tensor whose memory cannot be reached (%R)", what,
		     value ? value : type);
	Py_XDECREF(type);
	Py_XDECREF(value);
	Py_XDECREF(trace);
	return -1;
}

/*
 * A masked array is described by its data, the masked items among them. The last type without a
 * mask is remembered, as most calls come with the same.
 */
static int check_mask(PyObject *obj, const char *what)
{
	static PyObject *plain;
	PyObject *type = (PyObject *)Py_TYPE(obj), *mask;

	if (type == plain)
		return 0;
	mask = attribute(obj, "mask");
	if (mask) {
		Py_DECREF(mask);
		PyErr_Format(PyExc_TypeError, "%s is a masked array; give the ids that are not",
			     what);
		return -1;
	}
	if (PyErr_Occurred())
		return -1;
	Py_INCREF(type);
	Py_XDECREF(plain);
	plain = type;
	return 0;
}

static int ids_from_any(struct ids *ids, PyObject *obj, const char *what)
{
	PyObject *found;
	int rc;

	if (PyList_Check(obj))
		return ids_from_list(ids, obj, what);
	found = attribute(obj, "__array_struct__");
	if (found) {
		rc = check_mask(obj, what) ? -1 : ids_from_array(ids, found, what);
		Py_DECREF(found);
		return rc;
	}
	if (PyErr_Occurred())
		return -1;
	found = attribute(obj, "__dlpack__");
	if (found) {
		PyObject *capsule = PyObject_CallObject(found, NULL);

		Py_DECREF(found);
		if (!capsule)
			return refused_export(what);
		rc = ids_from_dlpack(ids, capsule, what);
		Py_DECREF(capsule);
		return rc;
	}
	if (PyErr_Occurred())
		return -1;
	return ids_from_sequence(ids, obj, what);
}

int ids_take(struct ids *ids, PyObject *obj, const char *what)
{
	*ids = (struct ids){ 0 };
	if (!ids_from_any(ids, obj, what))
		return 0;
	ids_drop(ids);
	return -1;
}

/*
 * dlpack_info(capsule) -> (device type, device id, address, bytes of an item or 0 if they are not
 * whole ones, shape, strides in bytes, whether it must not be written)
 */
PyObject *core_dlpack_info(PyObject *Py_UNUSED(module), PyObject *capsule)
{
	bool readonly;
	const struct dl_tensor *t = tensor_of(capsule, "memory", &readonly);
	PyObject *shape, *strides, *n;
	int itemsize;

	if (!t)
		return NULL;
	itemsize = t->dtype.bits * t->dtype.lanes % 8 ? 0 : t->dtype.bits * t->dtype.lanes / 8;
	shape = PyList_New(0);
	strides = t->strides ? PyList_New(0) : Py_None;
	if (!t->strides)
		Py_INCREF(Py_None);
	for (int32_t i = 0; shape && strides && i < t->ndim; i++) {
		n = PyLong_FromLongLong(t->shape[i]);
		if (!n || PyList_Append(shape, n))
			Py_CLEAR(shape);
		Py_XDECREF(n);
		if (!t->strides)
			continue;
		n = PyLong_FromLongLong(t->strides[i] * itemsize);
		if (!n || PyList_Append(strides, n))
			Py_CLEAR(strides);
		Py_XDECREF(n);
	}
	if (!shape || !strides) {
		Py_XDECREF(shape);
		Py_XDECREF(strides);
		return NULL;
	}
	return Py_BuildValue("iiKiNNN", t->device.type, t->device.id,
			     (unsigned long long)((uintptr_t)t->data + t->byte_offset), itemsize,
			     shape, strides, PyBool_FromLong(readonly));
}
