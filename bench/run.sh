#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run.sh -- the set of benchmarks on one host: tables for people, and their JSON files, plots where matplotlib is
#
# usage: bench/run.sh BUILD FOLDER        (./dev bench builds first)
#
# Left out, because they need more than one host has: NCCL's operations on GPUs (net_plugin/gpu/run.sh perf), other engines
# over Soft-RoCE (bench/peers.sh).
set -uo pipefail
build=$(realpath "$1") folder=$2
mkdir -p "$folder"
folder=$(realpath "$folder")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
export PATH=$build/bench:$PATH NCCL_SOCKET_IFNAME=lo
export PYTHON=${PYTHON:-python3}
failed=0

# measure NAME COMMAND...: its table, and FOLDER/NAME.json
measure() {
	local name=$1
	shift
	printf '\n$ %s\n' "$*"
	"$@" "$json" "$folder/$name.json" || failed=1
}

echo "# $(nproc) cores, load average $(cut -d ' ' -f 1 /proc/loadavg)"
json=-J
measure floor_cpu kv_floor --cpu
measure floor kv_floor
measure pd_1x1 kv_pd_bench --local 1+1
measure pd_2x2 kv_pd_bench --local 2+2
measure net net_perf "$build/net_plugin/libnccl-net-kvrail.so"
measure detect kv_detect
json=--json
if "$PYTHON" -c 'import kvrail, numpy' 2>/dev/null; then
	measure call "$PYTHON" bench/call.py
else
	printf '\nskipped: bench/call.py needs this tree'\''s package and numpy: pip install . numpy\n'
fi

printf '\n'
for file in "$folder"/{floor,floor_cpu,pd_1x1,pd_2x2,net}.json; do
	"$PYTHON" bench/plot.py "$file" "${file%.json}.png" || break
done
echo "the files are in $folder"
exit $failed
