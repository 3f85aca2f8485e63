# SPDX-License-Identifier: Apache-2.0
"""cppcheck.py -- cppcheck finds nothing in the product; cppcheck.suppress lists what it gets wrong, with the reason

usage: cppcheck.py ROOT COMPILE_COMMANDS
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import source

PRODUCT = ("transport/", "kvapi/", "net_plugin/", "agent/", "tool/", "bench/", "mpi_tests/")
FLAGS = ["--enable=warning,performance,portability", "--quiet", "--error-exitcode=2", "--template={file}:{line}: {id}: {message}"]


def product(root, commands):
    """The command of each file of the product, once: targets share files."""
    chosen = {}
    for command in commands:
        path = os.path.relpath(os.path.realpath(command["file"]), os.path.realpath(root))
        if path.startswith(PRODUCT):
            chosen.setdefault(path, command)
    return list(chosen.values())


def without_reason(lines):
    return [f"cppcheck.suppress:{number + 1}: no reason above it" for number, line in enumerate(lines)
            if line.strip() and not line.startswith("#") and (not number or not lines[number - 1].startswith("#"))]


def check(root, commands):
    with tempfile.TemporaryDirectory() as work:
        project = os.path.join(work, "compile_commands.json")
        with open(project, "w", encoding="utf-8") as file:
            json.dump(product(root, commands), file)
        suppressions = os.path.join(root, "tests/lint/cppcheck.suppress")
        listed, found = [], []
        if os.path.exists(suppressions):
            listed = [f"--suppressions-list={suppressions}"]
            found = without_reason(source.read(root, suppressions).splitlines())
        run = subprocess.run(["cppcheck", f"--project={project}", f"-j{os.cpu_count()}", *FLAGS, *listed],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found += [line.replace(os.path.realpath(root) + "/", "") for line in run.stdout.splitlines()]
    return sorted(set(found)) or (["cppcheck failed without a word"] if run.returncode else [])


if __name__ == "__main__":
    if not shutil.which("cppcheck"):
        source.skip("no cppcheck here (package cppcheck)")
    with open(sys.argv[2], encoding="utf-8") as file:
        source.report(check(sys.argv[1], json.load(file)))
