/* SPDX-License-Identifier: Apache-2.0 */
/* module.c -- the module kvrail._core and its constants */
#include "ext.h"

static struct PyModuleDef core_module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_core",
	.m_doc = "The C library as flat functions. Use the packages kvrail and rdma_comm instead.",
	.m_size = -1,
};

static const struct {
	const char *name;
	long value;
} constants[] = {
#define ERR(name, value, scope, text) { "ERR_" #name, -(value) },
	KV_ERROR_LIST(ERR)
#undef ERR
		{ "CACHE_OPEN", KV_CACHE_OPEN },
	{ "CACHE_READABLE", KV_CACHE_READABLE },
	{ "TENSOR_REPLICATED", KV_TENSOR_REPLICATED },
	{ "ORDER_HND", KV_ORDER_HND },
	{ "ORDER_NHD", KV_ORDER_NHD },
	{ "MEM_HOST", KV_MEM_HOST },
	{ "MEM_CUDA", KV_MEM_CUDA },
	{ "PROGRESS_AUTO", KV_PROGRESS_AUTO },
	{ "PROGRESS_CALLER", KV_PROGRESS_CALLER },
	{ "SENT", KV_SENT },
	{ "VISIBLE", KV_VISIBLE },
	{ "ACKED", KV_ACKED },
	{ "ARRIVAL_BLOCKS", KV_ARRIVAL_BLOCKS },
	{ "ARRIVAL_PEER_UP", KV_ARRIVAL_PEER_UP },
	{ "ARRIVAL_PEER_LOST", KV_ARRIVAL_PEER_LOST },
	{ "ARRIVAL_EXPIRED", KV_ARRIVAL_EXPIRED },
	{ "ARRIVAL_UNFINISHED", KV_ARRIVAL_UNFINISHED },
	{ "WRITE", 0 },
	{ "READ", 1 },
	{ "SEND", 2 },
	{ "RECV", 3 },
};

PyMODINIT_FUNC PyInit__core(void);

PyMODINIT_FUNC PyInit__core(void)
{
	PyMethodDef *const tables[] = { engine_methods, arrival_methods, memory_methods,
					peer_methods,	comm_methods,	 op_methods,
					look_methods };
	PyObject *module = PyModule_Create(&core_module), *address;

	if (!module)
		return NULL;
	for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
		if (PyModule_AddFunctions(module, tables[i]))
			goto err_module;
	for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++)
		if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value))
			goto err_module;
	/* For bench/call.py, which times the call without Python. */
	address = PyLong_FromVoidPtr((void *)kv_write_blocks);
	if (PyModule_AddObject(module, "WRITE_BLOCKS_ADDRESS", address)) {
		Py_XDECREF(address);
		goto err_module;
	}
	if (handle_type_add(module))
		goto err_module;
	return module;

err_module:
	Py_DECREF(module);
	return NULL;
}
