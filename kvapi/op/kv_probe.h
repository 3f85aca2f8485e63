/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_probe.h -- static probes (USDT) of the stations of an operation, for bpftrace and perf
 *
 * Provider kvrail. A probe is one nop until a tracer is there; without <sys/sdt.h> (package
 * systemtap-sdt-dev) at build time there are none. docs/operate.md has a script that uses them.
 *
 *   begin    op, kind, bytes    it has its slot
 *   posted   op, kind, bytes    all of it was given to the transport
 *   written  op, kind           the transport is done with it
 *   visible  op, kind           the receiver has said that its bytes are there
 *   acked    op, kind, status   it is acknowledged
 *   ended    op, kind, code     its call returns, or kv_test says so
 *   lost     peer's name, code  a peer is gone
 *
 * op: an address, unique until `ended`. kind: 0 write, 1 read, 2 send, 3 receive.
 */
#ifndef KV_PROBE_H
#define KV_PROBE_H

#ifdef KVRAIL_SDT
#include <sys/sdt.h>
#define KV_PROBE_OP(station, op, value) \
	DTRACE_PROBE3(kvrail, station, (op), (int)(op)->kind, (int64_t)(value))
#define KV_PROBE_PEER(station, peer, code) \
	DTRACE_PROBE2(kvrail, station, (peer)->name, (int)(code))
#else
#define KV_PROBE_OP(station, op, value)
#define KV_PROBE_PEER(station, peer, code)
#endif

#endif
