#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""curves.py -- what a block costs as more layers, tensors, peers, idle peers, blocks of a pool or threads are used

usage: curves.py BUILD [--transports ib,shm] [--curves layers,tensors,...] [--blocks N] [--rounds N] [--json FILE] [--plot PICTURE]

Each point is a run of kv_cost, whose command is in its row: nanoseconds of processor time of a block, both ends together, the
quickest of its runs and of the rounds, which take all points by turns. A ratio is to the first point of its curve. ib is over
tests/softnic in its mode `null`, where no payload moves: what is left is the cost of kvrail and of that instrument. Over shm
the bytes are copied, so a pool that leaves the processor's caches costs more by itself.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import plot
import results

NAMES = ["bytes", "blocks", "writes", "runs", "layers", "tensors", "peers", "idle", "pool", "threads"]
BASE = {"bytes": 1024, "runs": 5, "layers": 1, "tensors": 1, "peers": 1, "idle": 0, "pool": 0, "threads": 0}
CURVES = {
    "layers": ([1, 2, 4, 8, 16, 32, 80], {}),
    "tensors": ([1, 2, 3, 4], {}),
    "peers": ([1, 2, 4, 8, 16, 32, 64], {"threads": 1}),
    "idle": ([0, 10, 100, 1000], {"threads": 1}),
    "pool": ([1000, 10000, 100000, 1000000], {"blocks": 500}),
    "threads": ([1, 2, 4, 8, 16], {}),
}
UNITS = 200000  # blocks of a run, so that it lasts some milliseconds; of all runs of a point at least two writes each


def words_of(curve, at, blocks):
    told = dict(BASE, blocks=blocks) | CURVES[curve][1] | {curve: at}
    each = told["blocks"] * told["layers"] * told["tensors"] * max(told["threads"], 1)
    told["writes"] = max(UNITS // each, 2, 2 * told["peers"])
    return [str(told[name]) for name in NAMES]


def cost(build, transport, words):
    env = dict(os.environ, KVCACHE_TRANSPORT=transport)
    if transport == "ib":  # one lane: softnic has not more queue pairs for 1,000 peers
        env.update(KVCACHE_IB_LANES="1", LD_LIBRARY_PATH=f"{build}/tests/softnic/lib", SOFTNIC_MODE="null",
                   SOFTNIC_WORLD=f"curves{os.getpid()}")
    done = subprocess.run([f"{build}/bench/kv_cost", *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          env=env)
    if done.returncode:
        sys.exit(f"kv_cost {' '.join(words)} over {transport}: exit code {done.returncode}\n{done.stdout}")
    return float(done.stdout)


def measure(build, options):
    rows = [{"transport": transport, "curve": curve, "at": at, "command": " ".join(["kv_cost", *words_of(curve, at, options.blocks)]),
             "ns": None, "ratio": None}
            for transport in options.transports.split(",") for curve in options.curves.split(",") for at in CURVES[curve][0]]
    for _ in range(options.rounds):
        for row in rows:
            ns = cost(build, row["transport"], row["command"].split()[1:])
            row["ns"] = min(ns, row["ns"] or ns)
    first = {}
    for row in rows:
        row["ratio"] = row["ns"] / first.setdefault((row["transport"], row["curve"]), row["ns"])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--transports", default="ib,shm")
    parser.add_argument("--curves", default=",".join(CURVES))
    parser.add_argument("--blocks", type=int, default=1538, help="of a write")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--plot")
    options = parser.parse_args()
    results.can_write(options.json)
    if options.plot:
        plot.check(options.plot)
    print(f"# {results.cpu()}, load average {os.getloadavg()[0]:.2f}; ib is a software instrument, not a network")
    rows = measure(os.path.realpath(options.build), options)
    results.print_table(["transport", "curve", "at", "ns a block", "ratio"], [
        [row["transport"], row["curve"], str(row["at"]), f"{row['ns']:.1f}", f"{row['ratio']:.2f}"] for row in rows], 2)
    told = results.head("curves.py", path=None, blocks=options.blocks, rounds=options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        path = options.json or os.path.join(folder, "curves.json")
        results.write(path, told, rows)
        if options.plot:
            plot.main([path, options.plot])


if __name__ == "__main__":
    main()
