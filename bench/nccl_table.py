# SPDX-License-Identifier: Apache-2.0
"""nccl_table.py -- what nccl_ops.py measured, as the tables of docs/nccl.md: each case beside NCCL's Socket, and the bar

usage: nccl_table.py [--commit ID --json ALL.json] OPS.json...
       nccl_table.py ALL.json
"""
import argparse
import json
import statistics

import results

SMALL = 1 << 16


def size_text(size):
    for shift, unit in ((20, "MiB"), (10, "KiB")):
        if size >= 1 << shift:
            return f"{size >> shift} {unit}"
    return f"{size} B"


def cell(row, key):
    if not row or not row[key]:
        return "-"
    value, least = statistics.median(row[key]), min(row[key])
    if key == "us" and row["bytes"] > SMALL:
        value, least = row["bytes"] / value / 1e3, row["bytes"] / least / 1e3
    return f"{value:.1f} ({least:.1f})"


def table_of(title, rows, cases, sizes, key):
    """Prints it, unless it is empty; how many ratios are below the bar."""
    found = {(row["case"], row["what"], row["bytes"]): row for row in rows}
    name = cases[0]
    least = {"kvrail": 2, "cuda": 8}[name]
    beside = [other for other in ("Socket", "SHM") if other in cases] if name == "cuda" else ["Socket"]
    lines, below = [], 0
    for what in dict.fromkeys(row["what"] for row in rows):
        for size in sizes:
            cells = [cell(found.get((case, what, size)), key) for case in cases]
            for other in beside:
                ours, theirs = found.get((name, what, size)), found.get((other, what, size))
                ratio = statistics.median(theirs[key]) / statistics.median(ours[key]) if ours and theirs else 0
                bar = least if size >= 16 << 20 else 1 if size == 8 else 0
                bar = bar if other == "Socket" else bar > 1
                below += ratio < bar
                cells.append(f"{ratio:.2f}" + (f" (below {int(bar)})" if ratio < bar else ""))
            lines.append([what, size_text(size), *cells])
    if lines:
        print(f"\n{title}\n")
        results.print_table(["", "bytes", *cases, *(f"{other} / {name}" for other in beside)], lines)
    return below


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+")
    parser.add_argument("--json", help="all in one file")
    parser.add_argument("--commit", default="", help="of a tree without git")
    args = parser.parse_args()
    results.can_write(args.json)
    rows, head = [], {}
    for name in args.files:
        with open(name, encoding="utf-8") as file:
            told = json.load(file)
        rows += told.pop("rows")
        head = head or told
    head["commit"] = args.commit or head["commit"]
    if args.json:
        results.write(args.json, head, rows)
    cases = list(dict.fromkeys(row["case"] for row in rows))
    small = sorted({row["bytes"] for row in rows if row["bytes"] <= SMALL})
    large = sorted({row["bytes"] for row in rows if row["bytes"] > SMALL})
    print(f"Two x {head['settings']['device']}, NCCL {head['settings']['nccl']}, commit {head['commit']}, {head['date'][:10]}")
    below = table_of("Microseconds of an operation of many that are queued: median (least)", rows, cases, small, "us")
    table_of("Microseconds of one alone, from the call to the end: median (least)", rows, cases, small, "alone_us")
    below += table_of("GB/s: median (best)", rows, cases, large, "us")
    aim = "twice as fast" if cases[0] == "kvrail" else "8 times as fast, and no slower than SHM"
    print(f"\nbelow the bar (8 B: no slower than Socket; from 16 MiB: {aim}): {below}")


if __name__ == "__main__":
    main()
