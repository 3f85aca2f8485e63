# SPDX-License-Identifier: Apache-2.0
"""scripts.py -- shellcheck finds nothing worse than a remark in a shell script

usage: scripts.py ROOT
"""
import shutil
import subprocess
import sys

import programs
import source


def scripts(root):
    return [path for path in source.files(root) if programs.is_script(root, path) == "sh"]


def check(root):
    paths = scripts(root)
    run = subprocess.run(["shellcheck", "--severity=warning", "--format=gcc", *paths], cwd=root, capture_output=True, text=True)
    return run.stdout.splitlines() if run.returncode in (0, 1) else [run.stdout + run.stderr]


if __name__ == "__main__":
    if not shutil.which("shellcheck"):
        source.skip("shellcheck is not installed")
    source.report(check(sys.argv[1]))
