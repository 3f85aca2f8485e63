#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# in_guest.sh -- what runs inside the guest: in_guest.sh BUILD_DIRECTORY STAGE...
#
#   loop   the ib provider's own test, every example, and all of tests/loop over ib but
#          what is about shm itself: tr_shm_* (who may use which path, see limits; its ring, its stores) and kv_trust_test;
#          kv_deadline_test, whose caches of gigabytes a guest's memory does not hold twice;
#          what ends before a provider is chosen: handshake_test, listener_hostile_test, most of kv_split_test, kv_name_test;
#          what is the same over every provider: kv_clock_test, kv_log_test, kv_metrics_test, kv_lie_test (lies in the API's own messages) and
#          kv_fault_test (the API's own allocations and system calls; those of ib fail in the stage sweep);
#          kv_libc_test and kv_wake_test, whose calls and wake-ups are those of the paths of one host;
#          kv_keep_test, which counts the ids that an engine keeps, and kv_heartbeat_test, which waits for deadlines of the
#          API's own messages: over ib they run on the fake device, as do, without KVRAIL_LONG=1, those of $over_the_fake
#   agent  the agent layer's tests of moves and ends
#   sweep  each point of the ib provider fails once; hundreds of connections, good and failed, leave nothing behind
#   doctor kvrail doctor on both devices, with a peer, and what it would export
#   bench  kvrail bench between two processes
#   mpi    a small replay and a small bench between ranks over ib, beside ibv_devinfo and ib_write_bw
#   nccl   the NCCL plugin: devices, sizes, slots, groups, lines, a killed peer (all cases: the same without -c)
#   split  the example with a model split in two, rdma_comm between processes and its choice of devices, from the environment
#          of python_packages
#   limits an ordinary user with little memory to lock, and with each value of ptrace_scope (last: the kernel
#          takes a ptrace_scope of 3 never back)
# After each stage the devices' objects must be as before it, and their counters must have grown.
build=$1
shift
export KVCACHE_TRANSPORT=ib
export KVRAIL_TEST_SLOW=10 # tests/lib/slow.h: deadlines of 100 ms are short for an emulation
export KVCACHE_VIEW=0 # as in every other test: kvrail_add_test
export KVCACHE_HANDSHAKE_MS=30000 KVCACHE_OP_TIMEOUT_MS=30000 # where no test names its own
failed=0

counter() {
	cat /sys/class/infiniband/rxe*/ports/1/hw_counters/sent_pkts | { s=0; while read -r n; do s=$((s + n)); done; echo $s; }
}

# The kernel frees what a dead process had a moment after it has gone.
objects() {
	tries=100
	until now=$(rdma resource show) && [ "$now" = "$1" ] || [ $tries = 0 ]; do
		tries=$((tries - 1))
		sleep 0.3
	done
	echo "$now"
}

over_the_fake='|async|thread|hold|stats|check'
[ "${KVRAIL_LONG:-}" != 1 ] || over_the_fake=

loop() {
	"$build/tests/rxe/ib_real_test" &&
		"$build/tests/loop/loop_tr_paths" ib && "$build/tests/loop/loop_tr_end" ib &&
		"$build/tests/loop/kv_split_test" pool 'one_*' &&
		ctest --test-dir "$build" -L 'examples|loop' -R '^(example_|kv_[a-z]*_test$)' \
			-E "^kv_(trust|deadline|stuck|place|unload|split|keep|libc|name|clock|log|lie|fault|metrics|wake|heartbeat$over_the_fake)_test\$" --no-tests=error --output-on-failure --timeout 300
}

agent() {
	"$build/tests/agent/agent_move_test" ib && "$build/tests/agent/agent_end_test" ib
}

sweep() {
	"$build/tests/rxe/ib_real_sweep" && "$build/tests/rxe/kv_connect_real"
}

doctor() {
	kvrail=$build/tool/kvrail
	"$kvrail" doctor --listen 10.77.0.1 >/dev/null &
	other=$!
	"$(dirname "$0")/await_port.sh" 7471
	"$kvrail" doctor --peer 10.77.0.1
	status=$?
	kill $other
	wait $other
	eval "$("$kvrail" doctor --export-env)"
	echo "chosen: $KVCACHE_RDMA_NICS $NCCL_IB_HCA $UCX_NET_DEVICES, gid index $NCCL_IB_GID_INDEX"
	[ $status = 0 ] && [ "$KVCACHE_RDMA_NICS $NCCL_IB_GID_INDEX" = "rxe0:1,rxe1:1 1" ]
}

bench() {
	table=$(mktemp)
	"$build/tool/kvrail" bench --listen 10.77.0.1 &
	other=$!
	"$(dirname "$0")/await_port.sh" 7472
	"$build/tool/kvrail" bench 10.77.0.1 -b 4K -e 64K -f 4 -n 16 -i 8 -w 4 >"$table"
	status=$?
	cat "$table"
	wait $other && [ $status = 0 ] && grep -q '^# transport ib,' "$table" && grep -q '^# wrong bytes: 0 OK' "$table"
}

