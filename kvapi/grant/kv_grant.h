/* SPDX-License-Identifier: Apache-2.0 */
/* kv_grant.h -- leases of the peer, as the writer knows them */
#ifndef KV_GRANT_H
#define KV_GRANT_H

#include "kv_peer.h"

/* A lease that the peer has opened for us. */
struct kv_grant {
	uint64_t id, tag;
	uint8_t cache;
	bool live, once, revoked;
	bool failed; /* a part of it will never be committed: the receiver is going to revoke it */
	struct kv_layers layers;
	uint32_t n, got;
	int64_t *ids; /* short ones are kept for the next use */
	size_t ids_cap;
	uint64_t sent[KV_LAYER_WORDS]; /* layers that kv_send_blocks has begun */
	uint64_t done[KV_LAYER_WORDS]; /* and that were acknowledged */
	uint64_t answer; /* 0; this lease, or the one before it here: its revocation is answered */
	struct kv_grant *older, *newer;
};

/* 0; PROTOCOL: it makes no sense, or is more than kv_budget.c allows; NOMEM */
int kv_grant_lease(struct kv_peer *peer, const struct kv_msg_lease *msg);
int kv_grant_ids(struct kv_peer *peer, const struct kv_msg_ids *msg);
int kv_grant_revoke(struct kv_peer *peer, uint64_t id);
void kv_grant_forget(struct kv_peer *peer, struct kv_grant *grant);
struct kv_grant *kv_grant_find(struct kv_peer *peer, uint64_t id);
/* The application passed on its number before LEASE or the last IDS came. */
bool kv_grant_under_way(struct kv_peer *peer, uint64_t id);
uint32_t kv_grant_owner(const struct kv_grant *grant); /* its value in map.owner */
/* The oldest complete grant of this tag and cache that still lacks one of these layers. */
struct kv_grant *kv_grant_match(struct kv_peer *peer, const struct kv_cache *cache, uint64_t tag,
				struct kv_layers layers);
bool kv_grant_claim(struct kv_grant *grant,
		    struct kv_layers layers); /* false: one was sent before */
void kv_grant_settled(struct kv_peer *peer, uint64_t id, struct kv_layers layers, int status);
void kv_grant_free_all(struct kv_peer *peer); /* and the owners of the peer's blocks */

#endif
