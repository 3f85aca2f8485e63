# SPDX-License-Identifier: Apache-2.0
"""quickstart.py -- the C program of the README compiles, runs and prints what the README says

usage: quickstart.py ROOT LIBRARY C_COMPILER
       quickstart.py --write ROOT FOLDER          the program as app.c, and what it prints as promise
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


def write(root, folder):
    readme = source.read(root, "README.md")
    for name, text in ("app.c", program(readme)), ("promise", promise(readme) + "\n"):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write(*sys.argv[2:])
    else:
        source.report(check(*sys.argv[1:]))
