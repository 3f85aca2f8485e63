# SPDX-License-Identifier: Apache-2.0
"""abi.py -- a program that was linked with the last release of libkvrail still works with this one: abidiff finds no change

usage: abi.py ROOT LIBRARY              the library against packaging/libkvrail.abi
       abi.py --write ROOT LIBRARY      at a release: this library is what the next ones are compared with

A new function is no change, nor is a new enumerator, nor a member at the end of a struct that begins with its size. Anything else
needs a new minor version of kvrail, and so a new SONAME. It takes a library with debug information.
"""
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile

import source

KEPT = "packaging/libkvrail.abi"
ARCHITECTURE = "x86_64"
SIZED = "[suppress_type]\n  type_kind = struct\n  name_regexp = ^({})$\n  has_data_member_inserted_at = end\n"


def write(root, library, out):
    subprocess.run(["abidw", "--headers-dir", os.path.join(root, "include/kvrail"), "--drop-private-types", "--drop-undefined-syms",
                    "--no-corpus-path", "--no-comp-dir-path", "--type-id-style", "hash", "--out-file", out,
                    library], check=True)


def sized(root):
    """Names of public structs that begin with their size, at which the library looks."""
    folder = os.path.join("include", "kvrail")
    text = "".join(source.read(root, os.path.join(folder, name)) for name in os.listdir(os.path.join(root, folder)))
    return re.findall(r"^struct (\w+) {\n\tsize_t size;", text, re.MULTILINE)


def check(root, library):
    with tempfile.NamedTemporaryFile("w", suffix=".ini") as suppress:
        suppress.write(SIZED.format("|".join(sized(root))))
        suppress.flush()
        done = subprocess.run(["abidiff", "--no-added-syms", "--suppressions", suppress.name, "--drop-private-types",
                               "--headers-dir2", os.path.join(root, "include/kvrail"), os.path.join(root, KEPT), library],
                              capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return []
    return [f"{KEPT} and {os.path.basename(library)} differ; what to do says CONTRIBUTING.md\n{done.stdout}{done.stderr}"]


def main(arguments):
    if not shutil.which("abidiff"):
        print("skipped: no abidiff here (abigail-tools)")
        return 77
    if arguments[0] == "--write":
        root, library = arguments[1:]
        write(root, library, os.path.join(root, KEPT))
        return 0
    if platform.machine() != ARCHITECTURE:
        print(f"skipped: {KEPT} is of {ARCHITECTURE}")
        return 77
    return source.report(check(*arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
