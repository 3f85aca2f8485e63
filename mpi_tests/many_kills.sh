#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# many_kills.sh -- each rank of 2+2 dies at many moments, replaced or not; every verdict must be OK
#
# usage: many_kills.sh KV_PD_REPLAY TRACE
failed=0
for seed in $(seq 1 12); do
	for rank in 0 1 2 3; do
		arguments=(--local 2+2 --requests 40 --scale 32 --layers 3 --pool 32M --timeout 10
			--seed "$seed" --kill "$rank@$((seed % 15))")
		[ $((seed % 2)) = 0 ] && arguments+=(--restart)
		if ! output=$("$1" "${arguments[@]}" "$2" 2>&1); then
			printf 'failed: %s\n%s\n' "${arguments[*]}" "$output"
			failed=1
		fi
	done
done
exit $failed
