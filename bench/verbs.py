#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""verbs.py -- what a block costs over verbs, beside the barest user of libibverbs; over tests/softnic

usage: verbs.py BUILD [--modes null,model,model:100] [--sizes 1K,4K,...] [--rounds N] [--nixl PYTHON] [--mooncake PYTHON] [--json FILE]

For each mode of softnic (:N, with doorbells of N ns) and each block size, in turn in every round:

  floor     verbs_floor: lists of work requests that were built before, posted as they are
  cost      kv_cost: both ends of kvrail in one thread, its processor time, which other load hardly spoils
  1+1       kv_pd_bench: two processes, the time until the receiver has acknowledged; needs a core for each end
  NIXL      verbs_nixl.py by PYTHON, whose packages have it: the same between two processes of that engine, by its UCX
  Mooncake  verbs_mooncake.py, likewise

each with one slab of 1538 blocks an operation, and ours with 64 slabs where they fit 2 GiB; in `model`, where ours have 4 queue pairs
(one makes 15 million messages a second), also with two operations in flight instead. Figures are nanoseconds of a block, the
quickest of all iterations, with two in flight the mean of a run: what else the machine does only adds. `inside` is the part of 1+1 that is inside softnic, a
mean by softnic's clock, so a busy machine spoils it.
softnic is software and no network: these are costs of a CPU, and in `model` what is left of the NIC whose numbers were set.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import results

HERE = os.path.dirname(os.path.abspath(__file__))
BATCH, SLABS, MOST = 1538, 64, 2 << 30
MODEL_QPS = "4"
SIZES = "1K,4K,16K,64K,256K"
INSIDE = ["inside_ns", "requests_per_block", "posts_per_block"]
FIGURES = ["floor_ns", "cost_1_ns", "cost_64_ns", "pair_1_ns", "ahead_1_ns", "pair_64_ns", "nixl_ns", "mooncake_ns", *INSIDE]


def size_of(text):
    return int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]] if text[-1] in "KMG" else int(text)


class Bench:
    def __init__(self, build, folder):
        self.build, self.folder = build, folder
        self.env = dict(os.environ, LD_LIBRARY_PATH=f"{build}/tests/softnic/lib", KVCACHE_TRANSPORT="ib",
                        SOFTNIC_WORLD=f"bench{os.getpid()}")

    def environ(self, mode):
        name, _, doorbell = mode.partition(":")
        told = dict(self.env, SOFTNIC_MODE=name, SOFTNIC_DOORBELL_NS=doorbell or "0")
        return dict(told, KVCACHE_IB_LANES=MODEL_QPS) if name == "model" else told

    def run(self, mode, program, *arguments):
        """Its row, and what the first process to post has counted."""
        out = os.path.join(self.folder, "out.json")
        counts = os.path.join(self.folder, "counts")
        done = subprocess.run([f"{self.build}/bench/{program}", *arguments, "-J", out], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False,
                              env=dict(self.environ(mode), SOFTNIC_STATS=counts + "%p"))
        if done.returncode:
            sys.exit(f"{program} {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}")
        most = {}
        for name in os.listdir(self.folder):
            if name.startswith("counts"):
                path = os.path.join(self.folder, name)
                with open(path, encoding="ascii") as file:
                    most = max(most, json.load(file)["softnic"], key=lambda c: c.get("work_requests", -1))
                os.unlink(path)
        with open(out, encoding="utf-8") as file:
            return json.load(file)["rows"][0], most

    def floor(self, mode, size):
        pairs = MODEL_QPS if mode.startswith("model") else "1"
        return self.run(mode, "verbs_floor", "-b", str(size), "-e", str(size), "-q", pairs)[0]["p1_ns"]

    def engine(self, mode, python, program, *arguments):
        words = [python, "-B", os.path.join(HERE, program), *map(str, arguments)]
        return float(subprocess.run(words, text=True, stdout=subprocess.PIPE, check=True, env=self.environ(mode)).stdout)

    def cost(self, mode, size, slabs):
        words = [f"{self.build}/bench/kv_cost", str(size), str(BATCH), "1" if slabs > 1 else "16", "16", str(slabs)]
        done = subprocess.run(words, text=True, stdout=subprocess.PIPE, check=True, env=self.environ(mode))
        return float(done.stdout)

    def ahead(self, mode, size):
        """Two operations in flight: the time from one end to the next."""
        row = self.run(mode, "kv_pd_bench", "--local", "1+1", "-b", str(size), "-e", str(size), "-c", "0", "--in-flight", "2", "--pool",
                       str(2 * BATCH * size))[0]
        return row["time_us"] * 1000 / BATCH

    def pair(self, mode, size, slabs):
        shape = ["--layers", "32", "--tensors", "2"] if slabs > 1 else []
        iters = 64 if slabs == 1 else 8
        row, counts = self.run(mode, "kv_pd_bench", "--local", "1+1", "-b", str(size), "-e", str(size), "-c", "0", "-w", str(iters),
                               "-i", str(iters), "--pool", str(2 * BATCH * size * slabs), *shape)
        blocks = 2 * iters * BATCH * slabs
        return (row["p1_us"] * 1000 / (BATCH * slabs), counts["ns"] / blocks, counts["work_requests"] / blocks,
                counts["posts"] / blocks)


