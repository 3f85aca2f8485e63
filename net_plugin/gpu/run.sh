#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# run.sh -- real NCCL over the plugin, on two GPUs of one host, or on one (no speed then); about 4 minutes; no network
#
# usage: net_plugin/gpu/run.sh [build|load|quick|cuda|check|perf|perf-cuda|all]     (check has load, quick and cuda in it; load takes half a minute)
#
# cuda: the same checks with CUDA pointers, where the GPUs copy between the ranks; perf-cuda: their figures.
# LIBNCCL=/path/libnccl.so.2 puts another NCCL in the place of torch's. One from a .deb: dpkg-deb -x FILE FOLDER into a folder of its
# own, never over /, where unpacking would put a folder in the place of the link /lib and leave the system without its loader.
# Needs a GPU, better two, Python with torch (its NCCL is used), gcc, cmake, ninja, the headers of libibverbs and librdmacm. Each rank gets another
# NCCL_HOSTID, so that NCCL takes the two for two hosts and uses its network plugin for everything between them;
# NCCL_NET=kvrail makes a plugin that does not load an error. Results as JSON and NCCL's logs go to $OUT if it is set;
# bench/nccl_table.py makes the tables of docs/nccl.md from $OUT/results.json.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
what=${1:-all}
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
build=${BUILD:-build-gpu}
python=${PYTHON:-python3}

# ---------------------------------------------------------------- build

plugin=$build/net_plugin/libnccl-net-kvrail.so
tests=$build/mpi_tests/net
perf=$build/bench

build_with_cmake() {
	cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DKVRAIL_TESTS=OFF -DKVRAIL_BENCH=OFF \
		-DKVRAIL_TOOL=OFF -DKVRAIL_EXAMPLES=OFF -DKVRAIL_WERROR=OFF &&
		cmake --build "$build" --target kvrail_net net_conformance net_perf
}

