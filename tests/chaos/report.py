# SPDX-License-Identifier: Apache-2.0
"""report.py -- what chaos.py has found, as JSON and as the tables of docs/chaos.md"""
import json
import os
import subprocess

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
RESULTS = os.path.join(ROOT, "docs", "results")
FAULTY = ("wrong", "late", "untyped", "overdue")


def code_names():
    with open(os.path.join(ROOT, "include", "kvrail", "kv_error.h"), encoding="utf-8") as file:
        rows = [line.strip().removeprefix("X(").split(", ")[:2] for line in file if line.strip().startswith("X(")]
    return {int(row[1]): row[0] for row in rows if len(row) == 2 and row[1].isdigit()}


def commit():
    return subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"], text=True,
                          stdout=subprocess.PIPE, check=True).stdout.strip()


def added(args, result):
    """To what is stored of the same commit: a terabyte may take several runs."""
    path = os.path.join(RESULTS, f"{args.results}.json")
    if "ways" not in result or not os.path.exists(path):
        return result
    with open(path, encoding="utf-8") as file:
        stored = json.load(file)
    if stored["commit"] != result["commit"]:
        return result
    result["command"] = stored["command"] + "; " + result["command"]
    for way, more in zip(result["ways"], stored["ways"]):
        for field in ("requests_right", "bytes_right", "seconds", *FAULTY):
            way[field] = round(way[field] + more[field], 1)
        way["gb_per_s_with_filling_and_comparing"] = round(way["bytes_right"] / way["seconds"] / 1e9, 2)
    return result


def write(args, command, result):
    if not args.results:
        return
    result = added(args, {"command": command, "commit": args.commit, "load": round(os.getloadavg()[0], 1), **result})
    path = os.path.join(RESULTS, args.results + ".json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    page()


def page():
    """The tables of docs/chaos.md, from what is stored."""
    path = os.path.join(ROOT, "docs", "chaos.md")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    for name, table in (("chaos", table_of_faults), ("chaos-guests", table_of_faults), ("chaos-soak", table_of_soak)):
        stored = os.path.join(RESULTS, name + ".json")
        if os.path.exists(stored):
            with open(stored, encoding="utf-8") as file:
                rows = table(json.load(file))
            begin, end = f"<!-- made of {name}.json -->\n", "<!-- end -->\n"
            head, rest = text.split(begin)
            text = head + begin + rows + end + rest.split(end, 1)[1]
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def provenance(result):
    return f"`{result['command']}`, commit {result['commit']}, load {result['load']} when it ended."


def table_of_faults(result):
    rows = ["| fault | times | all pairs move blocks again after (median) | (longest) |", "| --- | --- | --- | --- |"]
    rows += [f"| {one['does']} | {one['times']} | {one['again_ms_median']} ms | {one['again_ms_max']} ms |"
             for one in result["by_fault"].values()]
    errors = ", ".join(f"{name} {n:,}" for name, n in sorted(result["errors"].items(), key=lambda item: -item[1]))
    rows += ["", f"{result['faults']} faults in {sum(w['seconds'] for w in result['worlds']):.0f} s; "
             f"{result['requests_right']:,} requests came whole, {result['taken_back']:,} were taken back early, "
             f"{result['bytes_compared'] / 1e9:,.0f} GB were compared.",
             f"Wrong bytes {result['wrong']}, late bytes {result['late']}, errors without their cause {result['untyped']}, "
             f"calls beyond their deadline {result['overdue']}.",
             f"Errors, all with cause and peer: {errors}.",
             *(f"Not on that machine: {name}: {why}." for name, why in result["not_here"].items()), provenance(result)]
    return "\n".join(rows) + "\n"


def table_of_soak(result):
    rows = ["| way | TB | wrong bytes | GB/s, with filling and comparing |", "| --- | --- | --- | --- |"]
    rows += [f"| {way['way']} | {way['bytes_right'] / 1e12:.3f} | {way['wrong'] + way['late']} | "
             f"{way['gb_per_s_with_filling_and_comparing']} |" for way in result["ways"]]
    whole = sum(way["bytes_right"] for way in result["ways"])
    rows += ["", f"{whole / 1e12:.3f} TB in all; " + provenance(result)]
    return "\n".join(rows) + "\n"
