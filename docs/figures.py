#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""figures.py -- the figures in docs/reliability.md, from docs/results/*.json, in docs/nixl.md, from
bench/stored/nixl.json and peers.json, in docs/operate.md, from docs/results/metrics.json, in docs/tcp.md,
from bench/stored/tcp.json and tcp_streams.json, in docs/benchmarks.md, from bench/stored/verbs.json and curves.json, and in
docs/gpu.md, from bench/stored/h200*.json

usage: figures.py [--check] [--measure BUILD]

A file of results has "command", "commit" and "figures" ({what: value}). --measure runs the programs of MEASURED in the build
folder and writes theirs; other files are written by what made them (./dev mutants --json, for one). --check only says whether
the page has the table that belongs to the files."""
import argparse
import glob
import json
import os
import re
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(ROOT, "bench"))
import curves  # noqa: E402
import nixl_calls  # noqa: E402
import peers  # noqa: E402
import tcp_figures  # noqa: E402
import verbs  # noqa: E402

BEGIN, END = "<!-- made by docs/figures.py -->\n", "<!-- end -->\n"


def sum_of_runs(match):
    runs = re.findall(r": (\d+) runs with a failure", match[1])
    return f"{sum(map(int, runs))} runs, none crashed or left anything behind"


# file: command (in the build folder), and what its output says: {figure: (pattern, value)}
MEASURED = {
    "handshake": ("tests/loop/auth_test", {
        "processor time of a handshake, both ends together, median of 101": (
            r"without a key (\d+) us, with one (\d+) us", "{} us without a key, {} us with one"),
    }),
    "listener": ("tests/loop/listener_cost_test long", {
        "an honest connect beside 1,000 idle strangers and 1,000 garbage connections a second": (
            r"garbage/s: (\d+) connects, median ([\d.]+) ms, p99 ([\d.]+) ms", "{} connects, median {} ms, p99 {} ms"),
        "what the engine's memory grew by meanwhile": (r"garbage/s: the engine's memory grew by (\d+) KiB", "{} KiB"),
    }),
    "sweep": ("tests/fake/ib_sweep_test", {
        "verbs and fault points of the ib provider, each failed once in every place": (
            r"(?s)^(.*)$", sum_of_runs),
    }),
}


def commit():
    """Of all that is not a document: these figures are one themselves. COMMIT names it where git is not there."""
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    same = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", ":!docs"], cwd=ROOT, check=False).returncode == 0
    return head if same else head + "-dirty"


def store(path, command, figures):
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"command": command, "commit": commit(), "load": round(os.getloadavg()[0], 1), "figures": figures}, file, indent=1)
        file.write("\n")


def measure(build):
    for name, (command, wanted) in MEASURED.items():
        done = subprocess.run(command.split(), cwd=build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                              timeout=600)
        if done.returncode:  # on a machine that is too busy, perhaps: its last figures stay
            print(f"figures: {command} failed:\n{done.stdout[-2000:]}", file=sys.stderr)
            continue
        figures = {}
        for what, (pattern, value) in wanted.items():
            match = re.search(pattern, done.stdout)
            if not match:
                sys.exit(f"figures: {command} does not say \"{what}\":\n{done.stdout[-2000:]}")
            figures[what] = value(match) if callable(value) else value.format(*match.groups())
        store(os.path.join(ROOT, "docs", "results", name + ".json"), f"{os.path.basename(os.path.abspath(build))}/{command}", figures)


def table():
    rows = ["| what | figure | command | at | load |", "| --- | --- | --- | --- | --- |"]
    for path in sorted(glob.glob(os.path.join(ROOT, "docs", "results", "*.json"))):
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        if isinstance(result, dict):
            rows += [f"| {what} | {value} | `{re.sub(r'^build-.*/', '', result['command'])}` | {result['commit']} | {result.get('load', '')} |"
                     for what, value in result.get("figures", {}).items()]
    return "\n".join(rows) + "\n"


def stored(name):
    with open(os.path.join(ROOT, "bench", "stored", name + ".json"), encoding="utf-8") as file:
        return json.load(file)


def nixl_table():
    told = stored("nixl")
    settings = told["settings"]
    return (f"{told['cpu']}, NIXL {settings['nixl']}, load {settings['load']}, commit {told['commit']}, the median of {settings['passes']} passes"
            + ("; so much ran beside them that they say little" if settings["load"] > 1 else "") + ":\n\n" + nixl_calls.tables(told["rows"]) + "\n" + over_soft_roce(stored("peers")))


def over_soft_roce(told):
    return f"Over RDMA there is Soft-RoCE only, software and no network: `{told['command']}`.\n\n" + peers.tables(told, told["rows"])


def metrics_table():
    with open(os.path.join(ROOT, "docs", "results", "metrics.json"), encoding="utf-8") as file:
        told = json.load(file)
    us = told["kv_pd_bench_p50_us"]
    percent = [100 * (more / less - 1) for less, more in zip(us["without"], us["with"])]
    low, middle, high = statistics.quantiles(percent)
    rows = ["| with metrics and the view, more | by |", "| --- | ---: |"]
    rows += [f"| instructions: {name} | {100 * more / without:.2f} % |" for name, (without, more) in told["instructions"].items()]
    rows += [f"| time: `kv_pd_bench` at 1 KiB, {len(percent)} pairs of runs, {statistics.median(us['without']):.0f} us an operation without | "
             f"{middle:.1f} % (quartiles {low:.1f} and {high:.1f} %) |"]
    return (f"`{told['command']}`, {told['cpu']}, load {told['load']}, commit {told['commit']}"
            + ("; so much ran beside it that the time says little" if told["load"] > 1 else "") + ":\n\n" + "\n".join(rows) + "\n")


def tcp_tables():
    told = [stored(name) for name in ("tcp", "tcp_streams")]
    return "\n".join(f"`{re.sub(r'^.*?(?=chrt|tcp_figures)', '', one['command'])}`, {one['cpu']}, load {one['settings']['load']}, commit {one['commit']}:\n\n"
                     + tcp_figures.table(one["rows"]) for one in told)


def run_of(told):
    load = told["settings"]["load"]
    return (f"`{told['command']}`: {told['cpu']}, {told['date'][:10]}, commit {told['commit']}, load {load}, {told['settings']['rounds']} rounds"
            + ("; so much ran beside it that only the quickest of each says something" if load > 1 else "") + ".\n\n")


def verbs_tables():
    told = stored("verbs")
    return run_of(told) + verbs.tables(told["rows"])


def curve_table(which):
    told = stored("curves")
    return run_of(told) + curves.tables(told["rows"])[which]


def gpu_table(name, title):
    told = stored(name)
    rows = ["| block | one | several | floor | post, us | one / floor | several / floor |", "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    rows += [f"| {row['block_kib']} KiB | {row['one_gb_per_s']:.1f} | {row['several_gb_per_s']:.1f} | {row['floor_gb_per_s']:.1f} | {row['post_us']:.0f} "
             f"| {row['one_ratio']:.2f} | {row['several_ratio']:.2f} |" for row in told["rows"]]
    wrong = sum(row["wrong_bytes"] for row in told["rows"])
    return (f"{title} ([{name}.json](../bench/stored/{name}.json), `{re.sub(r'^.*?gpu_pd', 'gpu_pd', told['command'])}`, commit {told['commit']}, "
            f"{wrong} bytes wrong):\n\n" + "\n".join(rows) + "\n")


def gpu_tables():
    return "\n".join(gpu_table(name, title) for name, title in (
        ("h200_gpu_gpu", "One GPU, both processes on it"),
        ("h200_gpu_host", "The same GPU into the memfd pool of the other process"),
        ("h200_host_gpu", "And read back from it"),
        ("h200_gpu_gpu_132", "One GPU, with all its multiprocessors"),
        ("h200x2_gpu", "Two GPUs over NVLink"),
        ("h200x2_gpu_132", "The same with all multiprocessors"))) + "\n" + "\n".join((
            gpu_peers("h200_peers", "h200_gpu_gpu", "NIXL 1.5.1 (UCX, no progress thread, lists prepared once) and Mooncake 0.3.14 (`nvlink_intra`), "
                      "two processes on one GPU, one batch at a time", "of the same run"),
            gpu_peers("h200x2_peers", "h200x2_gpu", "The same two between two such GPUs", "over NVLink, **which is of another run** (`run.sh two` makes both in one)"),
            beside()))


def gpu_peers(name, ours, title, of):
    told = stored(name)
    one = {row["block_kib"]: row["one_gb_per_s"] for row in stored(ours)["rows"]}
    rows = ["| engine | block | GB/s | kvrail / it |", "| --- | ---: | ---: | ---: |"]
    rows += [f"| {row['way']} | {row['block_kib']} KiB | {row['one_gb_per_s']:.3f} | {one[row['block_kib']] / row['one_gb_per_s']:.1f} |"
             for row in told["rows"]]
    return f"{title} ([{name}.json](../bench/stored/{name}.json), commit {told['commit']}), beside kvrail's `one` {of}:\n\n" + "\n".join(rows) + "\n"


def beside():
    told = stored("h200_beside")
    rows = ["| block | copies, GB/s | product alone, TFLOPS | beside the copies | lost |", "| ---: | ---: | ---: | ---: | ---: |"]
    rows += [f"| {row['block_kib']} KiB | {row['copies_gb_per_s']:.1f} | {row['tflops_alone']:.0f} | {row['tflops_beside']:.0f} | {row['lost_percent']:.1f} % |"
             for row in told["rows"]]
    return ("What a matrix product of the same process loses meanwhile (8192 x 8192 x 8192 in bfloat16, "
            f"[h200_beside.json](../bench/stored/h200_beside.json), `tests/gpu/run.sh python`, commit {told['commit']}). It takes every multiprocessor in turn, so "
            "a kernel waits for its end, about a millisecond; one batch at a time then moves little:\n\n" + "\n".join(rows) + "\n")


PAGES = {"gpu.md": [gpu_tables], "reliability.md": [table], "nixl.md": [nixl_table], "operate.md": [metrics_table], "tcp.md": [tcp_tables],
         "benchmarks.md": [lambda: curve_table(1), verbs_tables, lambda: curve_table(0)]}


def page_of(text, parts):
    """The page with each part between the next marks."""
    head, *rests = text.split(BEGIN)
    return head + "".join(BEGIN + made() + END + rest.split(END)[1] for made, rest in zip(parts, rests, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--measure", metavar="BUILD", help="a build folder whose programs are run first")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
    for name, parts in PAGES.items():
        page = os.path.join(ROOT, "docs", name)
        with open(page, encoding="utf-8") as file:
            text = file.read()
        new = page_of(text, parts)
        if arguments.check and new != text:
            return f"{page} is not what docs/figures.py makes: ./dev docs"
        if not arguments.check:
            with open(page, "w", encoding="utf-8") as file:
                file.write(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