# The same by hand, for a machine that lacks what other parts of the tree are configured with, or with KVRAIL_BY_HAND=1; CFLAGS are added.
build_with_cc() {
	local flags=(-O3 -DNDEBUG -std=gnu11 -D_GNU_SOURCE -fPIC -fvisibility=hidden -fno-strict-aliasing
		-Iinclude -Itransport -Inet_plugin -Ibench -Itests -Impi_tests/net "-I$build") more
	read -ra more <<<"${CFLAGS:-}"
	flags+=("${more[@]}")
	mkdir -p "$(dirname "$plugin")" "$tests" "$perf" &&
		echo "#define RESULTS_COMMIT \"${COMMIT:-unknown}\"" >"$build/results_commit.h" &&
		cc "${flags[@]}" -shared -Wl,--version-script=net_plugin/net_plugin.map -o "$plugin" \
			transport/{,*/}*.c net_plugin/*.c -lpthread -ldl &&
		cc "${flags[@]}" -o "$tests/net_conformance" mpi_tests/net/*.c \
			bench/cuda.c -lpthread -ldl &&
		cc "${flags[@]}" -o "$perf/net_perf" bench/{net_perf,results}.c mpi_tests/net/{net_elf,net_load,net_side}.c -lpthread -ldl
}

if { [ -n "${KVRAIL_BY_HAND:-}" ] || ! build_with_cmake >"$out/build.log" 2>&1; } && ! build_with_cc >>"$out/build.log" 2>&1; then
	tail -n 30 "$out/build.log"
	echo "FAILED build"
	exit 1
fi
plugin=$(realpath "$plugin")
[ "$what" != build ] || exit 0

# ---------------------------------------------------------------- two ranks

export NCCL_NVLS_ENABLE=0 NCCL_MNNVL_ENABLE=0 NCCL_SOCKET_IFNAME=lo PYTHONUNBUFFERED=1
export PYTHONPATH=net_plugin/gpu:bench MASTER_ADDR=127.0.0.1 WORLD_SIZE=2 TORCH_NCCL_ASYNC_ERROR_HANDLING=1 TORCH_CPP_LOG_LEVEL=ERROR
port=29600
kvrail=(NCCL_NET=kvrail "NCCL_NET_PLUGIN=$plugin")
[ -z "${LIBNCCL:-}" ] || kvrail+=("LD_PRELOAD=$LIBNCCL")
cuda=(KVCACHE_NET_GDR=1 NCCL_NET_GDR_LEVEL=SYS)

# ranks NAME "MODULE ARGUMENTS" SECONDS [VARIABLE=value ...]: 0 if both ranks say so. SAME_HOST=1: one host for NCCL, too.
ranks() {
	local name=$1 seconds=$3 rank pids=() ret=0 host words
	read -ra words <<<"$2"
	shift 3
	port=$((port + 1))
	for rank in 0 1; do
		host=(NCCL_HOSTID="kvrail-rank-$rank")
		[ -z "${SAME_HOST:-}" ] || host=()
		env "${host[@]}" "$@" RANK=$rank MASTER_PORT=$port NCCL_DEBUG="${DEBUG_LEVEL:-WARN}" \
			NCCL_DEBUG_SUBSYS=INIT,NET,ENV timeout -k 5 "$seconds" \
			"$python" -m "${words[0]}" "${words[@]:1}" \
			>"$out/$name.$rank.log" 2>&1 &
		pids+=($!)
	done
	for rank in 0 1; do
		wait "${pids[$rank]}" || ret=$?
	done
	return $ret
}

failures=0
summary=()

# step NAME "MODULE ARGUMENTS" SECONDS [VARIABLE=value ...]
step() {
	local name=$1 begin=$SECONDS line
	if ranks "$@"; then
		line="pass"
	else
		line="FAIL"
		failures=$((failures + 1))
		echo "--- $name, rank 0"
		tail -n 12 "$out/$name.0.log"
		echo "--- $name, rank 1"
		tail -n 12 "$out/$name.1.log"
	fi
	line="$line  $name ($((SECONDS - begin)) s) $(grep -h '^ok' "$out/$name.0.log" | tail -n 1)"
	echo "$line"
	summary+=("$line")
}

# ---------------------------------------------------------------- correctness

# Every way to name the plugin, and those that must not find it; in one process, without traffic between the GPUs.
load() {
	local library=${LIBNCCL:-} begin=$SECONDS line="pass"
	if [ "$gpus" -lt 2 ]; then
		echo "skip  load: NCCL takes no GPU twice in one process, and here is one"
		summary+=("skip  load (one GPU)")
		return
	fi
	[ -n "$library" ] || library=$("$python" -c 'import torch
print(next(line.split()[-1] for line in open("/proc/self/maps") if "libnccl.so" in line))')
	timeout 120 "$python" tests/nccl/loads.py --gpu "$library" "$plugin" net_plugin/gpu/ranks.py >"$out/load.log" 2>&1 ||
		{ line="FAIL" failures=$((failures + 1)); grep -A3 '^FAIL' "$out/load.log"; }
	line="$line  load ($((SECONDS - begin)) s) $(tail -n 1 "$out/load.log")"
	echo "$line"
	summary+=("$line")
}

check() {
	load
	quick
	with_cuda
	local proto algo
	for proto in Simple LL LL128; do
		# Tree exists for all_reduce only; naming it for all is an error.
		for algo in ring "ring;allreduce:tree"; do
			step "$proto-${algo##*:}" "collectives check" 90 "${kvrail[@]}" NCCL_PROTO=$proto "NCCL_ALGO=$algo"
		done
	done
	step small-buffers "collectives check" 90 "${kvrail[@]}" NCCL_BUFFSIZE=65536
	step shared-buffers-0 "collectives check" 90 "${kvrail[@]}" NCCL_NET_SHARED_BUFFERS=0
	step bootstrap "collectives check" 90 "${kvrail[@]}" NCCL_OOB_NET_ENABLE=1
	step copy-threads "collectives check" 90 "${kvrail[@]}" KVCACHE_NET_COPY_THREADS=2
	step communicators "collectives communicators" 120 "${kvrail[@]}"
}

quick() {
	DEBUG_LEVEL=INFO step first "collectives check" 90 "${kvrail[@]}"
	grep -hE 'NCCL version|NET/kvrail|NET/Plugin|Assigned NET|Using network|via NET' "$out/first.0.log" | head -n 14
	killed_rank killed
}

# Simple and LL128 have their buffers on the GPUs then, LL never.
with_cuda() {
	local proto
	env "${cuda[@]}" timeout 60 "$tests"/net_conformance -g "0,$((gpus > 1))" -c '19*' "$plugin" >"$out/conformance-cuda.txt" 2>&1 ||
		failures=$((failures + 1))
	grep -E 'FAIL|passed|^19[cde].* skip' "$out/conformance-cuda.txt"
	DEBUG_LEVEL=INFO step cuda "collectives check" 90 "${kvrail[@]}" "${cuda[@]}"
	grep -q 'via NET/kvrail/0/GDRDMA' "$out/cuda.0.log" || { echo "FAIL no GDRDMA"; failures=$((failures + 1)); }
	for proto in Simple LL LL128; do
		step cuda-$proto "collectives check" 90 "${kvrail[@]}" "${cuda[@]}" NCCL_PROTO=$proto
	done
	step cuda-small-buffers "collectives check" 90 "${kvrail[@]}" "${cuda[@]}" NCCL_BUFFSIZE=65536
	step cuda-communicators "collectives communicators" 120 "${kvrail[@]}" "${cuda[@]}"
	killed_rank cuda-killed "${cuda[@]}"
}

# One rank kills itself in the middle: the other must end with an error, not hang. NAME [VARIABLE=value ...]
killed_rank() {
	local line
	ranks "$1" "collectives killed" 60 "${kvrail[@]}" "${@:2}"
	line="pass"
	grep -q '^ok told' "$out/$1.0.log" || { line="FAIL" failures=$((failures + 1)); tail -n 5 "$out/$1.0.log"; }
	line="$line  $1 $(grep -h '^ok told' "$out/$1.0.log")"
	echo "$line"
	summary+=("$line")
}

# ---------------------------------------------------------------- speed

# All networks but SHM in one process each rank, by turns; SHM needs ranks that NCCL takes for one host.
perf() {
	local cases="--case kvrail=kvrail --case threads2=kvrail,KVCACHE_NET_COPY_THREADS=2"
	cases="$cases --case threads4=kvrail,KVCACHE_NET_COPY_THREADS=4 --case ring=kvrail,KVCACHE_SHM_PATH=ring --case Socket=Socket"
	step perf "nccl_ops --json $out/perf.json $cases" 240 "NCCL_NET_PLUGIN=$plugin" ${LIBNCCL:+"LD_PRELOAD=$LIBNCCL"}
	SAME_HOST=1 step perf-shm "nccl_ops --json $out/perf-shm.json --case SHM=SHM" 120 NCCL_P2P_DISABLE=1 NCCL_NET_PLUGIN=none
	SAME_HOST=1 step perf-nvlink "nccl_ops --json $out/perf-nvlink.json --case NVLink=SHM" 120 NCCL_NET_PLUGIN=none
	"$python" bench/nccl_table.py --commit "${COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}" \
		--json "$out/results.json" "$out"/perf{,-shm,-nvlink}.json
	"$perf"/net_perf -b 8 "$plugin" | tee "$out/net_perf.txt"
}

# CUDA pointers, a process for each: NCCL reads its variables once.
perf_cuda() {
	local ops="nccl_ops --repeats 3"
	step perf-cuda "$ops --json $out/cuda.json --case cuda=kvrail" 120 "${kvrail[@]}" "${cuda[@]}" NCCL_P2P_NET_CHUNKSIZE=524288
	step perf-cuda-128K "$ops --json $out/cuda-128K.json --case cuda-128K=kvrail" 120 "${kvrail[@]}" "${cuda[@]}"
	step perf-cuda-channels "$ops --json $out/cuda-channels.json --case cuda-channels=kvrail" 120 "${kvrail[@]}" "${cuda[@]}" \
		NCCL_P2P_NET_CHUNKSIZE=1048576 NCCL_BUFFSIZE=8388608 NCCL_MIN_NCHANNELS=8
	step perf-Socket "$ops --json $out/Socket.json --case Socket=Socket" 120
	SAME_HOST=1 step perf-SHM-host "$ops --json $out/SHM.json --case SHM=SHM" 120 NCCL_P2P_DISABLE=1 NCCL_NET_PLUGIN=none
	SAME_HOST=1 step perf-NVLink "$ops --json $out/NVLink.json --case NVLink=SHM" 120 NCCL_NET_PLUGIN=none
	"$python" bench/nccl_table.py --commit "${COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}" \
		--json "$out/results-cuda.json" "$out"/{cuda,cuda-128K,cuda-channels,Socket,SHM,NVLink}.json
}

gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
[ -z "${LIBNCCL:-}" ] || echo "with $LIBNCCL"
"$python" -c 'import torch; print("torch", torch.__version__, "nccl", torch.cuda.nccl.version(), torch.cuda.device_count(), "x", torch.cuda.get_device_name(0))'
if [[ $what != load && $what != *cuda ]]; then
	timeout 150 "$tests"/net_conformance -w KVCACHE_TRANSPORT=ib "$plugin" >"$out/conformance.txt" 2>&1
	grep -E 'FAIL|passed' "$out/conformance.txt"
fi
case $what in
load) load ;;
check) check ;;
quick) quick ;;
cuda) with_cuda ;;
perf) perf ;;
perf-cuda) perf_cuda ;;
all)
	perf
	perf_cuda
	check
	;;
esac
echo
printf '%s\n' "${summary[@]}"
echo "$failures failures, $SECONDS s"
[ "$failures" = 0 ]
