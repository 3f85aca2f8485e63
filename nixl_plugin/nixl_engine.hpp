/* SPDX-License-Identifier: Apache-2.0 */
/* nixl_engine.hpp -- the backend: NIXL's calls become those of agent.h; no exception leaves one */
#ifndef NIXL_ENGINE_HPP
#define NIXL_ENGINE_HPP

extern "C" {
#include "agent.h"
}
#include "nixl_abi.hpp"

nixl_mem_list_t kvrail_mems(); /* the kinds of memory that it takes */

class kvrailEngine final : public nixlBackendEngine {
	ag_agent *agent = nullptr;

	nixl_status_t fail(const char *what, const kv_error &err) const noexcept;
	nixl_status_t load_region(const std::string &owner, const void *info, size_t len,
				  nixlBackendMD *&output) noexcept;

    public:
	explicit kvrailEngine(const nixlBackendInitParams &params);
	~kvrailEngine() override;

	bool supportsRemote() const override
	{
		return true;
	}
	bool supportsLocal() const override
	{
		return true;
	}
	bool supportsNotif() const override
	{
		return true;
	}
	nixl_mem_list_t getSupportedMems() const override;
	nixl_status_t registerMem(const nixlBlobDesc &mem, const nixl_mem_t &type,
				  nixlBackendMD *&out) override;
	nixl_status_t deregisterMem(nixlBackendMD *meta) override;
	nixl_status_t connect(const std::string &remote_agent) override;
	nixl_status_t disconnect(const std::string &remote_agent) override;
	nixl_status_t unloadMD(nixlBackendMD *input) override;
	nixl_status_t prepXfer(const nixl_xfer_op_t &operation, const nixl_meta_dlist_t &local,
			       const nixl_meta_dlist_t &remote, const std::string &remote_agent,
			       nixlBackendReqH *&handle,
			       const nixl_opt_b_args_t *opt_args) const override;
	nixl_status_t postXfer(const nixl_xfer_op_t &operation, const nixl_meta_dlist_t &local,
			       const nixl_meta_dlist_t &remote, const std::string &remote_agent,
			       nixlBackendReqH *&handle,
			       const nixl_opt_b_args_t *opt_args) const override;
	nixl_status_t checkXfer(nixlBackendReqH *handle) const override;
	nixl_status_t releaseReqH(nixlBackendReqH *handle) const override;
	nixl_status_t getPublicData(const nixlBackendMD *meta, std::string &str) const override;
	nixl_status_t getConnInfo(std::string &str) const override;
	nixl_status_t loadRemoteConnInfo(const std::string &remote_agent,
					 const std::string &info) override;
	nixl_status_t loadRemoteMD(const nixlBlobDesc &input, const nixl_mem_t &type,
				   const std::string &remote_agent,
				   nixlBackendMD *&output) override;
	nixl_status_t loadLocalMD(nixlBackendMD *input, nixlBackendMD *&output) override;
	nixl_status_t getNotifs(notif_list_t &list) override;
	nixl_status_t genNotif(const std::string &remote_agent,
			       const std::string &msg) const override;
};

#endif
