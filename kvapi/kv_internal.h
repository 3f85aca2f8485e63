/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_internal.h -- the objects behind kv.h, their locks, and what the files of this folder offer
 * each other
 *
 * Locks, in the order in which they may be taken:
 *   engine.turn    one thread at a time sits in kv_service_turn
 *   peer.claim     everything of a peer and of its operations, leases and grants; the only lock of
 *                  the data path, taken once per call. Its holder posts and polls the connection.
 *   engine.lock    the table of peers, the list of caches, the listener
 *   the rest       cache.lock (owners of blocks), arrivals.lock, pool.lock: leaves, held for a few
 *                  instructions
 * A thread that holds engine.lock may try peer.claim, never wait for it.
 *
 * A thread that releases a claim leaves the connection armed (KV_PROGRESS_AUTO), so that the
 * service thread wakes for the next event. When the service thread finds a claim taken it sets
 * engine.wants[index]; the holder then gives the descriptor back to epoll after its release.
 */
#ifndef KV_INTERNAL_H
#define KV_INTERNAL_H

#include "kv_engine.h"
#include "kv_lease.h"
#include "kv_op.h"
#include "kv_peer.h"

#endif
