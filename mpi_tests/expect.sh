#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# expect.sh -- run a program and hold its exit code and its output against what is expected
#
# usage: expect.sh CODE [-s SKIP_REGEX] [REGEX ...] -- COMMAND ...
#
# Each REGEX must match a line of stdout or stderr, "!REGEX" must match none. If the program fails and SKIP_REGEX
# matches, the test is skipped (77).
code=$1
shift
skip=
expected=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
	if [ "$1" = -s ]; then
		skip=$2
		shift
	else
		expected+=("$1")
	fi
	shift
done
shift
# Open MPI: ranks as root, more ranks than cores, no ssh.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_plm_rsh_agent=

output=$("$@" 2>&1)
rc=$?
printf '%s\n' "$output"
if [ $rc -ne 0 ] && [ $rc -ne "$code" ] && [ -n "$skip" ] && grep -Eq -- "$skip" <<<"$output"; then
	echo "skipped: $(grep -E -m 1 -- "$skip" <<<"$output")"
	exit 77
fi
failed=0
if [ $rc -ne "$code" ]; then
	echo "expect.sh: exit code $rc, expected $code"
	failed=1
fi
for regex in "${expected[@]}"; do
	if [[ $regex == !* ]]; then
		if grep -Eq -- "${regex#!}" <<<"$output"; then
			echo "expect.sh: a line matches '${regex#!}'"
			failed=1
		fi
	elif ! grep -Eq -- "$regex" <<<"$output"; then
		echo "expect.sh: no line matches '$regex'"
		failed=1
	fi
done
exit $failed
