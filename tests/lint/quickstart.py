# SPDX-License-Identifier: Apache-2.0
"""quickstart.py -- the C program of the README compiles, runs and prints what the README says

usage: quickstart.py ROOT LIBRARY C_COMPILER
"""
import os
import re
import subprocess
import sys
import tempfile

import source


def program(readme):
    """The text of the only C block of the page."""
    blocks = re.findall(r"^```c\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    if len(blocks) != 1:
        source.report([f"README.md has {len(blocks)} C programs, one is expected"])
    return blocks[0]


def promise(readme):
    return re.search(r"It prints `([^`]+)`", readme)[1]


def check(root, library, compiler):
    readme = source.read(root, "README.md")
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "quickstart")
        command = [compiler, "-Wall", "-Wextra", "-Werror", "-I", os.path.join(root, "include"), "-xc", "-", "-xnone",
                   library, "-Wl,-rpath," + os.path.dirname(os.path.realpath(library)), "-o", path]
        built = subprocess.run(command, input=program(readme), capture_output=True, text=True)
        if built.returncode:
            return [built.stderr]
        ran = subprocess.run([path], capture_output=True, text=True, timeout=300)
    if ran.returncode or ran.stdout.strip() != promise(readme):
        return [f"exit {ran.returncode}, printed {ran.stdout!r} {ran.stderr!r}, promised {promise(readme)!r}"]
    return []


if __name__ == "__main__":
    source.report(check(*sys.argv[1:]))