mpi() {
	export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_plm_rsh_agent=
	export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_btl=self,vader OMPI_MCA_pml=ob1
	trace=$(ls "$(dirname "$0")"/../../mpi_tests/traces/*.jsonl | head -n 1)
	mpirun -np 4 "$build/mpi_tests/kv_pd_replay" --prefill 2 --decode 2 --model llama3-8b --requests 12 --layers 2 \
		--scale 64 --pool 4M "$trace" &&
		mpirun -np 2 "$build/bench/kv_pd_bench" --prefill 1 --decode 1 -b 4K -e 64K -f 4 -n 64 \
			-i 4 -w 2 --pool 32M &&
		"$(dirname "$0")/perftest.py" "$build"
}

nccl() {
	KVRAIL_TEST_SLOW=5 NCCL_IB_RETRY_CNT=6 "$build/mpi_tests/net/net_conformance" \
		-c 7,9b,11d,19,20,22,24,28,32,32h,42,43,46 "$build/net_plugin/libnccl-net-kvrail.so"
}

split() {
	python=$build/python/venv/bin/python
	"$python" -B -c "import kvrail, rdma_comm, numpy, pytest" || {
		echo "skipped: $python does not have the packages (python_packages makes it)"
		exit 77
	}
	folder=$(dirname "$0")/../../python
	begun=$(counter)
	export OPENBLAS_NUM_THREADS=1 KVCACHE_HANDSHAKE_MS=20000
	# K and V of 2 requests with 64 tokens, 4 layers, 2 heads of 32 floats
	payload=$((2 * 2 * 64 * 4 * 2 * 32 * 4))
	"$python" -B "$folder/examples/disaggregated.py" --prompt 64 --tokens 2 --requests 2 --layers 4 || return 1
	sent=$(($(counter) - begun))
	echo "in_guest: $payload bytes of KV cache in $sent packets"
	[ $sent -ge $((payload / 4096)) ] || return 1
	only="test_ports or (arrive_in_another_process and scales) or feeds_each_of_two or killed_receiver"
	KVRAIL_TEST_TRANSPORT=ib "$python" -B -m pytest -q -p no:cacheprovider "$folder/tests/test_ports.py" \
		"$folder/tests/test_rdma_comm.py" "$folder/tests/test_fastdeploy.py" \
		-k "$only or test_program or (messager and HostTensor)"
}

# as_user KB COMMAND...: without root's capabilities, and with that many KiB to lock
as_user() {
	kb=$1
	shift
	# shellcheck disable=SC3045 # dash, busybox and bash have ulimit -l
	(ulimit -l "$kb" && exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@")
}

# expect STATUS TEXT COMMAND...: its exit status, and a text in what it says
expect() {
	wanted=$1 text=$2
	shift 2
	said=$("$@" 2>&1)
	status=$?
	echo "$said" | grep -F -- "$text"
	[ $? = 0 ] && [ $status = "$wanted" ] && return
	echo "in_guest: $*: exit status $status, expected $wanted and \"$text\":"
	echo "$said"
	return 1
}

limits() {
	bench="$build/bench/kv_pd_bench --local 1+1 -b 64K -e 64K -n 16 -i 2 -w 1 --pool 8M"
	# shellcheck disable=SC2086
	expect 1 "RLIMIT_MEMLOCK is 1048576 bytes" as_user 1024 $bench &&
		expect 1 "ulimit -l unlimited" as_user 1024 $bench &&
		expect 0 "transport shm" as_user 1024 env KVCACHE_TRANSPORT=auto $bench &&
		expect 0 "ib does not get" as_user 1024 env KVCACHE_TRANSPORT=auto KVCACHE_DEBUG=1 $bench &&
		expect 0 "transport ib" as_user 65536 $bench || return 1
	for scope in 0 1 2 3; do
		echo $scope >/proc/sys/kernel/yama/ptrace_scope
		expect 0 "ptrace_scope is $scope" "$build/tests/loop/loop_tr_shm_peers" '*yama*' || return 1
	done
}

for stage; do
	before=$(rdma resource show) packets=$(counter)
	"$stage" || {
		echo "in_guest: $stage failed"
		failed=1
	}
	packets=$(($(counter) - packets))
	echo "in_guest: $stage: the devices sent $packets packets"
	[ $packets -gt 500 ] || {
		echo "in_guest: $stage failed: more than 500 packets were expected"
		failed=1
	}
	after=$(objects "$before")
	if [ "$before" != "$after" ]; then
		printf 'in_guest: %s left something behind:\n%s\n%s\n' "$stage" "$before" "$after"
		rdma resource show qp
		rdma resource show mr
		failed=1
	fi
done
exit $failed
