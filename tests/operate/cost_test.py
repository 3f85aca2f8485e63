# SPDX-License-Identifier: Apache-2.0
"""cost_test.py -- what metrics and the view cost the data path, in instructions, which no other load on the machine changes

usage: cost_test.py KV_COST NET_COST PLUGIN AGENT_COST

The same work with neither, and with KVCACHE_METRICS_DIR and KVCACHE_VIEW, as valgrind's callgrind counts it in `measured` (bench/cost.h).
Of the agent, which is polled while its own threads work, what is there for metrics is counted beside a post.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

LIMIT_PERCENT = 1.0
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("KVCACHE_", "NCCL_"))}
SLOW = {"NCCL_SOCKET_IFNAME": "lo", "KVCACHE_TRANSPORT": "shm", "KVCACHE_HANDSHAKE_MS": "60000", "KVCACHE_OP_TIMEOUT_MS": "60000"}


def instructions(command, folder, functions=("measured",), **settings):
    done = subprocess.run(["valgrind", "--tool=callgrind", *(f"--toggle-collect={name}" for name in functions),
                           f"--callgrind-out-file={folder}/callgrind.out", *command], env={**CLEAN, **SLOW, **settings}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    found = re.search(r"Collected : (\d+)", done.stdout)
    if done.returncode or not found or not int(found[1]):
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}")
    return int(found[1])


def main(kv_cost, net_cost, plugin, agent_cost):
    if not shutil.which("valgrind"):
        print("skipped: valgrind is not installed")
        sys.exit(77)
    rows = (("block API, a write of 256 blocks of 1 KiB", [kv_cost, "1024", "256", "50", "1"]),
            ("block API, a write of 1538 blocks of 1 KiB as kv_pd_bench makes them", [kv_cost, "1024", "1538", "20", "1"]),
            ("NCCL plugin, messages of 1 KiB", [net_cost, plugin, "1024", "300", "1"]),
            ("NCCL plugin, messages of 64 KiB", [net_cost, plugin, "65536", "10", "1"]))
    agent = [agent_cost, "1024", "32", "200", "1"]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in rows:
            without = instructions(command, folder, KVCACHE_VIEW="0")
            found[name] = without, instructions(command, folder, KVCACHE_METRICS_DIR=folder) - without
        found["agent (NIXL plugin), a transfer of 32 blocks of 1 KiB"] = (
            instructions(agent, folder, ["ag_xfer_post"], KVCACHE_VIEW="0"),
            instructions(agent, folder, ["ag_metrics_begun", "ag_metrics_ended"], KVCACHE_METRICS_DIR=folder))
    for name, (without, more) in found.items():
        print(f"{name}: {without} instructions, {100 * more / without:+.2f} % with metrics and the view")
    dear = sum(100 * more > LIMIT_PERCENT * without for without, more in found.values())
    if dear:
        sys.exit(f"{dear} of these cost more than {LIMIT_PERCENT} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
