#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# pair_prefill.sh -- guest b of the pair tests: pair_prefill.sh KV_PEER FAULT...; each fault while requests are written
#
# A fault's own line says what is expected of it; the exit status is 1 if anything else happened.
kv_peer=$1
shift
export KVCACHE_TRANSPORT=ib KVCACHE_IB_TIMEOUT=14
tag=1 failed=0

# write SECONDS [end]: begins to write; sets prefill
write() {
	"$kv_peer" prefill 10.77.0.1 7777 "$tag" "$@" >/tmp/prefill.log 2>&1 &
	prefill=$!
	sleep 1.5
}

# expect FAILURES WORDS...: the writer ends well after so many failures (0, "some", "any"), each of them told with one of the words
expect() {
	wanted=$1
	shift
	wait $prefill
	status=$?
	sed "s/^/$fault: /" /tmp/prefill.log
	failures=$(sed -n 's/.* failures \([0-9]*\) .*/\1/p' /tmp/prefill.log)
	tag=$(sed -n 's/.* next \([0-9]*\)$/\1/p' /tmp/prefill.log)
	[ $status = 0 ] && [ "$failures" ] || bad "the writer ended with status $status"
	case $wanted in
	any) ;;
	some) [ "$failures" != 0 ] || bad "no failure was noticed" ;;
	*) [ "$failures" = "$wanted" ] || bad "$failures failures, not $wanted" ;;
	esac
	grep 'failed after' /tmp/prefill.log | while read -r line; do
		found=0
		for word; do
			case $line in *"$word"*) found=1 ;; esac
		done
		[ $found = 1 ] || echo "$line"
	done >/tmp/untold
	[ ! -s /tmp/untold ] || bad "a failure without its cause"
	tag=$((${tag:-1000} + 10))
}

bad() {
	echo "$fault: NOT AS EXPECTED: $*"
	failed=1
}

quiet() { # nothing goes wrong
	write 4
	expect 0
}

loss() { # 1 % of the packets of both directions are lost, some come out of order: nothing but slower
	tc qdisc add dev eth0 root netem loss 1% delay 1ms reorder 90%
	write 6
	expect 0
	tc qdisc del dev eth0 root
}

link_down_1s() { # shorter than what the queue pairs retry: nothing but a pause
	write 6
	ip link set eth0 down
	sleep 1
	ip link set eth0 up
	expect any PEER_LOST LINK TIMEOUT
}

silence() { # every packet is lost for longer than the queue pairs retry: told with its cause, then connected again
	write 9
	tc qdisc add dev eth0 root netem loss 100%
	sleep 4
	tc qdisc del dev eth0 root
	expect some PEER_LOST LINK TIMEOUT
}

kill_prefill() { # the decode side goes on with the next prefill process
	write 20
	kill -9 $prefill
	wait $prefill 2>/dev/null
	tag=$((tag + 500))
	write 3
	expect 0
}

kill_decode() { # told as PEER_LOST; the new decode process is written to
	write 8
	touch "$RXE_SHARED/kill-decode"
	expect some PEER_LOST
}

address_gone() { # the GID that the queue pairs use goes away and comes back
	write 8
	ip addr del 10.77.0.2/24 dev eth0
	sleep 1
	ip addr add 10.77.0.2/24 dev eth0
	expect any PEER_LOST LINK TIMEOUT UNREACHABLE REMOTE_ACCESS LOCAL_MR # the devices see it in many ways
}

before=$(rdma resource show)
for fault; do
	"$fault"
done
fault=end
write 0 end
expect 0
after=$(rdma resource show)
[ "$before" = "$after" ] || bad "left behind: $after"
exit $failed
