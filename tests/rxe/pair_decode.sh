#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# pair_decode.sh -- guest a of the pair tests: a decode process that is killed and started again when guest b asks
kv_peer=$1
shared=$RXE_SHARED
export KVCACHE_TRANSPORT=ib

start() {
	"$kv_peer" decode 10.77.0.1 7777 &
	decode=$!
}

start
while kill -0 $decode 2>/dev/null; do
	if [ -e "$shared/kill-decode" ]; then
		kill -9 $decode
		wait $decode 2>/dev/null
		start
		rm "$shared/kill-decode"
	fi
	sleep 0.1
done
wait $decode
status=$?
rdma resource show
exit $status
