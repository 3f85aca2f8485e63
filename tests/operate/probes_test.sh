#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# probes_test.sh -- bpftrace sees the stations of each operation of a running process, by the script of docs/operate.md
#
# usage: probes_test.sh ROOT LIBRARY KV_PD_BENCH
set -uo pipefail
root=$1 library=$2 bench=$3
skip() {
	echo "skipped: $*"
	exit 77
}

found=$(readelf -n "$library" | grep -A1 'Provider: kvrail' | grep -o 'Name: .*' | sort -u | cut -d ' ' -f 2 | xargs)
[ -n "$found" ] || skip "the library was built without sys/sdt.h (systemtap-sdt-dev)"
[ "$found" = "acked begin ended lost posted visible written" ] || {
	echo "the library has the probes: $found"
	exit 1
}
command -v bpftrace >/dev/null || skip "bpftrace is not installed"
why=$(bpftrace -e 'BEGIN { printf("it runs\n"); exit(); }' 2>&1)
[[ $why == *"it runs"* ]] || skip "bpftrace cannot run here: $(tail -n 1 <<<"$why")"

folder=$(mktemp -d)
"$bench" --local 1+1 -b 4K -e 4K -n 64 -i 1000000 -w 4 --pool 32M >"$folder/bench" 2>&1 &
bench_pid=$!
trap 'kill $bench_pid $(cat "$folder"/ranks 2>/dev/null) 2>/dev/null; rm -rf "$folder"' EXIT
until [ -s "$folder/ranks" ] && [ "$(wc -l <"$folder/ranks")" -ge 2 ]; do # rank 0, the first child, prefills
	kill -0 $bench_pid || exit
	sleep 0.1
	ps -o pid= --ppid $bench_pid | xargs -rn 1 >"$folder/ranks"
done

# lacks SECONDS: the first map in which that long a look has seen no operation, if there is one
lacks() {
	timeout -s INT "$1" bpftrace -p "$(head -n 1 "$folder/ranks")" "$root/docs/kvrail-latency.bt" "$library" >"$folder/said" 2>&1
	for map in posted_us written_us acknowledged_us whole_us; do
		grep -A1 "^@$map\[0\]:" "$folder/said" | grep -q '|' || return 0
	done
	return 1
}

for seconds in 8 30 120; do # a busy machine takes long to attach to the probes
	lacks $seconds && continue
	cat "$folder/said"
	exit 0
done
cat "$folder/said"
echo "no operation in $map"
exit 1
