#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""compare.py -- what a block and a message cost in this tree, beside another commit's

Builds both trees in the same way, then measures a fixed piece of work of one thread (kv_cost.c, net_cost.c of this tree)
over each path, in turn, A B A B …:

  instructions  of one run, in functions of the library (transport, kvapi, net_plugin) and in all, as valgrind's
                callgrind counts them: the same number in every run, whatever else the machine does
  ns            processor time of a block or a message: the median of the rounds, each the least of ten runs
  wall          with --wall: medians of kv_pd_bench and net_perf between two processes, which a busy machine spoils

Exit status 1 if a ratio of the library's instructions is above the limit."""
import argparse
import collections
import glob
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

import results

HERE = os.path.dirname(os.path.abspath(__file__))
TREE = os.path.dirname(HERE)
LIBRARY = re.compile(r"(transport|kvapi|net_plugin)/[^:]*\.[ch]$")

Row = collections.namedtuple("Row", "name program arguments counted things settings")
SHM = {"KVCACHE_TRANSPORT": "shm"}
ROWS = [  # arguments as measured in time, and as counted
    Row("block of 1 KiB, pool", "kv", ["1024", "1024", "20"], ["1024", "256", "10", "1"], 2560, SHM),
    Row("block of 4 KiB, pool", "kv", ["4096", "1024", "20"], ["4096", "256", "10", "1"], 2560, SHM),
    Row("block of 1 KiB, cma", "kv", ["1024", "1024", "20"], ["1024", "256", "10", "1"], 2560, {**SHM, "KVCACHE_SHM_PATH": "cma"}),
    Row("block of 1 KiB, ring", "kv", ["1024", "1024", "20"], ["1024", "256", "10", "1"], 2560,
        {**SHM, "KVCACHE_SHM_PATH": "ring"}),
    Row("block of 64 B, fake NIC", "fake", ["64", "1024", "5"], ["64", "256", "10", "1"], 2560, {}),
    Row("write of 1 block, pool", "kv", ["1024", "1", "2000"], ["1024", "1", "500", "1"], 500, SHM),
    Row("write of 1 block, fake NIC", "fake", ["64", "1", "500"], ["64", "1", "200", "1"], 200, {}),
    Row("message of 64 B, shm", "net", ["64", "500"], ["64", "50", "1"], 400, SHM),
    Row("message of 64 KiB, shm", "net", ["65536", "50"], ["65536", "20", "1"], 160, SHM),
]


def run(*command, **more):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


class Tree:
    """A tree, built as a release with the names of its files in it; the programs are in `folder`."""

    def __init__(self, root, folder, jobs, wall):
        self.root, self.folder = os.path.abspath(root), folder
        self.shm, self.fake = self.root + "/build-cost", self.root + "/build-cost-fake"
        os.makedirs(folder)
        targets = ["kvrail", "kvrail_net"] + (["kv_pd_bench", "net_perf"] if wall else [])
        self.build(self.shm, jobs, "OFF", targets)
        self.build(self.fake, jobs, "ON", ["kv_late_test"])
        flags = ["-O2", "-std=gnu11", "-D_GNU_SOURCE", f"-I{HERE}", f"-I{self.root}/include"]
        library = self.shm + "/kvapi"
        run("cc", *flags, HERE + "/kv_cost.c", HERE + "/copy.c", "-o", folder + "/kv", f"-L{library}", "-lkvrail", f"-Wl,-rpath,{library}", "-pthread")
        run("cc", *flags, HERE + "/net_cost.c", "-o", folder + "/net", "-ldl")
        run("cc", *flags, "-r", "-nostdlib", HERE + "/kv_cost.c", HERE + "/copy.c", "-o", folder + "/kv_cost.o")
        self.link_with_fake()

    def build(self, where, jobs, faults, targets):
        run("cmake", "--preset", "bench", "-B", where, "--log-level=WARNING", f"-DKVRAIL_FAULTS={faults}", "-DKVRAIL_MPI=OFF",
            "-DCMAKE_C_FLAGS_RELEASE=-O3 -DNDEBUG -g", cwd=self.root)
        run("cmake", "--build", where, "-j", str(jobs), "--target", *targets, cwd=self.root)

    def link_with_fake(self):
        """As kv_late_test is linked, with another main."""
        link = run("ninja", "-C", self.fake, "-t", "commands", "kv_late_test").strip().splitlines()[-1]
        link = re.sub(r"\S*/kv_late_test\.c\.o", self.folder + "/kv_cost.o", link)
        link = re.sub(r"-o \S*kv_late_test\b", f"-o {self.folder}/fake", link)
        run("sh", "-c", link, cwd=self.fake)

    def program(self, name):
        """Wherever that commit builds it."""
        return glob.glob(f"{self.shm}/**/{name}", recursive=True)[0]

    def command(self, row, arguments):
        plugin = [self.shm + "/net_plugin/libnccl-net-kvrail.so"] if row.program == "net" else []
        return [f"{self.folder}/{row.program}", *plugin, *arguments]

    def environment(self, row):
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("KVCACHE_", "NCCL_"))}
        return {**clean, "NCCL_SOCKET_IFNAME": "lo", "KVCACHE_HANDSHAKE_MS": "60000", "KVCACHE_OP_TIMEOUT_MS": "60000", **row.settings}

    def ns(self, row):
        return float(run(*self.command(row, row.arguments), env=self.environment(row), timeout=300))

    def instructions(self, row):
        """Of the library and of everything, for one block or message."""
        out = self.folder + "/callgrind.out"
        run("valgrind", "--tool=callgrind", "--toggle-collect=measured", "--callgrind-out-file=" + out,
            *self.command(row, row.counted), env=self.environment(row), timeout=600)
        ours, total = count(out, self.root)
        return ours / row.things, total / row.things

    def wall(self):
        """{name: the less the better}"""
        found, table = {}, self.folder + "/table.json"
        run(self.program("kv_pd_bench"), "--local", "1+1", "-b", "1K", "-e", "4K", "-f", "4", "-i", "64", "--pool", "64M",
            "-J", table, timeout=300)
        with open(table, encoding="utf-8") as file:
            for row in json.load(file)["rows"]:
                found[f"kv_pd_bench, {row.get('block_bytes', row.get('blk_size'))} B: p50 us"] = row["p50_us"]
        run(self.program("net_perf"), "-b", "64", "-e", "65536", "-J", table,
            self.shm + "/net_plugin/libnccl-net-kvrail.so", timeout=300)
        with open(table, encoding="utf-8") as file:
            told = json.load(file)  # an older commit writes the rows alone
            for row in told["rows"] if isinstance(told, dict) else told:
                found[f"net_perf, {row['bytes']} B: us a message"] = 1e6 / row["messages_per_s"]
        return found


