# SPDX-License-Identifier: Apache-2.0
"""headers.py -- every public header compiles alone, as strict C11 and as C++; so do the examples and the README's program as C++

usage: headers.py ROOT C_COMPILER [C++_COMPILER]
"""
import glob
import os
import shutil
import subprocess
import sys

import quickstart
import source

FLAGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]


def compiled(root, what, text, dialects):
    for compiler, dialect in dialects:
        command = [compiler, *dialect, *FLAGS, "-I" + os.path.join(root, "include"), "-I" + os.path.join(root, "kvapi/examples"), "-"]
        run = subprocess.run(command, input=text, capture_output=True, text=True)
        if run.returncode:
            yield f"{what}, {compiler} {' '.join(dialect)}:\n{run.stderr}"


def check(root, dialects):
    findings = []
    for name in sorted(os.listdir(os.path.join(root, "include", "kvrail"))):
        text = f"#include <kvrail/{name}>\n#include <kvrail/{name}>\n"
        findings += compiled(root, f"{name} alone", text, dialects)
    return findings


def check_programs(root, dialects):
    programs = {path: source.read(root, path) for path in sorted(glob.glob("kvapi/examples/*.c", root_dir=root))}
    programs["README.md"] = quickstart.program(source.read(root, "README.md"))
    return [finding for path, text in programs.items() for finding in compiled(root, path, text, dialects)]


if __name__ == "__main__":
    if len(sys.argv) < 4 or not sys.argv[3]:
        source.skip("no C++ compiler (package g++)")
    compilers = {os.path.realpath(path): path for path in (sys.argv[3], shutil.which("clang++")) if path}.values()
    as_cxx = [(compiler, ["-xc++", f"-std=c++{year}"]) for compiler in compilers for year in (14, 17, 20)]
    source.report(check(sys.argv[1], [(sys.argv[2], ["-xc", "-std=c11"])] + as_cxx) + check_programs(sys.argv[1], as_cxx))
