#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""curves.py -- what a block costs as more layers, tensors, peers, idle peers, blocks of a pool or threads are used, and what a
peer costs as there are more

usage: curves.py BUILD [--transports ib,shm,tcp] [--curves layers,tensors,...] [--blocks N] [--rounds N] [--json FILE] [--plot PICTURE]

Each point is a run of kv_cost, whose command is in its row: nanoseconds of processor time of a block, both ends together, the
quickest of its runs and of the rounds, which take all points by turns. A ratio is to the first point of its curve. One thread
drives both ends, but in the curves idle, served (peers, too) and threads: there the engines have service threads, and what these
spend while they wait counts. ib is over tests/softnic in its mode `null`, where no payload moves: what is left is the cost of
kvrail and of that instrument. Over shm the bytes are copied, so memory that leaves the processor's caches costs more by itself.
So both have a floor: over shm a loop that copies the same blocks in the same run, over ib, for peers, verbs_floor, whose lists
go to as many queue pairs. Where the floor rises as the figure does it is not kvrail that costs more. The curve `connect` is of
peer_cost: memory, descriptors and the least time of a connect, each peer's; over tcp there is no other.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

import plot
import results

NAMES = ["bytes", "blocks", "writes", "runs", "layers", "tensors", "peers", "idle", "pool", "threads", "floor"]
BASE = {"bytes": 1024, "runs": 5, "layers": 1, "tensors": 1, "peers": 1, "idle": 0, "pool": 0, "threads": 0, "floor": 0}
CURVES = {
    "layers": ([1, 2, 4, 8, 16, 32, 80], {}),
    "tensors": ([1, 2, 3, 4], {}),
    "peers": ([1, 2, 4, 8, 16, 32, 64], {}),
    "served": ([1, 2, 4, 8, 16, 32, 64], {"threads": 1}),
    "idle": ([0, 10, 100, 1000], {"threads": 1}),
    "pool": ([1000, 10000, 100000, 1000000], {"blocks": 500}),
    "threads": ([1, 2, 4, 8, 16], {}),
    "connect": ([1, 16, 256, 1024], {}),
}
PEERS_OF_SOFTNIC = 1000  # with two lanes it has no more queue pairs
GROWS = {"served": "peers"}  # else what the curve is called
FIGURES = ["ns", "ratio", "floor_ns", "memory_kb", "device_kb", "descriptors", "connect_ms"]
WRITES_OF_A_PEER = 32  # of a run: the first ones touch its queues' memory for the first time
UNITS = 200000  # blocks of a run, so that it lasts some milliseconds


