#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tcp_figures.py -- what TCP costs, beside the barest programs over the same kind of socket, in one run

usage: tcp_figures.py BUILD [--only streams,...] [--rounds N] [--json FILE]

streams   kv_floor with one stream and with two, in turn: GB/s of each, the median of the rounds' ratios. What a second stream
          brings needs processors that nobody else uses: two at each end."""
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

    def streams(self):
        speeds = {n: {} for n in STREAMS}
        for i in range(self.rounds):
            for n in STREAMS if i % 2 else STREAMS[::-1]:
                for size, row in self.floor("--pairs", "3", "--sizes", "16K,64K,256K", KVCACHE_TCP_STREAMS=str(n)).items():
                    speeds[n].setdefault(size, []).append(row["gb_per_s"])
        return [{"figure": "streams", "block_bytes": size, "other": statistics.median(one), "kvrail": statistics.median(speeds[2][size]),
                 "ratio": statistics.median(b / a for a, b in zip(one, speeds[2][size]))} for size, one in speeds[1].items()]


FIGURES = {"streams": Bench.streams}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", help="where the programs are")
    parser.add_argument("--only", default=",".join(FIGURES))
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
    results.print_table(["figure", "block", "other", "kvrail", "ratio"],
                        [[row["figure"], str(row["block_bytes"]), f"{row['other']:.2f}", f"{row['kvrail']:.2f}", f"{row['ratio']:.2f}"]
                         for row in rows])
    if options.json:
        results.write(options.json, told, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
