#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""perftest.py -- in the guest: kv_pd_bench beside perftest's ib_write_bw: perftest.py BUILD_DIRECTORY

Both move blocks of one size from rxe0 to rxe1 on two queue pairs, one after the other. Soft-RoCE in an emulated machine says nothing
about a network: what counts is the ratio, and the packets for a block.
"""
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

BATCH, ITERATIONS, WARMUP = 64, 10, 2
SIZE = 65536
RUN_S = 300  # one run of either, on a busy machine
HERE = os.path.dirname(os.path.abspath(__file__))
SLOWEST = 10  # as many times slower than ib_write_bw is a bug, on however busy a machine


def packets():
    total = 0
    for path in glob.glob("/sys/class/infiniband/rxe*/ports/1/hw_counters/sent_pkts"):
        with open(path, encoding="ascii") as file:
            total += int(file.read())
    return total


def run(words):
    done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=RUN_S, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def ours(build):
    """MB/s of the median iteration, and packets for a block."""
    bench = [os.path.join(build, "bench/kv_pd_bench"), "-b", str(SIZE), "-e", str(SIZE), "-n", str(BATCH),
             "-i", str(ITERATIONS), "-w", str(WARMUP), "--pool", "32M"]
    with tempfile.TemporaryDirectory() as folder:
        table = os.path.join(folder, "table.json")
        before = packets()
        run(["mpirun", "-np", "1", "env", "KVCACHE_RDMA_NICS=rxe0", *bench, "-J", table, ":",
             "-np", "1", "env", "KVCACHE_RDMA_NICS=rxe1", *bench])
        sent = packets() - before
        with open(table, encoding="utf-8") as file:
            row = json.load(file)["rows"][0]
    if row["wrong"]:
        sys.exit(f"{row['wrong']} wrong bytes")
    return SIZE * BATCH / row["p50_us"], sent / (BATCH * (ITERATIONS + WARMUP))


def ib_write_bw(size, messages):
    """MB/s on average, and packets for a message."""
    command = ["ib_write_bw", "-x", "1", "-s", str(size), "-n", str(messages), "-q", "2", "-F", "--report_gbits"]
    before = packets()
    with subprocess.Popen([*command, "-d", "rxe1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        run([os.path.join(HERE, "await_port.sh"), "18515"])
        said = run([*command, "-d", "rxe0", "10.77.0.2"])
        server.wait(RUN_S)
    sent = packets() - before
    row = re.search(rf"^ *{size} +(\d+) +\S+ +(\S+)", said, re.MULTILINE)
    return float(row[2]) * 1000 / 8, sent / int(row[1])


def main():
    build = sys.argv[1]
    print(run(["ibv_devinfo", "-d", "rxe0"]).strip())
    print(f"\nSoft-RoCE in an emulated machine: correctness, not speed. Blocks from rxe0 to rxe1 on two queue pairs,\n"
          f"one run of each; ours is acknowledged by the receiver's engine, {BATCH} blocks at a time.\n")
    print(f"{'block':>8} {'kv_pd_bench':>13} {'ib_write_bw':>13} {'ratio':>7} {'packets a block: ours':>23} {'theirs':>8}")
    our_rate, our_packets = ours(build)
    their_rate, their_packets = ib_write_bw(SIZE, BATCH * ITERATIONS)
    print(f"{SIZE:8} {our_rate:8.1f} MB/s {their_rate:8.1f} MB/s {our_rate / their_rate:7.2f} {our_packets:23.1f} "
          f"{their_packets:8.1f}")
    sys.exit(our_rate * SLOWEST < their_rate)


if __name__ == "__main__":
    main()