def measure(bench, mode, size, rounds, nixl, mooncake):
    seen = {name: [] for name in FIGURES}

    def note(*pairs):
        for name, value in pairs:
            seen[name].append(value)

    for _ in range(rounds):
        note(("floor_ns", bench.floor(mode, size)))
        for slabs in (1, SLABS):
            if 4 * slabs * BATCH * size <= MOST or slabs == 1:
                pair = bench.pair(mode, size, slabs)
                note((f"pair_{slabs}_ns", pair[0]), *zip(INSIDE, pair[1:]))
                if not mode.startswith("model"):  # there it would be the time of waiting
                    note((f"cost_{slabs}_ns", bench.cost(mode, size, slabs)))
        if mode.startswith("model"):
            note(("ahead_1_ns", bench.ahead(mode, size)))
        if nixl:
            note(("nixl_ns", bench.engine(mode, nixl, "verbs_nixl.py", size, 32)))
        if mooncake:
            note(("mooncake_ns", bench.engine(mode, mooncake, "verbs_mooncake.py", BATCH, size, 32)))
    return {"mode": mode.split(":")[0], "doorbell_ns": int(mode.partition(":")[2] or 0), "block_bytes": size, **{name: min(values, default=None) for name, values in seen.items()}}


def text_of(value, digits=1):
    return "-" if value is None else f"{value:.{digits}f}"


def cost_cells(r):
    cells = [str(r["block_bytes"]), text_of(r["floor_ns"])]
    for name in ("cost_1_ns", "cost_64_ns"):
        cells += [text_of(r[name]), text_of(r[name] and r[name] / r["floor_ns"], 2)]
    cells += [text_of(r["pair_1_ns"]), text_of(r["pair_64_ns"])]
    for name in ("nixl_ns", "mooncake_ns"):
        times = [f"{r[name] / r[of]:.1f}" if r.get(name) and r[of] else "-" for of in ("pair_1_ns", "pair_64_ns")]
        cells += [text_of(r.get(name), 0), " / ".join(times)]
    return cells + [text_of(r["inside_ns"]), text_of(r["requests_per_block"], 3), text_of(r["posts_per_block"], 3)]


def model_cells(r):
    """GB/s: bytes of a block by its nanoseconds."""
    rates = [text_of(r.get(name) and r["block_bytes"] / r[name])
             for name in ("floor_ns", "pair_1_ns", "ahead_1_ns", "pair_64_ns", "nixl_ns", "mooncake_ns")]
    return [str(r["block_bytes"]), str(r["doorbell_ns"]), *rates, text_of(r["posts_per_block"], 3)]


TABLES = {
    "null": (["block", "floor", "cost, 1 slab", "ratio", "cost, 64", "ratio", "1+1, 1 slab", "1+1, 64", "NIXL, 1+1", "times 1 / 64", "Mooncake, 1+1", "times 1 / 64", "inside", "requests",
              "posts"],
             cost_cells),
    "model": (["block", "doorbell", "floor, GB/s", "one operation", "two in flight", "64 slabs", "NIXL", "Mooncake", "posts"], model_cells),
}


def tables(rows):
    """As Markdown: of each mode one."""
    texts = []
    for mode, (columns, cells_of) in TABLES.items():
        cells = [cells_of(row) for row in rows if (row["mode"] == "model") == (mode == "model")]
        if cells:
            texts.append(results.table_text(columns, cells, 0))
    return "\n".join(texts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--modes", default="null,model,model:100")
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nixl", metavar="PYTHON")
    parser.add_argument("--mooncake", metavar="PYTHON")
    parser.add_argument("--json")
    options = parser.parse_args()
    results.can_write(options.json)
    rows, load = [], round(os.getloadavg()[0], 1)
    print(f"# {results.cpu()}, load average {load}; software instrument, not a network")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(os.path.realpath(options.build), folder)
        for mode in options.modes.split(","):
            rows += [measure(bench, mode, size_of(size), options.rounds, options.nixl, options.mooncake) for size in options.sizes.split(",")]
    print(tables(rows), end="")
    if options.json:
        results.write(options.json, results.head("verbs.py", "ib", "softnic", batch=BATCH, rounds=options.rounds, load=load), rows)


if __name__ == "__main__":
    main()
