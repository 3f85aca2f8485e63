/* SPDX-License-Identifier: Apache-2.0 */
/* error.c -- a struct kv_error becomes the exception that kvrail._errors makes of it */
#include "ext.h"

#include <stdio.h>
#include <string.h>

static PyObject *error_factory;

/*
 * set_error_factory(f): f(code, name, scope, text, message, op, peer, device, hint, numbers)
 * returns an exception
 */
PyObject *core_set_error_factory(PyObject *Py_UNUSED(module), PyObject *factory)
{
	Py_INCREF(factory);
	Py_XDECREF(error_factory);
	error_factory = factory;
	Py_RETURN_NONE;
}

PyObject *text_of(const char *s)
{
	return PyUnicode_DecodeUTF8(s, (Py_ssize_t)strlen(s), "backslashreplace");
}

PyObject *raise_error(const struct kv_error *err)
{
	PyObject *exc, *args;
	char line[1024];

	if (!error_factory)
		return PyErr_Format(PyExc_RuntimeError, "%s: %s", err->op, err->message);
	kv_error_format(err, line, sizeof(line));
	args = Py_BuildValue("isiNNNNNN(iiIIiLL)", err->code, kv_error_name(err->code), err->scope,
			     text_of(line), text_of(err->message), text_of(err->op),
			     text_of(err->peer), text_of(err->device), text_of(err->hint),
			     err->sys_errno, err->wc_status, err->vendor_err, err->qp_num,
			     err->in_doubt, (long long)err->block_index, (long long)err->block_id);
	if (!args)
		return NULL;
	exc = PyObject_CallObject(error_factory, args);
	Py_DECREF(args);
	if (!exc)
		return NULL;
	PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
	Py_DECREF(exc);
	return NULL;
}

PyObject *raise_code(int code, const char *op, const char *message)
{
	struct kv_error err = { .size = sizeof(err),
				.code = code,
				.scope = kv_error_scope(code),
				.block_index = -1,
				.block_id = -1 };

	snprintf(err.op, sizeof(err.op), "%s", op);
	snprintf(err.message, sizeof(err.message), "%s", message);
	return raise_error(&err);
}
