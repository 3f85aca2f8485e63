/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nixl_abi.hpp -- NIXL's backend interface (plugin API version 1) as declarations of our own
 *
 * NIXL's wheels hold no header of it, so this is written from what their libraries are: the order
 * and the signatures of the virtual functions are those of libplugin_UCX.so, sizes and members those
 * that libnixl.so reads. tests/nixl/abi.py compares the former with the wheels. Names are NIXL's,
 * because they are part of what the linker and the loader compare.
 *
 * It needs the C++ library that NIXL was built with: libstdc++ with its C++11 strings.
 */
#ifndef NIXL_ABI_HPP
#define NIXL_ABI_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

static_assert(sizeof(std::string) == 32, "libstdc++ with _GLIBCXX_USE_CXX11_ABI=1 is needed");

enum nixl_mem_t { DRAM_SEG, VRAM_SEG, BLK_SEG, OBJ_SEG, FILE_SEG };
enum nixl_xfer_op_t { NIXL_READ, NIXL_WRITE };
enum class nixl_cost_t { ANALYTICAL_BACKEND };
enum nixl_status_t {
	NIXL_IN_PROG = 1,
	NIXL_SUCCESS = 0,
	NIXL_ERR_NOT_POSTED = -1,
	NIXL_ERR_INVALID_PARAM = -2,
	NIXL_ERR_BACKEND = -3,
	NIXL_ERR_NOT_FOUND = -4,
	NIXL_ERR_MISMATCH = -5,
	NIXL_ERR_NOT_ALLOWED = -6,
	NIXL_ERR_REPOST_ACTIVE = -7,
	NIXL_ERR_UNKNOWN = -8,
	NIXL_ERR_NOT_SUPPORTED = -9,
	NIXL_ERR_REMOTE_DISCONNECT = -10,
	NIXL_ERR_CANCELED = -11,
};

using nixl_b_params_t = std::unordered_map<std::string, std::string>;
using nixl_blob_t = std::string;
using nixl_mem_list_t = std::vector<nixl_mem_t>;
using notif_list_t = std::vector<std::pair<std::string, std::string>>;

/* Made by a backend, handed back by the core. */
class nixlBackendMD {
    protected:
	bool isPrivateMD;

    public:
	explicit nixlBackendMD(bool is_private) : isPrivateMD(is_private)
	{
	}
	virtual ~nixlBackendMD() = default;
};

class nixlBackendReqH {
    public:
	virtual ~nixlBackendReqH() = default;
};

struct nixlBasicDesc {
	uintptr_t addr;
	size_t len;
	uint64_t devId;
};

struct nixlBlobDesc : nixlBasicDesc {
	nixl_blob_t metaInfo;
};

struct nixlMetaDesc : nixlBasicDesc {
	nixlBackendMD *metadataP;
};

class nixlRemoteMetaDesc;

/* Only looked at: its virtual functions are the core's. */
template <class T> class nixlDescList {
    public:
	virtual ~nixlDescList() = default;

	nixl_mem_t type;
	std::vector<T> descs;
};

using nixl_meta_dlist_t = nixlDescList<nixlMetaDesc>;
using nixl_remote_meta_dlist_t = nixlDescList<nixlRemoteMetaDesc>;
using nixl_reg_dlist_t = nixlDescList<nixlBlobDesc>;
using nixlMemViewH = void *;
using nixl_query_resp_t = std::optional<nixl_b_params_t>;

struct nixlBackendOptionalArgs {
	nixl_blob_t notifMsg;
	bool hasNotif;
	nixl_blob_t customParam;
};
using nixl_opt_b_args_t = nixlBackendOptionalArgs;
class nixlAgentOptionalArgs;
struct nixlTelemetryEvent;

/* Newer versions append to it: what is read here stays where it is. */
struct nixlBackendInitParams {
	std::string localAgent;
	std::string type;
	nixl_b_params_t *customParams;
	bool enableProgTh;
	uint64_t pthrDelay;
	int syncMode;
	bool enableTelemetry_;
};

/* Stands in the place of the core's vector of events, which a backend without any leaves empty. */
struct nixlNoEvents {
	void *begin = nullptr, *end = nullptr, *room = nullptr;
};

class nixlBackendEngine {
    private:
	std::string backendType;
	nixl_b_params_t customParams;
	nixlNoEvents telemetryEvents;
	std::mutex telemetryMutex;

    protected:
	bool initErr = false;
	const std::string localAgent;
	const bool enableTelemetry_;

    public:
	explicit nixlBackendEngine(const nixlBackendInitParams &params)
	    : backendType(params.type), customParams(*params.customParams),
	      localAgent(params.localAgent), enableTelemetry_(params.enableTelemetry_)
	{
	}
	nixlBackendEngine(const nixlBackendEngine &) = delete;
	nixlBackendEngine &operator=(const nixlBackendEngine &) = delete;

