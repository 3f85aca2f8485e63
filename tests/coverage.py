# SPDX-License-Identifier: Apache-2.0
"""coverage.py -- lines and branches of the product that the tests reached, by folder

usage: coverage.py BUILD PAGE.md

BUILD is a tree of the preset `coverage` in which the tests have run. Prints the table, writes it to PAGE.md, and gcovr's pages,
line by line, to BUILD/pages."""
import collections
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PRODUCT = "(transport|kvapi|agent|net_plugin|tool)/"
HEAD = """# Coverage

Made by `./dev coverage` at {commit}: what the tests of one host reach, without the guests that have real verbs, without the
Python packages, NCCL and the NIXL plugin (C++, and run by real NIXL). Branches are counted as gcc has them at -O1, those that only a fault makes among them; the fault points
(`transport/base/fault.def`) and the fake device reach many.

"""


def folder_of(path):
    parts = path.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 else parts[0]


def table(files):
    """Rows of (folder, lines, reached, branches, reached), and their sum."""
    sums = collections.defaultdict(lambda: [0, 0, 0, 0])
    for file in files:
        for key in (folder_of(file["filename"]), "in all"):
            for i, name in enumerate(("line_total", "line_covered", "branch_total", "branch_covered")):
                sums[key][i] += file[name]
    rows = sorted(key for key in sums if key != "in all") + ["in all"]
    return [(key, *sums[key]) for key in rows]


def share(part, whole):
    return f"{100 * part / whole:.1f} %" if whole else ""


def main(build, page):
    pages, summary = os.path.join(build, "pages"), os.path.join(build, "coverage.json")
    os.makedirs(pages, exist_ok=True)
    subprocess.run(["gcovr", "--root", ROOT, "--filter", PRODUCT, "--exclude", ".*_test\\.c$", "--exclude", "kvapi/examples/",
                    "--gcov-ignore-parse-errors", "--json-summary", summary, "--html-details", os.path.join(pages, "index.html"), build],
                   cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    with open(summary, encoding="utf-8") as file:
        rows = table(json.load(file)["files"])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    lines = ["| folder | lines | reached | branches | reached |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {name} | {total} | {share(hit, total)} | {branches} | {share(taken, branches)} |"
              for name, total, hit, branches, taken in rows]
    print("\n".join(lines))
    with open(page, "w", encoding="utf-8") as file:
        file.write(HEAD.format(commit=commit) + "\n".join(lines) + "\n")
    print(f"coverage: {page} and {pages}/index.html are written", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
