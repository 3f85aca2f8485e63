# SPDX-License-Identifier: Apache-2.0
"""shape.py -- licence line in every source, no file over the hard limit, no wide line of C that is not a text's, no program that
cannot be started by its name

Long files and functions are noted.

usage: shape.py ROOT
"""
import os
import re
import sys

import source

FILE_LINES, FILE_LINES_HARD, FUNCTION_LINES, COLUMNS = 500, 800, 70, 100
SOURCES = (".c", ".h", ".cpp", ".hpp", ".def", ".py", ".sh", ".cmake", ".map", ".in")


def has_licence_line(text):
    return any("SPDX-License-Identifier: Apache-2.0" in line for line in text.splitlines()[:2])


def is_source(path):
    return path.endswith(SOURCES) or os.path.basename(path) in ("CMakeLists.txt", "dev", "run")


def functions(text):
    """(name, first line, number of lines) of each function: kernel style has both braces in the first column."""
    lines = text.splitlines()
    start = None
    for number, line in enumerate(lines, 1):
        if line == "{":
            start = number
        elif line == "}" and start:
            head = "".join(lines[max(0, start - 6):start - 1])
            names = re.findall(r"(\w+)\s*\(", head.rpartition(";")[2].rpartition("}")[2])
            yield names[0] if names else "?", start, number - start + 1
            start = None


def width(line):
    return len(line.expandtabs(8))


def check(root):
    findings, notes = [], []
    for path in source.files(root):
        if not is_source(path):
            continue
        text = source.read(root, path)
        lines = text.splitlines()
        if not has_licence_line(text):
            findings.append(f"{path}:1: no SPDX-License-Identifier: Apache-2.0 in the first two lines")
        if text.startswith("#!") and not os.access(os.path.join(root, path), os.X_OK):
            findings.append(f"{path}:1: it names its interpreter and cannot be started: chmod +x")
        if len(lines) > FILE_LINES_HARD:
            findings.append(f"{path}: {len(lines)} lines, the limit is {FILE_LINES_HARD}")
        elif len(lines) > FILE_LINES:
            notes.append(f"{path}: {len(lines)} lines, more than {FILE_LINES}")
        if path.endswith((".c", ".h")):
            for name, start, length in functions(text):
                if length > FUNCTION_LINES:
                    notes.append(f"{path}:{start}: {name} has {length} lines, more than {FUNCTION_LINES}")
            wide = [n for n, line in enumerate(lines, 1) if width(line) > COLUMNS and '"' not in line]
            if wide:
                findings.append(f"{path}:{wide[0]}: {len(wide)} lines are wider than {COLUMNS} columns")
    return findings, notes


if __name__ == "__main__":
    source.report(*check(sys.argv[1]))
