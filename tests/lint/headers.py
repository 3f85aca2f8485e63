# SPDX-License-Identifier: Apache-2.0
"""headers.py -- every public header compiles alone, as strict C11 and as C++17

usage: headers.py ROOT C_COMPILER [C++_COMPILER]
"""
import os
import subprocess
import sys

import source

FLAGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]


def check(root, dialects):
    findings = []
    folder = os.path.join(root, "include", "kvrail")
    for name in sorted(os.listdir(folder)):
        for compiler, dialect in dialects:
            command = [compiler, *dialect, *FLAGS, "-I" + os.path.join(root, "include"), "-"]
            text = f"#include <kvrail/{name}>\n#include <kvrail/{name}>\n"
            run = subprocess.run(command, input=text, capture_output=True, text=True)
            if run.returncode:
                findings.append(f"{name} alone, {' '.join(dialect)}:\n{run.stderr}")
    return findings


if __name__ == "__main__":
    if len(sys.argv) < 4 or not sys.argv[3]:
        source.skip("no C++ compiler (package g++)")
    source.report(check(sys.argv[1], [(sys.argv[2], ["-xc", "-std=c11"]), (sys.argv[3], ["-xc++", "-std=c++17"])]))
