#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds the packages in a virtual environment as a user does (`pip install .`) and runs pytest there.

    run_in_venv.py SOURCE BUILD [pytest arguments]

Exit 77 with a reason where pip cannot install what the tests need. KVRAIL_VENV=DIR uses (and keeps) another environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import List

NEEDED = ["numpy", "pytest", "mypy"]


def skip(reason: str) -> None:
    print(f"skipped: {reason}")
    sys.exit(77)


def run(command: List[str], cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def environment(build: Path) -> Path:
    venv = Path(os.environ.get("KVRAIL_VENV", build / "venv"))
    python = venv / "bin" / "python"
    if not python.exists():
        made = run([sys.executable, "-m", "venv", str(venv)], build)
        if made.returncode:
            skip("python3 cannot make a virtual environment (Debian: python3-venv): " + made.stdout.strip()[-200:])
    return python


def main() -> int:
    source, build = Path(sys.argv[1]), Path(sys.argv[2])
    if sys.version_info < (3, 10):
        skip(f"python3 is {sys.version.split()[0]}; 3.10 is needed")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        skip(f"there is no Python.h for {sys.executable} (Debian: python3-dev)")
    build.mkdir(parents=True, exist_ok=True)
    python = environment(build)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    got = run(pip + NEEDED + ["scikit-build-core>=0.10"], build)
    if got.returncode:
        skip("pip cannot install " + ", ".join(NEEDED) + ": " + got.stdout.strip()[-200:])
    built = run(pip + ["--force-reinstall", "--no-deps", str(source)], build)
    if built.returncode:
        print(built.stdout)
        return 1
    tests = [str(python), "-m", "pytest", "-p", "no:cacheprovider", str(source / "python" / "tests")]
    return subprocess.run(tests + sys.argv[3:], cwd=build).returncode


if __name__ == "__main__":
    sys.exit(main())