	virtual ~nixlBackendEngine() = default;
	virtual bool supportsRemote() const = 0;
	virtual bool supportsLocal() const = 0;
	virtual bool supportsNotif() const = 0;
	virtual nixl_mem_list_t getSupportedMems() const = 0;
	virtual nixl_status_t registerMem(const nixlBlobDesc &mem, const nixl_mem_t &type,
					  nixlBackendMD *&out) = 0;
	virtual nixl_status_t deregisterMem(nixlBackendMD *meta) = 0;
	virtual nixl_status_t connect(const std::string &remote_agent) = 0;
	virtual nixl_status_t disconnect(const std::string &remote_agent) = 0;
	virtual nixl_status_t unloadMD(nixlBackendMD *input) = 0;
	virtual nixl_status_t prepXfer(const nixl_xfer_op_t &operation,
				       const nixl_meta_dlist_t &local,
				       const nixl_meta_dlist_t &remote,
				       const std::string &remote_agent, nixlBackendReqH *&handle,
				       const nixl_opt_b_args_t *opt_args) const = 0;
	virtual nixl_status_t postXfer(const nixl_xfer_op_t &operation,
				       const nixl_meta_dlist_t &local,
				       const nixl_meta_dlist_t &remote,
				       const std::string &remote_agent, nixlBackendReqH *&handle,
				       const nixl_opt_b_args_t *opt_args) const = 0;
	virtual nixl_status_t checkXfer(nixlBackendReqH *handle) const = 0;
	virtual nixl_status_t releaseReqH(nixlBackendReqH *handle) const = 0;
	virtual nixl_status_t prepMemView(const nixl_remote_meta_dlist_t &, nixlMemViewH &,
					  const nixl_opt_b_args_t *) const
	{
		return NIXL_ERR_NOT_SUPPORTED;
	}
	virtual nixl_status_t prepMemView(const nixl_meta_dlist_t &, nixlMemViewH &,
					  const nixl_opt_b_args_t *) const
	{
		return NIXL_ERR_NOT_SUPPORTED;
	}
	virtual void releaseMemView(nixlMemViewH) const
	{
	}
	virtual nixl_status_t getPublicData(const nixlBackendMD *meta, std::string &str) const = 0;
	virtual nixl_status_t getConnInfo(std::string &str) const = 0;
	virtual nixl_status_t loadRemoteConnInfo(const std::string &remote_agent,
						 const std::string &info) = 0;
	virtual nixl_status_t loadRemoteMD(const nixlBlobDesc &input, const nixl_mem_t &type,
					   const std::string &remote_agent,
					   nixlBackendMD *&output) = 0;
	virtual nixl_status_t loadLocalMD(nixlBackendMD *input, nixlBackendMD *&output) = 0;
	virtual nixl_status_t getNotifs(notif_list_t &list) = 0;
	virtual nixl_status_t genNotif(const std::string &remote_agent,
				       const std::string &msg) const = 0;
	virtual nixl_status_t queryMem(const nixl_reg_dlist_t &,
				       std::vector<nixl_query_resp_t> &) const
	{
		return NIXL_ERR_NOT_SUPPORTED;
	}
	virtual nixl_status_t
	estimateXferCost(const nixl_xfer_op_t &, const nixl_meta_dlist_t &,
			 const nixl_meta_dlist_t &, const std::string &, nixlBackendReqH *const &,
			 std::chrono::microseconds &, std::chrono::microseconds &, nixl_cost_t &,
			 const nixlAgentOptionalArgs *) const
	{
		return NIXL_ERR_NOT_SUPPORTED;
	}
};

enum { NIXL_PLUGIN_API_VERSION = 1 };

struct nixlBackendPlugin {
	int api_version;
	nixlBackendEngine *(*create_engine)(const nixlBackendInitParams *params);
	void (*destroy_engine)(nixlBackendEngine *engine);
	const char *(*get_plugin_name)();
	const char *(*get_plugin_version)();
	nixl_b_params_t (*get_backend_options)();
	nixl_mem_list_t (*get_backend_mems)();
};

static_assert(sizeof(nixlBackendPlugin) == 56, "NIXL's table of a plugin");
static_assert(sizeof(nixlBackendInitParams) == 96, "what a backend is created with");
static_assert(sizeof(nixlBackendEngine) == 208, "a backend, of which the core reads members");
static_assert(sizeof(nixlBackendOptionalArgs) == 72, "a notification beside a transfer");
static_assert(sizeof(nixlMetaDesc) == 32 && sizeof(nixlBlobDesc) == 56, "descriptors");
static_assert(sizeof(nixl_meta_dlist_t) == 40, "a list of descriptors");

#endif
