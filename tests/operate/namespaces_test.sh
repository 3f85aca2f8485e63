#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# namespaces_test.sh -- kvrail dump and top reach a process of a container: a network, processes and users of its own
#
# usage: namespaces_test.sh KVRAIL LIBRARY
set -euo pipefail
kvrail=$1
owner=12345 stranger=12346
export KVCACHE_VIEW=1
if [ "$(id -u)" != 0 ] || ! unshare --net --pid --fork true 2>/dev/null; then
	echo "skipped: it needs root, to make namespaces"
	exit 77
fi
folder=$(mktemp -d)
pid='' job=''
trap '[ -z "$job" ] || kill -KILL "$pid" "$job" 2>/dev/null || :; rm -rf "$folder"' EXIT
cp -L "$kvrail" "$2" "$folder" # where another user may read them
export LD_LIBRARY_PATH=$folder
chmod -R a+rX "$folder"

# in_container WORDS...: an engine behind these words; $pid is its number here
in_container() {
	: >"$folder/out" # the one before has said the same
	"$@" "$folder/kvrail" bench --listen 0.0.0.0:0 >"$folder/out" 2>&1 &
	job=$!
	until grep -q '^listening' "$folder/out"; do
		kill -0 $job
		sleep 0.05
	done
	pid=$(ps -o pid= --ppid $job | xargs) || :
	pid=${pid:-$job} # with --fork it is a child
}

out_of_container() {
	kill -KILL "$pid"
	wait "$job" 2>/dev/null || :
	job=''
}

# as USER KVRAIL-WORDS...
as() {
	setpriv --reuid "$1" --clear-groups "$folder/kvrail" "${@:2}" 2>&1
}

# says WORD TEXT
says() {
	[[ $2 == *"$1"* ]] || {
		echo "it does not say \"$1\": $2"
		exit 1
	}
}

engine='engine kvrail bench --listen, '
in_container unshare --net
says "$engine" "$(as 0 dump "$pid")"
says "it is another user's" "$(as $stranger dump "$pid" || :)"
out_of_container

in_container unshare --net --pid --fork --mount-proc
says "$engine" "$(as 0 dump "$pid")"
says "$pid  " "$(as 0 top "$pid" --once)"
says "$engine" "$(nsenter -t "$pid" --all "$folder/kvrail" dump 1)" # inside
out_of_container

# A container without root: its user is its root inside, and the host's root is nobody there.
in_container setpriv --reuid $owner --clear-groups unshare --user --map-root-user --net --pid --fork
says "$engine" "$(as 0 dump "$pid")"
says "$engine" "$(as $owner dump "$pid")"
says "it is another user's" "$(as $stranger dump "$pid" || :)"
out_of_container

# Where no user has a name nobody can be told from a stranger.
in_container setpriv --reuid $owner --clear-groups unshare --user --net
says 'it has a network, or users, of its own: ask as root, or inside of its container (nsenter, docker exec)' "$(as 0 dump "$pid" || :)"
out_of_container
echo "an engine in a network, a tree of processes and a user namespace of its own was looked into"
