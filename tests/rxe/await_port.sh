#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# await_port.sh -- in the guest: returns when somebody listens on a TCP port, or fails after a minute: await_port.sh PORT
wanted=$(printf ':%04X [0-9A-F]*:0000 0A' "$1")
for _ in $(seq 600); do
	! grep -q "$wanted" /proc/net/tcp /proc/net/tcp6 || exit 0
	sleep 0.1
done
echo "await_port: nobody listens on port $1"
exit 1
