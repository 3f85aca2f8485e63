#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tcp_figures.py -- what TCP costs on loopback, beside the barest programs over the same kind of socket and beside NIXL, in one run

usage: tcp_figures.py BUILD [--only floor,cpu,call,nixl,streams] [--rounds N] [--json FILE]

floor     GB/s with one stream, beside kv_floor's barest program: the median of 9 pairs
cpu       processor seconds a GB at both ends together, beside the same program's
call      microseconds of one block until it is acknowledged, beside an echo of as many bytes (tcp_call)
nixl      GB/s by NIXL's calls with the backend KVRAIL, beside UCX where that is quicker: with its progress thread or without
          (nixl_calls.py); both over TCP
streams   GB/s with two streams, beside one: kv_floor in turn, the median of the rounds' ratios. Needs processors that nobody else
          uses, two at each end; left out unless it is asked for

`ratio` is kvrail / other. Under `chrt -f 10` other processes wait meanwhile."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import results

STREAMS = (1, 2)
PATIENCE_S = 300


class Bench:
    def __init__(self, build, folder, rounds):
        self.build, self.folder, self.rounds = build, folder, rounds

    def floor(self, *options, **environment):
        """kv_floor's rows by their block size."""
        out = os.path.join(self.folder, "floor.json")
        print("kv_floor --path tcp", *options, *environment.values(), file=sys.stderr, flush=True)
        subprocess.run([self.find("kv_floor"), "--path", "tcp", *options, "-J", out], stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE_S,
                       env={**os.environ, **environment})
        with open(out, encoding="utf-8") as file:
            return {row["block_bytes"]: row for row in json.load(file)["rows"]}

    def find(self, program):
        paths = [os.path.join(self.build, place, program) for place in ("bench", "")]
        return next((path for path in paths if os.path.exists(path)), paths[0])

    def beside_the_floor(self, figure, *options):
        return [{"figure": figure, "block_bytes": size, "other": row["floor_gb_per_s"], "kvrail": row["gb_per_s"], "ratio": row["ratio"]}
                for size, row in self.floor("--pairs", "9", *options).items()]

    def speed(self):
        return self.beside_the_floor("floor")

    def cpu(self):
        rows = self.beside_the_floor("cpu", "--cpu")
        for row in rows:
            row.update({field: 1 / row[field] for field in ("other", "kvrail", "ratio")})
        return rows

    def call(self):
        told = subprocess.run([self.find("tcp_call")], stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE_S).stdout
        size, echo, acked, ratio = told.splitlines()[-1].split()[:4]
        return [{"figure": "call", "block_bytes": int(size), "other": float(echo), "kvrail": float(acked), "ratio": float(ratio)}]

    def nixl(self):
        out = os.path.join(self.folder, "nixl.json")
        subprocess.run([sys.executable, os.path.join(results.HERE, "nixl_calls.py"), os.path.join(self.build, "nixl_plugin", "libplugin_KVRAIL.so"),
                        "--passes", "2", "--json", out], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "KVCACHE_TRANSPORT": "tcp", "UCX_TLS": "tcp"})
        with open(out, encoding="utf-8") as file:
            rows = [row for row in json.load(file)["rows"] if row["way"] == "WRITE"]
        speeds = {}
        for row in rows:
            speeds.setdefault(row["block_bytes"], {})[row["case"] == "KVRAIL"] = max(
                row["gb_per_s"], speeds.get(row["block_bytes"], {}).get(row["case"] == "KVRAIL", 0))
        return [{"figure": "nixl", "block_bytes": size, "other": both[False], "kvrail": both[True], "ratio": both[True] / both[False]}
                for size, both in speeds.items()]

    def streams(self):
        speeds = {n: {} for n in STREAMS}
        for i in range(self.rounds):
            for n in STREAMS if i % 2 else STREAMS[::-1]:
                for size, row in self.floor("--pairs", "3", "--sizes", "16K,64K,256K", KVCACHE_TCP_STREAMS=str(n)).items():
                    speeds[n].setdefault(size, []).append(row["gb_per_s"])
        return [{"figure": "streams", "block_bytes": size, "other": statistics.median(one), "kvrail": statistics.median(speeds[2][size]),
                 "ratio": statistics.median(b / a for a, b in zip(one, speeds[2][size]))} for size, one in speeds[1].items()]


FIGURES = {"floor": Bench.speed, "cpu": Bench.cpu, "call": Bench.call, "nixl": Bench.nixl, "streams": Bench.streams}
UNITS = {"floor": "GB/s", "cpu": "s/GB", "call": "us", "nixl": "GB/s", "streams": "GB/s"}


def table(rows):
    """As Markdown, for the page."""
    lines = ["| figure | block | other | kvrail | ratio |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {row['figure']}, {UNITS[row['figure']]} | {row['block_bytes'] // 1024} KiB | {row['other']:.2f} | {row['kvrail']:.2f} "
              f"| {row['ratio']:.2f} |" for row in rows]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", help="where the programs are")
    parser.add_argument("--only", default="floor,cpu,call,nixl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    options = parser.parse_args()
    results.can_write(options.json)
    told = results.head("tcp_figures", transport="tcp", rounds=options.rounds, load=round(os.getloadavg()[0], 1))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.build, folder, options.rounds)
        for name in options.only.split(","):
            rows += FIGURES[name](bench)
    print(table(rows), end="")
    if options.json:
        results.write(options.json, told, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
