/* SPDX-License-Identifier: Apache-2.0 */
/* nixl_engine.cpp -- the backend: NIXL's calls become those of agent.h; no exception leaves one */
#include "nixl_engine.hpp"

#include <cstdio>
#include <new>
#include <thread>

namespace
{

/* A region of this agent, or of a peer. */
struct Region final : nixlBackendMD {
	ag_mem *mem = nullptr;
	ag_rmem *rmem = nullptr;

	Region() : nixlBackendMD(true)
	{
	}
};

struct Request final : nixlBackendReqH {
	ag_xfer *xfer = nullptr;
	bool stopping = false;
};

/* The second call for a request is NIXL's last, see releaseReqH. */
constexpr auto last_release = std::chrono::seconds(10);

nixl_status_t status_of(int ret)
{
	if (ret >= 0)
		return ret == AG_AGAIN ? NIXL_IN_PROG : NIXL_SUCCESS;
	if (kv_error_scope(ret) == KV_SCOPE_PEER)
		return NIXL_ERR_REMOTE_DISCONNECT;
	switch (ret) {
	case KV_ERR_ARG:
		return NIXL_ERR_INVALID_PARAM;
	case KV_ERR_BUSY:
		return NIXL_ERR_NOT_ALLOWED;
	case KV_ERR_REVOKED:
	case KV_ERR_CLOSED:
		return NIXL_ERR_NOT_FOUND; /* a region that is not there any more */
	case KV_ERR_CANCELLED:
		return NIXL_ERR_CANCELED;
	case KV_ERR_UNSUPPORTED:
		return NIXL_ERR_NOT_SUPPORTED;
	default:
		return NIXL_ERR_BACKEND;
	}
}

template <class F> nixl_status_t contained(F call) noexcept
{
	try {
		return call();
	} catch (...) {
		return NIXL_ERR_BACKEND; /* no memory is all that is thrown here */
	}
}

/* "KVCACHE_NAME=value" of what the engine passes; other names are those of other backends. */
std::vector<std::string> options_of(const nixl_b_params_t &params)
{
	std::vector<std::string> options;

	for (const auto &[name, value] : params)
		if (!name.compare(0, 8, "KVCACHE_"))
			options.push_back(name + "=" + value);
	return options;
}

bool take_note(void *arg, const char *name, const void *note, size_t len)
{
	try {
		static_cast<notif_list_t *>(arg)->emplace_back(
			name, std::string(static_cast<const char *>(note), len));
	} catch (...) {
		return false;
	}
	return true;
}

bool is_memory(nixl_mem_t type)
{
	return type == DRAM_SEG || type == VRAM_SEG;
}

} // namespace

/* That of GPUs only where there may be one: NIXL chooses a backend by it. */
nixl_mem_list_t kvrail_mems()
{
	return ag_has_cuda() ? nixl_mem_list_t{ DRAM_SEG, VRAM_SEG } : nixl_mem_list_t{ DRAM_SEG };
}

kvrailEngine::kvrailEngine(const nixlBackendInitParams &params) : nixlBackendEngine(params)
{
	const std::vector<std::string> options = options_of(*params.customParams);
	std::vector<const char *> list;
	ag_config config = {};
	kv_error err;
	size_t len;
	const void *info;

	for (const std::string &option : options)
		list.push_back(option.c_str());
	list.push_back(nullptr);
	config.name = localAgent.c_str();
	config.options = list.data();
	if (ag_open(&config, &agent, &err)) {
		agent = nullptr;
		initErr = true;
		/* NIXL says that the backend could not be created, and has no place for the cause. */
		fprintf(stderr, "kvrail: KV_ERR_%s: %s%s%s\n", kv_error_name(err.code), err.message,
			*err.hint ? "; " : "", err.hint);
		return;
	}
	info = ag_info(agent, &len);
	initErr = ag_peer_load(agent, localAgent.c_str(), info, len, &err);
}

kvrailEngine::~kvrailEngine()
{
	ag_close(agent);
}

