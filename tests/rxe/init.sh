#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=dash
# init.sh -- first program of the guest: loads the modules, lays a writable layer over the host's root, goes there
b=/bin/busybox

fail() {
	echo "rxe: init: $*" >/dev/console
	echo o >/proc/sysrq-trigger
}

$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
# A module for hardware that this processor lacks does not load; what is really missing shows below.
for module in /mod/*.ko; do
	$b insmod "$module" 2>/dev/null || echo "rxe: init: $module did not load" >/dev/kmsg
done

# Nothing writes to the host's root while a guest reads it in these minutes, so everything may be cached.
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=500000,cache=loose host /host || fail "no root of the host"
$b mount -t tmpfs -o size=75% tmpfs /over
$b mkdir /over/upper /over/work
$b mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work overlay /new || fail "no overlay"
for folder in proc sys dev run; do
	[ -d /new/$folder ] || $b mkdir /new/$folder
done
$b mount -t proc proc /new/proc
$b mount -t sysfs sysfs /new/sys
$b mount -t devtmpfs devtmpfs /new/dev
$b mount -t tmpfs -o mode=755 tmpfs /new/run
$b mkdir /new/run/rxe
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=500000,cache=none share /new/run/rxe || fail "no shared folder"
exec $b switch_root /new /bin/sh /run/rxe/guest.sh
