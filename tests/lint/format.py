# SPDX-License-Identifier: Apache-2.0
"""format.py -- is every .c file as clang-format leaves it? Headers keep their columns, which it would not

usage: format.py [--fix] [ROOT]

Versions of clang-format disagree in details, so only the one that the tree is formatted with may judge.
"""
import os
import shutil
import subprocess
import sys

import source

VERSION = "14"


def sources(root):
    return [path for path in source.c_files(root) if path.endswith(".c")]


def find_formatter():
    for name in (f"clang-format-{VERSION}", "clang-format"):
        if shutil.which(name):
            said = subprocess.run([name, "--version"], capture_output=True, text=True, check=True).stdout
            if f"version {VERSION}." in said:
                return name
    return None


def check(root, formatter):
    paths = sources(root)
    run = subprocess.run([formatter, "--dry-run", "-Werror", *paths], cwd=root, capture_output=True, text=True)
    if not run.returncode:
        return []
    said = {line.split(":")[0] for line in run.stderr.splitlines()}
    wrong = [path for path in paths if path in said]
    return [f"{path}: not formatted; ./dev format does it" for path in wrong] or [run.stderr]


def fix(root, formatter):
    subprocess.run([formatter, "-i", *sources(root)], cwd=root, check=True)


if __name__ == "__main__":
    tree = sys.argv[-1] if os.path.isdir(sys.argv[-1]) else "."
    program = find_formatter()
    if program is None:
        source.skip(f"clang-format {VERSION} is not installed (package clang-format-{VERSION})")
    if "--fix" in sys.argv:
        fix(tree, program)
    else:
        source.report(check(tree, program))