nixl_status_t kvrailEngine::fail(const char *what, const kv_error &err) const noexcept
{
	ag_report(agent, what, &err);
	return status_of(err.code);
}

nixl_mem_list_t kvrailEngine::getSupportedMems() const
{
	return kvrail_mems();
}

/* ---------------------------------------------------------------- regions */


nixl_status_t kvrailEngine::registerMem(const nixlBlobDesc &mem, const nixl_mem_t &type,
					nixlBackendMD *&out)
{
	return contained([&] {
		kv_error err;

		if (!is_memory(type))
			return NIXL_ERR_NOT_SUPPORTED;
		auto *region = new Region;
		if (ag_mem_reg(agent, reinterpret_cast<void *>(mem.addr), mem.len,
			       type == VRAM_SEG ? AG_CUDA : AG_HOST, &region->mem, &err)) {
			delete region;
			return fail("register", err);
		}
		out = region;
		return NIXL_SUCCESS;
	});
}

nixl_status_t kvrailEngine::deregisterMem(nixlBackendMD *meta)
{
	auto *region = static_cast<Region *>(meta);
	kv_error err;
	int ret = ag_mem_dereg(region->mem, &err);

	delete region;
	return ret ? fail("deregister", err) : NIXL_SUCCESS;
}

nixl_status_t kvrailEngine::getPublicData(const nixlBackendMD *meta, std::string &str) const
{
	return contained([&] {
		uint8_t info[AG_MEM_INFO_MAX];
		size_t len = ag_mem_info(static_cast<const Region *>(meta)->mem, info);

		str.assign(reinterpret_cast<const char *>(info), len);
		return NIXL_SUCCESS;
	});
}

nixl_status_t kvrailEngine::load_region(const std::string &owner, const void *info, size_t len,
					nixlBackendMD *&output) noexcept
{
	return contained([&] {
		auto *region = new Region;
		kv_error err;

		if (ag_rmem_load(agent, owner.c_str(), info, len, &region->rmem, &err)) {
			delete region;
			return fail("load a region", err);
		}
		output = region;
		return NIXL_SUCCESS;
	});
}

nixl_status_t kvrailEngine::loadRemoteMD(const nixlBlobDesc &input, const nixl_mem_t &type,
					 const std::string &remote_agent, nixlBackendMD *&output)
{
	if (!is_memory(type))
		return NIXL_ERR_NOT_SUPPORTED;
	return load_region(remote_agent, input.metaInfo.data(), input.metaInfo.size(), output);
}

nixl_status_t kvrailEngine::loadLocalMD(nixlBackendMD *input, nixlBackendMD *&output)
{
	uint8_t info[AG_MEM_INFO_MAX];
	size_t len = ag_mem_info(static_cast<Region *>(input)->mem, info);

	return load_region(localAgent, info, len, output);
}

nixl_status_t kvrailEngine::unloadMD(nixlBackendMD *input)
{
	auto *region = static_cast<Region *>(input);

	if (region && region->rmem)
		ag_rmem_unload(region->rmem);
	delete region;
	return NIXL_SUCCESS;
}

/* ---------------------------------------------------------------- peers */

nixl_status_t kvrailEngine::getConnInfo(std::string &str) const
{
	return contained([&] {
		size_t len;
		const void *info = ag_info(agent, &len);

		str.assign(static_cast<const char *>(info), len);
		return NIXL_SUCCESS;
	});
}

nixl_status_t kvrailEngine::loadRemoteConnInfo(const std::string &remote_agent,
					       const std::string &info)
{
	kv_error err;

	if (ag_peer_load(agent, remote_agent.c_str(), info.data(), info.size(), &err))
		return fail("load a peer", err);
	return NIXL_SUCCESS;
}

/* The connection was begun when the peer was loaded. */
nixl_status_t kvrailEngine::connect(const std::string &remote_agent)
{
	kv_error err;
	int ret = ag_peer_check(agent, remote_agent.c_str(), &err);

	return ret < 0 ? fail("connect", err) : NIXL_SUCCESS;
}

