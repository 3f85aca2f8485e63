#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# packages.sh -- kvrail's packages on a machine that has nothing: installed by one command, removed without a rest, developed with
#
# packages.sh FOLDER         with *.deb, app.c (the README's program) and promise (what it prints); run there by fresh.sh
set -euo pipefail
cd "$1"
export DEBIAN_FRONTEND=noninteractive
LIMIT_S=60

fail() {
	echo "FAILED: $*"
	exit 1
}

# All files but those that apt and dpkg keep for themselves, and the traces of the group rdma: libibverbs1 makes it, and Debian keeps groups.
files() {
	find / -xdev \( -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/cache -o -path /var/log -o -path /tmp \
		-o -path /run/adduser -o -path /etc/gshadow- -o -path "$PWD" \) -prune -o -print | sort
}

first_block() {
	local line
	mkfifo said
	kvrail bench --listen 127.0.0.1:0 >said &
	exec 4<said
	read -r line <&4
	kvrail bench "${line##* }" -b 4K -e 4K -n 1 -i 1 -w 0
	wait $!
}

from_nothing() {
	apt-get update -q
	apt-get install -qy ./*.deb
	first_block
}

files >/tmp/before
TIMEFORMAT="%R %U %S"
{ time from_nothing >&3 2>&1; } 3>&1 2>took
read -r real user system <took
echo "packages: $real s ($user s + $system s of processors) from nothing to the first compared block, by one command of apt, with downloads"
# A busy machine, or a slow mirror, takes longer than it needs itself.
[ $((${user%.*} + ${system%.*})) -lt $LIMIT_S ] || fail "that is not less than $LIMIT_S s"

kvrail doctor
kvrail info >/dev/null
for library in /usr/lib/*/lib*kvrail*.so* /usr/lib/*/kvrail/libplugin_KVRAIL.so; do
	! ldd "$library" | grep 'not found' || fail "$library lacks a library"
done

# What came with it goes with it.
apt-get purge -qy '^libkvrail' kvrail-tools libnccl-net-kvrail nixl-plugin-kvrail
apt-get autoremove --purge -qy
files >/tmp/after
diff /tmp/before /tmp/after || fail "this is left (>) or missing (<) after the packages were purged"
echo "packages: nothing is left"

apt-get install -qy --no-install-recommends gcc libc6-dev pkg-config man-db ./*.deb
# shellcheck disable=SC2046
cc app.c -o app $(pkg-config --cflags --libs kvrail)
[ "$(./app)" = "$(cat promise)" ] || fail "the README's program prints $(./app)"
for page in "1 kvrail" "3 kv_write_blocks" "3 kv_error_name" "7 kvrail"; do
	# shellcheck disable=SC2086
	man -w $page
	# shellcheck disable=SC2086
	man $page | grep -q . || fail "man $page shows nothing"
done
