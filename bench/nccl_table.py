# SPDX-License-Identifier: Apache-2.0
"""nccl_table.py -- what nccl_ops.py measured, as the tables of docs/nccl.md: each case beside NCCL's Socket, and the bar

usage: nccl_table.py [--commit ID --json ALL.json] BENCH.json...    (--json: all in one file, with date and commit)
       nccl_table.py ALL.json
"""
import argparse
import json
import statistics
import time

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


def print_table(title, rows, cases, sizes, key):
    found = {(row["case"], row["what"], row["bytes"]): row for row in rows}
    if not sizes:
        return 0
    print(f"\n{title}\n\n| | bytes | " + " | ".join(cases) + " | Socket / kvrail |\n|---|---:|" + "---:|" * (len(cases) + 1))
    below = 0
    for what in dict.fromkeys(row["what"] for row in rows):
        for size in sizes:
            cells = [found.get((case, what, size)) for case in cases]
            ours, socket = found.get(("kvrail", what, size)), found.get(("Socket", what, size))
            ratio = statistics.median(socket[key]) / statistics.median(ours[key]) if ours and socket else 0
            bar = 2 if size >= 16 << 20 else 1 if size == 8 else 0
            below += ratio < bar
            print(f"| {what} | {size_text(size)} | " + " | ".join(cell(row, key) for row in cells)
                  + f" | {ratio:.2f}" + (f" (below {bar})" if ratio < bar else "") + " |")
    return below


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+")
    parser.add_argument("--json")
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    rows, head = [], {}
    for name in args.files:
        with open(name, encoding="utf-8") as file:
            data = json.load(file)
        rows += data["rows"]
        head = {key: head.get(key, data.get(key)) for key in ("date", "commit", "device", "nccl")}
    if args.json:
        head.update(date=time.strftime("%Y-%m-%d"), commit=args.commit)
        with open(args.json, "w", encoding="utf-8") as file:
            file.write(json.dumps(head)[:-1] + ', "rows": [\n')
            file.write(",\n".join(json.dumps({key: [round(v, 2) for v in value] if isinstance(value, list) else value
                                              for key, value in row.items()}) for row in rows) + "\n]}\n")
    cases = list(dict.fromkeys(row["case"] for row in rows))
    small = sorted({row["bytes"] for row in rows if row["bytes"] <= SMALL})
    large = sorted({row["bytes"] for row in rows if row["bytes"] > SMALL})
    print(f"Two x {head['device']}, NCCL {head['nccl']}, commit {head['commit']}, {head['date']}")
    below = print_table("Microseconds of an operation of many that are queued: median (least)", rows, cases, small, "us")
    print_table("Microseconds of one alone, from the call to the end: median (least)", rows, cases, small, "alone_us")
    below += print_table("GB/s: median (best)", rows, cases, large, "us")
    print(f"\nbelow the bar (8 B: no slower than Socket; from 16 MiB: twice as fast): {below}")


if __name__ == "__main__":
    main()