def is_library(name, root):
    """A file of the library; callgrind has names as the compiler was given them, absolute or from the build folder."""
    return bool(LIBRARY.match(os.path.relpath(name, root) if os.path.isabs(name) else name.removeprefix("../")))


def count(path, root):
    """The instructions in a callgrind file that functions took themselves: in the library's files, in all."""
    names, current, called, ours, total = {}, False, False, 0, 0
    with open(path, encoding="utf-8") as file:
        for line in file:
            match = re.match(r"(fl|fi|fe)=\((\d+)\)(?: (.*))?", line)
            if match:
                if match[3]:
                    names[match[2]] = is_library(match[3].strip(), root)
                current = names[match[2]]
            elif line.startswith("cfi=") or line.startswith("cfl="):
                match = re.match(r"cf[il]=\((\d+)\)(?: (.*))?", line)
                if match[2]:
                    names[match[1]] = is_library(match[2].strip(), root)
            elif line.startswith("calls="):
                called = True  # the next line is what the callee took
            elif re.match(r"[+\-*\d]", line):
                if not called:
                    cost = int(line.split()[1])
                    total += cost
                    ours += cost * current
                called = False
    return ours, total


def main():
    parser = argparse.ArgumentParser(prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a checkout of the commit to compare with (git worktree add DIR COMMIT)")
    parser.add_argument("tree", nargs="?", default=TREE, help="the tree that is compared (this one)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (5)")
    parser.add_argument("--limit", type=float, default=2, metavar="PERCENT", help="more instructions are a failure (2)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="of the builds")
    parser.add_argument("--wall", action="store_true", help="also kv_pd_bench and net_perf")
    parser.add_argument("--json", metavar="FILE", help="the same as JSON (bench/README.md)")
    args = parser.parse_args()
    results.can_write(args.json)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        trees = [Tree(root, f"{folder}/{name}", args.jobs, args.wall) for root, name in ((args.base, "a"), (args.tree, "b"))]
        commits = [run("git", "-C", tree.root, "describe", "--always", "--dirty").strip() for tree in trees]
        print(f"A is {commits[0]}, B is {commits[1]}; medians of {args.rounds} rounds in turn, load {os.getloadavg()[0]:.1f}\n")
        print(f"{'':28} {'library, instructions':^28}   {'all':>7}   {'processor ns':^26}")
        print(f"{'':28} {'A':>9} {'B':>9} {'B/A':>8}   {'B/A':>7}   {'A':>9} {'B':>9} {'B/A':>6}")
        worst = 0
        for row in ROWS:
            counted = [tree.instructions(row) for tree in trees]
            rounds = [[tree.ns(row) for tree in trees] for _ in range(args.rounds)]
            a, b = (statistics.median(column) for column in zip(*rounds))
            ns_ratio = statistics.median(two / one for one, two in rounds)
            ratio = counted[1][0] / counted[0][0]
            worst = max(worst, ratio)
            print(f"{row.name:28} {counted[0][0]:9.1f} {counted[1][0]:9.1f} {ratio:8.3f}   {counted[1][1] / counted[0][1]:7.3f}   "
                  f"{a:9.1f} {b:9.1f} {ns_ratio:6.3f}", flush=True)
            rows.append({"what": row.name, "a_instructions": counted[0][0], "b_instructions": counted[1][0], "ratio": ratio,
                         "all_ratio": counted[1][1] / counted[0][1], "a_ns": a, "b_ns": b, "ns_ratio": ns_ratio})
        if args.wall:
            rounds = [[tree.wall() for tree in trees] for _ in range(args.rounds)]
            print()
            for name in rounds[0][0]:
                pairs = [(one[name], two[name]) for one, two in rounds]
                a, b = (statistics.median(column) for column in zip(*pairs))
                ns_ratio = statistics.median(two / one for one, two in pairs)
                print(f"{name:36} {a:9.2f} {b:9.2f} {ns_ratio:6.3f}")
                rows.append({"what": name, "a_instructions": None, "b_instructions": None, "ratio": None, "all_ratio": None,
                             "a_ns": a * 1000, "b_ns": b * 1000, "ns_ratio": ns_ratio})
    if args.json:
        results.write(args.json, results.head("compare", a_commit=commits[0], b_commit=commits[1], rounds=args.rounds), rows)
    return worst > 1 + args.limit / 100


if __name__ == "__main__":
    sys.exit(main())
