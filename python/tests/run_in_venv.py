#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds the wheel (`pip wheel`), installs it in a virtual environment and runs pytest there.

    run_in_venv.py [--every] SOURCE BUILD [pytest arguments]

--every: in one environment for each Python from 3.10 on that is found, all with the same wheel.
Exit 77 with a reason where pip cannot install what the tests need. KVRAIL_VENV=DIR uses (and keeps) another environment.
KVRAIL_WHEEL=FILE tests that wheel instead of building one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Dict, List, Tuple

NEEDED = ["numpy", "pytest", "mypy", "auditwheel"]
OLDEST = (3, 10)


def skip(reason: str) -> None:
    print(f"skipped: {reason}")
    sys.exit(77)


def run(command: List[str], cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def environment(interpreter: str, venv: Path, build: Path) -> List[str]:
    """The environment's python, and in it what the tests need."""
    python = venv / "bin" / "python"
    if not python.exists():
        made = run([interpreter, "-m", "venv", str(venv)], build)
        if made.returncode:
            skip("python3 cannot make a virtual environment (Debian: python3-venv): " + made.stdout.strip()[-200:])
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    got = run(pip + ["install"] + NEEDED + ["scikit-build-core>=0.10"], build)
    if got.returncode:
        skip("pip cannot install " + ", ".join(NEEDED) + ": " + got.stdout.strip()[-200:])
    return pip


def wheel(pip: List[str], source: Path, build: Path) -> Path:
    if "KVRAIL_WHEEL" in os.environ:
        return Path(os.environ["KVRAIL_WHEEL"])
    out = build / "dist"
    for old in out.glob("*.whl"):
        old.unlink()
    built = run(pip + ["wheel", "--no-deps", "--wheel-dir", str(out), str(source)], build)
    if built.returncode:
        print(built.stdout)
        sys.exit(1)
    return next(out.glob("*.whl"))


def test(pip: List[str], package: Path, source: Path, build: Path, arguments: List[str]) -> int:
    put = run(pip + ["install", "--force-reinstall", "--no-deps", str(package)], build)
    if put.returncode:
        print(put.stdout)
        return 1
    tests = [pip[0], "-m", "pytest", "-p", "no:cacheprovider", str(source / "python" / "tests")]
    environ = {**os.environ, "KVRAIL_WHEEL": str(package)}
    return subprocess.run(tests + arguments, cwd=build, env=environ).returncode


def interpreters() -> Dict[str, str]:
    """Version -> path, of every Python that this package supports: those on PATH, and pyenv's."""
    found: Dict[Tuple[int, int], str] = {}
    places = [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep)]
    places += sorted((Path.home() / ".pyenv" / "versions").glob("*/bin"))
    for place in places:
        for path in place.glob("python3.[0-9]*"):
            minor = path.name.rpartition(".")[2]
            version = (3, int(minor)) if minor.isdigit() else (0, 0)
            if version >= OLDEST and version not in found and run([str(path), "-c", ""], Path("/")).returncode == 0:
                found[version] = str(path)
    return {f"{major}.{minor}": found[major, minor] for major, minor in sorted(found)}


def main() -> int:
    arguments = sys.argv[1:]
    every = arguments[0] == "--every"
    source, build = Path(arguments[every]), Path(arguments[every + 1])
    rest = arguments[every + 2 :]
    if sys.version_info < OLDEST:
        skip(f"python3 is {sys.version.split()[0]}; 3.10 is needed")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        skip(f"there is no Python.h for {sys.executable} (Debian: python3-dev)")
    build.mkdir(parents=True, exist_ok=True)
    pip = environment(sys.executable, Path(os.environ.get("KVRAIL_VENV", build / "venv")), build)
    package = wheel(pip, source, build)
    if not every:
        return test(pip, package, source, build, rest)
    worst = 0
    for version, path in interpreters().items():
        print(f"Python {version}: {package.name}", flush=True)
        worst |= test(environment(path, build / f"venv-{version}", build), package, source, build, rest)
    return worst


if __name__ == "__main__":
    sys.exit(main())