def words_of(transport, curve, at, blocks):
    told = dict(BASE, blocks=blocks, floor=int(transport == "shm")) | CURVES[curve][1] | {GROWS.get(curve, curve): at}
    each = told["blocks"] * told["layers"] * told["tensors"] * max(told["threads"], 1)
    told["writes"] = max(UNITS // each, WRITES_OF_A_PEER * told["peers"])
    return [str(told[name]) for name in NAMES]


def run(build, transport, words):
    env = dict(os.environ, KVCACHE_TRANSPORT=transport)
    if transport == "ib":
        env.update(LD_LIBRARY_PATH=f"{build}/tests/softnic/lib", SOFTNIC_MODE="null", SOFTNIC_WORLD=f"curves{os.getpid()}")
        if words[0] == "kv_cost":  # one lane: softnic has not more queue pairs for 1,000 peers
            env["KVCACHE_IB_LANES"] = "1"
    done = subprocess.run([f"{build}/bench/{words[0]}", *words[1:]], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          env=env)
    if done.returncode:
        sys.exit(f"{' '.join(words)} over {transport}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def command_of(transport, curve, at, blocks):
    if curve == "connect":
        return f"peer_cost {min(at, PEERS_OF_SOFTNIC) if transport == 'ib' else at}"
    return " ".join(["kv_cost", *words_of(transport, curve, at, blocks)])


def floor_of(transport, curve, at, blocks):
    """Its command, where kv_cost does not measure it."""
    peers = transport == "ib" and GROWS.get(curve, curve) == "peers"
    return f"verbs_floor -b {BASE['bytes']} -e {BASE['bytes']} -n {blocks} -p {at}" if peers else None


PEER = re.compile(r": +([\d.-]+) kB +([\d.]+) descriptors +([\d.]+) ms to connect, each(?:; the device has ([\d.]+) kB)?")


def note(row, said):
    """The least of what a row's runs say: what else the machine does only adds."""
    if row["curve"] == "connect":
        seen = dict(zip(("memory_kb", "descriptors", "connect_ms", "device_kb"), map(float, PEER.search(said).groups("0"))))
    else:
        seen = dict(zip(("ns", "floor_ns"), map(float, said.split())))
    row.update({name: min(value, row[name] if row[name] is not None else value) for name, value in seen.items()})


def measure(build, options):
    rows = [{"transport": transport, "curve": curve, "at": at, "command": command_of(transport, curve, at, options.blocks),
             "floor_command": floor_of(transport, curve, at, options.blocks), **dict.fromkeys(FIGURES)}
            for transport in options.transports.split(",") for curve in options.curves.split(",") for at in CURVES[curve][0]
            if transport != "tcp" or curve == "connect"]
    for _ in range(options.rounds):
        for row in rows:
            note(row, run(build, row["transport"], row["command"].split()))
            if row["floor_command"]:
                said = run(build, row["transport"], row["floor_command"].split())
                note(row, f"{row['ns']} {said.splitlines()[-1].split()[1]}")
    first = {}
    for row in rows:
        if row["ns"] is not None:
            row["ratio"] = row["ns"] / first.setdefault((row["transport"], row["curve"]), row["ns"])
    return rows


def points_of(rows, name):
    first = rows[0].get(name)
    return ", ".join(f"{row['at']}: {row[name]:.1f} ({row[name] / first:.2f})" for row in rows) if first else "-"


def tables(rows):
    """As Markdown: of blocks a line each curve, of peers a line each number."""
    texts, curves = [], {}
    for row in rows:
        if row["ns"] is not None:
            curves.setdefault((row["transport"], row["curve"]), []).append(row)
    if curves:
        texts.append(results.table_text(["transport", "curve", "at: ns a block (ratio to the first)", "the floor's"],
                                        [[*names, points_of(points, "ns"), points_of(points, "floor_ns")] for names, points in curves.items()], 4))
    peers = [[row["transport"], row["command"].split()[1], f"{row['memory_kb']:.1f}", f"{row['device_kb']:.1f}" if row["device_kb"] else "-",
              f"{row['descriptors']:.2f}", f"{row['connect_ms']:.2f}"] for row in rows if row["connect_ms"] is not None]
    if peers:
        texts.append(results.table_text(["transport", "peers", "kB", "the device's kB", "descriptors", "ms to connect"], peers))
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--transports", default="ib,shm,tcp")
    parser.add_argument("--curves", default=",".join(CURVES))
    parser.add_argument("--blocks", type=int, default=1538, help="of a write")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--plot")
    options = parser.parse_args()
    results.can_write(options.json)
    if options.plot:
        plot.check(options.plot)
    load = round(os.getloadavg()[0], 1)
    print(f"# {results.cpu()}, load average {load}; ib is a software instrument, not a network")
    rows = measure(os.path.realpath(options.build), options)
    print("\n".join(tables(rows)), end="")
    told = results.head("curves.py", path=None, blocks=options.blocks, rounds=options.rounds, load=load)
    with tempfile.TemporaryDirectory() as folder:
        path = options.json or os.path.join(folder, "curves.json")
        results.write(path, told, rows)
        if options.plot:
            plot.main([path, options.plot])


if __name__ == "__main__":
    main()
