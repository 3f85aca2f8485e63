#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tcp_stress.py -- very many operations over TCP, with random cancels, revokes and closes, by kv_stress: one stream, then three, which two more threads serve

After a call that gives blocks back has returned 0, not one byte of them may change."""
import argparse
import json
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "chaos"))
import report  # noqa: E402

FIELDS = ("operations", "blocks_taken_back", "closes", "losses", "bytes_late")


def stress(program, operations, streams):
    done = subprocess.run([program, str(operations), "tcp"], stdout=subprocess.PIPE, text=True, check=False,
                          env={**os.environ, "KVCACHE_TCP_STREAMS": str(streams), "KVCACHE_TCP_THREADS": str(streams - 1)})
    print(done.stdout, end="", flush=True)
    line = re.search(r"^(\d+) operations, blocks taken back (\d+) times, (\d+) of them by a close, (\d+) losses: "
                     r"(\d+) bytes late; ended(.*)$", done.stdout, re.M)
    if done.returncode or not line:
        sys.exit(f"tcp_stress: kv_stress has ended with {done.returncode}")
    ended = line[6].split()
    return {"streams": streams, **dict(zip(FIELDS, map(int, line.groups()[:5]))),
            "ended": {code: int(n) for code, n in zip(ended[::2], ended[1::2])}}


def main():
    parser = argparse.ArgumentParser(prog="tcp_stress.py", description=__doc__)
    parser.add_argument("program", help="kv_stress of the build")
    parser.add_argument("--operations", type=int, default=500000, help="with each number of streams (500000)")
    parser.add_argument("--results", metavar="NAME", help="write docs/results/NAME.json")
    args = parser.parse_args()
    result = {"command": f"nice -n {os.nice(0)} tests/wire/tcp_stress.py --operations {args.operations} kv_stress", "commit": report.commit()}
    result["runs"] = [stress(args.program, args.operations, streams) for streams in (1, 3)]
    result["load"] = round(os.getloadavg()[0], 1)
    if args.results:
        with open(os.path.join(report.RESULTS, args.results + ".json"), "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
