# SPDX-License-Identifier: Apache-2.0
"""summary.py -- one account of several ctest runs: what failed, what was skipped and why, and the counts

usage: summary.py [--require "LABEL ..."] [--skipped "WHAT: WHY"]... BUILD_DIRECTORY ...

Reads results.xml (ctest --output-junit) and tests.json (ctest --show-only=json-v1) of each directory. Exit 0 only if
each of them ran at least one test, nothing failed, and no label that --require names was skipped or is unknown.
A test counts as skipped only if it exited with the agreed code itself; a program that is not there has failed.
"""
import argparse
import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree

CAUSE_LINES, CAUSE_WIDTH = 16, 240
TELLING = re.compile(r"error|fail|left something|sanitizer|timeout|assert|killed", re.IGNORECASE)
PASSING = re.compile(r"^\[ +(RUN|OK|PASSED) +\]|\bPassed\b")


def reason_of(output):
    """The reason that a skipped test printed: its last line that speaks of skipping, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "skip" in line.lower()]
    line = (telling or lines or ["gave no reason"])[-1]
    return re.sub(r"^skip(ped)?\s*:\s*", "", line, flags=re.IGNORECASE)


def cause_of(output):
    """What a failed test said of its failure: the first and the last lines that name an error, else its last ones.

    A test of several stages goes on after one that failed: its cause may stand far above the end.
    """
    lines = [line.rstrip()[:CAUSE_WIDTH] for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if TELLING.search(line) and not PASSING.search(line)]
    if not telling:
        return lines[-CAUSE_LINES:]
    first = telling[: CAUSE_LINES // 2]
    return first + telling[len(first) :][-CAUSE_LINES // 2 :]


class Case:
    def __init__(self, where, element, labels):
        self.name = element.get("name")
        self.where = where
        self.labels = labels.get(self.name, set())
        self.output = element.findtext("system-out") or ""
        note = element.find("skipped")
        self.skipped = note is not None and note.get("message", "").startswith("SKIP_RETURN_CODE")
        self.failed = element.get("status") != "run" and not self.skipped
        self.parts_skipped = {} if self.skipped else parts_skipped(self.output)


def parts_skipped(output):
    """{name: reason} of the test functions of a cmocka program that called skip() while the program went on."""
    pattern = re.compile(r"^\[ RUN      \] (\w+)$(.*?)^\[  SKIPPED \] \1$", re.MULTILINE | re.DOTALL)
    return {name: reason_of(said) for name, said in pattern.findall(output) if "[       OK ]" not in said}


def read_labels(path):
    with open(path, encoding="utf-8") as file:
        tests = json.load(file)["tests"]
    return {
        test["name"]: {label for p in test.get("properties", []) if p["name"] == "LABELS" for label in p["value"]}
        for test in tests
    }


def read(directory):
    results = os.path.join(directory, "results.xml")
    if not os.path.exists(results):
        return []
    where = os.path.basename(os.path.normpath(directory)).replace("build-", "")
    labels = read_labels(os.path.join(directory, "tests.json"))
    return [Case(where, element, labels) for element in ElementTree.parse(results).getroot().iter("testcase")]


def unmet(required, cases):
    """Why the rigs that were declared present were not all used."""
    known = set().union(*[case.labels for case in cases])
    for label in required:
        if label not in known:
            yield f"KVRAIL_REQUIRE names {label}, but no test has that label"
        for case in cases:
            if label in case.labels and case.skipped:
                yield f"KVRAIL_REQUIRE names {label}, but {case.name} was skipped ({case.where})"
            for part in case.parts_skipped if label in case.labels else []:
                yield f"KVRAIL_REQUIRE names {label}, but {part} of {case.name} was skipped ({case.where})"


def account(cases, complaints, out, skipped=()):
    skips = list(skipped) + [f"{c.name} ({c.where}): {reason_of(c.output)}" for c in cases if c.skipped]
    skips += [f"{part} of {c.name} ({c.where}): {why}" for c in cases for part, why in c.parts_skipped.items()]
    failed = [c for c in cases if c.failed]
    ran = sum(not c.skipped for c in cases)

    out.write("\n")
    if skips:
        out.write("Skipped, not counted as passed:\n")
    out.writelines(f"  {line}\n" for line in skips or ["Nothing was skipped."])
    for c in failed:
        out.write(f"  FAILED {c.name} ({c.where})\n")
        out.writelines(f"    {line}\n" for line in cause_of(c.output))
    out.writelines(f"  FAILED {line}\n" for line in complaints)
    percent = 100 * (ran - len(failed)) // ran if ran else 0
    if complaints:
        percent = min(percent, 99)
    out.write(f"\n{percent}% tests passed, {len(failed)} tests failed out of {ran}; {len(skips)} skipped\n")
    return not failed and not complaints


def summary(directories, required, out, skipped=()):
    cases, complaints = [], []
    for directory in directories:
        found = read(directory)
        if not found:
            complaints.append(f"{directory}: no test ran")
        cases += found
    complaints += unmet(required, cases)
    return account(cases, complaints, out, skipped)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--require", default="")
    parser.add_argument("--skipped", action="append", default=[], metavar="WHAT: WHY")
    parser.add_argument("directories", nargs="+")
    args = parser.parse_args()
    sys.exit(0 if summary(args.directories, args.require.split(), sys.stdout, args.skipped) else 1)
