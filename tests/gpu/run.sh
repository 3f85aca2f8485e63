#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# run.sh -- GPU memory between two processes of one host, on a machine that has a GPU; about 2 minutes; no network
#
# usage: tests/gpu/run.sh [check|table|all]
#
# check compares every byte, small; table prints GB/s beside one bare kernel of the same run and leaves JSON in $OUT.
# Needs gcc, the headers of libibverbs and librdmacm, and the driver of a GPU of compute capability 8.0 or later.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
what=${1:-all}
out=${OUT:-$(mktemp -d)}
build=${BUILD:-build-gpu}
ways=(gpu-gpu gpu-host host-gpu)
mkdir -p "$out"

# By hand: what cmake asks for besides is not needed here.
mkdir -p "$build"
if ! cc -O3 -DNDEBUG -std=gnu11 -D_GNU_SOURCE -fno-strict-aliasing -Iinclude -Itransport \
	-Ikvapi/{api,engine,grant,lease,loop,op,peer,wire} -Ibench -o "$build/gpu_pd" \
	bench/{gpu_pd,results}.c kvapi/{api,engine,grant,lease,loop,op,peer,wire}/*.c transport/{,*/}*.c -lpthread -ldl -lm >"$out/build.log" 2>&1; then
	tail -n 30 "$out/build.log"
	echo "FAILED build"
	exit 1
fi
failures=0

run() {
	echo "== $*"
	timeout 120 "$@" || { echo "FAILED ($?): $*"; failures=$((failures + 1)); }
}

if [ "$what" != table ]; then
	for way in "${ways[@]}"; do
		run "$build/gpu_pd" --way "$way" --pool 64 --batch 100 --rounds 5
	done
fi
if [ "$what" != check ]; then
	for way in "${ways[@]}"; do
		run "$build/gpu_pd" --way "$way" --json "$out/$way.json"
	done
	run "$build/gpu_pd" --way gpu-gpu --sms 132 --json "$out/gpu-gpu-132.json"
fi
echo "$failures failures"
exit $((failures > 0))
