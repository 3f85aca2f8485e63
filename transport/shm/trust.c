/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trust.c -- which peers may reach memory directly (memfd pool, process_vm), and which get the ring
 *
 * Direct access is all or nothing: a descriptor gives the whole pool, and process_vm_* the whole
 * process. So it is given to, and taken from, processes of the same user only, or of users that
 * KVCACHE_SHM_ALLOW_UIDS names. All others get the ring, where the receiver copies and checks.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/option.h"
#include "shm.h"

int trust_read(struct shm_ctx *ctx, struct kv_error *err)
{
	const char *list = kv_option_string(ctx->tr->options, KV_OPT_SHM_ALLOW_UIDS);

	ctx->uid[ctx->uids++] = geteuid();
	for (const char *at = list; *at;) {
		unsigned long long uid;
		char *end;

		errno = 0;
		uid = strtoull(at, &end, 10);
		if (*at < '0' || *at > '9' || errno || uid >= UINT32_MAX || (*end && *end != ','))
			return kv_fail(err, KV_ERR_ARG, "open",
				       "KVCACHE_SHM_ALLOW_UIDS is '%s': not numbers of users, "
				       "separated by commas",
				       list);
		if (ctx->uids == SHM_UIDS_MAX)
			return kv_fail(err, KV_ERR_ARG, "open",
				       "KVCACHE_SHM_ALLOW_UIDS names more than %d users",
				       SHM_UIDS_MAX - 1);
		ctx->uid[ctx->uids++] = (uid_t)uid;
		at = *end ? end + 1 : end;
	}
	return 0;
}

bool trust_user(const struct shm_conn *sc)
{
	for (unsigned int i = 0; i < sc->ctx->uids; i++)
		if (sc->ctx->uid[i] == sc->uid)
			return true;
	return false;
}

const char *trust_refuses(const struct shm_conn *sc)
{
	if (!trust_user(sc))
		return "the peer is another user's process";
	return sc->same_ends ? NULL : "the control connection is relayed by another process";
}

void trust_compare_ends(struct shm_conn *sc, const struct tr_conn_ends *theirs)
{
	struct tr_conn_ends ours;

	sc->same_ends = tr_conn_ends(sc->conn, &ours) &&
			!memcmp(ours.local, theirs->remote, sizeof(ours.local)) &&
			!memcmp(ours.remote, theirs->local, sizeof(ours.remote));
}
