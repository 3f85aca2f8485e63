#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# doctor_guest.sh -- in the guest: each condition is really made wrong, and kvrail doctor must say so: doctor_guest.sh KVRAIL
#
# What cannot be undone (ptrace scope 3, the device's module gone) comes last.
kvrail=$1
here=$(dirname "$0")
export KVCACHE_HANDSHAKE_MS=30000 KVCACHE_OP_TIMEOUT_MS=30000 # an emulated machine is slow
out=/tmp/doctor.out
failed=0

# doctor [COMMAND PREFIX...]: runs it; sets status
doctor() {
	"$@" "$kvrail" doctor >$out 2>&1
	status=$?
}

bad() {
	echo "$condition: $*"
	sed 's/^/    /' $out
	failed=1
}

# sees STATUS CHECK TEXT [FIX]: a line of this status says the text, and the line below it the fix (regular expressions)
sees() {
	grep -A1 -E "^$1 +$2 .*$3" $out >/tmp/found || {
		bad "no line \"$1 $2 $3\""
		return
	}
	[ -z "$4" ] || grep -qE "fix: .*$4" /tmp/found || bad "no fix \"$4\" for $2"
}

# exits N
exits() {
	[ $status = "$1" ] || bad "exit status $status, not $1"
}

without() { # CAPABILITY COMMAND...
	capability=$1
	shift
	setpriv --bounding-set="-$capability" "$@"
}

nobody() {
	setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
}

limited() { # soft limit of 64 KiB, then COMMAND
	sh -c 'ulimit -S -l 64; exec "$@"' limited "$@"
}

condition="nothing wrong"
doctor
exits 0
grep -q ' 0 warnings, 0 failures' $out || bad "something is not ok"
sees ok gid 'rxe0:1: .*kvrail uses index 1, ::ffff:10.77.0.1'
sees ok nodes '2 /dev/infiniband/uverbs\*, all can be opened'
sees ok library 'ibv_reg_dmabuf_mr: yes'
sees ok ib 'rxe1:1: RoCE.*mtu 4096'

condition="memlock 64 KiB"
doctor limited
sees ok memlock '64 KiB, which CAP_IPC_LOCK'
sees ok register 2097152
doctor limited setpriv --bounding-set=-ipc_lock
exits 1
sees fail memlock ' 64 KiB: no larger' 'ulimit -l unlimited'
sees fail register KV_ERR_MEMLOCK # it is true: a cache cannot be registered

condition="capabilities dropped"
doctor without ipc_lock
sees ok container 'CAP_IPC_LOCK no, CAP_SYS_PTRACE yes'
doctor without sys_ptrace
sees ok container 'CAP_IPC_LOCK yes, CAP_SYS_PTRACE no'

for scope in 1 2; do
	condition="ptrace scope $scope"
	echo $scope >/proc/sys/kernel/yama/ptrace_scope
	doctor
	sees ok ptrace_scope "$scope, which CAP_SYS_PTRACE"
	doctor without sys_ptrace
	sees warn ptrace_scope "$scope: " 'kernel.yama.ptrace_scope=0'
done
echo 0 >/proc/sys/kernel/yama/ptrace_scope

condition="device nodes"
chmod 600 /dev/infiniband/uverbs1
doctor nobody
sees warn nodes '/dev/infiniband/uverbs1 cannot be opened: Permission denied' 'chmod 666 /dev/infiniband/uverbs1'
sees ok ib 'rxe0:1'
chmod 600 /dev/infiniband/uverbs0
doctor nobody
exits 1
sees fail nodes 'uverbs0, /dev/infiniband/uverbs1 cannot be opened' 'chmod 666 /dev/infiniband/uverbs\*'
sees warn ib 'RDMA device'
chmod 666 /dev/infiniband/uverbs0 /dev/infiniband/uverbs1
mv /dev/infiniband/uverbs1 /tmp/node
doctor
sees warn nodes 'no node in /dev/infiniband for rxe1' '--device=/dev/infiniband'
mv /tmp/node /dev/infiniband/uverbs1
chmod 600 /dev/infiniband/rdma_cm
doctor nobody
sees warn rdma_cm 'Permission denied' 'chmod 666 /dev/infiniband/rdma_cm'
chmod 666 /dev/infiniband/rdma_cm

