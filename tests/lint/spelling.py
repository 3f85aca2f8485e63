# SPDX-License-Identifier: Apache-2.0
"""spelling.py -- codespell finds no misspelt word in code, comments and documents

usage: spelling.py ROOT
"""
import shutil
import subprocess
import sys

import source

NOT_WORDS = "nd"  # the number of dimensions of an array
NOT_TEXT = (".jsonl", ".json", ".txt")  # traces, results, and what a program is to print


def check(root):
    paths = [path for path in source.files(root) if not path.endswith(NOT_TEXT) or path.endswith("CMakeLists.txt")]
    run = subprocess.run(["codespell", "-L", NOT_WORDS, *paths], cwd=root, capture_output=True, text=True)
    return run.stdout.splitlines() if run.returncode in (0, 65) else [run.stdout + run.stderr]


if __name__ == "__main__":
    if not shutil.which("codespell"):
        source.skip("codespell is not installed")
    source.report(check(sys.argv[1]))
