# SPDX-License-Identifier: Apache-2.0
"""names.py -- a static function's name stands in one file of the library, and says more than a verb

A backtrace, a profile and a search show the name alone: `begin` of three files is none of them.

usage: names.py ROOT
"""
import collections
import re
import sys

import source

LIBRARY = ("kvapi/", "transport/", "agent/")  # in one shared object
BARE = "begin commit end find flush move release run start stop take".split()


def static_functions(text):
    """(line, name) of each static function's definition: kernel style has its brace in the first column."""
    for match in re.finditer(r"^static\b[^;{}=]*?\n\{", source.code(text), re.MULTILINE):
        head = re.sub(r"__attribute__\s*\(\(.*?\)\)", lambda m: " " * len(m[0]), match[0])
        name = re.search(r"\b(\w+)\s*\(", head)
        if name:
            yield text.count("\n", 0, match.start() + name.start(1)) + 1, name[1]


def check(root):
    places = collections.defaultdict(dict)  # name: {path: line}
    for path in source.c_files(root):
        if path.startswith(LIBRARY) and source.is_library(path):
            for line, name in static_functions(source.read(root, path)):
                places[name][path] = line
    findings = []
    for name, files in sorted(places.items()):
        for path, line in files.items():
            others = sorted(set(files) - {path})
            if others:
                findings.append(f"{path}:{line}: {name} is also in {', '.join(others)}: name what it works on")
            elif name in BARE:
                findings.append(f"{path}:{line}: {name} says nothing alone: name what it works on")
    return findings


if __name__ == "__main__":
    source.report(check(sys.argv[1]))
