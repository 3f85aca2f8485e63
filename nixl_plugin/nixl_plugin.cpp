/* SPDX-License-Identifier: Apache-2.0 */
/* nixl_plugin.cpp -- the table that NIXL asks libplugin_KVRAIL.so for */
#include "nixl_engine.hpp"

#include <new>

/* Headers of g++ 11 and later call it; libstdc++ before 11, which runs NIXL's wheels as well, has none. */
void std::__throw_bad_array_new_length()
{
	throw std::bad_array_new_length();
}

namespace
{

nixlBackendEngine *create_engine(const nixlBackendInitParams *params)
{
	try {
		return new kvrailEngine(*params);
	} catch (...) {
		return nullptr;
	}
}

void destroy_engine(nixlBackendEngine *engine)
{
	delete engine;
}

const char *plugin_name()
{
	return "KVRAIL";
}

const char *plugin_version()
{
	return KVRAIL_VERSION;
}

/* Every option has a default and a variable of the environment: engines pass none. */
nixl_b_params_t backend_options()
{
	return {};
}

nixl_mem_list_t backend_mems()
{
	return kvrail_mems();
}

nixlBackendPlugin plugin = { NIXL_PLUGIN_API_VERSION, create_engine,   destroy_engine, plugin_name,
			     plugin_version,	      backend_options, backend_mems };

} // namespace

extern "C" __attribute__((visibility("default"))) nixlBackendPlugin *nixl_plugin_init(void);
extern "C" __attribute__((visibility("default"))) void nixl_plugin_fini(void);

extern "C" nixlBackendPlugin *nixl_plugin_init(void)
{
	return &plugin;
}

extern "C" void nixl_plugin_fini(void)
{
}
