#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# run.sh -- GPU memory between two processes of one host, on a machine that has a GPU; about 2 minutes; no network
#
# usage: tests/gpu/run.sh [build|check|life|table|replay|all|two|tcp|python|engines|streams]
#
# check compares every byte, small; life makes 1,000 connections and kills processes whose kernels run; table prints GB/s beside
# one bare kernel of the same run and leaves JSON in $OUT; replay is kv_pd_replay with its pools there; all is these four. two: the table and life between GPU 0 and GPU 1.
# Both tables have NIXL and Mooncake beside ours where Python has torch, nixl_cu13 and mooncake, or KVRAIL_NIXL and KVRAIL_MOONCAKE
# name folders that hold those packages.
# python: torch, CuPy and DLPack, what a matrix product loses meanwhile, rdma_comm, the calls of FastDeploy's test.py (itself with KVRAIL_FASTDEPLOY_TEST=FILE), and the example of transformers' Llama (each what is there), with KVRAIL_CORE=..._core.abi3.so
# or one that is built here (Python.h).
# build only builds all of it (CFLAGS are added). tcp: all ways over TCP, beside the barest program over the same kind of socket with host memory.
# engines: the kernel beside the copy engines, by the size of a span; with OTHER=1 to GPU 1, too.
# streams: one and two streams of TCP in turn (bench/tcp_figures.py); no GPU, many cores.
# COMMIT=... names the tree in the JSON files where git is not there.
# Needs gcc, the headers of libibverbs and librdmacm, and the driver of a GPU of compute capability 8.0 or later.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
what=${1:-all}
out=${OUT:-$(mktemp -d)}
build=${BUILD:-build-gpu}
ways=(gpu-gpu gpu-host host-gpu)
mkdir -p "$out"

# By hand: what cmake asks for besides is not needed here. The library's files once, several at a time.
mkdir -p "$build/library"
echo "#define RESULTS_COMMIT \"${COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}\"" >"$build/results_commit.h"
flags=(-O3 -g -DNDEBUG -std=gnu11 -D_GNU_SOURCE -fno-strict-aliasing -fPIC -Iinclude -Itransport -Ikvapi/{api,engine,grant,lease,loop,op,peer,wire}
	-Ibench -Impi_tests -I"$build")
read -ra more <<<"${CFLAGS:-}"
flags+=("${more[@]}")
built() { # the name of its log; what failed is shown and ends the run
	[ $? -ne 0 ] || return 0
	tail -n 30 "$out/$1.log"
	echo "FAILED build"
	exit 1
}
# NVTX's header may not be there.
for file in bench/cuda.c kvapi/{api,engine,grant,lease,loop,op,peer,wire}/*.c transport/{,*/}*.c; do
	[ "$file" = kvapi/op/kv_range.c ] || printf '%s\0%s\0' "$build/library/${file//\//_}.o" "$file"