nixl_status_t kvrailEngine::disconnect(const std::string &remote_agent)
{
	if (remote_agent != localAgent)
		ag_peer_drop(agent, remote_agent.c_str());
	return NIXL_SUCCESS;
}

/* ---------------------------------------------------------------- transfers */

nixl_status_t kvrailEngine::prepXfer(const nixl_xfer_op_t &operation,
				     const nixl_meta_dlist_t &local,
				     const nixl_meta_dlist_t &remote,
				     const std::string &remote_agent, nixlBackendReqH *&handle,
				     const nixl_opt_b_args_t *) const
{
	return contained([&] {
		std::vector<ag_pair> pairs(local.descs.size());
		kv_error err;

		if (local.descs.size() != remote.descs.size())
			return NIXL_ERR_MISMATCH;
		if (!is_memory(local.type) || !is_memory(remote.type))
			return NIXL_ERR_NOT_SUPPORTED;
		for (size_t i = 0; i < pairs.size(); i++) {
			const nixlMetaDesc &l = local.descs[i], &r = remote.descs[i];

			if (l.len != r.len)
				return NIXL_ERR_MISMATCH;
			pairs[i] = { static_cast<Region *>(l.metadataP)->mem,
				     static_cast<Region *>(r.metadataP)->rmem, l.addr, r.addr,
				     l.len };
		}
		auto *request = new Request;
		if (ag_xfer_prepare(agent, remote_agent.c_str(),
				    operation == NIXL_READ ? AG_READ : AG_WRITE, pairs.data(),
				    pairs.size(), &request->xfer, &err)) {
			delete request;
			return fail("prepare", err);
		}
		handle = request;
		return NIXL_SUCCESS;
	});
}

nixl_status_t kvrailEngine::postXfer(const nixl_xfer_op_t &, const nixl_meta_dlist_t &,
				     const nixl_meta_dlist_t &, const std::string &,
				     nixlBackendReqH *&handle,
				     const nixl_opt_b_args_t *opt_args) const
{
	const std::string *note = opt_args && opt_args->hasNotif ? &opt_args->notifMsg : nullptr;
	kv_error err;
	int ret = ag_xfer_post(static_cast<Request *>(handle)->xfer, note ? note->data() : nullptr,
			       note ? note->size() : 0, &err);

	return ret < 0 ? fail("post", err) : status_of(ret);
}

nixl_status_t kvrailEngine::checkXfer(nixlBackendReqH *handle) const
{
	kv_error err;
	int ret = ag_xfer_check(static_cast<Request *>(handle)->xfer, &err);

	return ret < 0 ? fail("check", err) : status_of(ret);
}

nixl_status_t kvrailEngine::releaseReqH(nixlBackendReqH *handle) const
{
	auto *request = static_cast<Request *>(handle);
	auto until = std::chrono::steady_clock::now() + last_release;

	/*
	 * The first time NIXL says to its caller that the transfer is still active, and keeps it. When
	 * the caller comes again, NIXL asks once more and then forgets the transfer whatever it hears:
	 * so this call waits until nothing of it can land.
	 */
	while (ag_xfer_release(request->xfer) == AG_AGAIN) {
		if (!request->stopping || std::chrono::steady_clock::now() >= until) {
			request->stopping = true;
			return NIXL_ERR_REPOST_ACTIVE;
		}
		std::this_thread::sleep_for(std::chrono::microseconds(50));
	}
	delete request;
	return NIXL_SUCCESS;
}

/* ---------------------------------------------------------------- notifications */

nixl_status_t kvrailEngine::getNotifs(notif_list_t &list)
{
	ag_notes(agent, take_note, &list);
	return NIXL_SUCCESS;
}

nixl_status_t kvrailEngine::genNotif(const std::string &remote_agent, const std::string &msg) const
{
	kv_error err;

	if (ag_notify(agent, remote_agent.c_str(), msg.data(), msg.size(), &err))
		return fail("notify", err);
	return NIXL_SUCCESS;
}