condition="no provider in user space"
for folder in /usr/lib/*/libibverbs; do
	mount -t tmpfs tmpfs "$folder"
done
doctor
exits 1
sees fail library 'missing for rxe0, rxe1' ibverbs-providers
umount /usr/lib/*/libibverbs

condition="addresses"
ip addr del 10.77.0.1/24 dev eth0
doctor
sees ok gid 'rxe0:1: .* 0 RoCE v2 with IPv4, 1 with routable IPv6, .*kvrail uses index [0-9]*, fd77::1'
ip addr del fd77::1/64 dev eth0
doctor
exits 1
sees fail gid 'rxe0:1: .* 0 with routable IPv6' 'ip addr add ADDRESS/PREFIX dev eth0'
sees ok gid 'rxe1:1'
ip addr add 10.77.0.1/24 dev eth0
ip -6 addr add fd77::1/64 dev eth0

condition="mtu"
ip link set eth0 mtu 1500
doctor
sees warn mtu 'rxe0:1: eth0 has mtu 1500' 'ip link set eth0 mtu 4200'
ip link set eth0 mtu 4200

condition="a peer"
"$kvrail" doctor --listen 10.77.0.1 >/dev/null &
other=$!
"$here/await_port.sh" 7471
"$kvrail" doctor --peer 10.77.0.1 >$out
sees ok write 'read back alike'
kill $other
wait $other
"$kvrail" doctor --peer 10.77.0.1 >$out
status=$?
exits 1
sees fail connect KV_ERR_PEER_LOST '--listen 10.77.0.1'
env KVCACHE_RDMA_NICS=rxe1 "$kvrail" doctor --export-env >$out
chosen=$(eval "$(cat $out)" && echo "$KVCACHE_RDMA_NICS $NCCL_IB_HCA $UCX_NET_DEVICES $NCCL_IB_GID_INDEX $UCX_RC_RETRY_COUNT")
[ "$chosen" = "rxe1:1 =rxe1:1 rxe1:1 1 6" ] || bad "export-env: $chosen"

condition="lost packets"
bw="ib_write_bw -x 1 -m 4096 -s 4096 -n 500 -u 14 -F"
timeout 60 $bw -d rxe0 >/dev/null 2>&1 &
tc qdisc add dev eth0 root netem loss 5%
tc qdisc add dev eth1 root netem loss 5%
"$here/await_port.sh" 18515
timeout 20 $bw -d rxe1 10.77.0.1 >/dev/null 2>&1 # whether it ends well is its affair: packets after a lost one are counted
tc qdisc del dev eth0 root
tc qdisc del dev eth1 root
wait $!
doctor
sees warn counters 'rxe[01]:1: .*seq' 'under load'

condition="link down"
ip link set eth1 down
doctor
exits 1 # a veth pair has one link: both ends are down
sees fail port 'rxe1:1: .*DOWN' 'ip link set eth1 up'
sees warn ib 'none of 2 RDMA devices has an active port'
ip link set eth1 up

condition="ptrace scope 3"
echo 3 >/proc/sys/kernel/yama/ptrace_scope
doctor
sees warn ptrace_scope '3: .*nobody' 'boot again'

condition="no module"
rmmod rdma_ucm
doctor
sees warn rdma_cm 'No such file' 'modprobe rdma_ucm'
rdma link delete rxe1
doctor
sees ok driver ' rxe0 \(software\)$'
rdma link delete rxe0
doctor
exits 0
sees warn driver 'no RDMA device: shared memory on one host, TCP between hosts' 'rdma link add'
exit $failed