done | xargs -0 -n 2 -P "$(nproc)" cc "${flags[@]}" -c -o >"$out/library.log" 2>&1
built library
compile() { # program, its sources
	cc "${flags[@]}" -o "$build/$1" "${@:2}" "$build"/library/*.o -lpthread -ldl -lm >"$out/${1##*/}.log" 2>&1
	built "${1##*/}"
}
compile_replay() {
	if echo '#include <jansson.h>' | cc -E - >/dev/null 2>&1; then
		compile kv_pd_replay mpi_tests/{kv_pd_replay,rank_memory,replay_{admit,check,decode,flight,memory,options,prefill,rank,report,schedule},job_{options,output},rank,rank_job,progress,hist,model,pattern,pool,timeline,trace,util}.c \
			bench/results.c -ljansson
	else
		echo "left out: kv_pd_replay (libjansson-dev)"
		false
	fi
}
compile_core() {
	mkdir -p "$build/python"
	cp -r python/src/kvrail python/src/rdma_comm "$build/python"
	if [ -n "${KVRAIL_CORE:-}" ]; then
		cp "$KVRAIL_CORE" "$build/python/kvrail/_core.abi3.so"
	else
		compile python/kvrail/_core.abi3.so -shared -Ipython/ext -I"$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
			python/ext/*.c
	fi
}
if [ "$what" = engines ] || [ "$what" = build ]; then
	compile gpu_engines bench/{gpu_engines,results}.c
fi
if [ "$what" != python ] && [ "$what" != engines ] && [ "$what" != streams ]; then
	compile gpu_pd bench/{gpu_pd,results}.c
	compile gpu_life tests/gpu/gpu_life.c
fi
if [ "$what" = tcp ] || [ "$what" = streams ] || [ "$what" = build ]; then
	compile kv_floor -Itests bench/{kv_floor,copy,floor_loops,floor_receiver,floor_tcp,results}.c tests/loop/tr_pair.c mpi_tests/{pattern,util}.c
fi
if [ "$what" = build ]; then
	compile_replay || exit 77
	compile_core
	exit 0
fi
build=$(realpath "$build")
peers=$(realpath bench/gpu_peers.py)
figures=$(realpath bench/tcp_figures.py)
tensors=$(realpath tests/gpu/tensors.py)
beside=$(realpath bench/beside.py)
example=$(realpath python/examples/disaggregated.py)
fastdeploy=$(realpath python/tests/test_fastdeploy.py)
failures=0

run() {
	echo "== $*"
	local rc=0
	(cd "$out" && timeout 120 "$@") || rc=$?
	[ $rc -eq 0 ] && return
	echo "FAILED ($rc): $*"
	failures=$((failures + 1))
	[ $rc -ge 128 ] && [ -n "$(command -v gdb)" ] && (cd "$out" && timeout 60 gdb -batch -ex run -ex bt --args "$@" 2>&1 | tail -n 30)
}

if [ "$what" = check ] || [ "$what" = all ]; then
	for way in "${ways[@]}"; do
		run "$build/gpu_pd" --way "$way" --pool 64 --batch 100 --rounds 5
		run "$build/gpu_pd" --way "$way" --pool 66 --batch 100 --rounds 5 --pieces
		KVCACHE_SHM_PATH=ring run "$build/gpu_pd" --way "$way" --pool 64 --batch 100 --rounds 5
	done
fi
if [ "$what" = replay ] || [ "$what" = all ]; then
	if compile_replay; then
		run "$build/kv_pd_replay" --local 1+1 --memory cuda --requests 40 --scale 32 --layers 3 --pool 64M --check-every 10 \
			"$PWD/mpi_tests/traces/conversation-300.jsonl"
	fi
fi
if [ "$what" = life ] || [ "$what" = all ]; then
	run "$build/gpu_life"
	run "$build/gpu_life" --connects 100 --pieces
fi
if [ "$what" = two ]; then
	run "$build/gpu_pd" --decode 1 --json "h200x2_gpu.json"
	run "$build/gpu_pd" --decode 1 --sms 132 --json "h200x2_gpu_132.json"
	run python3 -B "$peers" --decode 1 --json h200x2_peers.json h200x2_gpu.json
	run "$build/gpu_pd" --decode 1 --pieces
	run "$build/gpu_life" --decode 1
	run "$build/gpu_life" --gpu 1 --decode 0 --kills 5
	run "$build/gpu_life" --decode 1 --connects 100 --pieces
fi
if [ "$what" = table ] || [ "$what" = all ]; then
	for way in "${ways[@]}"; do
		run "$build/gpu_pd" --way "$way" --json "h200_${way/-/_}.json"
	done
	run python3 -B "$peers" --json h200_peers.json h200_gpu_gpu.json
	run "$build/gpu_pd" --way gpu-gpu --pieces
	run "$build/gpu_pd" --way gpu-gpu --sms 132 --json "h200_gpu_gpu_132.json"
fi
if [ "$what" = python ]; then
	export PYTHONPATH=$build/python
	compile_core
	run python3 -B "$tensors"
	run python3 -B "$beside" --json h200_beside.json
	run python3 -B "$example" --hf --requests 2
	if python3 -c 'import pytest' 2>/dev/null; then
		run env KVRAIL_CUDA=libcuda.so.1 python3 -B -m pytest -q -p no:cacheprovider "$fastdeploy" -k on_a_gpus_pointers
	else
		echo "left out: the calls of FastDeploy's test.py (pytest)"
	fi
fi
if [ "$what" = engines ]; then
	for mib in 64 8; do
		run "$build/gpu_engines" ${OTHER:+--other "$OTHER"} --bytes "$mib" --json "h200_engines_$mib.json"
	done
fi
if [ "$what" = streams ]; then
	run python3 -B "$figures" "$build" --only streams --rounds 2 --json tcp_streams.json
fi
if [ "$what" = tcp ]; then
	export KVCACHE_TRANSPORT=tcp
	for way in "${ways[@]}"; do
		run "$build/gpu_pd" --way "$way" --pool 256 --rounds 10 --json "h200_${way/-/_}_tcp.json"
	done
	run "$build/gpu_pd" --way gpu-gpu --pool 66 --batch 100 --rounds 5 --pieces
	run "$build/gpu_life" --connects 100 --kills 10
	run "$build/kv_floor" --quick --path tcp -J h200_floor_tcp.json
fi
echo "$failures failures"
exit $((failures > 0))
