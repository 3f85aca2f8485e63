#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# guest.sh -- process 1 of the guest: makes the wire and the RDMA devices, runs run.sh, reports its exit status
#
# On the control port it says "up", "ready", "exit N" or "broken WHY"; the command starts when the host has said "go".
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

tries=600
until [ -c "$(echo /dev/vport*p3)" ]; do
	tries=$((tries - 1))
	[ $tries != 0 ] || echo o >/proc/sysrq-trigger
	sleep 0.05
done
out=$(echo /dev/vport*p1) err=$(echo /dev/vport*p2) control=$(echo /dev/vport*p3)
exec 3<>$control
echo up >&3

fail() {
	echo "broken $*" >&3
	sleep 1000
}

sysctl() {
	echo "$2" >"/proc/sys/$(echo "$1" | tr . /)" || fail "sysctl $1"
}

# device NAME INTERFACE NUMBER: an address on the interface, a Soft-RoCE device on top
device() {
	ip link set "$2" mtu 4200 up && ip addr add "10.77.0.$3/24" dev "$2" &&
		ip -6 addr add "fd77::$3/64" dev "$2" || fail "no address on $2"
	rdma link add "$1" type rxe netdev "$2" || fail "rdma link add $1"
}

# rxe_self, rxe_guests and rxe_ptrace_scope come from the kernel's command line.
# shellcheck disable=SC2154
self=$rxe_self guests=$rxe_guests scope=$rxe_ptrace_scope

echo "rxe-$self" >/proc/sys/kernel/hostname
printf '127.0.0.1 localhost\n10.77.0.1 rxe-a\n10.77.0.2 rxe-b\n' >/etc/hosts
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
sysctl kernel.yama.ptrace_scope "$scope"
sysctl net.ipv6.conf.default.accept_dad 0
ip link set lo up
if [ "$guests" = 1 ]; then
	# Both ends of one wire in one kernel: what comes in has an address of this machine as its source.
	for all in all default; do
		sysctl net.ipv4.conf.$all.accept_local 1
		sysctl net.ipv4.conf.$all.rp_filter 0
	done
	ip link add eth0 type veth peer name eth1 || fail "no veth pair"
	device rxe0 eth0 1
	device rxe1 eth1 2
else
	case $self in
	a) device rxe0 eth0 1 ;;
	b) device rxe0 eth0 2 ;;
	esac
fi

n=0
while read -r folder; do
	mount -t 9p -o trans=virtio,version=9p2000.L,msize=500000,cache=none "writable$n" "$folder" || fail "no $folder"
	n=$((n + 1))
done <"/run/rxe/$self/writable"

echo ready >&3
read -r _ <&3

# Pipes between the command and the ports, as a port can be opened only once. A process that the command has left
# behind may hold them open: they are then given a moment, no more.
mkfifo /run/out /run/err
cat </run/out >$out 3>&- &
cats=$!
cat </run/err >$err 3>&- &
cats="$cats $!"
/bin/sh /run/rxe/$self/run.sh >/run/out 2>/run/err </dev/null 3>&-
status=$?
tries=100
while [ $tries -gt 0 ]; do
	# shellcheck disable=SC2086
	kill -0 $cats 2>/dev/null || break
	tries=$((tries - 1))
	sleep 0.1
done
echo "exit $status" >&3
sleep 1000
