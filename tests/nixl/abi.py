# SPDX-License-Identifier: Apache-2.0
"""abi.py -- the virtual functions of libplugin_KVRAIL.so are those of NIXL's own plugins: same order, same signatures

usage: abi.py PLUGIN

Both are read with nm and readelf, out of our file and out of libplugin_UCX.so of NIXL's wheels: of one version, with KVRAIL_LONG=1 of
all that are named in wheels.py, and of the newest that PyPI has.
"""
import os
import re
import subprocess
import sys

import wheels

SLOTS = 27  # those of nixlBackendEngine; a plugin may add its own behind them


def lines(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def slots(path, engine):
    """The functions in the vtable of a class, without the name of their class."""
    names, table = {}, None
    for tool in (("nm", "-C", "-S"), ("nm", "-D", "-C", "-S")):
        for line in lines(*tool, path):
            match = re.match(r"([0-9a-f]{16}) ([0-9a-f]{16}) \S (.*)", line)
            if match:
                names[int(match[1], 16)] = match[3]
                if match[3] == f"vtable for {engine}":
                    table = int(match[1], 16), int(match[2], 16)
    if not table:
        sys.exit(f"{path} has no vtable for {engine}")
    target = {}
    for line in lines("readelf", "-rW", path):
        part = line.split()
        if len(part) >= 4 and re.fullmatch(r"[0-9a-f]{12,16}", part[0]):
            if part[2] == "R_X86_64_RELATIVE":
                target[int(part[0], 16)] = int(part[3], 16)
            elif part[2] == "R_X86_64_64":
                target[int(part[0], 16)] = int(part[3], 16)  # the symbol's value: it is defined here
    begin, size = table
    found = [names.get(target.get(at), "?") for at in range(begin + 16, begin + size, 8)]
    return [re.sub(r"^(\w+)::(~?)\1\b", r"\2E", re.sub(r"^(?!(\w+)::~?\1)\w+::", "", name)) for name in found]


def compare(ours, theirs, where):
    findings = [f"{where}: slot {i} is {b}, ours is {a}" for i, (a, b) in enumerate(zip(ours[:SLOTS], theirs[:SLOTS])) if a != b]
    if len(ours) != SLOTS or len(theirs) < SLOTS:
        findings.append(f"{where}: {len(theirs)} slots, ours has {len(ours)}, and {SLOTS} are NIXL's")
    return findings


def main():
    ours = slots(sys.argv[1], "kvrailEngine")
    findings, looked, why = [], [], None
    for version in (wheels.VERSION, *((*wheels.OLDER, wheels.NEWEST) if os.environ.get("KVRAIL_LONG") == "1" else ())):
        try:
            path = wheels.plugin(wheels.site_packages(version))
        except wheels.Unavailable as error:
            why = error
            print(f"note: {error}")
            continue
        findings += compare(ours, slots(path, "nixlUcxEngine"), f"NIXL {version}")
        looked.append(version)
    print("\n".join(findings))
    print(f"{len(findings)} differences, {SLOTS} slots of NIXL {', '.join(looked) or 'no version'}")
    if findings:
        sys.exit(1)
    if not looked:
        wheels.skip(why)


if __name__ == "__main__":
    main()
